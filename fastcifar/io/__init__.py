"""Reading files that somebody else wrote, and writing files that are complete or not there at all."""
