"""A trained system on disk: weights as safetensors, centroids as a FAISS index, all else as JSON; nothing pickled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save as save_arrays

from pipeline.core import members
from pipeline.core.contracts import Centroids
from pipeline.core.errors import InputError
from pipeline.core.files import folder_beside, read_json, replace_folder, writing
from pipeline.scoring.centroids import CentroidIndex, build, read_index, write_index

BACKEND_FILE = "backend.safetensors"
CENTROIDS_FILE = "centroids.faiss"
PATH_FILE = "path.safetensors"
CARD_FILE = "run.json"
KEYS = ("backend", "backend_parameters", "kind", "reads", "scoring")  # what is read of it again


def save(
    folder: Path,
    *,
    weights: dict[str, Any],
    centroids: Centroids,
    card: dict[str, Any],
    path: NDArray[np.float32] | None = None,
) -> None:
    """Write a run into a folder that appears only when it is whole.

    Args:
        weights: name -> array, the backend's state. card: JSON-ready; must have what `backend` reads of it.
        path: (epochs, K, E), the centroids after each epoch of training, where that is known.
    """
    beside = folder_beside(folder)
    plain = {name: np.ascontiguousarray(array) for name, array in weights.items()}
    with writing(folder):
        (beside / BACKEND_FILE).write_bytes(save_arrays(plain))
        if path is not None:
            (beside / PATH_FILE).write_bytes(save_arrays({"vectors": path}))
        scoring = write_index(build(centroids), beside / CENTROIDS_FILE)
        (beside / CARD_FILE).write_text(json.dumps(card | {"scoring": scoring}, indent=2) + "\n")
    replace_folder(beside, folder, mark=CARD_FILE)


def card(folder: Path) -> dict[str, Any]:
    """The run's JSON card. Raises InputError where there is no run, or another file."""
    return read_json(folder / CARD_FILE, what="trained run", keys=KEYS, remedy="run `dvc repro`")


def index(folder: Path) -> CentroidIndex:
    """The index of the run's centroids; needs no torch. Raises InputError where it is not what the card says."""
    return read_index(folder / CENTROIDS_FILE, card(folder)["scoring"])


def centroids(folder: Path) -> Centroids:
    """The run's centroids."""
    return index(folder).centroids()


def path(folder: Path) -> NDArray[np.float32] | None:
    """The centroids (epochs, K, E) after each epoch of the run's training, where they were kept."""
    file = folder / PATH_FILE
    if not file.is_file():
        return None
    vectors = _arrays(file).get("vectors")
    if vectors is None or vectors.ndim != 3:
        raise InputError(f"{file}: expected the centroids of every epoch, got other arrays; run `dvc repro`")
    return np.asarray(vectors, dtype=np.float32)


def backend(folder: Path) -> Any:
    """The run's backend with its trained weights, in eval mode, an `nn.Module`."""
    import torch

    facts = card(folder)
    kind = facts["kind"]
    weights = {name: torch.from_numpy(array) for name, array in _arrays(folder / BACKEND_FILE).items()}
    try:
        module = members.member("backends", facts["backend"]).Backend(
            layers=len(kind["layers"]), channels=kind["channels"], **facts["backend_parameters"]
        )
        module.load_state_dict(weights)
    except (KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{folder}: weights and card do not fit: {error}; run `dvc repro`") from None
    return module.eval()


def _arrays(path: Path) -> dict[str, Any]:
    try:
        arrays: dict[str, Any] = load_arrays(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: not weights that this project wrote ({error}); run `dvc repro`") from None
    return arrays
