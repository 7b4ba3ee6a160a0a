"""A multilayer perceptron on the pooled layer features: the linear head with hidden layers in between.

The same recipe as the feed-forward head on a layer-weighted sum in the frozen-encoder comparisons of the field.
"""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar, Literal

from torch import Tensor, nn

from pipeline.backends._shared import LayerWeights, check_sizes


class Backend(nn.Module):
    """Layer-weighted mean and standard deviation over time, normalized, then hidden layers and one linear layer.

    Each hidden layer is linear → ReLU → dropout. The LayerNorm in front brings any choice of layers to unit scale, so
    that one learning rate serves a search over layers.

    Args:
        layers: number of tapped layers, L.
        channels: width of a layer, D.
        embedding_dim: width of the embedding, E.
        hidden_dim: width of every hidden layer, H.
        hidden_layers: number of hidden layers.
        dropout: share of the hidden activations dropped in training.

    Raises:
        ValueError: a width or the number of hidden layers below 1, or a dropout outside [0, 1).
    """

    reads: ClassVar[Literal["pooled", "frames"]] = "pooled"

    def __init__(
        self,
        *,
        layers: int,
        channels: int,
        embedding_dim: int = 128,
        hidden_dim: int = 256,
        hidden_layers: int = 1,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        check_sizes(embedding_dim=embedding_dim, hidden_dim=hidden_dim, hidden_layers=hidden_layers)
        if not 0 <= dropout < 1:
            raise ValueError(f"expected dropout in [0, 1), got {dropout}")
        self.embedding_dim = embedding_dim
        self.layer_weights = LayerWeights(layers)
        self.norm = nn.LayerNorm(2 * channels)
        widths = [2 * channels, *[hidden_dim] * hidden_layers]
        self.hidden = nn.Sequential(
            *(
                nn.Sequential(nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout))
                for before, after in pairwise(widths)
            )
        )
        self.project = nn.Linear(hidden_dim, embedding_dim)

    def forward(self, features: Tensor, n_frames: Tensor) -> Tensor:
        """Features (B, L, 2, D), mean and standard deviation over the valid frames, to embeddings (B, E).

        n_frames (B,) is not read: the pooling was done over the valid frames.
        """
        pooled = self.norm(self.layer_weights(features).flatten(1))  # (B, 2D)
        embeddings: Tensor = self.project(self.hidden(pooled))  # (B, H) -> (B, E)
        return embeddings
