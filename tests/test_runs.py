"""Runs: every backend comes back from its folder as it was saved."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.core.errors import InputError
from pipeline.scoring import runs
from pipeline.scoring.centroids import Centroids
from tests.backends import CHANNELS, LAYERS, NAMES, SETTINGS, make

CENTROIDS = Centroids(np.eye(5, dtype=np.float32)[:1], normalize_query=True, bias=0.0, reduce="max")


@pytest.mark.parametrize("name", NAMES)
def test_a_backend_comes_back(tmp_path: Path, name: str) -> None:
    made = make(name).float()
    weights = {key: tensor.numpy() for key, tensor in made.state_dict().items()}
    kind = {"layers": list(range(1, LAYERS + 1)), "channels": CHANNELS}
    card = {"backend": name, "backend_parameters": SETTINGS[name], "reads": made.reads, "kind": kind}
    runs.save(tmp_path / "run", weights=weights, centroids=CENTROIDS, card=card)
    found = runs.backend(tmp_path / "run").state_dict()
    assert found.keys() == weights.keys()
    for key, tensor in found.items():
        assert tensor.shape == weights[key].shape, key
        assert torch.equal(tensor, torch.from_numpy(weights[key])), key


def test_weights_that_are_no_file_are_not_waited_for(tmp_path: Path) -> None:
    made = make("linear").float()
    weights = {key: tensor.numpy() for key, tensor in made.state_dict().items()}
    kind = {"layers": list(range(1, LAYERS + 1)), "channels": CHANNELS}
    card = {"backend": "linear", "backend_parameters": SETTINGS["linear"], "reads": made.reads, "kind": kind}
    runs.save(tmp_path / "run", weights=weights, centroids=CENTROIDS, card=card)
    (tmp_path / "run" / runs.BACKEND_FILE).unlink()
    os.mkfifo(tmp_path / "run" / runs.BACKEND_FILE)
    with pytest.raises(InputError, match=r"run/backend\.safetensors: no weights there; run `dvc repro`"):
        runs.backend(tmp_path / "run")
