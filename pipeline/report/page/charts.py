"""Charts that the page draws as inline SVG: axes with round ticks, lines, and their places in pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

COLOURS, DASHES = 8, 3  # as the page's style sheet has them: 24 lines look different
WIDE, SQUARE = (330, 190), (330, 330)  # pixels of the area within the axes
BEYOND = 20  # pixels outside the area where what cannot be shown is drawn, so that no line runs along the border


@dataclass(frozen=True)
class Axis:
    """An axis: its label, the values at its ends, and ticks as (value, text)."""

    label: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]

    def share(self, value: float) -> float:
        """How far along the axis a value is, 0 at its low end and 100 at its high end."""
        return round(min(max(100 * (value - self.low) / (self.high - self.low), 0.0), 100.0), 2)


@dataclass(frozen=True)
class Line:
    """A line of a chart: its name in the legend, its CSS classes, points (n, 2), and a dot or None."""

    name: str
    style: str
    points: NDArray[np.float64]
    dot: tuple[float, float] | None = None


@dataclass(frozen=True)
class Ring:
    """A ring around a point of a chart, in the units of the axes, with a short text above it."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Chart:
    """A chart: caption, size of the area in pixels, axes, and lines and rings in the units of the axes."""

    caption: str
    size: tuple[int, int]
    x: Axis
    y: Axis
    lines: tuple[Line, ...]
    rings: tuple[Ring, ...] = ()

    def across(self, value: float) -> float:
        """Pixels from the left for a value on the x axis."""
        return _pixels(value, self.x, self.size[0])

    def down(self, value: float) -> float:
        """Pixels from the top for a value on the y axis."""
        return round(self.size[1] - _pixels(value, self.y, self.size[1]), 1)

    def path(self, line: Line) -> str:
        """The points of a line as SVG writes them."""
        return " ".join(f"{self.across(x):g},{self.down(y):g}" for x, y in line.points.tolist())


def _pixels(value: float, axis: Axis, size: int) -> float:
    place = size * (value - axis.low) / (axis.high - axis.low)
    return round(min(max(place, -BEYOND), size + BEYOND), 1)


def style(rank: int) -> str:
    """The CSS classes of the line of that rank: a colour, and a dash once all colours are taken."""
    return f"c{rank % COLOURS} d{rank // COLOURS % DASHES}"


def linear_axis(label: str, values: NDArray[np.float64], *, whole: bool = False, snap: bool = True) -> Axis:
    """An axis over the finite values with about five ticks at 1, 2 or 5 times a power of ten.

    whole: ticks at whole numbers only. snap: the axis ends at ticks, else at the values.
    """
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    if low == high:
        high = low + max(abs(low), 1.0)
    step = _step((high - low) / 5)
    step = max(step, 1.0) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    decimals = max(0, -math.floor(math.log10(step)))
    ticks = [(i * step, f"{i * step:.{decimals}f}".replace("-", "\N{MINUS SIGN}")) for i in range(first, last + 1)]
    if snap:
        return Axis(label, first * step, last * step, tuple(ticks))
    return Axis(label, low, high, tuple(tick for tick in ticks if low <= tick[0] <= high))


def _step(least: float) -> float:
    """The least 1, 2 or 5 times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
