"""Arguments that the commands on score files share."""

from __future__ import annotations

import math
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from pipeline.metrics import scorefile
from pipeline.metrics.scorefile import Layout, ScoreFile


def add_arguments(parser: ArgumentParser, *, threshold: str) -> None:
    """Add the arguments of every command that joins score files with a key; `threshold` says what it is used for."""
    add = parser.add_argument
    add("scores", type=Path, nargs="+", metavar="SCORES", help="score files, one a system")
    add("--key", type=Path, help="what is bona fide: a protocol or key of a public corpus, a manifest, a trial table")
    add("--split", metavar="NAME", help="part of the key that was scored; unless given, phase eval of a 2021 key")
    add("--format", choices=("auto", *get_args(Layout)), default="auto", help="layout of SCORES (default: auto)")
    add("--threshold", type=finite, action="append", metavar="X", help=threshold)


def parse_arguments(parser: ArgumentParser, argv: Sequence[str] | None) -> Namespace:
    """Parse what `add_arguments` added; a threshold is given for each of the score files or for none."""
    given = parser.parse_args(argv)
    if given.threshold and len(given.threshold) != len(given.scores):
        parser.error(f"expected --threshold once for each of {len(given.scores)} score files, got {given.threshold}")
    return given


def finite(text: str) -> float:
    """A finite number of the command line."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ArgumentTypeError(f"expected a finite number, got {text!r}")
    return value


def score_files(given: Namespace) -> list[ScoreFile]:
    """The score files of parsed arguments."""
    layout: Layout | None = None if given.format == "auto" else given.format
    return [scorefile.parse(path, layout) for path in given.scores]
