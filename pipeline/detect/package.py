"""A trained system with all that detection needs: found in a project, or in a package, one folder that goes anywhere.

    package.json             the card: the system, its origin and its metrics; digests of the files
    model_card.md            the card for people
    runs/<run>/              backend weights, the FAISS index of centroids and parameters, as in data/ of the project
    embeddings/<run>/<set>/  of the training set, where the run was analysed, without their index; and
    trials/<set>.csv         its trial table, which tells labels and attacks alone
    encoder/                 config.json and model.safetensors, where no hub name and no seed gives the same weights
    calibration.json         of `bonafide calibrate`, where the package was made with one
    members/<run>.json       of a fusion: the cards of its runs, which share the folders above

Weights are safetensors, centroids a FAISS index of the one plain kind whose bytes are known before FAISS reads them;
nothing is pickled. Explanations search an index that is made of the embeddings. Nothing outside the folder is read,
also not through a link. Where the package only names the encoder, loading checks the sha256 of its weights.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core import params_file, trial_table
from pipeline.core.encoder_sections import EncoderParams
from pipeline.core.errors import InputError
from pipeline.core.files import check_place, folder_beside, replace_folder, write_text, writing
from pipeline.core.params import Params
from pipeline.core.trial_table import UNKNOWN, Trials
from pipeline.detect import hub, recalibration
from pipeline.detect.assembly import PARAMS, FusedParts, Parts, find
from pipeline.detect.fused_card import checked_fused, member_card
from pipeline.detect.model_card import card_of, fused_card_of, is_local, model_card
from pipeline.detect.package_card import (
    CALIBRATION_FILE,
    CARD_FILE,
    EMBEDDED,
    ENCODER,
    MODEL_CARD_FILE,
    checked,
    digest,
)
from pipeline.encoder.cards import TRANSFORMERS_EPS
from pipeline.scoring import runs

# ---------------------------------------------------------------- writing one


def write(run: str, folder: Path, *, calibration: Path | None = None) -> dict[str, Any]:
    """Write a run or a fusion of the project in the current folder as a package, and give its card.

    calibration: of `bonafide calibrate`, which detection with the package takes.

    `folder` is whole or not there. An older package there is replaced. Raises InputError where a run or a part of it is
    missing, centroids, metrics or encoder are not the run's, or a folder of other things is in the way.
    """
    if run.startswith(hub.PREFIX) or (Path(run) / CARD_FILE).is_file():
        raise InputError(
            f"{run}: expected the name of a run or a fusion of this project, got a package; copy its folder"
        )
    parts, settings = find(run), params_file.load(PARAMS)
    check_place(folder, mark=CARD_FILE)
    for one in parts.members if isinstance(parts, FusedParts) else (parts,):
        runs.index(one.run)
    found = recalibration.read(calibration, parts) if calibration else None
    beside = folder_beside(folder)
    if calibration and found:
        _copy(calibration, beside / CALIBRATION_FILE)
    remedy = f"mend {PARAMS} or the run, and package it again"
    if isinstance(parts, FusedParts):
        card = _write_members(parts, settings, beside)
        checked_fused(card, folder / CARD_FILE, remedy=remedy)
    else:
        _write_run(parts, beside)
        named = _write_encoder(parts, settings.encoder, beside / ENCODER)
        card = card_of(parts, settings, named) | {"files": digests(beside)}
        checked(card, folder / CARD_FILE, remedy=remedy)
    write_text(beside / CARD_FILE, _json(card))
    card = card | {"recalibration": found.model_dump() if found else None}
    write_text(beside / MODEL_CARD_FILE, model_card(card))
    replace_folder(beside, folder, mark=CARD_FILE)
    return card


def _write_members(parts: FusedParts, settings: Params, beside: Path) -> dict[str, Any]:
    """Write the members of a fusion into one folder, with one encoder, and give the card of the fusion."""
    named = _write_encoder(parts, settings.encoder, beside / ENCODER)
    for member in parts.members:
        _write_run(member, beside)
    files = digests(beside)
    for member in parts.members:
        others = tuple(
            f"{room}/{one.name}/" for one in parts.members if one != member for room in ("runs", "embeddings")
        )
        own = {name: found for name, found in files.items() if not name.startswith(others)}
        card = card_of(member, settings, named) | {"files": own}
        path = beside / member_card(member.name)
        checked(card, path, remedy=f"mend {PARAMS} or the run, and package it again")
        write_text(path, _json(card))
    return fused_card_of(parts, settings) | {"files": digests(beside)}


def _json(card: dict[str, Any]) -> str:
    return json.dumps(card, indent=2, ensure_ascii=False) + "\n"


def _write_run(parts: Parts, beside: Path) -> None:
    """Copy a run, and the embeddings of its training set where they are there."""
    there = dataclasses.replace(parts, root=beside)
    there.run.mkdir(parents=True)
    for name in (runs.CARD_FILE, runs.BACKEND_FILE, runs.CENTROIDS_FILE):
        _copy(parts.run / name, there.run / name)
    if parts.embeddings.is_dir():
        _, table = parts.training()
        there.embeddings.mkdir(parents=True)
        for name in EMBEDDED:
            _copy(parts.embeddings / name, there.embeddings / name)
        write_text(there.trials, trial_table.to_csv(labels_alone(table)))


def _copy(source: Path, target: Path) -> None:
    with writing(target):
        shutil.copyfile(source, target)


def digests(folder: Path) -> dict[str, str | None]:
    """Every file of a package but its cards, and the sha256 of its bytes.

    The weights of the encoder are left out: they are read once, and have a digest of their own.
    """
    names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    apart = (CARD_FILE, MODEL_CARD_FILE, f"{ENCODER}/model.safetensors")
    return {name: digest(folder / name) for name in names if name not in apart}


def _write_encoder(parts: Parts, source: EncoderParams, folder: Path) -> EncoderParams:
    """Where a package's encoder comes from; its weights are copied where nothing else brings them along.

    Raises InputError where they are not those that the run was trained with.
    """
    from pipeline.encoder import models  # takes seconds to import

    model, card = models.load_deployed(source, weights=parts.weights)
    if card.weights_sha256 != parts.features["weights_sha256"]:
        raise InputError(
            f"{parts.name}: trained on an encoder with weights {parts.features['weights_sha256'][:16]}..., got "
            f"{card.source} with {card.weights_sha256[:16]}...; run `dvc repro`"
        )
    if source.finetune is None and not is_local(source):
        return source.model_copy(update={"normalize": card.normalize})
    # The card of the package says how waveforms are normalized, but not with which epsilon.
    models.save(model, folder, card=card if card.normalize_eps != TRANSFORMERS_EPS else None)
    copied = EncoderParams(source=str(folder), normalize=card.normalize)
    if models.load(copied)[1].weights_sha256 != card.weights_sha256:
        raise InputError(f"{folder}: read back, the weights of the encoder are not those written; try again")
    return EncoderParams(source=ENCODER, normalize=card.normalize)


def labels_alone(table: Trials) -> Trials:
    """A trial table without what a package does not show: speakers, paths, codecs, MOS."""
    blank = np.full(len(table), UNKNOWN)
    unknown = dict.fromkeys(("path", "speaker", "codec", "vocoder"), blank)
    return dataclasses.replace(table, quality=np.full(len(table), np.nan), **unknown)
