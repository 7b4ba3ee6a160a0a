"""Adaptive centroid shift: one class, whose centroid is the running mean of all bona fide embeddings seen.

Kim, Jang, Kim: "One-class learning with adaptive centroid shift for audio deepfake detection", Interspeech 2024,
arXiv 2406.16716.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.core.contracts import Centroids, Facts, Labels
from pipeline.core.errors import InputError
from pipeline.losses import _ranks
from pipeline.losses._shared import at_least_float32, cosine_centroids


class Loss(nn.Module):
    """1 − mean cos(bona fide, C) + mean cos(spoof, C), where C is the running mean of the raw bona fide embeddings.

    With E the mean and s the number of the bona fide embeddings of a batch, C ← (n·C + s·E) / (n + s), n ← n + s.
    C moves first, outside the graph, and in training mode only: in eval mode the labels must not leak into the scorer.
    It averages the bona fide of all ranks when training is distributed. The loss lies in −1..3; the gradient reaches
    the embeddings alone.

    As published, n never forgets: embeddings of the first, hardly trained steps weigh in C for ever, and those of large
    norm weigh more. `momentum` and `normalize` mend one each.

    Args:
        facts: the width of the embeddings, E.
        momentum: m, the share of C that a batch with bona fide leaves: C ← m·C + (1 − m)·E; the first such batch sets
            C = E. None is the running mean, as published.
        normalize: average the bona fide embeddings at unit length; as published they are raw.

    Raises:
        ValueError: a momentum outside (0, 1).
    """

    quality: ClassVar[bool] = False
    centroid: Tensor
    count: Tensor

    def __init__(self, facts: Facts, *, momentum: float | None = None, normalize: bool = False) -> None:
        super().__init__()
        if momentum is not None and not 0 < momentum < 1:
            raise ValueError(f"expected 0 < momentum < 1, or none for the running mean, got {momentum}")
        self.momentum = momentum
        self.normalize = normalize
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
            return _class_mean(1 - cosines, labels.is_bonafide) + _class_mean(cosines, ~labels.is_bonafide)

    def centroids(self) -> Centroids:
        """The one unit centroid, scored by cosine. Raises InputError while no bona fide embedding was ever seen."""
        if not int(self.count):
            raise InputError(
                "no bona fide utterance was ever seen in training, so the aoc loss has no centroid; "
                "check that the training trials hold bona fide utterances and that at least one batch was trained on"
            )
        return cosine_centroids(functional.normalize(self.centroid, dim=0)[None])

    def _move(self, x: Tensor, is_bonafide: Tensor) -> None:
        x = functional.normalize(x, dim=1) if self.normalize else x
        total = _ranks.total(torch.where(is_bonafide[:, None], x, 0).sum(0))  # (E,), s·E
        seen = _ranks.total(is_bonafide.sum())  # s
        self.count.add_(seen)
        if self.momentum is None:
            # C + (s·E − s·C) / n rather than (n·C + s·E) / n: the sum n·C would lose digits as n grows.
            self.centroid.add_((total - seen * self.centroid) / self.count.clamp(min=1))
        else:
            shift = (total - seen * self.centroid) / seen.clamp(min=1)  # (E,), E − C
            first = self.count == seen
            self.centroid.add_(torch.where(first, shift, (1 - self.momentum) * shift))


def _class_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of values (B,) over mask (B,), 0 where the mask is empty; always part of the graph."""
    count = mask.sum()
    return _ranks.joint_part(torch.where(mask, values, 0).sum() / count.clamp(min=1), count)
