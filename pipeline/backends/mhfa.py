"""Multi-head factorised attention: one layer weighting says where to look, another what is seen there.

Peng, Plchot, Stafylakis, Mošner, Burget, Černocký: "An attention-based backend allowing efficient fine-tuning of
transformer models for speaker verification", SLT 2022, arXiv 2210.01273.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.backends._shared import LayerWeights, check_sizes, fill_padding, valid_frames


class Backend(nn.Module):
    """Attention of H heads from the keys, over time, sums the values; the heads side by side go to one linear layer.

    Keys and values are two layer-weighted sums of the same frames, each compressed by a linear layer of its own; a head
    is one row of the linear map from keys to scores. Every head sees all of the values.

    Each sum is first normalized frame by frame (a LayerNorm without weights, which the linear layers would absorb). The
    paper does without, on layers that end in a LayerNorm; here the raw residual stream, which grows with depth,
    would leave each head with one frame.

    Args:
        layers: number of tapped layers, L.
        channels: width of a layer, D.
        embedding_dim: width of the embedding, E.
        heads: number of heads, H.
        compression_dim: width of keys and values, C.

    Raises:
        ValueError: a width or the number of heads below 1.
    """

    reads: ClassVar[Literal["pooled", "frames"]] = "frames"

    def __init__(
        self, *, layers: int, channels: int, embedding_dim: int = 256, heads: int = 8, compression_dim: int = 128
    ) -> None:
        super().__init__()
        check_sizes(embedding_dim=embedding_dim, heads=heads, compression_dim=compression_dim)
        self.embedding_dim = embedding_dim
        self.key_weights = LayerWeights(layers)
        self.value_weights = LayerWeights(layers)
        self.compress_keys = nn.Linear(channels, compression_dim)
        self.compress_values = nn.Linear(channels, compression_dim)
        self.score = nn.Linear(compression_dim, heads, bias=False)  # the softmax cancels a bias
        self.project = nn.Linear(heads * compression_dim, embedding_dim)

    def forward(self, features: Tensor, n_frames: Tensor) -> Tensor:
        """Features (B, L, T, D), of which the first n_frames (B,) ≥ 1 frames are valid, to embeddings (B, E).

        What padding frames hold, NaN included, reaches neither the embeddings nor a gradient.
        """
        valid = valid_frames(features.shape[2], n_frames)  # (B, T), or None
        features = fill_padding(features, valid, time=2)
        keys = self.compress_keys(_normalize(self.key_weights(features)))  # (B, T, C)
        values = self.compress_values(_normalize(self.value_weights(features)))  # (B, T, C)
        heads = self.attention(keys, valid).transpose(1, 2) @ values  # (B, H, C)
        embeddings: Tensor = self.project(heads.flatten(1))
        return embeddings

    def attention(self, keys: Tensor, valid: Tensor | None) -> Tensor:
        """Weights (B, T, H), each head's sum to 1 over the valid frames and 0 elsewhere, from keys (B, T, C)."""
        scores: Tensor = self.score(keys)
        return fill_padding(scores, valid, -torch.inf, time=1).softmax(dim=1)


def _normalize(frames: Tensor) -> Tensor:
    return functional.layer_norm(frames, frames.shape[-1:])
