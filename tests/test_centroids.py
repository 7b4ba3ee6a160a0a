"""The index of centroids in a run: it comes back as it was, and no other file passes for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from pipeline.core.contracts import Centroids
from pipeline.core.errors import InputError
from pipeline.scoring import centroids, runs
from tests.losses import same_centroids

FIRST = Centroids(
    np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32), normalize_query=False, bias=-0.5, reduce="softmax"
)
CARD = {"backend": "asp", "backend_parameters": {}, "kind": {"layers": [1], "channels": 8}, "reads": "frames"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    save(tmp_path / "run", FIRST)
    return tmp_path / "run"


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What FAISS is given to parse."""
    given: list[bytes] = []
    parse = faiss.deserialize_index
    monkeypatch.setattr(faiss, "deserialize_index", lambda data: given.append(data.tobytes()) or parse(data))
    return given


def save(folder: Path, vectors: Centroids) -> None:
    runs.save(folder, weights={"w": np.zeros(1, np.float32)}, centroids=vectors, card=CARD)


def tell(run: Path, **changes: Any) -> None:
    """Change what the card says of the scoring."""
    card = json.loads((run / "run.json").read_text())
    (run / "run.json").unlink()
    (run / "run.json").write_text(json.dumps(card | {"scoring": card["scoring"] | changes}))


def put(run: Path, data: bytes, *, listed: bool) -> None:
    """Put another index there, whose sha256 the card has where it is listed."""
    (run / "centroids.faiss").unlink()  # a file cut to nothing and written again waits for the disk
    (run / "centroids.faiss").write_bytes(data)
    if listed:
        tell(run, sha256=hashlib.sha256(data).hexdigest())


def serialized(index: Any, vectors: np.ndarray = FIRST.vectors) -> bytes:
    index.add(vectors)
    return bytes(faiss.serialize_index(index).tobytes())


def test_a_run_gives_its_centroids_back(run: Path) -> None:
    back = runs.centroids(run)
    assert same_centroids(back, FIRST)
    assert not same_centroids(back, replace(FIRST, bias=0.5))
    assert not same_centroids(back, replace(FIRST, vectors=FIRST.vectors + np.float32(1e-6)))


def test_the_run_holds_one_copy_and_its_card_says_how_it_scores(run: Path) -> None:
    assert {path.name for path in run.iterdir()} == {"backend.safetensors", "centroids.faiss", "run.json"}
    data = (run / "centroids.faiss").read_bytes()
    assert json.loads((run / "run.json").read_text())["scoring"] == {
        "metric": "inner_product",
        "centroids": 3,
        "embedding_dim": 8,
        "normalize_query": False,
        "bias": -0.5,
        "reduce": "softmax",
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    plain = faiss.read_index(str(run / "centroids.faiss"))
    np.testing.assert_array_equal(plain.reconstruct_n(0, 3), FIRST.vectors)


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize(
    ("index", "got"),
    [
        (faiss.IndexFlatL2(8), "3 of width 8 with the metric l2"),
        (faiss.IndexHNSWFlat(8, 4, faiss.METRIC_INNER_PRODUCT), "something else"),
        (faiss.IndexIDMap2(faiss.IndexFlatIP(8)), "something else"),
        (faiss.IndexScalarQuantizer(8, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT), "something else"),
    ],
    ids=["l2", "hnsw", "id map", "quantizer"],
)
def test_another_kind_of_index_is_refused_unread(
    run: Path, parsed: list[bytes], index: Any, got: str, *, listed: bool
) -> None:
    if not index.is_trained:
        index.train(FIRST.vectors)
    index.reset()
    if isinstance(index, faiss.IndexIDMap2):
        index.add_with_ids(FIRST.vectors, np.arange(3))
        data = faiss.serialize_index(index).tobytes()
    else:
        data = serialized(index)
    put(run, data, listed=listed)
    message = f"expected a flat FAISS index of 3 centroids of width 8 with the metric inner_product, .*, got {got}; run"
    with pytest.raises(InputError, match=message):
        runs.index(run)
    assert not parsed


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("shape", [(2, 8), (4, 8), (3, 7), (6, 4)])
def test_another_number_or_width_is_refused(run: Path, parsed: list[bytes], shape: tuple, *, listed: bool) -> None:
    put(run, serialized(faiss.IndexFlatIP(shape[1]), np.ones(shape, np.float32)), listed=listed)
    with pytest.raises(InputError, match=f"got {shape[0]} of width {shape[1]} with the metric inner_product"):
        runs.index(run)
    assert not parsed


def test_the_index_of_another_run_of_the_same_shape_is_refused(run: Path, parsed: list[bytes]) -> None:
    put(run, serialized(faiss.IndexFlatIP(8), FIRST.vectors[::-1].copy()), listed=False)
    with pytest.raises(InputError, match=r"centroids\.faiss: expected the index that was written with the run, got"):
        runs.index(run)
    assert not parsed


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_centroids_that_are_not_finite_are_refused(run: Path, value: float) -> None:
    vectors = FIRST.vectors.copy()
    vectors[1, 2] = value
    put(run, serialized(faiss.IndexFlatIP(8), vectors), listed=True)
    with pytest.raises(InputError, match=r"centroids\.faiss: centroids must be finite; run `dvc repro`"):
        runs.index(run)


def mutations(data: bytes, *, first: int) -> Iterator[bytes]:
    """The bytes cut off at each length, grown, and changed at random among the first ones."""
    rng = np.random.default_rng(0)
    for length in range(len(data)):
        yield data[:length]
    yield data + b"\0"
    yield data * 2
    for _ in range(3_000):
        changed = bytearray(data)
        for at in rng.integers(first, size=rng.integers(1, 9)):
            changed[at] = rng.integers(256)
        if rng.random() < 0.2:
            at, size = rng.integers(first), rng.integers(1, 64)
            changed[at:at] = rng.bytes(size)
        if changed != data:
            yield bytes(changed)


@pytest.mark.parametrize(("first", "listed"), [(centroids.HEADER.size + 96, False), (centroids.HEADER.size, True)])
def test_no_damaged_file_reaches_faiss(run: Path, parsed: list[bytes], *, first: int, listed: bool) -> None:
    """Any byte of a file, or of one whose sha256 is right the bytes that say what it is."""
    data = (run / "centroids.faiss").read_bytes()
    assert len(data) == centroids.HEADER.size + 96
    tried = 0
    for changed in mutations(data, first=first):
        put(run, changed, listed=listed)
        with pytest.raises(InputError, match=r"centroids\.faiss: expected "):
            runs.index(run)
        tried += 1
    assert tried > 3_000
    assert not parsed
    put(run, data, listed=True)
    assert same_centroids(runs.centroids(run), FIRST)
    assert parsed == [data]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"metric": "l2"}, "scoring.metric"),
        ({"centroids": 2**62, "embedding_dim": 2**30}, "scoring.centroids"),
        ({"centroids": 0}, "scoring.centroids"),
        ({"embedding_dim": "8"}, "scoring.embedding_dim"),
        ({"normalize_query": 1}, "scoring.normalize_query"),
        ({"bias": float("nan")}, "scoring.bias"),
        ({"bias": None}, "scoring.bias"),
        ({"reduce": "median"}, "scoring.reduce"),
        ({"sha256": None}, "scoring.sha256"),
        ({"centroids": 2**31 - 1, "embedding_dim": 2**31 - 1}, "got 3 of width 8"),
    ],
)
def test_a_card_that_does_not_say_how_it_scores_is_refused(
    run: Path, parsed: list[bytes], changes: dict, said: str
) -> None:
    tell(run, **changes)
    with pytest.raises(InputError, match=rf"run.*{said}.*; run `dvc repro`"):
        runs.index(run)
    assert not parsed


def test_a_run_of_an_older_version_is_refused(run: Path) -> None:
    card = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(card | {"scoring": {"normalize_query": True, "bias": 0, "reduce": "max"}}))
    with pytest.raises(InputError, match=r"card does not say how it scores: scoring\.metric: Field required; run"):
        runs.index(run)


def test_damaged_or_missing_runs_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no trained run there; run `dvc repro`"):
        runs.centroids(tmp_path)
    (run / "centroids.faiss").unlink()
    with pytest.raises(InputError, match=r"centroids\.faiss: no index of centroids there; run `dvc repro`"):
        runs.centroids(run)


def test_a_folder_of_other_things_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("work")
    with pytest.raises(InputError, match="got a folder of other things"):
        save(tmp_path / "mine", FIRST)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "work"
    save(tmp_path / "run", FIRST)
    save(tmp_path / "run", FIRST)
