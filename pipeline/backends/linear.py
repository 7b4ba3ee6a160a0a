"""A linear map of the pooled layer features: the cheapest head, with no nonlinearity of its own besides a LayerNorm."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor, nn

from pipeline.backends._shared import LayerWeights, check_sizes


class Backend(nn.Module):
    """Layer-weighted mean and standard deviation over time, normalized, then one linear layer.

    The raw residual stream grows with depth. The LayerNorm brings any choice of layers to unit scale, so that one
    learning rate serves a search over layers.

    Args:
        layers: number of tapped layers, L.
        channels: width of a layer, D.
        embedding_dim: width of the embedding, E.

    Raises:
        ValueError: an embedding_dim below 1.
    """

    reads: ClassVar[Literal["pooled", "frames"]] = "pooled"

    def __init__(self, *, layers: int, channels: int, embedding_dim: int = 128) -> None:
        super().__init__()
        check_sizes(embedding_dim=embedding_dim)
        self.embedding_dim = embedding_dim
        self.layer_weights = LayerWeights(layers)
        self.norm = nn.LayerNorm(2 * channels)
        self.project = nn.Linear(2 * channels, embedding_dim)

    def forward(self, features: Tensor, n_frames: Tensor) -> Tensor:
        """Features (B, L, 2, D), mean and standard deviation over the valid frames, to embeddings (B, E).

        n_frames (B,) is not read: the pooling was done over the valid frames.
        """
        pooled = self.layer_weights(features).flatten(1)  # (B, 2D)
        embeddings: Tensor = self.project(self.norm(pooled))
        return embeddings
