"""What a fine-tuning leaves: the encoder as transformers writes it, and within, as a run, its backend and centroids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.encoder import models
from pipeline.encoder.cards import Card
from pipeline.encoder.kept import RUN_FOLDER
from pipeline.finetuning import ranks
from pipeline.finetuning.plan import Asked
from pipeline.scoring import runs
from pipeline.training.loop import Fitted


def save(
    folder: Path, model: Any, fitted: Fitted, *, run: dict[str, Any], source: str, card: Card | None = None
) -> None:
    """Write the encoder and its run into a folder that is there.

    run: the card of the run. source: of the encoder before. card: of that encoder; the folder then says how waveforms
    are normalized.
    """
    models.save(model, folder, card=card)
    weights = {name: tensor.numpy() for name, tensor in fitted.backend.state_dict().items()}
    runs.save(folder / RUN_FOLDER, weights=weights, centroids=fitted.centroids, card=run)
    models.write_note(folder, f"{source}, fine-tuned; {RUN_FOLDER}/ has the backend and centroids.")


def run_card(fitted: Fitted, asked: Asked) -> dict[str, Any]:
    """The card of the run, as `train` writes it."""
    source: Card = asked.card
    return {
        "backend": asked.cell.backend_name,
        "backend_parameters": asked.cell.backend_parameters,
        "loss": asked.cell.loss_name,
        "loss_parameters": asked.cell.loss_parameters,
        "quality_thresholds": list(asked.cuts),
        "views": asked.params.views.model_dump(),
        "finetune": asked.params.model_dump(exclude={"tensorboard"}) | {"processes": ranks.count()},
        "finetuned_from": {"source": source.source, "weights_sha256": source.weights_sha256},
        "reads": asked.cell.backend.reads,
        "kind": {"layers": list(asked.params.layers), "channels": source.channels},
        "seed": asked.params.seed,
        "epochs_averaged": list(fitted.selection.kept),
        "selection": fitted.selection.facts,
        "dev_eer": round(fitted.dev_eer, 5),
        "dev_threshold": fitted.dev_threshold,
        "epochs": len(fitted.curves),
        "parameters": fitted.parameters,
        "remarks": list(fitted.remarks),
        "curves": [epoch.facts for epoch in fitted.curves],
    }
