"""The libraries that make features, by major and minor version: a fact beside the numbers, which warns and no more.

Another version may change the last digits of features. It is no part of their fingerprint, so that an upgrade computes
nothing anew. A warning says where features of one store were made by two versions, or by another one than is at work.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from tqdm import tqdm

IMPORTED = "imported"  # in place of the versions: who made these numbers is not known here


@functools.cache
def at_work() -> str:
    """The versions in this process, such as `torch 2.9, transformers 4.57, soxr 1.0, libsndfile 1.2`."""
    import soundfile  # here, because it loads libsndfile

    found = {name: version(name) for name in ("torch", "transformers", "soxr")}
    found["libsndfile"] = soundfile.__libsndfile_version__
    return ", ".join(f"{name} {_minor(text)}" for name, text in found.items())


def _minor(text: str) -> str:
    """Major and minor of a version: 2.9 of 2.9.1+cpu."""
    numbers = re.match(r"\d+(\.\d+)?", text)
    return numbers[0] if numbers else text


def compare(made: Iterable[set[str]], *, store: Path) -> None:
    """Warn, once in a process, where the features of a store were made by other versions than those at work.

    made: the versions that made shards; they are unknown for imported numbers and in older stores.
    """
    others = sorted(set[str]().union(*made) - {IMPORTED})
    if others and others != [at_work()]:
        _warn(
            f"{store}: its features were made by {' and by '.join(others)}; here are {at_work()}. Last digits may "
            "differ. What is there stays as it is; to have all by one version, move the store away and run `dvc repro "
            "-f extract`"
        )


@functools.cache
def _warn(text: str) -> None:
    tqdm.write(f"warning: {text}", file=sys.stderr)
