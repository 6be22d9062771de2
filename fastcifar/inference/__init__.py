"""A trained run, opened: its predictions, their metrics, and which of them to look at."""
