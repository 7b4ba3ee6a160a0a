"""What DeepFense computes from a few inputs, for `bench/peers.py` to compare. Its own Python runs this.

    PYTHON bench/peers_check.py CELLS.yaml GIVEN.npz FOUND.npz

CELLS.yaml: {cells: {loss: configuration of DeepFense}, count: N}. GIVEN.npz: embeddings (N, E), label (N,) of bona
fide, and the weights of each loss. FOUND.npz: features (N, T, D) of the first N training utterances, and each loss.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deepfense.data.data_utils import build_dataloader
from deepfense.models import *  # noqa: F403  # puts them into its registry
from deepfense.utils.registry import build_detector
from omegaconf import OmegaConf

WEIGHTS = {  # by loss: a parameter there, the one here, and whether its rows are columns there
    "cross_entropy": [("fc.weight", "classify.weight", False), ("fc.bias", "classify.bias", False)],
    "oc_softmax": [("mapper.weight", "centre", True)],
    "am_softmax": [("mapper.weight", "class_vectors", True)],
}


@torch.no_grad()
def main(cells: Path, given: Path, found: Path) -> None:
    """Read, compute, write."""
    settings: Any = OmegaConf.to_container(OmegaConf.load(cells))
    inputs, results = np.load(given), {}
    embeddings, label = torch.from_numpy(inputs["embeddings"]), torch.from_numpy(inputs["label"]).long()
    for name, cell in settings["cells"].items():
        model = build_detector(cell["model"]["type"], cell["model"])
        weights = dict(model.losses[0].named_parameters())
        for there, here, turned in WEIGHTS[name]:
            value = torch.from_numpy(inputs[f"{name}.{here}"])
            weights[there].copy_(value.T if turned else value)
        results[name] = model.losses[0](embeddings, label).numpy()
    data = cell["data"]["train"] | {"shuffle": False, "batch_size": settings["count"]}
    batch = next(iter(build_dataloader(data | {"label_map": cell["data"]["label_map"]})))
    model.train()  # as it trains: a frozen encoder is in this mode there, too
    results["features"] = model.frontend(batch["x"], mask=batch["mask"]).numpy()
    np.savez(found, **results)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
