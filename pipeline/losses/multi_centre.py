"""One-class softmax with several free centres: bona fide speech lies around the nearest of them, spoofs far from all.

The ablation of QAMO that knows no quality: Truong et al., "QAMO: Quality-aware multi-centroid one-class learning for
speech deepfake detection", arXiv 2509.20679. With one centre it is OC-Softmax: Zhang, Jiang, Duan, "One-class learning
towards synthetic voice spoofing detection", IEEE Signal Processing Letters 2021, arXiv 2010.13995, equation 3.
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


class Loss(nn.Module):
    """Softplus loss of the cosine to the nearest of K learned centres, with a margin for each class.

    With s_k = cos(x, c_k) and t = max_k s_k, the loss is the mean over the batch of softplus(α u); u = m0 − t for bona
    fide and t − m1 for spoof. Nothing keeps the centres apart: which one an utterance is drawn to is its own choice,
    and they may collapse into one.

    Args:
        facts: the width of the embeddings, E.
        centres: K. QAMO has two.
        margin_bonafide: m0, the cosine that bona fide should exceed.
        margin_spoof: m1, the cosine that spoof should stay below.
        alpha: α, the steepness of the softplus.
        reduce: how the K cosines become a score. QAMO's code takes the mean, its paper says softmax; max is the t that
            the loss itself sees.

    Raises:
        ValueError: a hyperparameter outside its range.
    """

    quality: ClassVar[bool] = False

    def __init__(
        self,
        facts: Facts,
        *,
        centres: int = 2,
        margin_bonafide: float = 0.9,
        margin_spoof: float = 0.2,
        alpha: float = 20.0,
        reduce: Reduce = "mean",
    ) -> None:
        super().__init__()
        _check(centres, margin_bonafide, margin_spoof, alpha)
        if reduce not in ("max", "mean", "softmax"):
            raise ValueError(f"expected reduce to be max, mean or softmax, got {reduce!r}")
        self.margin_bonafide = margin_bonafide
        self.margin_spoof = margin_spoof
        self.alpha = alpha
        self.reduce: Reduce = reduce
        self.centres = nn.Parameter(torch.randn(centres, facts.embedding_dim))  # (K, E)

    def forward(self, embeddings: Tensor, labels: Labels) -> Tensor:
        """The loss of a batch of either class or both, one mean over all of it.

        Args:
            embeddings: (B, E), any norm.
            labels: of which only is_bonafide, (B,), is read.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            x = functional.normalize(at_least_float32(embeddings), dim=1)  # (B, E)
            cosines = x @ functional.normalize(self.centres, dim=1).T  # (B, K)
            nearest = cosines.max(dim=1).values  # (B,), t
            excess = torch.where(labels.is_bonafide, self.margin_bonafide - nearest, nearest - self.margin_spoof)
            return _ranks.joint_part(functional.softplus(self.alpha * excess).mean(), len(x))

    def centroids(self) -> Centroids:
        """The K unit centres, scored by cosine."""
        vectors = functional.normalize(self.centres.detach(), dim=1)  # (K, E)
        return Centroids(
            vectors=vectors.cpu().numpy().astype(np.float32), normalize_query=True, bias=0.0, reduce=self.reduce
        )


def _check(centres: int, margin_bonafide: float, margin_spoof: float, alpha: float) -> None:
    if centres < 1:
        raise ValueError(f"expected centres ≥ 1, got {centres}")
    if not -1 <= margin_spoof < margin_bonafide <= 1:
        raise ValueError(f"expected -1 ≤ margin_spoof < margin_bonafide ≤ 1, got {margin_spoof} and {margin_bonafide}")
    if not 0 < alpha < math.inf:
        raise ValueError(f"expected alpha > 0 and finite, got {alpha}")
