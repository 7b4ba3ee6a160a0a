"""Views: named versions of an utterance. The clean one is always cached, the others augment training.

    clean             the samples as they are
    rawboost4_0       pipeline/views/rawboost.py, variant 4 (RawBoost's algorithm), copy 0
    noise_0           pipeline/views/noise.py, which has no variants, copy 0; other copies are other draws
    narrowband        pipeline/views/narrowband.py, which draws nothing: one copy, without a number

A kind of view is one file of `pipeline/views/` with

    VARIANTS: tuple[int, ...]     the numbers that follow its name; () where there is one variant
    RANDOM: bool                  whether it draws; then `_0` to `_99` name its copies
    def apply(samples, *, variant, rng): ...   (n,) float32 at 16 kHz -> (n,) float32

A view is applied to the whole utterance, and the window is cut from the result: so do the published training scripts
(SSL_Anti-spoofing, QAMO: load, RawBoost, then pad or cut). Every draw comes from a generator seeded by the utterance
and the view's name, so that order, worker count and restarts change nothing.
"""

from __future__ import annotations

import hashlib
import re
from types import ModuleType
from typing import NamedTuple

import numpy as np

from pipeline.audio.windowing import Samples
from pipeline.core.contracts import CLEAN
from pipeline.core.errors import InputError
from pipeline.core.members import member, names

VIEWS_VERSION = 1  # raise it when a view of the same audio gives other samples
AXIS = "views"
COPIES = 100  # of a view that draws

_PATTERN = re.compile(r"([a-z]+(?:_[a-z]+)*)([0-9]*)(?:_(0|[1-9][0-9]?))?")


class View(NamedTuple):
    """A name taken apart; variant is 0 where the kind has one variant, copy is 0 where all would be equal."""

    kind: str
    variant: int = 0
    copy: int = 0


def parse(name: str) -> View:
    """The view of a name. Raises InputError for a name that no view has."""
    match = _PATTERN.fullmatch(name)
    if name == CLEAN:
        return View(CLEAN)
    if match and match[1] in names(AXIS):
        kind, variant, copy = match.groups()
        module = member(AXIS, kind)
        if variant in _variants(module) and (copy is not None) == module.RANDOM:
            return View(kind, int(variant or 0), int(copy or 0))
    raise InputError(f"expected a view ({', '.join([CLEAN, *map(_range, names(AXIS))])}), got {name!r}")


def _variants(module: ModuleType) -> list[str]:
    """The variants of a kind, as its names spell them."""
    return [str(variant) for variant in module.VARIANTS] or [""]


def _range(kind: str) -> str:
    """The names of a kind, as `first to last`."""
    module = member(AXIS, kind)
    variants = _variants(module)
    first, last = variants[0], variants[-1]
    ends = [f"{first}_0", f"{last}_{COPIES - 1}"] if module.RANDOM else dict.fromkeys([first, last])
    return " to ".join(f"{kind}{end}" for end in ends)


def apply(name: str, samples: Samples, *, utterance: str) -> Samples:
    """A view of an utterance, (n,) float32 at 16 kHz -> (n,) float32; the same for the same names and samples.

    Raises InputError for a name of no view.
    """
    view = parse(name)
    if view.kind == CLEAN:
        return samples
    heard: Samples = member(AXIS, view.kind).apply(
        samples, variant=view.variant, rng=generator(name, utterance=utterance)
    )
    return heard


def generator(name: str, *, utterance: str) -> np.random.Generator:
    """The generator of one view of one utterance."""
    digest = hashlib.sha256(f"{utterance}\n{name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))
