"""One-class softmax: bona fide speech lies around one learned direction, spoofs away from it.

Zhang, Jiang, Duan: "One-class learning towards synthetic voice spoofing detection", IEEE Signal Processing Letters
2021, arXiv 2010.13995, equation 3.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.core.contracts import Centroids, Facts, Labels
from pipeline.losses._shared import OneClassTerm, cosine_centroids, cosines


class Loss(nn.Module):
    """Softplus loss of the cosine to one learned centre, with a margin for each class.

    With s = cos(x, w), the loss is the mean over the batch of softplus(α u); u = m0 − s for bona fide and s − m1 for
    spoof. The score is s.

    Args:
        facts: the width of the embeddings, E.
        margin_bonafide: m0, the cosine that bona fide should exceed.
        margin_spoof: m1, the cosine that spoof should stay below. Published runs take 0.2, in the paper and in the
            training script; the class in the published code says 0.5, which no published run uses.
        alpha: α, the steepness of the softplus.

    Raises:
        ValueError: a hyperparameter outside its range.
    """

    quality: ClassVar[bool] = False

    def __init__(
        self, facts: Facts, *, margin_bonafide: float = 0.9, margin_spoof: float = 0.2, alpha: float = 20.0
    ) -> None:
        super().__init__()
        self.one_class_term = OneClassTerm(margin_bonafide, margin_spoof, alpha)
        self.centre = nn.Parameter(torch.empty(1, facts.embedding_dim))  # (1, E), w
        nn.init.kaiming_uniform_(self.centre, a=0.25)  # as published; a longer vector turns more slowly

    def forward(self, embeddings: Tensor, labels: Labels) -> Tensor:
        """The loss of a batch of either class or both, one mean over all of it.

        Args:
            embeddings: (B, E), any norm.
            labels: of which only is_bonafide, (B,), is read.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            cosine = cosines(embeddings, self.centre)[:, 0]  # (B,)
            return self.one_class_term(cosine, cosine, labels.is_bonafide)

    def centroids(self) -> Centroids:
        """The one unit centre, scored by cosine."""
        return cosine_centroids(functional.normalize(self.centre, dim=1))
