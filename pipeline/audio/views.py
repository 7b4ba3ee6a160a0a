"""Views: named versions of an utterance. The clean one is always cached, the others augment training.

    clean             the samples as they are
    rawboost4_0       pipeline/views/rawboost.py, variant 4 (RawBoost's algorithm), copy 0
    noise_0           pipeline/views/noise.py, which has no variants, copy 0; other copies are other draws
    narrowband        pipeline/views/narrowband.py, which draws nothing: one copy, without a number
    mp3_32            pipeline/views/mp3.py, variant 32 (kbit/s); a name that ends in a digit is parted from the variant

A kind of view is one file of `pipeline/views/` with

    VARIANTS: tuple[int, ...]     the numbers that follow its name; () where there is one variant
    RANDOM: bool                  whether it draws; then `_0` to `_99` name its copies
    EXTRA: str                    the module that it needs, where an extra of the same name brings it
    RECORDINGS: str               the list of `data/recordings` that it takes sound from, where it takes any
    def apply(samples, *, variant, rng): ...   (n,) float32 at 16 kHz -> (m,) float32, m = n but where it cuts off;
                                               with RECORDINGS it has the argument `recordings`, too

A view is applied to the whole utterance, and the window is cut from the result: so do the published training scripts
(SSL_Anti-spoofing, QAMO: load, RawBoost, then pad or cut). Every draw comes from a generator seeded by the utterance
and the view's name, so that order, worker count and restarts change nothing.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.audio import recordings
from pipeline.audio.recordings import Recordings
from pipeline.audio.windowing import Samples
from pipeline.core.contracts import CLEAN
from pipeline.core.errors import InputError
from pipeline.core.members import member, names

VIEWS_VERSION = 1  # raise it when a view of the same audio gives other samples
AXIS = "views"
COPIES = 100  # of a view that draws


class View(NamedTuple):
    """A name taken apart; variant is 0 where the kind has one variant, copy is 0 where all would be equal."""

    kind: str
    variant: int = 0
    copy: int = 0


def parse(name: str) -> View:
    """The view of a name. Raises InputError for a name that no view has."""
    if name == CLEAN:
        return View(CLEAN)
    for kind in names(AXIS):
        if name.startswith(kind) and (view := _of_kind(kind, name)):
            return view
    raise InputError(f"expected a view ({', '.join([CLEAN, *map(_every, names(AXIS))])}), got {name!r}")


def computable(name: str) -> View:
    """The view of a name, to be computed here. Raises InputError as `parse`, and where its extra is not installed.

    Cached features of a view are read without the extra.
    """
    view = parse(name)
    extra = None if view.kind == CLEAN else getattr(member(AXIS, view.kind), "EXTRA", None)
    if extra and not importlib.util.find_spec(extra):
        raise InputError(f'the view {name} needs what is not installed: pip install "bonafide[{extra}]"')
    return view


def recordings_of(name: str, folder: Path) -> Recordings | None:
    """The recordings that a view takes sound from; None where it takes none. folder: of the lists of recordings.

    Raises InputError as `parse`, and where the list of them is missing or wrong.
    """
    view = parse(name)
    kind = None if view.kind == CLEAN else getattr(member(AXIS, view.kind), "RECORDINGS", None)
    try:
        return recordings.of(kind, folder) if kind else None
    except InputError as error:
        raise InputError(f"the view {name} takes its sound from recordings of your own: {error}") from None


def all_recordings(names: Iterable[str], folder: Path) -> dict[str, Recordings]:
    """The recordings of those views that take sound from some. Raises InputError as `recordings_of`."""
    return {name: found for name in names if (found := recordings_of(name, folder)) is not None}


def _of_kind(kind: str, name: str) -> View | None:
    """The view of this kind that has the name; None where there is none."""
    module = member(AXIS, kind)
    copies = {f"_{copy}": copy for copy in range(COPIES)} if module.RANDOM else {"": 0}
    for variant in module.VARIANTS or (0,):
        stem = _stem(kind) + str(variant) * bool(module.VARIANTS)
        if name.startswith(stem) and name[len(stem) :] in copies:
            return View(kind, variant, copies[name[len(stem) :]])
    return None


def _stem(kind: str) -> str:
    """What stands before the variant in the names of a kind."""
    return f"{kind}_" if kind[-1].isdigit() else kind


def _every(kind: str) -> str:
    """All names of a kind, as `noise_(0 to 99)` or `mp3_(16|32|64)`."""
    module = member(AXIS, kind)
    variants = f"({'|'.join(map(str, module.VARIANTS))})" if module.VARIANTS else ""
    return _stem(kind) + variants + (f"_(0 to {COPIES - 1})" if module.RANDOM else "")


def apply(name: str, samples: Samples, *, utterance: str, recordings: Recordings | None = None) -> Samples:
    """A view of an utterance, (n,) float32 at 16 kHz -> (m,) float32; the same for the same names and samples.

    recordings: those of the view, as `recordings_of` finds them. Raises InputError for a name of no view, and for a
    recording that cannot be used.
    """
    view = parse(name)
    if view.kind == CLEAN:
        return samples
    module = member(AXIS, view.kind)
    if hasattr(module, "RECORDINGS") and recordings is None:
        raise InputError(f"the view {name} takes its sound from recordings, and none were given")
    more = {"recordings": recordings} if recordings is not None else {}
    heard: Samples = module.apply(samples, variant=view.variant, rng=generator(name, utterance=utterance), **more)
    return heard


def generator(name: str, *, utterance: str) -> np.random.Generator:
    """The generator of one view of one utterance."""
    digest = hashlib.sha256(f"{utterance}\n{name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))
