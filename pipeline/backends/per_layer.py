"""Every layer for itself: one small projection a layer of its pooled features, nothing shared and nothing summed.

With the loss `per_layer_oc`, each layer of the frozen encoder has a one-class decision of its own, and the decisions
are averaged.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.backends._shared import check_sizes


class Backend(nn.Module):
    """Each layer's mean and standard deviation over time, normalized, through a linear layer of its own to unit length.

    The embedding is the L projections one after the other, so its norm is √L, and no layer outweighs another.

    Args:
        layers: number of tapped layers, L.
        channels: width of a layer, D.
        layer_dim: width of one layer's segment of the embedding; E = L · layer_dim.

    Raises:
        ValueError: a layer_dim below 1.
    """

    reads: ClassVar[Literal["pooled", "frames"]] = "pooled"

    def __init__(self, *, layers: int, channels: int, layer_dim: int = 64) -> None:
        super().__init__()
        check_sizes(layer_dim=layer_dim)
        self.embedding_dim = layers * layer_dim
        bound = 1 / math.sqrt(2 * channels)  # torch's own for a linear layer
        self.weight = nn.Parameter(torch.empty(layers, 2 * channels, layer_dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(layers, 1, layer_dim).uniform_(-bound, bound))

    def forward(self, features: Tensor, n_frames: Tensor) -> Tensor:
        """Features (B, L, 2, D), mean and standard deviation over the valid frames, to embeddings (B, E).

        n_frames (B,) is not read: the pooling was done over the valid frames.
        """
        pooled = features.flatten(2)  # (B, L, 2D)
        normalized = functional.layer_norm(pooled, pooled.shape[2:])  # no gains: the linear layers have them
        projected = torch.baddbmm(self.bias, normalized.transpose(0, 1), self.weight)  # (L, B, layer_dim)
        return functional.normalize(projected, dim=2).transpose(0, 1).flatten(1)
