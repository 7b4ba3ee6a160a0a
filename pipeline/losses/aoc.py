"""Adaptive centroid shift: one class, whose centroid is the running mean of all bona fide embeddings seen.

Kim, Jang, Kim: "One-class learning with adaptive centroid shift for audio deepfake detection", Interspeech 2024,
arXiv 2406.16716.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from pipeline.contracts import Centroids, Facts, Labels, at_least_float32
from pipeline.errors import InputError


class Loss(nn.Module):
    """1 − mean cos(bona fide, C) + mean cos(spoof, C), where C is the running mean of the raw bona fide embeddings.

    With E the mean and s the number of the bona fide embeddings of a batch, C ← (n·C + s·E) / (n + s), n ← n + s.
    C moves first, outside the graph, and in training mode only: in eval mode the labels must not leak into the scorer.
    It averages the bona fide of all ranks when training is distributed. The loss lies in −1..3; the gradient reaches
    the embeddings alone.

    Args:
        facts: the width of the embeddings, E.
    """

    quality: ClassVar[bool] = False
    centroid: Tensor
    count: Tensor

    def __init__(self, facts: Facts) -> None:
        super().__init__()
        self.register_buffer("centroid", torch.zeros(facts.embedding_dim))  # (E,), zero until a bona fide is seen
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))  # n

    def forward(self, embeddings: Tensor, labels: Labels) -> Tensor:
        """The loss of a batch, after moving the centroid in training mode.

        A class that the batch lacks contributes 0, not a constant: 1 − mean cos(bona fide, C) is dropped as a whole.
        While no bona fide was ever seen, C is zero and so are all cosines, the spoof term and its gradient.

        Args:
            embeddings: (B, E), any norm.
            labels: of which only is_bonafide, (B,), is read.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            x = at_least_float32(embeddings)
            if self.training:
                self._move(x.detach(), labels.is_bonafide)
            cosines = functional.normalize(x, dim=1) @ functional.normalize(self.centroid, dim=0)  # (B,)
            return _masked_mean(1 - cosines, labels.is_bonafide) + _masked_mean(cosines, ~labels.is_bonafide)

    def centroids(self) -> Centroids:
        """The one unit centroid, scored by cosine. Raises InputError while no bona fide embedding was ever seen."""
        if not int(self.count):
            raise InputError(
                "no bona fide utterance was ever seen in training, so the aoc loss has no centroid; "
                "check that the training trials hold bona fide utterances and that at least one batch was trained on"
            )
        vector = functional.normalize(self.centroid, dim=0)  # (E,)
        return Centroids(
            vectors=vector[None].cpu().numpy().astype(np.float32), normalize_query=True, bias=0.0, reduce="max"
        )

    def _move(self, x: Tensor, is_bonafide: Tensor) -> None:
        total = torch.where(is_bonafide[:, None], x, 0).sum(0)  # (E,), s·E
        total, seen = _over_ranks(total, is_bonafide.sum())
        self.count.add_(seen)
        # C + (s·E − s·C) / n rather than (n·C + s·E) / n: the sum n·C would lose digits as n grows.
        self.centroid.add_((total - seen * self.centroid) / self.count.clamp(min=1))


def _over_ranks(total: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Both sums over all ranks, so that every rank moves its centroid alike; unchanged in a single process."""
    if not (dist.is_available() and dist.is_initialized()):
        return total, seen
    packed = torch.cat([total, seen[None].to(total.dtype)])  # (E + 1,), one message
    dist.all_reduce(packed)
    return packed[:-1], packed[-1].long()


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of values (B,) over mask (B,), 0 where the mask is empty; always part of the graph."""
    return torch.where(mask, values, 0).sum() / mask.sum().clamp(min=1)
