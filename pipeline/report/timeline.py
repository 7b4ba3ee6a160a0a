"""The score of one file over time, as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.report.plots import LINE_COLOUR, SPOOF_COLOUR, new_figure, save


def draw_timeline(
    path: Path, start: NDArray[np.float64], end: NDArray[np.float64], score: NDArray[np.float32], *, threshold: float
) -> None:
    """Draw the scores (W,) of windows from start to end (W,), in seconds, as PNG.

    A dot stands at the middle of its window. A window below the dashed threshold is taken for spoof. A score that is
    nan leaves a gap.
    """
    figure, (axes,) = new_figure(1, width=8.0, height=2.8)
    middle = (start + end) / 2
    axes.axhline(threshold, color=LINE_COLOUR, linewidth=1.0, linestyle="--", label="threshold")
    axes.plot(middle, score, ".-", color=LINE_COLOUR, linewidth=0.8)
    axes.fill_between(middle, score, threshold, where=score <= threshold, interpolate=True, color=SPOOF_COLOUR,
                      alpha=0.45, label="taken for spoof")  # fmt: skip
    axes.plot(middle[score <= threshold], score[score <= threshold], ".", color=SPOOF_COLOUR)
    axes.set(xlim=(0.0, float(end.max())), xlabel="time, s", ylabel="score")
    axes.legend(frameon=False, fontsize="small")
    save(figure, path)
