"""A training under way on disk: a folder of safetensors files, each whole or not there; nothing pickled.

`weights_0007.safetensors` has what was learned after epoch 7, of the best epochs and the last. `last.safetensors` has
the optimizer's state and the facts, and says by these which epoch is the last: it is written after the weights. Each
file carries the fingerprint of its run, and another run neither takes it up nor trips over it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.core.errors import InputError
from pipeline.core.files import flush_names, writing

State = dict[str, Tensor]
METADATA = "bonafide"  # key of the JSON in a file's header
LAST_FILE = "last.safetensors"


@dataclass(frozen=True)
class CheckpointFolder:
    """The folder of a run's checkpoint. run: fingerprint of all that the result depends on."""

    folder: Path
    run: str

    def write(self, epochs: Mapping[int, State], last: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write weights by epoch, then the state after the last epoch: tensors and JSON-ready facts."""
        for epoch, state in epochs.items():
            write(self._weights(epoch), state, {}, run=self.run)
        write(self.folder / LAST_FILE, last, facts, run=self.run)

    def keep(self, epochs: Iterable[int]) -> None:
        """Remove the weights of all other epochs."""
        wanted = {self._weights(epoch) for epoch in epochs}
        for path in self.folder.glob("weights_*"):
            if path not in wanted:
                path.unlink()

    def read(self) -> tuple[State, dict[str, Any]] | None:
        """The state after the last epoch; None where there is none, or that of another run.

        Raises InputError where a file is no checkpoint.
        """
        return read(self.folder / LAST_FILE, run=self.run)

    def weights(self, epoch: int) -> Callable[[str], Tensor]:
        """The weights after an epoch, by name. Raises InputError where they are missing or damaged."""
        path = self._weights(epoch)

        def get(name: str) -> Tensor:
            try:
                found: Tensor = file.get_tensor(name)  # type: ignore[no-untyped-call]
            except SafetensorError as error:
                raise self._damaged(path, error) from None
            return found

        try:
            file = safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            raise self._damaged(path, error) from None
        return get

    def _damaged(self, path: Path, error: Exception) -> InputError:
        return InputError(f"{path}: the checkpoint is damaged ({error}); delete {self.folder}")

    def _weights(self, epoch: int) -> Path:
        return self.folder / f"weights_{epoch:04d}.safetensors"


def write(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], *, run: str) -> None:
    """Write tensors and JSON-ready facts of a run in one step. run: its fingerprint."""
    plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    beside = path.with_name(path.name + ".part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(plain, beside, metadata={METADATA: json.dumps({"run": run, "facts": dict(facts)})})
        except SafetensorError as error:  # a full disk among others
            raise OSError(errno.EIO, str(error)) from None
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
        flush_names(path.parent)


def read(path: Path, *, run: str) -> tuple[State, dict[str, Any]] | None:
    """What `write` wrote, tensors in memory; None where nothing is there, or a checkpoint of another run.

    Raises InputError for a file that is no checkpoint.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            kept = json.loads(file.metadata()[METADATA])
            if kept["run"] != run:
                return None
            return {name: file.get_tensor(name) for name in list(file.keys())}, kept["facts"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        raise InputError(f"{path}: expected a checkpoint of a training, got another file; delete it") from None


def delete(folder: Path) -> None:
    """Remove a checkpoint, and what a killed training may have left of it; other files stay."""
    for pattern in ("weights_*.safetensors*", f"{LAST_FILE}*"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not there, or not empty
        folder.rmdir()


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
    plain = (str, int, float, bool, tuple, type(None))
    return {name: value for name, value in vars(module).items() if isinstance(value, plain)} | {
        name: dataclasses.asdict(value)
        for name, value in vars(module).items()
        if dataclasses.is_dataclass(value) and not isinstance(value, type)
    }
