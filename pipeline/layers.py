"""A learned weighting over the tapped layers, shared by the backends."""

from __future__ import annotations

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
