"""Augmentation in two steps: sample parameters (`params`), then apply them to pixels (a `*_kernel` module for each way
to do that, all behind the interface of `kernel`)."""
