"""One-class softmax with one learned centre for every layer of the encoder, whose decisions are averaged.

OC-Softmax is Zhang, Jiang, Duan: "One-class learning towards synthetic voice spoofing detection", IEEE Signal
Processing Letters 2021, arXiv 2010.13995, equation 3. The backend `per_layer` is this loss's other half.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.core.contracts import Centroids, Facts, Labels
from pipeline.losses._shared import OneClassTerm, at_least_float32, cosine_centroids


class Loss(nn.Module):
    """Mean over L layers of OC-Softmax, each on its own segment of the embedding with its own learned centre.

    The embedding is L segments x_l of one width, layer after layer. With s_l = cos(x_l, w_l), the loss is the mean over
    batch and layers of softplus(α u_l); u_l = m0 − s_l for bona fide and s_l − m1 for spoof. The score is the mean of
    the s_l, where segments have one length, as `per_layer` makes them.

    Any other backend is cut into L segments alike, which are not layers then; the loss looks at their directions alone,
    while the score weighs each s_l by its segment's length.

    Args:
        facts: the width of the embeddings, a multiple of the number of tapped layers, L.
        margin_bonafide: m0, the cosine that bona fide should exceed.
        margin_spoof: m1, the cosine that spoof should stay below.
        alpha: α, the steepness of the softplus.

    Raises:
        ValueError: a hyperparameter outside its range, or an embedding that L does not divide.
    """

    quality: ClassVar[bool] = False

    def __init__(
        self, facts: Facts, *, margin_bonafide: float = 0.9, margin_spoof: float = 0.2, alpha: float = 20.0
    ) -> None:
        super().__init__()
        _check_facts(facts)
        self.one_class_term = OneClassTerm(margin_bonafide, margin_spoof, alpha)
        self.centres = nn.Parameter(torch.empty(facts.layers, facts.embedding_dim // facts.layers))  # (L, E / L), w
        nn.init.kaiming_uniform_(self.centres, a=0.25)  # each row as the one centre of OC-Softmax

    def forward(self, embeddings: Tensor, labels: Labels) -> Tensor:
        """The loss of a batch of either class or both, one mean over all of it and over the layers.

        Args:
            embeddings: (B, E), segments of any norm.
            labels: of which only is_bonafide, (B,), is read.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            x = at_least_float32(embeddings).reshape(-1, *self.centres.shape)  # (B, L, E / L)
            cosines = (functional.normalize(x, dim=2) * functional.normalize(self.centres, dim=1)).sum(2)  # (B, L)
            return self.one_class_term(cosines, cosines, labels.is_bonafide[:, None])

    def centroids(self) -> Centroids:
        """The L unit centres in one unit vector, scored by cosine.

        Segments of length a make an embedding of norm √L · a. So q, the query at unit length, holds each x_l / a
        divided by √L, and the mean of the s_l is 1/L Σ w_l · √L q_l = Σ (w_l / √L) · q_l.
        """
        units = functional.normalize(self.centres, dim=1)  # (L, E / L)
        return cosine_centroids(units.reshape(1, -1) / math.sqrt(len(units)))


def _check_facts(facts: Facts) -> None:
    if facts.embedding_dim % facts.layers:
        raise ValueError(
            f"expected an embedding_dim that is a multiple of the {facts.layers} tapped layers, one segment each, got "
            f"{facts.embedding_dim}; take the backend per_layer, whose embedding is made so, or another embedding_dim"
        )
