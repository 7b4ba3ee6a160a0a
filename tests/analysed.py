"""Analyses and maps of made-up runs, for tests of the page: the shape of what `analyse` writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

SETS = ("train", "dev", "eval")
ATTACKS = ("A01", "A02", "A<b>")  # a name that would break a page which does not escape it
HOSTILE = "</script><img src=x onerror=alert(1)>"  # the utterance of point 0
TWIN = "twin"  # an utterance of every set: that of the last three points


def analysis(run: str, *, centroids: int = 2, epochs: int = 4) -> dict[str, Any]:
    rng = np.random.default_rng(centroids)
    units = rng.normal(size=(centroids, 5))
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    counts = {
        "class": {name: rng.integers(1, 40, centroids).tolist() for name in ("bonafide", "spoof")},
        "attack": {name: rng.integers(1, 20, centroids).tolist() for name in ATTACKS},
        "quality_level": {str(level): rng.integers(1, 20, centroids).tolist() for level in range(2)},
        "mos": {"2.5-3.0": rng.integers(1, 20, centroids).tolist()},
    }
    return {
        "run": run,
        "centroids": centroids,
        "embedding_dim": 5,
        "distance": "cosine",
        "train": "train",
        "sets": list(SETS),
        "similarity": (units @ units.T).round(6).tolist(),
        "assignments": dict.fromkeys(SETS, counts),
        "distances": {name: _distances(rng) for name in SETS},
        "path": {
            "epochs": list(range(1, epochs + 1)),
            "moved": [[None] * centroids, *rng.uniform(0, 0.2, (epochs - 1, centroids)).tolist()],
            "to_last": [*rng.uniform(0, 0.2, (epochs - 1, centroids)).tolist(), [0.0] * centroids],
        },
        "geometry": {name: _geometry(i) for i, name in enumerate(SETS)},
        "shift": {name: _shift(i) for i, name in enumerate(SETS)},
        "hardest": [_hard(name, i) for name in SETS[1:] for i in range(3)],
    }


def _distances(rng: np.random.Generator) -> dict[str, Any]:
    found = {}
    for name in ("bonafide", *ATTACKS):
        quantiles = np.sort(rng.uniform(0.1, 1.3, 5)).round(4).tolist()
        found[name] = {"n": 40, "mean": quantiles[2], "quantiles": quantiles}
    return found


def _geometry(i: int) -> dict[str, Any]:
    dimensions = {"all": 3.25 + i, "bonafide": 2.5, "spoof": None}
    return {"purity": 0.75, "silhouette": 0.125 * i, "within": 1.5, "between": 0.5, "effective_dimension": dimensions}


def _shift(i: int) -> dict[str, Any]:
    if i == 2:
        return {"bonafide_to_train": None, "bonafide_distance": None, "ratio": None, "auc": None}
    return {"bonafide_to_train": 0.1 * i, "bonafide_distance": 0.4, "ratio": 1.0 + i, "auc": 0.5}


def _hard(name: str, i: int) -> dict[str, Any]:
    near = [
        {"utterance": utterance, "label": "spoof", "attack": "A01", "distance": 0.1 + j}
        for j, utterance in enumerate(("u12", TWIN))
    ]
    return {
        "set": name,
        "utterance": (HOSTILE, f"{name}_hard_1", TWIN)[i],
        "label": "bonafide",
        "attack": "-",
        "score": -0.5,
        "neighbours": near,
    }


def chart(run: str, *, points: int = 60, centroids: int = 2, seed: int = 1) -> dict[str, Any]:
    """A map in which u<i> is of the set i mod 3, has the attack i mod 3 where it is a spoof, and the neighbours i + 1,
    i + 2, i + 3; the last three, one of each set, have the same name."""
    rng = np.random.default_rng(seed)
    classes = np.arange(points) % 2
    x, y = (np.clip(rng.normal(1400 + 1200 * classes, 450), 0, 4095).astype(int).tolist() for _ in range(2))
    names = ["bonafide", *ATTACKS]
    places = [[900, 90 * (k + 1)] for k in range(centroids)]
    nearest = (np.arange(points) % centroids).tolist()
    return {
        "run": run,
        "points": points,
        "bits": 12,
        "projections": [
            {"name": "PCA", "note": "31 % and 12 % of the variance", "x": x, "y": y, "centroids": places},
            {"name": "t-SNE", "note": "perplexity 30", "x": y, "y": x[::-1], "centroids": None},
        ],
        "utterance": [HOSTILE, *(f"u{i}" for i in range(1, points - 3)), TWIN, TWIN, TWIN],
        "audio": ["", *(f"audio/u{i}.flac" for i in range(1, points))],
        "score": [round(float(v), 4) for v in rng.normal(size=points)],
        "categories": {
            "class": {"names": ["bonafide", "spoof"], "codes": classes.tolist()},
            "set": {"names": list(SETS), "codes": (np.arange(points) % 3).tolist()},
            "attack": {"names": names, "codes": np.where(classes, 1 + np.arange(points) % 3, 0).tolist()},
            "centroid": {"names": [str(k) for k in range(centroids)], "codes": nearest},
        },
        "numbers": {"MOS": [None if i % 5 == 0 else round(1 + 4 * i / points, 3) for i in range(points)]},
        "neighbours": [[(i + j) % points for j in (1, 2, 3)] for i in range(points)],
    }  # fmt: skip


def write(folder: Path, run: str, *, facts: Any = None, points: Any = None) -> None:
    """Write the analysis and the map of a run into FOLDER/<run>."""
    (folder / run).mkdir(parents=True, exist_ok=True)
    (folder / run / "analysis.json").write_text(json.dumps(facts or analysis(run)))
    (folder / run / "map.json").write_text(json.dumps(points or chart(run)))
