"""What backends share: a learned weighting over the tapped layers, ways to keep padding out, and a check of sizes.

Which frames are valid is `valid` everywhere: (B, T) bool, or None where all are, the usual case of windows of one
length, which then costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


class LayerWeights(nn.Module):
    """Softmax-weighted sum over layers: (B, L, ...) -> (B, ...), one learned logit a layer, uniform at the start.

    Training gives these logits a learning rate of their own: with the backend's they barely leave uniform.
    """

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(layers))  # (L,)

    def forward(self, features: Tensor) -> Tensor:
        """Weigh and sum over dimension 1."""
        weighted = self.logits.softmax(0) @ features.flatten(2)  # (L,) @ (B, L, rest): half the time of an einsum
        return weighted.reshape(len(features), *features.shape[2:])


def valid_frames(frames: int, n_frames: Tensor) -> Tensor | None:
    """Whether each of T frames is among the first n_frames (B,): (B, T) bool, or None where all are."""
    valid = torch.arange(frames, device=n_frames.device) < n_frames[:, None]
    return None if bool(valid.all()) else valid


def fill_padding(x: Tensor, valid: Tensor | None, value: float = 0.0, *, time: int) -> Tensor:
    """A tensor (B, ...) whose dimension `time` is T, to the same with `value` where a frame is not valid.

    A weight of 0 does not stop NaN, not in a gradient either: what padding holds is replaced before it is summed.
    """
    if valid is None:
        return x
    shape = [size if dim in (0, time) else 1 for dim, size in enumerate(x.shape)]
    return x.masked_fill(~valid.reshape(shape), value)


def mean_of_valid(x: Tensor, valid: Tensor | None, *, time: int) -> Tensor:
    """The mean over the valid frames of a tensor (B, C, T) or (B, T, C), whose dimension `time` is T: (B, C)."""
    if valid is None:
        return x.mean(dim=time)
    return fill_padding(x, valid, time=time).sum(dim=time) / valid.sum(dim=1, keepdim=True)


def normalize_valid(norm: Callable[[Tensor], Tensor], x: Tensor, valid: Tensor | None) -> Tensor:
    """A batch norm (M, C) -> (M, C) of the M valid frames of (B, T, C) alone, to (B, T, C); padding is 0."""
    if valid is None:
        return norm(x.flatten(0, 1)).reshape(x.shape)
    normalized = torch.zeros_like(x)
    normalized[valid] = norm(x[valid])
    return normalized


class BatchNorm(nn.BatchNorm1d):
    """Batch normalization of (B, C, T) with the statistics of the valid frames (B, T)."""

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, C, T) -> (B, C, T); in training padding is 0."""
        if valid is None or not self.training:
            return super().forward(x)
        return normalize_valid(super().forward, x.transpose(1, 2), valid).transpose(1, 2)


def check_sizes(**sizes: int) -> None:
    """Raise ValueError where one of the sizes, such as widths and numbers of heads, is below 1."""
    if min(sizes.values()) < 1:
        raise ValueError(f"expected {_enumerated(sizes)} ≥ 1, got {_enumerated(sizes.values())}")


def _enumerated(words: Iterable[object]) -> str:
    *first, last = map(str, words)
    return f"{', '.join(first)} and {last}" if first else last
