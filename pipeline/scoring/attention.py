"""Attention over the windows of an utterance, around any backend: `extract.windows.reduce: attention`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.core.members import check_embeddings
from pipeline.core.sections import WindowsParams


class OverWindows(nn.Module):
    """A backend that embeds W windows of an utterance one by one, and their mean with weights that are learnt.

    The weight of a window with the embedding e is the softmax over the windows of q · e: the self-attention pooling of
    Safari, India and Hernando (Interspeech 2020), over windows where they pool frames. q starts at 0, so the embedding
    starts as the plain mean. An utterance in which all windows are the same has the embedding of one.
    """

    def __init__(self, backend: nn.Module) -> None:
        super().__init__()
        self.backend = backend
        self.reads = backend.reads
        self.embedding_dim: int = backend.embedding_dim  # type: ignore[assignment]
        self.query = nn.Parameter(torch.zeros(self.embedding_dim))

    def forward(self, features: Tensor, n_frames: Tensor) -> Tensor:
        """Features (B, W, L, T or 2, D) to embeddings (B, E). n_frames (B,): the same for all windows."""
        utterances, count = features.shape[:2]
        embedded = self.backend(features.flatten(0, 1), n_frames.repeat_interleave(count))
        check_embeddings(self.backend, embedded, count=utterances * count)
        return self.pooled(embedded.unflatten(0, (utterances, count)))

    def pooled(self, embedded: Tensor) -> Tensor:
        """The embeddings (B, E) of utterances from those of their windows, (B, W, E)."""
        return (self.weights(embedded)[..., None] * embedded).sum(1)

    def weights(self, embedded: Tensor) -> Tensor:
        """How much each window counts, (B, W), of windows with embeddings (B, W, E). They add up to 1."""
        return (embedded @ self.query).softmax(-1)


def over_windows(backend: nn.Module, windows: WindowsParams) -> nn.Module:
    """A backend as it embeds utterances of these windows: itself, or with attention over them."""
    return OverWindows(backend) if windows.attended else backend
