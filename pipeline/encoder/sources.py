"""Where `encoder.source` leads: to a file, to a folder, or to the hub."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

from pipeline.core.errors import InputError
from pipeline.core.files import in_project

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")  # of weights, in any case of letters
HUB_NAME = re.compile(r"[A-Za-z0-9]([\w.-]*\w)?(/\w([\w.-]*\w)?)?", re.ASCII)
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/|www\.|huggingface\.co/|hf\.co/", re.IGNORECASE)
ON_HUB = re.compile(r"(?:https?:/+)?(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)", re.ASCII | re.IGNORECASE)
LONGEST = 96  # characters of a name on the hub
NO_NAMES = (*SUFFIXES, ".git")  # what no name on the hub, or none of an encoder, ends with


def place_of(source: str) -> Path | None:
    """The file or folder of a source, or None for a name on the hub. An existing path is never taken for such a name.

    Raises InputError, with the place of the search, where there is no such path and no such name is possible.
    """
    if not source:
        raise InputError("encoder.source: expected a path, a hub name or random, got nothing")
    for path in (Path(source), in_project(source)):
        if _exists(path):
            return path
        if os.path.lexists(path):  # a link to nowhere
            raise InputError(f"encoder.source: got no file or folder {source!r}: {missing(source)}")
    if URL.match(source):
        raise InputError(
            f"encoder.source: expected a file, a folder or a hub name, got the URL {source!r}; {_by(source)}"
        )
    if is_hub_name(source):
        return None
    raise InputError(f"encoder.source: got no file or folder {source!r}: {missing(source)}")


def is_hub_name(source: str) -> bool:
    """Whether a source can be a name on the hub, such as owner/name; names of files with weights are none."""
    named = HUB_NAME.fullmatch(source) is not None and len(source) <= LONGEST
    return named and not any(part in source for part in ("--", "..")) and not source.lower().endswith(NO_NAMES)


def missing(source: str) -> str:
    """The place where a path was looked for, and the similar names there."""
    path = Path(source).absolute()
    try:
        if path.is_symlink():
            return f"{path} is a link to {path.readlink()}, which is not there"
        there = next(parent for parent in path.parents if parent.exists())
        if not there.is_dir():
            return f"{there} is a file and no folder"
        near = difflib.get_close_matches(path.relative_to(there).parts[0], [one.name for one in there.iterdir()])
    except (OSError, ValueError, StopIteration) as error:  # no permission, a name that no system could have
        return f"{path} cannot be looked for ({error})"
    hint = f"; it has {' and '.join(near)}" if near else ""
    home = "; write out the home folder for which ~ stands" if source.startswith("~") else ""
    return f"looked for {path}; the folder {there} has no {path.relative_to(there).parts[0]}{hint}{home}"


def unfit(source: str, why: object) -> InputError:
    """The error for a folder or hub name that cannot be loaded. why: an error, or a sentence."""
    told = " ".join(str(why).split("\n"))[:800]
    if Path(source).exists():
        return InputError(
            "encoder.source: expected a hub name or a folder that transformers wrote (config.json and "
            f"model.safetensors), or a file of weights, could not load the local folder {source!r}: {told}"
        )
    return InputError(f"encoder.source: could not load the hub name {source!r}: {told}; as a path: {missing(source)}")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long, or a folder that may not be read
        return False


def _by(url: str) -> str:
    if found := ON_HUB.match(url):
        return f"write {found[1]}, its name on the hub"
    return "download what is there, and give the path of the file or folder"
