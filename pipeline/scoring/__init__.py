"""The score: a trained run, its centroids, one number for an embedding."""
