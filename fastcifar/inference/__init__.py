"""A trained run, opened: its predictions, their metrics, and the selection of images to show."""
