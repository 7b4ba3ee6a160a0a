"""What the embeddings of a run and the layers of an encoder show."""
