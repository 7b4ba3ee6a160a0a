"""Score files and the trials that they are joined with, as commands are given them: any key, without its audio."""

from __future__ import annotations

import math
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from pipeline import contracts, protocols, scorefile, trials
from pipeline.errors import InputError
from pipeline.scorefile import Layout, ScoreFile
from pipeline.trials import Trials

MISSING = (
    "every trial of the key needs a score; score these too, or give the key of the part that was scored (--split), "
    "as a system that may leave trials out looks better than it is"
)


@dataclass(frozen=True)
class Key:
    """The trials that scores are joined with, and the file that lists them.

    corpus: as `protocols.recognise` names it, None for a score file that is its own key. split: None where the file
    has no splits.
    """

    path: Path
    corpus: str | None
    split: str | None
    trials: Trials


def read(path: Path | None, split: str | None, scores: ScoreFile) -> Key:
    """The key of a file, or the one that a 2019 score file carries itself.

    Raises InputError for a file that is none, for a split that it does not have, and without a path where the score
    file does not tell what is bona fide.
    """
    if path is None:
        if split:
            raise InputError(f"expected --split with a --key that has splits alone, got --split {split}; leave it out")
        return Key(scores.path, None, None, scorefile.own_key(scores))
    corpus = protocols.recognise(path)
    if corpus is None:
        raise InputError(
            f"{path}: expected a protocol or key of {', '.join(protocols.FORMATS)}, a manifest or a trial table; "
            "its first line is of none of them"
        )
    if corpus == protocols.TABLE:
        if split:
            raise InputError(f"{path}: a trial table has no splits, got --split {split}; leave it out")
        return Key(path, corpus, None, trials.read(path))
    split = split or protocols.default_split(path, corpus)
    return Key(path, corpus, split, contracts.member("corpora", corpus).trials(path.parent, path, split))


def short_names(paths: Sequence[Path]) -> list[str]:
    """What tells score files apart: as many of their last parts as that takes, without suffixes where these are alike.

    Raises InputError for one file twice.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise InputError(f"expected different score files, got {', '.join(map(str, paths))}")
    bare = [path.with_suffix("").parts for path in paths]
    parts = bare if len(set(bare)) == len(bare) else [path.parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


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
