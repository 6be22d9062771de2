"""Augmentation in two halves: what is chosen (`draws`) and how the choices become pixels (the `*_ops` modules)."""
