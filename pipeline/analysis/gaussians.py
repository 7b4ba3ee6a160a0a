"""How far an embedding lies from Gaussians of the training set's classes, as a percentile of the training set's own.

Embeddings are in the form in which scoring compares them. Each class c has its mean μ_c, and both share a covariance:

    d_i = x_i − μ_c(i)              S = mean of d_i d_iᵀ
    Σ = (1 − δ) S + δ ν I           ν: mean variance of a channel; δ: Ledoit and Wolf's shrinkage
    distance² = min_c (x − μ_c)ᵀ Σ⁻¹ (x − μ_c)

A training utterance i has moved its own class's mean and Σ towards itself. So it is compared with the Gaussians of all
others. With n utterances of its class and N in all these have, for the same δ and ν,

    x_i − μ'  =  n / (n − 1) d_i
    Σ'        =  A − β d_i d_iᵀ     A = (1 − δ) N / (N − 1) S + δ ν I     β = (1 − δ) n / ((n − 1) (N − 1))

and Σ'⁻¹ follows from A⁻¹ by the formula of Sherman and Morrison, without another inversion. Directions in which the
training set does not vary do not count.

Sources: Lee et al., "A simple unified framework for detecting out-of-distribution samples and adversarial attacks",
NeurIPS 2018, equations 1 and 2; Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance
matrices", 2004; Sherman and Morrison, 1950.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.analysis import familiarity
from pipeline.analysis.exact_search import Vectors, compared
from pipeline.core.errors import InputError

MOST = 20_000  # training utterances, evenly chosen, that the Gaussians are of
DEAD = 1e-10  # a variance below this share of the largest one counts as zero

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Gaussians:
    """The Gaussians of both classes. means: (2, E), spoof first. directions: (E, R). variances: (R,), of Σ along them.

    own: (M,) distances of a sample of the training set to the Gaussians of all others, ascending. normalize: whether
    embeddings are compared at unit length.
    """

    means: Floats
    directions: Floats
    variances: Floats
    own: Floats
    normalize: bool

    @classmethod
    def of(cls, vectors: Vectors, is_bonafide: NDArray[np.bool_], *, normalize: bool) -> Gaussians:
        """From training embeddings (N, E) and their classes (N,).

        Raises InputError where a class has none, or no utterance differs from its class's mean.
        """
        from sklearn.covariance import ledoit_wolf_shrinkage  # here, because it takes a second

        rows = familiarity.sample(len(vectors), most=MOST)
        x = compared(vectors[rows], normalize=normalize).astype(np.float64)
        classes = is_bonafide[rows].astype(np.intp)
        if len(set(classes.tolist())) < 2:
            raise InputError(f"expected training embeddings of both classes, got one among {len(x)}")
        means = np.stack([x[classes == number].mean(axis=0) for number in (0, 1)])
        away = x - means[classes]
        usual, directions = np.linalg.eigh(away.T @ away / len(away))
        delta, nu = float(ledoit_wolf_shrinkage(away, assume_centered=True)), float(usual.mean())
        variances = (1 - delta) * usual + delta * nu
        alive = variances > DEAD * variances[-1]
        if not nu > 0 or not alive.any():
            raise InputError(f"expected training embeddings that differ within a class, got {len(x)} that do not")
        found = cls(means, directions[:, alive], variances[alive], np.empty(0), normalize)
        some = familiarity.sample(len(x))
        own = found._left_out(x[some], classes[some], np.bincount(classes, minlength=2), delta, delta * nu)
        return cls(means, found.directions, found.variances, np.sort(own), normalize)

    def percentiles(self, vectors: Vectors) -> Floats:
        """The percentiles (n,), in 0..100, of embeddings (n, E) by their distances among the training set's own."""
        x = compared(vectors, normalize=self.normalize).astype(np.float64)
        squares = [(((x - mean) @ self.directions) ** 2 / self.variances).sum(axis=1) for mean in self.means]
        return familiarity.among(np.sqrt(np.minimum(*squares)), self.own)

    def _left_out(
        self, x: Floats, classes: NDArray[np.intp], counts: NDArray[np.intp], delta: float, floor: float
    ) -> Floats:
        """The distances (M,) of training embeddings (M, E) to the Gaussians of all others.

        counts: of both classes. delta: δ. floor: δ ν.
        """
        count, of_class = counts.sum(), counts[classes]
        spread = (self.variances - floor) * count / (count - 1) + floor  # of A
        own = (x - self.means[classes]) @ self.directions  # d
        other = (x - self.means[1 - classes]) @ self.directions
        alone = of_class == 1  # then nothing is left of the class
        factor = of_class / np.maximum(of_class - 1, 1)
        beta = (1 - delta) * factor / (count - 1)
        q = (own**2 / spread).sum(axis=1)
        across = (own * other / spread).sum(axis=1)
        rest = 1 - beta * q
        to_own = np.where(alone, np.inf, factor**2 * q / rest)
        to_other = (other**2 / spread).sum(axis=1) + beta * across**2 / rest
        distances: Floats = np.sqrt(np.minimum(to_own, to_other))
        return distances
