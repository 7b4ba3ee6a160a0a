"""Attentive statistics pooling: frames weighted by learned attention, then their mean and standard deviation.

Okabe, Koshinaka, Shinoda: "Attentive statistics pooling for deep speaker embedding", Interspeech 2018,
arXiv 1803.10963.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from pipeline.backends._shared import LayerWeights, check_sizes, fill_padding, valid_frames

VARIANCE_FLOOR = 1e-8  # of frames at unit scale; the square root's gradient is infinite at 0, where one frame lands


class Backend(nn.Module):
    """Mean and standard deviation of the layer-weighted frames h_t under attention, then one linear layer.

    The attention is softmax_t(v · tanh(W h_t + b)), one number a frame, shared by all channels. The paper's offset k
    of its scores is left out: the softmax cancels it. Each frame is first normalized, because the raw residual stream
    grows with depth and would saturate the tanh.

    Args:
        layers: number of tapped layers, L.
        channels: width of a layer, D.
        embedding_dim: width of the embedding, E.
        attention_dim: width of the attention's bottleneck, A.

    Raises:
        ValueError: a width below 1.
    """

    reads: ClassVar[Literal["pooled", "frames"]] = "frames"

    def __init__(self, *, layers: int, channels: int, embedding_dim: int = 128, attention_dim: int = 64) -> None:
        super().__init__()
        check_sizes(embedding_dim=embedding_dim, attention_dim=attention_dim)
        self.embedding_dim = embedding_dim
        self.layer_weights = LayerWeights(layers)
        self.norm = nn.LayerNorm(channels)
        self.bottleneck = nn.Linear(channels, attention_dim)
        self.score = nn.Linear(attention_dim, 1, bias=False)
        self.project = nn.Linear(2 * channels, embedding_dim)

    def forward(self, features: Tensor, n_frames: Tensor) -> Tensor:
        """Features (B, L, T, D), of which the first n_frames (B,) ≥ 1 frames are valid, to embeddings (B, E).

        What padding frames hold, NaN included, reaches neither the embeddings nor a gradient.
        """
        valid = valid_frames(features.shape[2], n_frames)  # (B, T), or None
        frames = self.norm(self.layer_weights(fill_padding(features, valid, time=2)))  # (B, T, D)
        embeddings: Tensor = self.project(attentive_statistics(frames, self.attention(frames, valid)))
        return embeddings

    def attention(self, frames: Tensor, valid: Tensor | None) -> Tensor:
        """Weights (B, T) that sum to 1 over the valid frames and are 0 elsewhere, from frames (B, T, D)."""
        scores: Tensor = self.score(self.bottleneck(frames).tanh())[..., 0]  # (B, T)
        return fill_padding(scores, valid, -torch.inf, time=1).softmax(dim=1)


def attentive_statistics(frames: Tensor, attention: Tensor) -> Tensor:
    """Mean and standard deviation (B, 2D) of frames (B, T, D) under attention weights (B, T)."""
    weights = attention[:, None]  # (B, 1, T)
    mean = weights @ frames  # (B, 1, D)
    # The centred form: the mean of squares minus the square of the mean cancels where a channel has a large offset.
    variance = weights @ (frames - mean).pow(2)  # (B, 1, D)
    return torch.cat([mean, variance.clamp(min=VARIANCE_FLOOR).sqrt()], dim=2)[:, 0]
