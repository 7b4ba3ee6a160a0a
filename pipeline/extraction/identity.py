"""The spec of the feature store that the parameters ask for: everything that its numbers depend on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core import trial_table
from pipeline.core.errors import InputError
from pipeline.core.files import read_json
from pipeline.core.sections import ExtractParams
from pipeline.core.trial_table import Trials
from pipeline.encoder.cards import Card
from pipeline.features.specs import STORAGE, Spec

if TYPE_CHECKING:
    from pipeline.core.devices import Precision


FEATURES_VERSION = 1  # raise it when a change of the code gives other numbers for the same audio and encoder


def read_card(path: Path) -> Card:
    """The card that the stage `encoder` wrote. Raises InputError where it is missing or something else."""
    keys = [field.name for field in dataclasses.fields(Card)]
    found = read_json(path, what="card of an encoder", keys=keys, remedy="run `dvc repro encoder`")
    return Card(**{key: found[key] for key in keys})


def spec_of(trials: Trials, card: Card, params: ExtractParams) -> Spec:
    """The spec of the store that these parameters ask for."""
    frames = card.frames(params.window.samples)
    if not frames:
        raise InputError(
            f"extract.window.samples: expected enough for one frame of {card.source}, got {params.window.samples}"
        )
    storage = {} if params.storage == "float16" else {STORAGE: params.storage}
    return Spec(
        encoder={
            "weights_sha256": card.weights_sha256,
            "architecture": card.architecture,
            "normalize": card.normalize,
            "window": params.window.model_dump(),
            "compute_dtype": precision_of(params),
            "features_version": FEATURES_VERSION,
            **storage,
        },
        trials=trial_table.fingerprint(trials),
        utterances=len(trials),
        frames=frames,
        channels=card.channels,
        shard=params.shard,
    )


def precision_of(params: ExtractParams) -> Precision:
    """The precision in which the encoder computes. Raises InputError where a GPU is wanted and there is none."""
    if params.precision != "auto":
        return params.precision
    from pipeline.core import devices  # with torch, which takes a second

    return devices.precision_on(devices.device_of(params.device, key="extract.device"))
