"""The score of one file over time, as a picture."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.core import files

SPOOF_COLOUR, LINE_COLOUR = "#d1603d", "#333333"
DOTS_PER_INCH = 144


def draw(
    path: Path, start: NDArray[np.float64], end: NDArray[np.float64], score: NDArray[np.float32], *, threshold: float
) -> None:
    """Draw the scores (W,) of windows from start to end (W,), in seconds, as PNG.

    A dot stands at the middle of its window; below the dashed threshold the window is taken for spoof. A score that is
    nan leaves a gap.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # here, so that what only imports this need not wait
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 2.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    middle = (start + end) / 2
    axes.axhline(threshold, color=LINE_COLOUR, linewidth=1.0, linestyle="--", label="threshold")
    axes.plot(middle, score, ".-", color=LINE_COLOUR, linewidth=0.8)
    axes.fill_between(middle, score, threshold, where=score <= threshold, interpolate=True, color=SPOOF_COLOUR,
                      alpha=0.45, label="taken for spoof")  # fmt: skip
    axes.plot(middle[score <= threshold], score[score <= threshold], ".", color=SPOOF_COLOUR)
    axes.set(xlim=(0.0, float(end.max())), xlabel="time, s", ylabel="score")
    axes.legend(frameon=False, fontsize="small")
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    files.write_bytes(path, image.getvalue())
