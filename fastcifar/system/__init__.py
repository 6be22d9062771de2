"""The resources of this process: CPUs, memory, limits of control groups."""
