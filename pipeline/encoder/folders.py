"""The files of an encoder in a folder that transformers wrote, or of a name on the hub, where they are fetched."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import try_to_load_from_cache
from transformers.utils.hub import cached_file

from pipeline.core.errors import InputError, listing
from pipeline.core.files import read_json
from pipeline.encoder import sources

CONFIG = "config.json"
WEIGHTS = (  # in the order in which they are looked for
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
INDEX = ".index.json"
MOST_BYTES = 64 * 2**20  # of a configuration or an index
MEND = "take it from where it was published, or write the folder anew with transformers' save_pretrained"


def files_of(source: str, *, revision: str | None) -> list[Path]:
    """The files that `pretrained.load` reads; of a name on the hub those in transformers' cache.

    Empty where one of them is not there, or `pretrained.load` would refuse them.
    """
    folder = Path(source)
    if not folder.is_dir():
        found = try_to_load_from_cache(source, CONFIG, revision=revision or "main")
        if not isinstance(found, str):
            return []
        folder = Path(found).parent
    try:
        return [folder / name for name in (CONFIG, *weights_of(str(folder), None))]
    except InputError:
        return []


def weights_of(source: str, revision: str | None) -> list[str]:
    """The names of the files of weights, below the folder. Raises InputError where there are none."""
    for name in WEIGHTS:
        if (place := find(source, name, revision)) is None:
            continue
        if not name.endswith(INDEX):
            return [name]
        told = read_json(place, what="index of weights", keys=("weight_map",), remedy=MEND, most=MOST_BYTES)
        names = told["weight_map"].values() if isinstance(told["weight_map"], dict) else [None]
        if wrong := [repr(one)[:200] for one in names if not _is_below(one)]:
            raise InputError(
                f"{place}: expected files of weights below its folder, got {len(wrong)} others; {MEND}:\n"
                f"{listing(wrong)}"
            )
        found = sorted(set(names))
        if not found:
            raise InputError(f"{place}: expected files of weights below its folder, got none; {MEND}")
        if Path(source).is_dir():
            _check_links(Path(source), found, place)
        return found
    why = f"no file {' or '.join(name for name in WEIGHTS if not name.endswith(INDEX))}"
    if not Path(source).is_dir():
        why = f"there is no such model, or it cannot be reached from here and is not in the cache: {why}"
    else:
        others = sorted(path.name for path in Path(source).iterdir() if path.suffix.lower() in sources.SUFFIXES)
        why += f"; it has {', '.join(others[:3])}; give the path of that file" if others else ""
    raise sources.unfit(source, why)


def _is_below(name: Any) -> bool:
    """Whether an entry of an index is the name of a file of weights below the folder."""
    if not isinstance(name, str) or not name or len(name) > 500 or "\0" in name or "\\" in name:
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and path.suffix in (".safetensors", ".bin")


def _check_links(folder: Path, names: Sequence[str], index: Path) -> None:
    """Raise InputError for a link out of the folder; that of a snapshot in the hub's cache may lead to its blobs."""
    root = folder.resolve()
    roots = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
    for name in names:
        try:
            place = (folder / name).resolve(strict=True)
        except (OSError, RuntimeError) as error:
            raise InputError(f"{index}: names {name!r}, which cannot be read ({error}); {MEND}") from None
        if not any(place.is_relative_to(one) for one in roots):
            raise InputError(f"{index}: expected files of weights below its folder, got {name!r}, a link out of it")


def required(source: str, name: str, revision: str | None) -> Path:
    """As `find`. Raises InputError where there is none."""
    place = find(source, name, revision)
    if place is None:
        raise sources.unfit(source, f"no file {name}")
    return place


def find(source: str, name: str, revision: str | None) -> Path | None:
    """A file of a folder, or of the hub, where it is fetched; None where there is none."""
    if Path(source).is_dir():
        return Path(source, name) if Path(source, name).is_file() else None
    try:
        found = cached_file(source, name, revision=revision or "main", _raise_exceptions_for_missing_entries=False)
    except Exception as error:  # whatever the hub and the network raise
        raise sources.unfit(source, error) from None
    return Path(found) if found else None


def optional(source: str, name: str, revision: str | None) -> Path | None:
    """As `find`, for files that need not be there; None also where the hub is not reached."""
    with contextlib.suppress(InputError):
        return find(source, name, revision)
    return None
