"""What the machine offers this process: CPUs, memory, limits of control groups."""
