"""A training under way on disk: tensors and facts in one safetensors file that is whole or not there; nothing pickled.

The file belongs to one run: it carries the run's fingerprint, and another run neither takes it up nor trips over it.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from pipeline.core.errors import InputError
from pipeline.core.files import write_bytes

State = dict[str, Tensor]
METADATA = "bonafide"  # key of the JSON in the file's header


def write(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], *, run: str) -> None:
    """Write tensors and JSON-ready facts of a run in one step. run: its fingerprint."""
    plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(plain, metadata={METADATA: json.dumps({"run": run, "facts": dict(facts)})}))


def read(path: Path, *, run: str) -> tuple[State, dict[str, Any]] | None:
    """What `write` wrote, tensors in memory; None where nothing is there, or a checkpoint of another run.

    Raises InputError for a file that is no checkpoint.
    """
    if not path.is_file():
        return None
    data = path.read_bytes()
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        kept = json.loads(header["__metadata__"][METADATA])
        return (load(data), kept["facts"]) if kept["run"] == run else None
    except (ValueError, KeyError, TypeError, SafetensorError):
        raise InputError(f"{path}: expected a checkpoint of a training, got another file; delete it") from None


def delete(path: Path) -> None:
    """Remove a checkpoint, and what a killed `write` may have left."""
    path.unlink(missing_ok=True)
    path.with_name(path.name + ".part").unlink(missing_ok=True)


def fingerprint(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """sha256 over JSON-ready facts and the bytes of tensors."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"\n{name} {plain.dtype} {tuple(plain.shape)} ".encode())
        digest.update(plain.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def facts_of(module: nn.Module) -> dict[str, Any]:
    """What a module is besides its tensors, JSON-ready: classes, plain attributes, and the code that they come from."""
    parts = {name: type(part) for name, part in module.named_modules()}
    files = {str(sys.modules[kind.__module__].__file__) for kind in parts.values() if kind.__module__ != "__main__"}
    return {
        "classes": {name: f"{kind.__module__}.{kind.__qualname__}" for name, kind in parts.items()},
        "attributes": {name: _plain_attributes(part) for name, part in module.named_modules()},
        "code": sorted(code_of(Path(file)) for file in files),
    }


def code_of(file: Path) -> str:
    """sha256 of a source file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _plain_attributes(module: nn.Module) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, str | int | float | bool | tuple | None)
    }
