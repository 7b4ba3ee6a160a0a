"""The fine-tuning that the parameters ask for, and its identity."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from pipeline.audio import views
from pipeline.audio.recordings import FOLDER
from pipeline.core import trial_table
from pipeline.core.contracts import Labels
from pipeline.core.encoder_sections import FinetuneParams
from pipeline.core.errors import InputError
from pipeline.core.params import Params
from pipeline.core.sections import WindowParams
from pipeline.encoder.cards import Card
from pipeline.features import specs
from pipeline.finetuning.speech import Speech
from pipeline.training import cells
from pipeline.training.cells import Cell

LATER_OF_LOSSES = (
    "label_smoothing",
)  # of a loss; no part of the identity where it changes nothing: older encoders are found
FINETUNE_VERSION = 2  # raise it when the same parameters, audio and starting weights come to another encoder


@dataclass(frozen=True)
class Asked:
    """A fine-tuning that the parameters ask for.

    card: of the encoder that it starts from. cuts: the MOS at which quality levels part. labels: of the training set,
    tensors of length N on the CPU.
    """

    params: FinetuneParams
    window: WindowParams
    card: Card
    cell: Cell
    train: Speech
    dev: Speech
    cuts: tuple[float, ...]
    labels: Labels

    @cached_property
    def facts(self) -> dict[str, Any]:
        """All that decides what the training comes to, JSON-ready, but for the machine that it runs on.

        The trial tables hold a sha256 of each audio file, which is compared when the file is decoded: by it audio
        counts with its content, and no file is read for it.
        """
        labels = hashlib.sha256()
        for column in (*dataclasses.astuple(self.labels), torch.from_numpy(self.dev.trials.is_bonafide)):
            labels.update(column.numpy().tobytes())
        augmented: dict[str, Any] = {"views_version": views.VIEWS_VERSION} if self.params.views.draw else {}
        if self.train.recordings:
            augmented["recordings"] = {view: found.digest for view, found in self.train.recordings.items()}
        return augmented | {
            "finetune_version": FINETUNE_VERSION,
            "weights_sha256": self.card.weights_sha256,
            "architecture": self.card.architecture,
            "normalize": self.card.normalize,
            "finetune": self.params.facts,
            "backend": _in_full(self.cell.backend, self.cell.backend_parameters),
            "loss": _in_full(self.cell.loss, self.cell.loss_parameters),
            "window": self.window.model_dump(),
            "trials": {
                name: trial_table.fingerprint(part.trials) for name, part in (("train", self.train), ("dev", self.dev))
            },
            "labels": labels.hexdigest(),
        }

    @property
    def identity(self) -> str:
        """Sixteen hex digits of the facts."""
        return specs.fingerprint(self.facts)


def _in_full(build: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The keyword-only parameters of a constructor: as given, and else their defaults."""
    parameters = inspect.signature(build).parameters.values()
    defaults = {one.name: one.default for one in parameters if one.kind is one.KEYWORD_ONLY}
    defaults = {name: value for name, value in defaults.items() if value is not inspect.Parameter.empty}
    values = defaults | given
    return {name: value for name, value in values.items() if name not in LATER_OF_LOSSES or value != defaults[name]}


def asked_of(settings: Params, card: Card, *, trials: Path, recordings: Path = FOLDER) -> Asked:
    """The fine-tuning that `encoder.finetune` asks for.

    Args:
        card: of the encoder to start from. trials: folder of the sets' trial tables. recordings: folder of
            the lists of recordings, which some views take sound from.

    Raises InputError naming the place of a wrong parameter, or the trial table that is missing, and where a quality
    level has no bona fide.
    """
    cell = chosen(settings, card)
    params = settings.encoder.finetune
    assert params is not None  # noqa: S101  # chosen has seen to it
    try:
        sounds = views.all_recordings(params.views.draw, recordings)
    except InputError as error:
        raise InputError(f"{settings.where('encoder', 'finetune', 'views', 'draw')}: {error}") from None
    train, dev = (
        Speech(
            trial_table.read(trials / f"{name}.csv"),
            settings.sets[name].folder,
            normalized=card.normalize != "none",
            recordings=sounds,
        )
        for name in (params.set, "dev")
    )
    cuts, labels = cells.quality_labels(cell, train.trials)
    return Asked(params, settings.extract.window, card, cell, train, dev, cuts, labels)


def chosen(settings: Params, card: Card) -> Cell:
    """The backend and loss that `encoder.finetune` names, with the parameters of their sections.

    Raises InputError naming the place of an unknown name or parameter, or of a layer that the encoder does not have.
    """
    params = settings.encoder.finetune
    if params is None:
        raise ValueError("expected encoder.finetune to be set")

    def place(*keys: str | int) -> str:
        return settings.where("encoder", "finetune", *keys)

    for key, name, sections in (("backend", params.backend, settings.backends), ("loss", params.loss, settings.losses)):
        if name not in sections:
            raise InputError(f"{place(key)}: expected one of {', '.join(sections) or 'none'}, got {name!r}")
    if params.set not in settings.sets or params.set == "dev":
        sets = ", ".join(name for name in settings.sets if name != "dev")
        raise InputError(f"{place('set')}: expected one of {sets}, got {params.set!r}")
    for i, tap in enumerate(params.layers):
        if tap != "final" and tap > card.layers:
            raise InputError(f"{place('layers', i)}: expected 0 to {card.layers} or final, got {tap!r}")
    for i, view in enumerate(params.views.draw):
        try:
            views.computable(view)
        except InputError as error:
            raise InputError(f"{place('views', 'draw', i)}: {error}") from None
    any_layers, any_views = settings.grid.layers[0], settings.grid.views[0]
    cell = cells.find(settings, backend=params.backend, loss=params.loss, layers=any_layers, views=any_views)
    return dataclasses.replace(cell, layers=params.layers, views=params.views)
