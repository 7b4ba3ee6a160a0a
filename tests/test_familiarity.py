"""Distances to the training set as percentiles: values by hand, duplicates, and a sample of a large set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.analysis import embedding_index, familiarity
from pipeline.analysis.embeddings import Embeddings


def on_a_line(folder: Path, places: list[float]) -> Embeddings:
    vectors = np.array([[place, 0.0] for place in places], np.float32)
    return embedding_index.build(folder, [vectors], [f"u{i}" for i in range(len(places))], normalize=False, facts={})


def percentile(known: Embeddings, place: float) -> float:
    away, _ = known.search(np.array([[place, 0.0]], np.float32), familiarity.NEIGHBOURS)
    (found,) = familiarity.percentiles(away, familiarity.own_distances(known.vectors, known.search), count=len(known))
    return float(found)


def test_distances_and_percentiles_by_hand(tmp_path: Path) -> None:
    known = on_a_line(tmp_path / "e", [0, 1, 2, 3, 4, 5])  # each has the five others as its nearest
    assert familiarity.own_distances(known.vectors, known.search).tolist() == pytest.approx(
        [9 / 5, 9 / 5, 11 / 5, 11 / 5, 3, 3]
    )
    assert percentile(known, 2.5) == 0  # nearer than all: 0.5, 0.5, 1.5, 1.5, 2.5
    assert percentile(known, 5.0) == pytest.approx(100 * 2 / 6)  # 0, 1, 2, 3, 4: itself counts, as it is another file
    assert percentile(known, 5.9) == pytest.approx(100 * 4 / 6)  # 0.9 to 4.9, mean 2.9
    assert percentile(known, 6.1) == 100


def test_a_training_set_of_fewer_than_six_and_of_duplicates(tmp_path: Path) -> None:
    two = on_a_line(tmp_path / "two", [0, 3])
    assert familiarity.own_distances(two.vectors, two.search).tolist() == [3, 3]
    assert (percentile(two, 2.0), percentile(two, 6.5)) == (0, 100)
    alike = on_a_line(tmp_path / "alike", [1.0] * 9)
    assert familiarity.own_distances(alike.vectors, alike.search).tolist() == [0] * 9
    assert (percentile(alike, 1.0), percentile(alike, 1.1)) == (100, 100)


def test_of_a_large_set_a_sample_is_compared_with_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = on_a_line(tmp_path / "e", np.random.default_rng(1).normal(size=400).tolist())
    every = familiarity.own_distances(known.vectors, known.search)
    monkeypatch.setattr(familiarity, "SAMPLE", 100)
    some = familiarity.own_distances(known.vectors, known.search)
    assert (len(every), len(some)) == (400, 100)
    assert set(some.tolist()) <= set(every.tolist())
