"""Losses: one file each, embeddings and labels to a scalar; a loss owns its centroids."""
