"""Fine-tuned encoders that are kept below the root of features, each found by the identity of its training.

    <root>/encoders/<identity>/encoder.json     written last: the card, what decided the training, sha256 of every file
    <root>/encoders/<identity>/config.json, model.safetensors       as transformers writes and loads them
    <root>/encoders/<identity>/run/             the backend and centroids that it was trained with
    <root>/encoders/<identity>.checkpoint/      a training under way, with asked.json: what decides it

Where features lie on an object store, encoders are kept in data/cache of the project: transformers reads them from a
disk. DVC tracks the receipt data/encoder.json: the card, and for a fine-tuned encoder its identity.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.encoder_sections import EncoderParams
from pipeline.core.errors import InputError, listing
from pipeline.core.files import in_project, read_json, write_text
from pipeline.core.object_store import is_local

ENCODERS, MARK_FILE, ASKED_FILE = "encoders", "encoder.json", "asked.json"
RUN_FOLDER = "run"  # within an encoder's folder
UNFINISHED = ".checkpoint"
FACTS = {"finetune", "weights_sha256", "window", "normalize", "backend", "loss"}  # what is read of all that decides
AGAIN = "run `dvc repro -f encoder`"


def folder_of(features: Path) -> Path:
    """The folder of all fine-tuned encoders. features: the root of the feature stores."""
    return (features if is_local(features) else in_project("data/cache")) / ENCODERS


@dataclass(frozen=True)
class KeptEncoder:
    """A fine-tuned encoder: its folder, its card, what decided its training, and the sha256 of its files by name."""

    folder: Path
    card: dict[str, Any]
    facts: dict[str, Any]
    files: dict[str, str]

    @property
    def digest(self) -> str:
        """sha256 over the checksums of all files."""
        return hashlib.sha256(json.dumps(self.files, sort_keys=True).encode()).hexdigest()

    def check(self, within: str = "") -> None:
        """Raise InputError naming the files that are not as they were written. within: of a folder, such as `run`."""
        wrong = [
            name
            for name, sha256 in self.files.items()
            if name.startswith(within) and (not (self.folder / name).is_file() or _sha256(self.folder / name) != sha256)
        ]
        if wrong:
            raise InputError(
                f"{self.folder}: {len(wrong)} files of the fine-tuned encoder are damaged or missing; delete the "
                f"folder and {AGAIN}, which trains it again:\n{listing(wrong)}"
            )


def seal(folder: Path, card: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write the mark into a folder that has all else of an encoder. facts: all that decided its training."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names = [name for name in names if name != MARK_FILE]
    mark = {
        "card": dict(card),
        "facts": dict(facts),
        "files": {name: _sha256(folder / name) for name in names},
    }
    write_text(folder / MARK_FILE, json.dumps(mark, indent=2) + "\n")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find(folder: Path) -> KeptEncoder | None:
    """The encoder in a folder; None where there is none. Raises InputError where its mark is something else."""
    if not folder.is_dir():
        return None
    found = _mark(folder)
    return KeptEncoder(folder, found["card"], found["facts"], found["files"])


def facts_of(folder: Path) -> dict[str, Any]:
    """What decides the training of an encoder, or one under way, by its folder.

    Raises InputError where the folder holds something else.
    """
    if folder.suffix == UNFINISHED:
        found = read_json(folder / ASKED_FILE, what="fine-tuning under way", remedy="delete the folder")
    else:
        found = _mark(folder)["facts"]
    if not isinstance(found, dict) or not found.keys() >= FACTS:
        raise InputError(f"{folder}: expected what decides a fine-tuning, got other facts; delete the folder")
    return found


def _mark(folder: Path) -> dict[str, Any]:
    mend = f"delete the folder and {AGAIN}"
    keys = ("card", "facts", "files")
    return read_json(folder / MARK_FILE, what="mark of a fine-tuned encoder", keys=keys, remedy=mend)


def receipt_of(encoder: KeptEncoder) -> dict[str, Any]:
    """What data/encoder.json says of a fine-tuned encoder."""
    return encoder.card | {"finetuned": {"identity": encoder.folder.name, "digest": encoder.digest}}


def identity_of(receipt: Mapping[str, Any]) -> str | None:
    """The identity of the fine-tuned encoder that a receipt stands for; None where the encoder is frozen."""
    tuned = receipt.get("finetuned")
    return str(tuned["identity"]) if isinstance(tuned, dict) and "identity" in tuned else None


def of_receipt(receipt: Path, *, features: Path) -> KeptEncoder:
    """The fine-tuned encoder that data/encoder.json stands for. features: the root of the feature stores.

    Raises InputError where the receipt is missing or that of a frozen encoder, or the encoder is missing or another.
    """
    told = read_json(receipt, what="card of an encoder", remedy="run `dvc repro encoder`")
    identity = identity_of(told)
    if identity is None:
        raise InputError(
            f"{receipt}: expected a fine-tuned encoder, got a frozen one; run `dvc repro encoder` with "
            "encoder.finetune.on: true"
        )
    folder = folder_of(features) / identity
    found = find(folder)
    if found is None:
        raise InputError(f"{folder}: no fine-tuned encoder there, for which {receipt} stands; {AGAIN}")
    if found.digest != told["finetuned"].get("digest"):
        mend = f"move the folder away and {AGAIN}, which trains it again"
        raise InputError(f"{folder}: expected the encoder for which {receipt} stands, got other files; {mend}")
    return found


def weights_of(params: EncoderParams, receipt: Path, *, features: Path) -> Path | None:
    """The folder of the weights that features come from, where the parameters ask for fine-tuning; else None.

    Raises InputError as `of_receipt`.
    """
    return of_receipt(receipt, features=features).folder if params.finetune else None
