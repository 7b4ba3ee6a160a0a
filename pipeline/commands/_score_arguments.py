"""The arguments that all commands on score files have."""

from __future__ import annotations

import math
import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from pipeline.metrics import scorefile
from pipeline.metrics.layouts import Chosen, Layout
from pipeline.metrics.scorefile import ScoreFile

COLUMNS = re.compile("utterance=([1-9][0-9]{0,3}),score=([1-9][0-9]{0,3})").fullmatch


def add_arguments(parser: ArgumentParser, *, threshold: str) -> None:
    """Add the arguments of a command that joins score files with a key. threshold: the help of --threshold."""
    add = parser.add_argument
    add("scores", type=Path, nargs="+", metavar="SCORES", help="score files, one for each system")
    add(
        "--key",
        type=Path,
        metavar="FILE",
        help="file with the true classes: a protocol or key of a public corpus, a manifest, or a trial table; or the "
        "folder of a dataset of the Arena",
    )
    add("--split", metavar="NAME", help="the part of the key that was scored; default: all, and eval of a 2021 key")
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--format", choices=("auto", *get_args(Layout)), default="auto", help="layout of SCORES; default: auto"
    )
    form.add_argument(
        "--columns",
        type=columns,
        action="append",
        metavar="utterance=N,score=M",
        help="the cells of a line that hold the utterance and the score, from 1, in any other layout; give it once, or "
        "once for each of SCORES, with `auto` for those that need none",
    )
    add("--threshold", type=finite, action="append", metavar="X", help=threshold)


def parse_arguments(parser: ArgumentParser, argv: Sequence[str] | None) -> Namespace:
    """Parse the arguments of `add_arguments`, and check that there are as many thresholds and columns as files."""
    given = parser.parse_args(argv)
    if given.columns and len(given.columns) not in (1, len(given.scores)):
        parser.error(f"expected --columns once, or once for each of {len(given.scores)} score files")
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


def columns(text: str) -> Chosen | None:
    """Parse the columns of a score file; `auto` is None."""
    if text == "auto":
        return None
    if not (found := COLUMNS(text)) or found[1] == found[2]:
        raise ArgumentTypeError(f"expected utterance=N,score=M with two numbers from 1 up, or auto, got {text!r}")
    return Chosen(int(found[1]), int(found[2]))


def score_files(given: Namespace) -> list[ScoreFile]:
    """Read the score files that the arguments name."""
    layout: Layout | None = None if given.format == "auto" else given.format
    chosen = given.columns or [None]
    chosen = chosen * len(given.scores) if len(chosen) == 1 else chosen
    return [scorefile.parse(path, layout, chosen=cells) for path, cells in zip(given.scores, chosen, strict=True)]
