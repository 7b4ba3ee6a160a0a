"""What several losses share: their precision, cosines, the one-class term, centroids, and checks of what they get."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.core.contracts import Centroids, Reduce
from pipeline.losses import _ranks

UNKNOWN = -1  # the quality level or speaker that nobody knows


def at_least_float32(x: Tensor) -> Tensor:
    """The precision that losses compute in: half precision becomes float32, float32 and float64 stay."""
    return x.float() if x.dtype.itemsize < 4 else x


def cosines(embeddings: Tensor, vectors: Tensor) -> Tensor:
    """The cosine of each embedding (B, E) to each vector (K, E), of any norm: (B, K). A row of zeros has cosine 0."""
    x = functional.normalize(at_least_float32(embeddings), dim=1)  # (B, E)
    return x @ functional.normalize(vectors, dim=1).T


@dataclass(frozen=True)
class OneClassTerm:
    """The mean over the batch of softplus(α u); u = m0 − s for bona fide and s − m1 for spoof, where s is a cosine.

    Zhang, Jiang, Duan: "One-class learning towards synthetic voice spoofing detection", IEEE Signal Processing Letters
    2021, arXiv 2010.13995, equation 3.

    margin_bonafide: m0, the cosine that bona fide should exceed. margin_spoof: m1, the cosine that spoof should stay
    below. alpha: α, the steepness of the softplus. Raises ValueError for a number outside its range.
    """

    margin_bonafide: float
    margin_spoof: float
    alpha: float

    def __post_init__(self) -> None:
        bonafide, spoof = self.margin_bonafide, self.margin_spoof
        if not -1 <= spoof < bonafide <= 1:
            raise ValueError(f"expected -1 ≤ margin_spoof < margin_bonafide ≤ 1, got {spoof} and {bonafide}")
        check_positive(alpha=self.alpha)

    def __call__(self, bonafide: Tensor, spoof: Tensor, is_bonafide: Tensor) -> Tensor:
        """The term, a scalar, from the cosines that bona fide and spoof take.

        bonafide, spoof: (B,) or (B, L), of which each utterance takes the one of its class. is_bonafide: the same
        shape, or (B, 1).
        """
        excess = torch.where(is_bonafide, self.margin_bonafide - bonafide, spoof - self.margin_spoof)
        return _ranks.joint_part(functional.softplus(self.alpha * excess).mean(), len(excess))


def cosine_centroids(vectors: Tensor, *, reduce: Reduce = "max") -> Centroids:
    """The centroids of vectors (K, E), whose products with the query at unit length are the similarities."""
    return Centroids(
        vectors=vectors.detach().cpu().numpy().astype(np.float32), normalize_query=True, bias=0.0, reduce=reduce
    )


def check_positive(**values: float) -> None:
    """Raise ValueError for a value that is not above 0, or not finite."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"expected {name} > 0 and finite, got {value}")


def check_not_negative(**values: float) -> None:
    """Raise ValueError for a value that is below 0, or not finite."""
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"expected {name} ≥ 0 and finite, got {value}")


def check_reduce(reduce: str) -> None:
    """Raise ValueError for what is no way to reduce similarities."""
    if reduce not in ("max", "mean", "softmax"):
        raise ValueError(f"expected reduce to be max, mean or softmax, got {reduce!r}")


def check_numbers(what: str, numbers: Tensor, count: int) -> None:
    """Raise ValueError for a number (B,) outside -1 (unknown) to count - 1."""
    wrong = numbers[(numbers < UNKNOWN) | (numbers >= count)]
    if len(wrong):
        raise ValueError(f"expected {what} from -1 (unknown) to {count - 1}, got {wrong[0].item()}")
