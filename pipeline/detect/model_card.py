"""The model card of a package: Markdown for people who get the package."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.core.encoder_sections import EncoderParams
from pipeline.core.errors import InputError, printable
from pipeline.core.files import read_json
from pipeline.core.params import Params
from pipeline.detect.assembly import DATA, PARAMS, FusedParts, Parts
from pipeline.detect.package_card import FORMAT
from pipeline.features import receipt_files
from pipeline.scoring import runs

TEMPLATE, FUSED_TEMPLATE = "model_card.md.j2", "fused_model_card.md.j2"
PACKAGES = ("bonafide", "torch", "transformers", "numpy", "safetensors", "faiss-cpu", "faiss-gpu", "soundfile", "soxr")


# ---------------------------------------------------------------- reading a package


# Markup in Markdown; an underscore within a word and a tilde alone are none. Signs that begin a line never do here.
MARKUP = re.compile(r"[\\`*<>\[\]|&$]|~(?=~)|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])").sub
EVALUATE = "run `dvc repro -f flow/evaluate/dvc.yaml`"


def card_of(parts: Parts, settings: Params, encoder: EncoderParams) -> dict[str, Any]:
    """What the package says of itself: `package.json` but for the digests of its files."""
    centres = runs.centroids(parts.run)
    return {
        "format": FORMAT,
        "name": parts.name,
        "train_set": parts.train_set,
        "note": settings.report.note,
        "encoder": encoder.model_dump(exclude={"finetune"}),
        "encoder_source": _source(settings.encoder),
        "features": parts.features,
        "batch_size": parts.batch_size,
        "run": runs.card(parts.run),
        "centroids": len(centres.vectors),
        "embedding_dim": centres.vectors.shape[1],
        "threshold": parts.threshold,
        "calibration": vars(parts.calibration) if parts.calibration else None,
        "verdicts": vars(parts.rule) if parts.rule else None,
        "sets": [_set(parts, settings, name, role) for name, role in _roles(settings, parts.train_set)],
        "training_embeddings": parts.embeddings.is_dir(),
        "versions": {"python": platform.python_version(), **dict(_versions())},
    }


def fused_card_of(parts: FusedParts, settings: Params) -> dict[str, Any]:
    """What the package of a fusion says of itself, but for the digests of its files."""
    roles = _roles(settings, parts.train_set)
    return {
        "format": FORMAT,
        "name": parts.name,
        "note": settings.report.note,
        "weights": {member.name: weight for member, weight in zip(parts.members, parts.fusion.weights, strict=True)},
        "offset": parts.fusion.offset,
        "threshold": parts.threshold,
        "calibration": vars(parts.calibration) if parts.calibration else None,
        "verdicts": vars(parts.rule) if parts.rule else None,
        "sets": [_set(parts, settings, name, role) for name, role in roles],
        "training_embeddings": parts.embeddings.is_dir(),
    }


def _source(encoder: EncoderParams) -> dict[str, Any]:
    """The encoder's parameters; of a local folder or checkpoint the name alone, as its path says nothing elsewhere."""
    told = encoder.model_dump(exclude_none=True)
    return told | {"source": Path(encoder.source).resolve().name} if is_local(encoder) else told


def is_local(encoder: EncoderParams) -> bool:
    """Whether the encoder comes from a path of this machine."""
    return encoder.random is None and Path(encoder.source).exists()


def _roles(settings: Params, train_set: str) -> Iterator[tuple[str, str]]:
    for name in settings.members(train_set):
        yield name, "training"
    yield "dev", "development"
    for name in settings.evaluate.sets:
        if name != "dev":
            yield name, "evaluation"


def _set(parts: Parts, settings: Params, name: str, role: str) -> dict[str, Any]:
    """What a package tells of a set; receipt and metrics are None where they are not there."""
    if name not in settings.sets:
        raise InputError(
            f"{PARAMS}: expected the set {name}, which {parts.name} was trained on, below sets; put it back, or take a "
            "run that was trained on a set that is there"
        )
    told = settings.sets[name]
    receipts = DATA / "features" / f"{parts.train_set if role == 'training' else name}.json"
    receipt = receipt_files.read_receipts(receipts).get(name) if receipts.is_file() else None
    return {
        "name": name,
        "role": role,
        "corpus": told.corpus,
        "split": told.split,
        "quality": told.quality,
        "utterances": receipt and receipt["utterances"],
        "receipt": receipt and receipt["digest"],
        "metrics": _metrics(parts, name),
    }


def _metrics(parts: Parts, name: str) -> dict[str, Any] | None:
    """The metrics of a set; None where it was not evaluated. Raises InputError for those at another threshold."""
    path = DATA / "metrics" / parts.name / f"{name}.json"
    if not path.is_file():
        return None
    found = read_json(path, what="metrics", keys=("at_threshold",), remedy=EVALUATE)
    at = found["at_threshold"]
    told = at.get("threshold") if isinstance(at, dict) else None
    if told != parts.threshold:
        raise InputError(f"{path}: expected metrics at the run's threshold {parts.threshold}, got {told}; {EVALUATE}")
    return found


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # one of the two of FAISS
            continue


def markdown(text: Any) -> str:
    """Text as one line of Markdown that shows it as it is: nothing in it marks up, links, or ends a cell."""
    return MARKUP(lambda found: f"\\{found[0]}", " ".join(printable(str(text)).split()))


def model_card(card: dict[str, Any]) -> str:
    """The card of a package as Markdown; the same card gives the same text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # noqa: S701  # Markdown, of the user's own project
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["text"] = markdown
    return environment.get_template(FUSED_TEMPLATE if "weights" in card else TEMPLATE).render(
        {"recalibration": None} | card
    )
