"""The arguments that all commands on score files have."""

from __future__ import annotations

import math
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from pipeline.metrics import scorefile
from pipeline.metrics.scorefile import Layout, ScoreFile


def add_arguments(parser: ArgumentParser, *, threshold: str) -> None:
    """Add the arguments of a command that joins score files with a key. threshold: the help of --threshold."""
    add = parser.add_argument
    add("scores", type=Path, nargs="+", metavar="SCORES", help="score files, one for each system")
    add(
        "--key",
        type=Path,
        metavar="FILE",
        help="file with the true classes: a protocol or key of a public corpus, a manifest, or a trial table",
    )
    add("--split", metavar="NAME", help="the part of the key that was scored; default: all, and eval of a 2021 key")
    add("--format", choices=("auto", *get_args(Layout)), default="auto", help="layout of SCORES; default: auto")
    add("--threshold", type=finite, action="append", metavar="X", help=threshold)


def parse_arguments(parser: ArgumentParser, argv: Sequence[str] | None) -> Namespace:
    """Parse the arguments of `add_arguments`, and check that thresholds are given for all score files or for none."""
    given = parser.parse_args(argv)
    if given.threshold and len(given.threshold) != len(given.scores):
        parser.error(f"expected --threshold once for each of {len(given.scores)} score files, got {given.threshold}")
    return given


def finite(text: str) -> float:
    """Parse a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ArgumentTypeError(f"expected a finite number, got {text!r}")
    return value


def score_files(given: Namespace) -> list[ScoreFile]:
    """Read the score files that the arguments name."""
    layout: Layout | None = None if given.format == "auto" else given.format
    return [scorefile.parse(path, layout) for path in given.scores]
