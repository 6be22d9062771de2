"""Runs together: groups of seeds, sweeps, lists, comparisons."""
