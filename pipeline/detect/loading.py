"""A system from the parts of a run or a package: the encoder on its device, the backend, the centroids, checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.core import devices
from pipeline.core.contracts import Tap
from pipeline.core.devices import Precision
from pipeline.core.errors import InputError
from pipeline.core.sections import MEAN, Channel, WindowsParams
from pipeline.detect import assembly, hearing, recalibration
from pipeline.detect.assembly import FusedParts, Parts
from pipeline.detect.fused import Fused
from pipeline.detect.hearing import Heard
from pipeline.detect.package_card import AGAIN
from pipeline.detect.system import System
from pipeline.encoder import models, xlsr
from pipeline.extraction.identity import FEATURES_VERSION
from pipeline.scoring import runs
from pipeline.scoring.centroids import CentroidIndex


def load(
    run: str | Path, *, threshold: float | None = None, channel: Channel = MEAN, windows: Heard | None = None
) -> System:
    """The system of a run or a fusion of the project in the current folder, by its name, or of a package's folder.

    Args:
        threshold: in place of that of the EER on dev.
        channel: the channel of files with several that is heard: their mean, left, right, or a number from 0.
        windows: of a file, the first one; all with the mean or the lowest of their scores; or those that the run was
            trained on, as the flow scores. None: see `heard_by`.

    Raises InputError where there is neither, or where its parts do not belong together, the encoder's weights included.
    """
    parts = assembly.find(run)
    heard = heard_by(parts, windows, parts.recalibration)
    if parts.recalibration:
        parts = recalibration.applied(parts, parts.recalibration, windows=heard, channel=channel)
    return of_parts(parts, threshold=threshold, channel=channel, windows=heard)


def heard_by(parts: Parts, asked: Heard | None, calibration: Path | None) -> Heard:
    """Which windows of a file are heard: those asked for, or else those of the calibration, of the run, or all.

    calibration: of `bonafide calibrate`, None without one. All are heard with their mean where the run has one window.
    Raises InputError as `recalibration.read`.
    """
    if asked is None and calibration:
        asked = recalibration.read(calibration, parts).windows
    return hearing.resolved(asked, own_windows(parts))


def own_windows(parts: Parts) -> WindowsParams:
    """The windows that a run was trained and scored on."""
    return WindowsParams.of(runs.card(parts.run)["kind"])


def of_parts(
    parts: Parts, *, threshold: float | None = None, channel: Channel = MEAN, windows: Heard | None = None
) -> System:
    """The system that consists of some parts; see `load`."""
    options: dict[str, Any] = {
        "threshold": parts.threshold if threshold is None else threshold,
        "channel": channel,
        "windows": heard_by(parts, windows, None),
        "own": own_windows(parts),
    }
    if not isinstance(parts, FusedParts):
        return System(encoder=_encoder(parts, _taps(parts)), **_trained(parts), **options)
    taps = tuple(dict.fromkeys(tap for member in parts.members for tap in _taps(member)))
    encoder = _encoder(parts, taps)
    members = tuple(
        System(encoder=encoder, **_trained(member), threshold=member.threshold, own=own_windows(member))
        for member in parts.members
    )
    lead = members[parts.members.index(parts.lead)]
    return Fused(
        parts=parts, encoder=encoder, backend=lead.backend, index=lead.index, layers=taps, reads=lead.reads,
        members=members, lead=lead, fusion=parts.fusion, **options,
    )  # fmt: skip


def _taps(parts: Parts) -> tuple[Tap, ...]:
    return tuple(runs.card(parts.run)["kind"]["layers"])


def _trained(parts: Parts) -> dict[str, Any]:
    """What a system has of its run."""
    facts = runs.card(parts.run)
    backend, index = runs.backend(parts.run), runs.index(parts.run)
    _check_widths(parts, facts, backend, index)
    return {
        "parts": parts, "backend": backend, "index": index, "layers": _taps(parts), "reads": facts["reads"]
    }  # fmt: skip


def _check_widths(parts: Parts, facts: dict[str, Any], backend: nn.Module, index: CentroidIndex) -> None:
    """Raise InputError where the backend cannot embed features of the card's kind, or the centroids have another width.

    One utterance of noise goes through the backend, so that a misfit comes before any file is read.
    """
    kind = facts["kind"]
    frames = 2 if facts["reads"] == "pooled" else 8
    attended = (1,) if own_windows(parts).attended else ()
    shape = (1, *attended, len(kind["layers"]), frames, kind["channels"])
    noise = torch.from_numpy(np.random.default_rng(0).random(shape, "f4"))
    try:
        with torch.inference_mode():
            width = tuple(backend(noise, torch.tensor([frames])).shape)
    except Exception as error:  # whatever a backend raises whose parameters do not fit each other
        raise InputError(f"{parts.run}: the backend does not fit the features of its card: {error}; {AGAIN}") from None
    if width != (1, index.index.d):
        raise InputError(f"{parts.run}: expected an embedding of width {index.index.d}, got one of {width}; {AGAIN}")


def _encoder(parts: Parts, taps: tuple[Tap, ...]) -> xlsr.Encoder:
    """The encoder on its device. Raises InputError where it is not the one that the run was trained with."""
    channels = runs.card(parts.run)["kind"]["channels"]
    model, card = models.load_deployed(parts.encoder, weights=parts.weights)
    precision: Precision = "bfloat16" if parts.features.get("compute_dtype") == "bfloat16" else "float32"
    found = {
        "weights_sha256": card.weights_sha256,
        "architecture": card.architecture,
        "normalize": card.normalize,
        "compute_dtype": precision,
        "features_version": FEATURES_VERSION,
    }
    if wrong := [key for key in found if found[key] != parts.features.get(key)]:
        told = ", ".join(f"{key} {parts.features.get(key)}, got {found[key]}" for key in wrong)
        raise InputError(
            f"{parts.name}: encoder {card.source}: expected what the run was trained with, {told}; run `dvc repro` in "
            "the project, or take the encoder and the version of bonafide that the run was made with"
        )
    card.check_taps(taps)
    if card.channels != channels or not card.frames(parts.features["window"]["samples"]):
        raise InputError(f"{parts.name}: expected features of width {channels}, got {card.channels} or none; {AGAIN}")
    device = devices.device_of(parts.device, key="extract.device")
    encoder = xlsr.Encoder(
        model, taps=taps, normalize=card.normalize, normalize_eps=card.normalize_eps, precision=precision
    )
    return encoder.to(device)
