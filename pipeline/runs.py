"""A trained system on disk: backend weights and centroids as safetensors, everything else as JSON; nothing pickled."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays

from pipeline import contracts
from pipeline.contracts import Centroids
from pipeline.errors import InputError

BACKEND_FILE = "backend.safetensors"
CENTROIDS_FILE = "centroids.safetensors"
CARD_FILE = "run.json"


def save(folder: Path, *, weights: dict[str, Any], centroids: Centroids, card: dict[str, Any]) -> None:
    """Write a run into a folder that appears only when it is whole.

    Args:
        weights: name -> array, the backend's state. card: JSON-ready; must have what `backend` reads of it.
    """
    beside = folder.with_name(folder.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    save_arrays({name: np.ascontiguousarray(array) for name, array in weights.items()}, beside / BACKEND_FILE)
    save_arrays({"vectors": centroids.vectors}, beside / CENTROIDS_FILE)
    scoring = {"normalize_query": centroids.normalize_query, "bias": centroids.bias, "reduce": centroids.reduce}
    (beside / CARD_FILE).write_text(json.dumps(card | {"scoring": scoring}, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(beside, folder)


def card(folder: Path) -> dict[str, Any]:
    """The run's JSON card. Raises InputError where there is no run."""
    if not (folder / CARD_FILE).is_file():
        raise InputError(f"{folder}: no trained run there; run `dvc repro train`")
    found: dict[str, Any] = json.loads((folder / CARD_FILE).read_text())
    return found


def centroids(folder: Path) -> Centroids:
    """The run's centroids; needs no torch."""
    how = card(folder)["scoring"]
    return Centroids(vectors=_arrays(folder / CENTROIDS_FILE)["vectors"], **how)


def backend(folder: Path) -> Any:
    """The run's backend with its trained weights, in eval mode, an `nn.Module`."""
    import torch

    facts = card(folder)
    module = contracts.member("backends", facts["backend"]).Backend(
        layers=len(facts["layers"]), channels=facts["channels"], **facts["backend_parameters"]
    )
    module.load_state_dict({name: torch.from_numpy(array) for name, array in _arrays(folder / BACKEND_FILE).items()})
    return module.eval()


def _arrays(path: Path) -> dict[str, Any]:
    try:
        arrays: dict[str, Any] = load_arrays(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: not weights that this project wrote ({error}); run `dvc repro -f train`") from None
    return arrays
