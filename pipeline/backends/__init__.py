"""Backends: one file each, layer features to an embedding."""
