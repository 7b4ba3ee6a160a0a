"""Quality-aware multi-centroid one-class learning: bona fide speech has one learned centroid for each quality level.

Truong et al.: "QAMO: Quality-aware multi-centroid one-class learning for speech deepfake detection",
arXiv 2509.20679.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.core.contracts import Centroids, Facts, Labels, Reduce
from pipeline.losses import _ranks
from pipeline.losses._shared import at_least_float32

UNKNOWN = -1
IGNORED = -100  # the target that cross_entropy leaves out


class Loss(nn.Module):
    """One-class softplus loss around K quality centroids, and a margin softmax that keeps the centroids apart.

    With s_k = cos(x, c_k) and q the quality level of a bona fide utterance:

        one-class  mean over the batch of softplus(α u); u = m0 − s_q for bona fide, u = max_k s_k − m1 for spoof
        quality    mean over bona fide of the cross-entropy of scale · (s_k − margin · [k = q]) against q
        loss       one-class + quality_weight · quality

    A bona fide utterance of unknown level takes max_k s_k in place of s_q and no part in the quality term. The level of
    a spoof is not read. Without its quality term the centroids collapse into one.

    Args:
        facts: the width E of the embeddings and the number K of quality levels, one centroid each.
        margin_bonafide: m0, the cosine that bona fide should exceed.
        margin_spoof: m1, the cosine that spoof should stay below.
        alpha: α, the steepness of the softplus.
        scale: scale of the quality logits; the published code takes 32, the paper says 20.
        margin: by how much the cosine to the own centroid must lead in the quality term.
        quality_weight: λ, the weight of the quality term.
        reduce: how the K cosines become a score; the published code takes the mean, the paper says softmax, max is
            worse than either.

    Raises:
        ValueError: a hyperparameter outside its range.
    """

    quality: ClassVar[bool] = True

    def __init__(
        self,
        facts: Facts,
        *,
        margin_bonafide: float = 0.9,
        margin_spoof: float = 0.2,
        alpha: float = 20.0,
        scale: float = 32.0,
        margin: float = 0.4,
        quality_weight: float = 0.1,
        reduce: Reduce = "mean",
    ) -> None:
        super().__init__()
        _check_margins(margin_bonafide, margin_spoof)
        _check_positive(alpha=alpha, scale=scale)
        _check_not_negative(margin=margin, quality_weight=quality_weight)
        if reduce not in ("max", "mean", "softmax"):
            raise ValueError(f"expected reduce to be max, mean or softmax, got {reduce!r}")
        self.margin_bonafide = margin_bonafide
        self.margin_spoof = margin_spoof
        self.alpha = alpha
        self.scale = scale
        self.margin = margin
        self.quality_weight = quality_weight
        self.reduce: Reduce = reduce
        self.centers = nn.Parameter(torch.randn(facts.levels, facts.embedding_dim))  # (K, E)

    def forward(self, embeddings: Tensor, labels: Labels) -> Tensor:
        """The loss of a batch; a term for which the batch has no utterance is 0.

        Args:
            embeddings: (B, E), any norm.
            labels: is_bonafide (B,) and level (B,), from -1 (unknown) to K - 1.

        Raises:
            ValueError: a level out of range.
        """
        self._check_levels(labels.level)
        with torch.autocast(embeddings.device.type, enabled=False):
            x = at_least_float32(embeddings)
            cosines = functional.normalize(x, dim=1) @ functional.normalize(self.centers, dim=1).T  # (B, K)
            return self.one_class_term(cosines, labels) + self.quality_weight * self.quality_term(cosines, labels)

    def one_class_term(self, cosines: Tensor, labels: Labels) -> Tensor:
        """Mean of softplus(α u) over the batch, from cosines (B, K)."""
        nearest = cosines.max(dim=1).values  # (B,)
        own = cosines.gather(1, labels.level.long().clamp(min=0)[:, None])[:, 0]  # (B,)
        own = torch.where(labels.level == UNKNOWN, nearest, own)
        excess = torch.where(labels.is_bonafide, self.margin_bonafide - own, nearest - self.margin_spoof)  # (B,), u
        return _ranks.joint_part(functional.softplus(self.alpha * excess).mean(), len(cosines))

    def quality_term(self, cosines: Tensor, labels: Labels) -> Tensor:
        """Mean margin cross-entropy over the bona fide of known level, from cosines (B, K); 0 without any."""
        level = labels.level.long()
        graded = labels.is_bonafide & (level != UNKNOWN)  # (B,)
        own = torch.arange(len(self.centers), device=level.device) == level[:, None]  # (B, K)
        logits = self.scale * torch.where(own, cosines - self.margin, cosines)  # (B, K)
        target = torch.where(graded, level, IGNORED)
        total = functional.cross_entropy(logits, target, ignore_index=IGNORED, reduction="sum")
        count = graded.sum()
        return _ranks.joint_part(total / count.clamp(min=1), count)

    def centroids(self) -> Centroids:
        """The K unit centroids, scored by cosine."""
        vectors = functional.normalize(self.centers.detach(), dim=1)  # (K, E)
        return Centroids(
            vectors=vectors.cpu().numpy().astype(np.float32), normalize_query=True, bias=0.0, reduce=self.reduce
        )

    def _check_levels(self, level: Tensor) -> None:
        levels = len(self.centers)
        wrong = level[(level < UNKNOWN) | (level >= levels)]
        if len(wrong):
            raise ValueError(f"expected quality levels from -1 (unknown) to {levels - 1}, got {wrong[0].item()}")


def _check_margins(bonafide: float, spoof: float) -> None:
    if not -1 <= spoof < bonafide <= 1:
        raise ValueError(f"expected -1 ≤ margin_spoof < margin_bonafide ≤ 1, got {spoof} and {bonafide}")


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"expected {name} > 0 and finite, got {value}")


def _check_not_negative(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"expected {name} ≥ 0 and finite, got {value}")
