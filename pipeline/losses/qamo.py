"""Quality-aware multi-centroid one-class learning: bona fide speech has one learned centroid for each quality level.

Truong et al.: "QAMO: Quality-aware multi-centroid one-class learning for speech deepfake detection",
arXiv 2509.20679.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.core.contracts import Centroids, Facts, Labels, Reduce
from pipeline.losses import _ranks
from pipeline.losses._shared import (
    UNKNOWN,
    OneClassTerm,
    check_not_negative,
    check_numbers,
    check_positive,
    check_reduce,
    cosine_centroids,
    cosines,
)

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
        check_positive(scale=scale)
        check_not_negative(margin=margin, quality_weight=quality_weight)
        check_reduce(reduce)
        self.one_class_term = OneClassTerm(margin_bonafide, margin_spoof, alpha)
        self.scale = scale
        self.margin = margin
        self.quality_weight = quality_weight
        self.reduce: Reduce = reduce
        self.centres = nn.Parameter(torch.randn(facts.levels, facts.embedding_dim))  # (K, E)

    def forward(self, embeddings: Tensor, labels: Labels) -> Tensor:
        """The loss of a batch; a term for which the batch has no utterance is 0.

        Args:
            embeddings: (B, E), any norm.
            labels: is_bonafide (B,) and level (B,), from -1 (unknown) to K - 1.

        Raises:
            ValueError: a level out of range.
        """
        check_numbers("quality levels", labels.level, len(self.centres))
        with torch.autocast(embeddings.device.type, enabled=False):
            similarities = cosines(embeddings, self.centres)  # (B, K)
            nearest = similarities.max(dim=1).values  # (B,)
            own = similarities.gather(1, labels.level.long().clamp(min=0)[:, None])[:, 0]  # (B,)
            own = torch.where(labels.level == UNKNOWN, nearest, own)
            one_class = self.one_class_term(own, nearest, labels.is_bonafide)
            return one_class + self.quality_weight * self.quality_term(similarities, labels)

    def quality_term(self, similarities: Tensor, labels: Labels) -> Tensor:
        """Mean margin cross-entropy over the bona fide of known level, from cosines (B, K); 0 without any."""
        level = labels.level.long()
        graded = labels.is_bonafide & (level != UNKNOWN)  # (B,)
        own = torch.arange(len(self.centres), device=level.device) == level[:, None]  # (B, K)
        logits = self.scale * torch.where(own, similarities - self.margin, similarities)  # (B, K)
        target = torch.where(graded, level, IGNORED)
        total = functional.cross_entropy(logits, target, ignore_index=IGNORED, reduction="sum")
        count = graded.sum()
        return _ranks.joint_part(total / count.clamp(min=1), count)

    def centroids(self) -> Centroids:
        """The K unit centroids, scored by cosine."""
        return cosine_centroids(functional.normalize(self.centres, dim=1), reduce=self.reduce)
