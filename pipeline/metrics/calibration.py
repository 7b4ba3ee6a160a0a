"""Calibration: the map from scores to log-likelihood ratios with the least Cllr on trials set aside for it.

The linear calibration of Brümmer and du Preez: "Application-independent evaluation of speaker detection", Computer
Speech and Language 2006, and of the FoCal and BOSARIS toolkits: logistic regression of the class on the score. Both
classes have the same weight (an effective prior of one half), so that its loss is Cllr. The DET curve stays as it is: a
larger score stays larger.

Three cases have no such optimum, or none that may be used:

- The bona fide do not score higher on average (scores that are inverted, or all equal). The optimum's slope would be 0
  or negative, but no sign is ever flipped: of the slopes from 0 up the best is then 0, with the offset 0. Every score
  becomes 0, "I do not know", which costs 1 bit.
- The classes do not overlap. Each steeper slope costs less, without an end; but 20 trials without an error are no
  evidence for a ratio of a million to one. Then the targets of Platt ("Probabilistic outputs for support vector
  machines", 1999) take the place of 1 and 0: (B + 1) / (B + 2) for B bona fide trials, 1 / (S + 2) for S spoof trials,
  the rule of succession. So the number of trials bounds the ratios.
- Scores are refused if they are so close together that the slope would overflow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.metrics.det import checked

GREATEST = 1e100  # of a score and of a slope: their product stays a number
CLOSE = 1e-6  # relative, what the last step may move a log-likelihood ratio by; Newton's method squares the error
DECREASE = 0.25  # of what a step promises, the least that it must keep
ROUNDING = 1e-14  # of a loss, relative
MOST_STEPS = 2000  # ten are usual; outliers 1e100 away take a few hundred

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """slope · score + offset is a log-likelihood ratio in nats, bona fide against spoof; the slope is never below 0."""

    slope: float
    offset: float

    def __post_init__(self) -> None:
        if not 0 <= self.slope <= GREATEST:
            raise ValueError(f"expected a slope from 0 to {GREATEST:g}, got {self.slope}")
        if not math.isfinite(self.offset):
            raise ValueError(f"expected a finite offset, got {self.offset}")

    def apply(self, scores: ArrayLike) -> Floats:
        """The log-likelihood ratios of scores, of any shape; float64."""
        return self.slope * np.asarray(scores, dtype=np.float64) + self.offset


class _Examples(NamedTuple):
    """What the regression sees: scores (N,), their class as 1 or −1 (N,), and weights (N,) whose sum is 1."""

    score: Floats
    sign: Floats
    weight: Floats


class _Line(NamedTuple):
    """The log-likelihood ratio as a line: `height` at the score `centre`.

    An offset at a centre amid the scores keeps the digits that one at a score of 0 may lose.
    """

    slope: float
    height: float
    centre: float

    def at(self, score: Floats) -> Floats:
        return self.slope * (score - self.centre) + self.height


def fit(bonafide: ArrayLike, spoof: ArrayLike) -> Calibration:
    """The calibration that is best for bona fide scores (B,) and spoof scores (S,), as the head of this file says.

    Where the classes overlap and the bona fide score higher on average, it has the least Cllr of all slopes and
    offsets. Shifted or scaled scores give the same log-likelihood ratios. Raises ValueError for an empty class, nan,
    scores beyond 1e100 of either sign, and scores too close together for a slope of at most 1e100.
    """
    kept, refused = checked("bona fide", bonafide), checked("spoof", spoof)
    scores = np.concatenate((kept, refused))  # (N,)
    if np.abs(scores).max() > GREATEST:
        raise ValueError(f"expected scores from {-GREATEST:g} to {GREATEST:g}, got {scores[np.abs(scores).argmax()]}")
    # Of all lines with slope 0 the offset 0 is the best, and there the loss falls towards larger slopes just where the
    # means differ this way; as it is convex, they decide the sign of the best slope.
    if scores.min() == scores.max() or kept.mean() <= refused.mean():
        return Calibration(0.0, 0.0)
    separated = kept.min() >= refused.max()
    line = _least(_softened(kept, refused) if separated else _hard(kept, refused))
    return Calibration(max(line.slope, 0.0), line.height - line.slope * line.centre)


def _hard(kept: Floats, refused: Floats) -> _Examples:
    """Every trial as one of its class, both classes weighing one half: the loss is Cllr in nats."""
    return _Examples(
        score=np.concatenate((kept, refused)),
        sign=np.repeat([1.0, -1.0], [kept.size, refused.size]),
        weight=np.repeat([0.5 / kept.size, 0.5 / refused.size], [kept.size, refused.size]),
    )


def _softened(kept: Floats, refused: Floats) -> _Examples:
    """Every trial as one of its class and, with Platt's small share of its weight, as one of the other class too."""
    own = _hard(kept, refused)
    other = np.repeat([1 / (kept.size + 2), 1 / (refused.size + 2)], [kept.size, refused.size])
    return _Examples(
        score=np.concatenate((own.score, own.score)),
        sign=np.concatenate((own.sign, -own.sign)),
        weight=np.concatenate((own.weight * (1 - other), own.weight * other)),
    )


def _loss(line: _Line, examples: _Examples) -> float:
    """The weighted mean of log(1 + e^(−sign · log-likelihood ratio)), in nats."""
    return float(np.sum(examples.weight * np.logaddexp(0, -examples.sign * line.at(examples.score))))


def _least(examples: _Examples) -> _Line:
    """The line of least loss, by Newton's method with halved steps; the loss is convex and has a minimum.

    A step that promises little may yet be far from the minimum: an outlier that is right already hides all others until
    its share of the loss has vanished. So it ends by how far log-likelihood ratios still move.
    """
    line = _Line(slope=0.0, height=0.0, centre=0.0)
    for _ in range(MOST_STEPS):
        _check_scale(line.slope, examples.score)
        line, step, promised = _step(line, examples)
        before, after = line.at(examples.score), _moved(line, step, 1.0).at(examples.score)
        if np.all(np.abs(after - before) <= CLOSE * (1 + np.abs(before))):
            return _moved(line, step, 1.0)
        line = _moved(line, step, _size(line, step, promised, examples))
    raise AssertionError(f"no calibration after {MOST_STEPS} steps, at {line}")


def _size(line: _Line, step: tuple[float, float], promised: float, examples: _Examples) -> float:
    """The size of a step, the first of 1, 1/2, 1/4, ... that lowers the loss by a given share of what was promised."""
    loss = _loss(line, examples) * (1 + ROUNDING)
    size = 1.0
    while _loss(_moved(line, step, size), examples) > loss - DECREASE * size * promised:
        size /= 2
    return size


def _check_scale(slope: float, scores: Floats) -> None:
    """Raise ValueError where the slope is too large, or the scores are so close together that it would be."""
    low, high = scores.min(), scores.max()
    if slope > GREATEST or high - low < 1 / GREATEST:
        raise ValueError(
            f"expected scores that a slope of at most {GREATEST:g} makes log-likelihood ratios of, got scores from "
            f"{low} to {high} that are too close together; multiply all scores by a large number"
        )


def _step(line: _Line, examples: _Examples) -> tuple[_Line, tuple[float, float], float]:
    """The line, described from a centre where slope and height do not mix; Newton's step (slope, height); its promise.

    The promise is the squared Newton decrement, twice the fall of the loss were it a parabola.
    """
    margin = examples.sign * line.at(examples.score)  # (N,)
    losses = np.logaddexp(0, -margin)
    pull = examples.weight * np.exp(-margin - losses)  # (N,) how far the example is from its class
    curvature = pull * np.exp(-losses)  # (N,)
    total = float(curvature.sum())
    centre = float(np.sum(curvature * examples.score)) / total
    away = examples.score - centre
    pull *= examples.sign
    spread, turn, lift = float(np.sum(curvature * away**2)), float(np.sum(pull * away)), float(pull.sum())
    here = _Line(line.slope, float(line.at(np.array(centre))), centre)
    return here, (turn / spread, lift / total), turn**2 / spread + lift**2 / total


def _moved(line: _Line, step: tuple[float, float], size: float) -> _Line:
    return line._replace(slope=line.slope + size * step[0], height=line.height + size * step[1])
