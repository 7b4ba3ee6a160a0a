"""The feature store: written, read, batched."""
