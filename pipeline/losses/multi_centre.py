"""One-class softmax with several free centres: bona fide speech lies around the nearest of them, spoofs far from all.

The ablation of QAMO that knows no quality: Truong et al., "QAMO: Quality-aware multi-centroid one-class learning for
speech deepfake detection", arXiv 2509.20679. With one centre it is OC-Softmax: Zhang, Jiang, Duan, "One-class learning
towards synthetic voice spoofing detection", IEEE Signal Processing Letters 2021, arXiv 2010.13995, equation 3.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.core.contracts import Centroids, Facts, Labels, Reduce
from pipeline.losses._shared import OneClassTerm, check_reduce, cosine_centroids, cosines


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
        if centres < 1:
            raise ValueError(f"expected centres ≥ 1, got {centres}")
        check_reduce(reduce)
        self.one_class_term = OneClassTerm(margin_bonafide, margin_spoof, alpha)
        self.reduce: Reduce = reduce
        self.centres = nn.Parameter(torch.randn(centres, facts.embedding_dim))  # (K, E)

    def forward(self, embeddings: Tensor, labels: Labels) -> Tensor:
        """The loss of a batch of either class or both, one mean over all of it.

        Args:
            embeddings: (B, E), any norm.
            labels: of which only is_bonafide, (B,), is read.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            nearest = cosines(embeddings, self.centres).max(dim=1).values  # (B,), t
            return self.one_class_term(nearest, nearest, labels.is_bonafide)

    def centroids(self) -> Centroids:
        """The K unit centres, scored by cosine."""
        return cosine_centroids(functional.normalize(self.centres, dim=1), reduce=self.reduce)
