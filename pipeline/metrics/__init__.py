"""Metrics: pure functions over NumPy arrays of scores."""
