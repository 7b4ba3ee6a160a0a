"""What backends share: a learned weighting over the tapped layers, and keeping padding frames out.

Which frames are valid is `valid` everywhere: (B, T) bool, or None where all are, the usual case of windows of one
length, which then costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class LayerWeights(nn.Module):
    """Softmax-weighted sum over layers: (B, L, ...) -> (B, ...), one learned logit a layer, uniform at the start.

    `fit` gives these logits a learning rate of their own: with the backend's they barely leave uniform.
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


def normalise_valid(norm: Callable[[Tensor], Tensor], x: Tensor, valid: Tensor | None) -> Tensor:
    """A batch norm (M, C) -> (M, C) of the M valid frames of (B, T, C) alone, to (B, T, C); padding is 0."""
    if valid is None:
        return norm(x.flatten(0, 1)).reshape(x.shape)
    normalised = torch.zeros_like(x)
    normalised[valid] = norm(x[valid])
    return normalised
