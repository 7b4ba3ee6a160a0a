"""Read a file of weights by its content, whatever its suffix, and run nothing that is in it.

Two formats are read: safetensors, and what `torch.save` writes. Of the second kind only tensors and plain containers
are unpickled. Objects that trainers commonly save beside the weights are not made; a stand-in takes their place. A
small file of that kind can take any time and memory, so it is read in a process of its own before.
"""

from __future__ import annotations

import argparse
import os
import pickle
import re
import resource
import signal
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.core.errors import InputError

DEEPEST = 8  # levels of containers below which tensors are looked for
LARGEST_HEADER = 100_000_000  # bytes; safetensors itself reads no larger one
SECONDS, BYTES_A_SECOND = 8, 10_000_000  # of the processor, for a file that `torch.save` wrote
WAITING = 15  # how many times as long it may take by the clock
SHARED = 4  # how often the weights of a file may have the same bytes, as parts with several names do
MEND = "download it again from where it was published"
# Names that torch gives for what it does not unpickle.
REFUSED = re.compile(r"GLOBAL ([\w.]+)|unrecognized function (\S+)|got <class '([\w.]+)'>")


class Ignored:
    """Stands for an object beside the weights that is not made: it takes all arguments and does nothing."""

    def __new__(cls, *_args: Any) -> Self:
        """Make the stand-in."""
        return super().__new__(cls)

    def __init__(self, *_args: Any) -> None:
        """Take the arguments of any class."""

    def __setstate__(self, _state: Any) -> None:
        """Take the state of any class."""


def _no_default(*_args: Any) -> dict[Any, Any]:
    """Make an empty dict in place of a defaultdict, whose items come after it."""
    return {}


_DICTS = (
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)
_OMEGACONF = ("Any", "Boolean", "Bytes", "Enum", "Float", "Integer", "Path", "String")
_IGNORED = (
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.dtypes.{name}DType" for name in ("Float64", "Float32", "Int64", "Int32", "Bool")),
    *(f"pathlib.{name}" for name in ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath")),
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    *(f"omegaconf.nodes.{name}Node" for name in _OMEGACONF),
    "typing.Any",
    *(f"builtins.{name}" for name in ("dict", "list", "int", "float", "str", "bool", "object")),
    *(f"__builtin__.{name}" for name in ("dict", "list", "int", "float", "str", "bool", "object")),
    "fairseq.data.dictionary.Dictionary",
    "whisper.model.ModelDimensions",
    *(f"fairseq.meters.{name}" for name in ("AverageMeter", "TimeMeter", "StopwatchMeter")),
)
# (what is made, the name in the file): the modules of these names are never imported.
ALLOWED: list[Any] = [
    argparse.Namespace,
    *((dict, name) for name in _DICTS),
    (_no_default, "collections.defaultdict"),
    *((Ignored, name) for name in _IGNORED),
]


def read(path: Path) -> dict[str, Any]:
    """The content of a file of weights: tensors by their names, or containers with such tensors.

    Raises InputError for an empty file, another kind of file, a damaged one, and one with objects that only running
    code would make.
    """
    check_kind(path)
    if _is_safetensors(_head(path)):
        try:
            return dict(load_file(path))
        except Exception as error:  # a damaged file gives errors of many kinds
            raise InputError(f"{path}: not a file that safetensors reads: {first_line(error)}; {MEND}") from None
    return _unpickled(path)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(1_024)


def _is_safetensors(head: bytes) -> bool:
    """Whether a file begins as safetensors does: eight bytes with the length of a header, which is JSON."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= LARGEST_HEADER


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its kind where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def tensors(found: Mapping[str, Any]) -> dict[str, Tensor]:
    """All tensors in nested containers, by their names with those of the containers in front, joined by dots."""
    weights: dict[str, Tensor] = {}
    level, seen = [("", found)], {id(found)}
    for _ in range(DEEPEST):
        below = []
        for prefix, container in level:
            for key, value in container.items():
                if isinstance(value, Tensor):
                    weights[f"{prefix}{key}"] = value
                elif isinstance(value, Mapping) and id(value) not in seen:
                    seen.add(id(value))
                    below.append((f"{prefix}{key}.", value))
        level = below
    return weights


def check_kind(path: Path) -> None:
    """Raise InputError for what people save or name by mistake: an empty file, a web page and others."""
    head = _head(path)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        kind, mend = "an empty file", MEND
    elif text.startswith(b"version https://git-lfs"):
        kind, mend = "a pointer of Git LFS", "run `git lfs pull` where you cloned it, or download the file itself"
    elif text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")):
        kind, mend = "a web page", "download the file itself, by the link for downloads (on the hub with /resolve/)"
    elif text.startswith((b"{", b"[")):
        kind, mend = "JSON", "give the file of weights, or the folder that holds it"
    else:
        return
    raise InputError(
        f"{path}: expected weights, not {kind}: not a checkpoint that torch.load reads, nor safetensors; {mend}"
    )


def _unpickled(path: Path) -> dict[str, Any]:
    _check_zip(path)
    _check_apart(path)
    found = _load(path)
    held = sum(tensor.numel() * tensor.element_size() for tensor in tensors(found).values())
    if held > SHARED * (path.stat().st_size + LARGEST_HEADER):
        raise InputError(
            f"{path}: expected weights of about {path.stat().st_size:,} bytes, as the file has, got {held:,}: they "
            f"share memory; {MEND}"
        )
    return found


def _check_zip(path: Path) -> None:
    """Raise InputError for a ZIP file with more in it than it has bytes. torch.save compresses nothing."""
    if not _head(path).startswith(b"PK"):
        return
    try:
        with zipfile.ZipFile(path) as file:
            held = sum(entry.file_size for entry in file.infolist())
    except Exception:  # a damaged file gives errors of many kinds; torch.load says which
        return
    if held > path.stat().st_size:
        raise InputError(
            f"{path}: expected a checkpoint as torch.save writes it, got a compressed one with {held:,} bytes; {MEND}"
        )


def _check_apart(path: Path) -> None:
    """Read a file in a process with a limited time. Raises InputError where that ends it, or it crashes."""
    seconds = SECONDS + path.stat().st_size // BYTES_A_SECOND
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads, which may leave it waiting
        child = os.fork()
    if not child:
        try:
            most = resource.getrlimit(resource.RLIMIT_CPU)[1]
            resource.setrlimit(resource.RLIMIT_CPU, (seconds if most < 0 else min(seconds, most), most))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(WAITING * seconds)
            _load(path)
        finally:
            os._exit(0)  # what was wrong is said later
    if os.waitpid(child, 0)[1]:
        raise InputError(
            f"{path}: reading it takes more than {seconds} s of processor time, or ends the process; it is damaged, or "
            f"made to do that; {MEND}"
        )


def _load(path: Path) -> dict[str, Any]:
    try:
        # Given the path, torch.load goes by its suffix.
        with torch.serialization.safe_globals(ALLOWED), path.open("rb") as file:
            found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file gives errors of many kinds
        raise _unread(path, error) from None
    if not isinstance(found, dict):
        kind = type(found).__name__
        raise InputError(f"{path}: expected a checkpoint, a dict of tensors, got a {kind}; torch.save the dict alone")
    return found


def _unread(path: Path, error: Exception) -> InputError:
    refused = REFUSED.findall(str(error)) if isinstance(error, pickle.UnpicklingError) else []
    if refused:
        others = ", ".join(dict.fromkeys("".join(names) for names in refused))
        return InputError(
            f"{path}: expected a checkpoint of tensors and plain values, got one with {others}; it is not loaded, as "
            "unpickling that could run anything. Take its state_dict out where you trust it, and torch.save that"
        )
    if "TorchScript" in str(error):
        return InputError(
            f"{path}: expected a checkpoint of tensors, got a TorchScript archive, which holds code; where you trust "
            "it, save the weights alone: torch.save(torch.jit.load(...).state_dict(), ...)"
        )
    # torch's own message for a pickle advises to load it with code.
    why = "damaged, or another kind of file" if isinstance(error, pickle.UnpicklingError) else first_line(error)
    return InputError(f"{path}: not a checkpoint that torch.load reads, nor safetensors: {why}; {MEND}")
