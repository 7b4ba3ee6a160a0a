"""Additive-margin softmax over two classes: cross-entropy of cosines, where the own class must lead by a margin.

Wang, Cheng, Liu, Liu: "Additive margin softmax for face verification", IEEE Signal Processing Letters 2018, arXiv
1801.05599; for bona fide and spoof as in Zhang, Jiang, Duan: "One-class learning towards synthetic voice spoofing
detection", IEEE Signal Processing Letters 2021, arXiv 2010.13995, equation 2.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.core.contracts import Centroids, Facts, Labels
from pipeline.losses import _ranks
from pipeline.losses._shared import check_not_negative, check_positive, cosine_centroids, cosines

SPOOF, BONAFIDE = 0, 1  # rows of the class vectors


class Loss(nn.Module):
    """Cross-entropy of margin logits between two learned class vectors; the score is the difference of the cosines.

    With s_k = cos(x, w_k) and y the class, the loss is the mean over the batch of the cross-entropy of
    scale · (s_k − margin · [k = y]) against y. The published score, the softmax of the plain cosines, is the sigmoid of
    s_bonafide − s_spoof, so it ranks and separates alike.

    Args:
        facts: the width of the embeddings, E.
        scale: the factor of the logits.
        margin: by how much the cosine to the own class must lead.

    Raises:
        ValueError: a hyperparameter outside its range.
    """

    quality: ClassVar[bool] = False

    def __init__(self, facts: Facts, *, scale: float = 20.0, margin: float = 0.9) -> None:
        super().__init__()
        check_positive(scale=scale)
        check_not_negative(margin=margin)
        self.scale = scale
        self.margin = margin
        self.class_vectors = nn.Parameter(torch.randn(2, facts.embedding_dim))  # (2, E), w

    def forward(self, embeddings: Tensor, labels: Labels) -> Tensor:
        """The loss of a batch of either class or both, one mean over all of it.

        Args:
            embeddings: (B, E), any norm; a row of zeros has cosine 0 to both classes (the published code gives NaN).
            labels: of which only is_bonafide, (B,), is read.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            similarities = cosines(embeddings, self.class_vectors)  # (B, 2)
            target = torch.where(labels.is_bonafide, BONAFIDE, SPOOF)  # (B,)
            own = functional.one_hot(target, 2).bool()  # (B, 2)
            logits = self.scale * torch.where(own, similarities - self.margin, similarities)  # (B, 2)
            return _ranks.joint_part(functional.cross_entropy(logits, target), len(logits))

    def centroids(self) -> Centroids:
        """The single vector unit(w_bonafide) − unit(w_spoof), of any norm, times the query at unit length."""
        unit = functional.normalize(self.class_vectors, dim=1)  # (2, E)
        return cosine_centroids((unit[BONAFIDE] - unit[SPOOF])[None])
