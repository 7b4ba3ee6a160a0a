"""Sensitive layer selection: every layer gated by what it holds, their sum read as an image of time and channel.

Zhang, Wen, Hu: "Audio Deepfake Detection with Self-Supervised XLS-R and SLS Classifier", ACM Multimedia 2024,
doi 10.1145/3664647.3681345.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional

from pipeline.backends._shared import check_sizes, fill_padding, normalize_valid, valid_frames
from pipeline.core.errors import InputError

POOL = 3  # frames, and channels, of one field of the max pooling


class Backend(nn.Module):
    """The sum over layers of σ(v · mean_t h_lt + b) h_lt, normalized, max-pooled, through one linear layer and SELU.

    The gates depend on the utterance, and v, b are shared by all layers: no layer has a weight of its own, and there is
    no LayerWeights. The published classifier of two linear layers ends here after its first one, the last before the
    two classes; the loss takes the place of the second.

    The linear layer has a weight for every place in time, so the window's length is part of the architecture. The
    published one is 201 frames of 1024 channels (64,600 samples), which makes 67 · 341 inputs and 1024 outputs.

    Args:
        layers: number of tapped layers, L; any number, as nothing depends on it.
        channels: width of a layer, D.
        embedding_dim: width of the embedding, E.
        frames: frames of the window; shorter utterances are taken as followed by zeros after the normalization.

    Raises:
        ValueError: an embedding_dim below 1, or fewer than 3 frames or channels.
    """

    reads: ClassVar[Literal["pooled", "frames"]] = "frames"

    def __init__(self, *, layers: int, channels: int, embedding_dim: int = 1024, frames: int = 201) -> None:
        super().__init__()
        check_sizes(embedding_dim=embedding_dim)
        if min(frames, channels) < POOL:
            raise ValueError(f"expected frames and channels ≥ {POOL}, got {frames} and {channels}")
        self.embedding_dim = embedding_dim
        self.frames = frames
        self.gate = nn.Linear(channels, 1)
        self.norm = nn.BatchNorm1d(1)
        self.project = nn.Linear((frames // POOL) * (channels // POOL), embedding_dim)

    def forward(self, features: Tensor, n_frames: Tensor) -> Tensor:
        """Features (B, L, T, D), of which the first n_frames (B,) ≥ 1 frames are valid, to embeddings (B, E).

        What padding frames hold, NaN included, and how many there are reaches neither the embeddings, nor a gradient,
        nor the running statistics. Raises InputError for T above `frames`.
        """
        length = features.shape[2]
        if length > self.frames:
            raise InputError(f"expected at most {self.frames} frames, got {length}; set backends.sls.frames: {length}")
        valid = valid_frames(length, n_frames)  # (B, T), or None
        features = fill_padding(features, valid, time=2)
        fused = self.gates(features, n_frames)[:, None] @ features.flatten(2)  # (B, 1, T · D)
        fused = fused.reshape(len(features), *features.shape[2:])
        image = functional.selu(self.normalize(fused, valid))  # (B, T, D); 0 stays 0
        image = functional.pad(image, (0, 0, 0, self.frames - length))  # (B, frames, D)
        fields = functional.max_pool2d(image, POOL).flatten(1)  # (B, frames // 3 · D // 3)
        return functional.selu(self.project(fields))

    def gates(self, features: Tensor, n_frames: Tensor) -> Tensor:
        """A gate (B, L) in 0..1 for every layer, from features (B, L, T, D) with zeros for padding."""
        means = features.sum(dim=2) / n_frames[:, None, None]  # (B, L, D)
        gates: Tensor = self.gate(means)[..., 0].sigmoid()
        return gates

    def normalize(self, fused: Tensor, valid: Tensor | None) -> Tensor:
        """Batch normalization of (B, T, D), one mean and variance for all valid frames and channels; padding is 0."""
        return normalize_valid(lambda frames: self.norm(frames[:, None])[:, 0], fused, valid)  # as (M, 1, D)
