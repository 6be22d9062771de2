"""The boundary to the file system: reading files of unknown origin, and replacing files atomically."""
