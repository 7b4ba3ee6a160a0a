"""The embedding index: exact search against brute force, recall, changes, and folders that are not whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.analysis import embedding_index, embeddings, exact_search, index_file
from pipeline.analysis.embeddings import Embeddings
from pipeline.analysis.index_file import Kind
from pipeline.core import trial_table
from pipeline.core.contracts import Centroids
from pipeline.core.errors import InputError
from pipeline.core.trial_table import Row
from pipeline.scoring import runs, scorer
from pipeline.scoring.centroids import build as centroid_index

Vectors = NDArray[np.float32]
APPROXIMATE = {"ivf": (0, 10**9), "ivfpq": (0, 0)}
CLUSTERED = 3_000


def mixture(count: int, width: int, seed: int = 0) -> Vectors:
    rng = np.random.default_rng(seed)
    centres = 3 * np.random.default_rng(99).normal(size=(20, width))
    return (centres[rng.integers(20, size=count)] + rng.normal(size=(count, width))).astype(np.float32)


def names(count: int) -> list[str]:
    return [f"u{i}" for i in range(count)]


def built(folder: Path, vectors: Vectors, *, normalize: bool = True, batch: int = 7) -> Embeddings:
    batches = (vectors[i : i + batch] for i in range(0, len(vectors), batch))
    return embedding_index.build(
        folder, batches, names(len(vectors)), normalize=normalize, facts={"run": "r", "set": "s"}
    )


def naive(queries: Vectors, vectors: Vectors, k: int, *, normalize: bool) -> tuple[list[list[float]], list[list[int]]]:
    """Nearest neighbours by the definition, in float64, one pair at a time."""
    away, ids = [], []
    for query in queries.astype(float):
        found = []
        for i, vector in enumerate(vectors.astype(float)):
            q, v = (x / np.sqrt((x * x).sum()) if normalize else x for x in (query, vector))
            found.append((float(np.sqrt(((q - v) ** 2).sum())), i))
        nearest = sorted(found)[:k]
        away.append([d for d, _ in nearest])
        ids.append([i for _, i in nearest])
    return away, ids


@pytest.mark.parametrize("normalize", [True, False])
def test_a_flat_search_is_brute_force(tmp_path: Path, *, normalize: bool) -> None:
    vectors, queries = mixture(60, 5), mixture(25, 5, seed=1)
    found = built(tmp_path / "e", vectors, normalize=normalize)
    away, ids = found.search(queries, 4)
    wanted_away, wanted_ids = naive(queries, vectors, 4, normalize=normalize)
    assert (away.dtype, ids.dtype, away.shape) == (np.float32, np.int64, (25, 4))
    assert ids.tolist() == wanted_ids
    np.testing.assert_allclose(away, wanted_away, rtol=1e-4, atol=1e-6)
    assert (found.record["kind"], found.record["recall"]) == ("flat", 1.0)


def test_distances_by_hand(tmp_path: Path) -> None:
    vectors = np.array([[3, 0], [0, 2], [-1, 0]], np.float32)
    query = np.array([[5, 0]], np.float32)
    away, ids = built(tmp_path / "unit", vectors, normalize=True).search(query, 3)
    assert ids.tolist() == [[0, 1, 2]]
    np.testing.assert_allclose(away, [[0, 2**0.5, 2]], rtol=1e-6)
    away, ids = built(tmp_path / "raw", vectors, normalize=False).search(query, 3)
    assert ids.tolist() == [[0, 1, 2]]
    np.testing.assert_allclose(away, [[2, 29**0.5, 6]], rtol=1e-6)


@given(data=st.data())
@settings(max_examples=25)
def test_a_search_gives_what_brute_force_gives(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    count, width, k = (data.draw(st.integers(1, most)) for most in (30, 4, 40))
    values = st.integers(-3, 3).map(float)  # small whole numbers: distances are exact, and many are equal
    rows = data.draw(st.lists(st.lists(values, min_size=width, max_size=width), min_size=count, max_size=count))
    vectors = np.array(rows, np.float32)
    folder = tmp_path_factory.mktemp("e") / "e"
    away, ids = built(folder, vectors, normalize=False, batch=data.draw(st.integers(1, 9))).search(vectors[:3], k)
    wanted_away, wanted_ids = naive(vectors[:3], vectors, k, normalize=False)
    np.testing.assert_allclose(away, wanted_away, rtol=1e-6)
    if k >= count:  # all are found, so that ties at the end cannot differ
        assert ids.tolist() == wanted_ids


def test_a_neighbour_that_was_not_found_is_infinitely_far() -> None:
    vectors = np.array([[3, 4], [0, 1]], np.float32)
    away = exact_search.distances(np.zeros((1, 2), np.float32), vectors, np.array([[1, -1, 0]]), normalize=False)
    assert away.tolist() == [[1, np.inf, 5]]


def test_equally_near_ones_come_by_id(tmp_path: Path) -> None:
    vectors = np.ones((30, 3), np.float32)
    away, ids = built(tmp_path / "e", vectors).search(vectors[:2], 30)
    assert ids.tolist() == [list(range(30))] * 2
    assert away.tolist() == [[0.0] * 30] * 2


def test_no_queries_give_no_rows_and_others_are_refused(tmp_path: Path) -> None:
    found = built(tmp_path / "e", mixture(9, 4))
    away, ids = found.search(np.zeros((0, 4), np.float32), 3)
    assert (away.shape, ids.shape) == ((0, 3), (0, 3))
    for queries, k in ((np.zeros((2, 5), np.float32), 3), (np.zeros(4, np.float32), 3), (np.zeros((2, 4), "f4"), 0)):
        with pytest.raises(ValueError, match=r"expected queries \(M, 4\) and k ≥ 1, got"):
            found.search(queries, k)


@pytest.mark.parametrize("normalize", [True, False])
def test_what_is_compared_is_what_scoring_compares(*, normalize: bool) -> None:
    vectors = mixture(50, 6) * np.float32(7)
    vectors[3] = 0
    vectors[4] *= np.float32(1e-3)
    centroids = Centroids(mixture(2, 6, seed=1), normalize, 0.0, "max")
    scores = scorer.score(vectors, centroid_index(centroids), names=names(50))
    seen = exact_search.compared(vectors, normalize=normalize)
    np.testing.assert_allclose((seen @ centroids.vectors.T).max(1), scores, rtol=1e-5, atol=1e-6)
    assert seen.dtype == np.float32
    lengths = np.linalg.norm(seen, axis=1)
    wanted = np.where(np.arange(50) == 3, 0, 1 if normalize else np.linalg.norm(vectors, axis=1))
    np.testing.assert_allclose(lengths, wanted, rtol=1e-6)


# ---------------------------------------------------------------- kinds


@pytest.fixture(scope="module", params=APPROXIMATE)
def approximate(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Embeddings:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedding_index, "FLAT_UP_TO", APPROXIMATE[request.param][0])
        patch.setattr(embedding_index, "IVF_UP_TO", APPROXIMATE[request.param][1])
        patch.setattr(exact_search, "BLOCK", 700)
        return built(tmp_path_factory.mktemp("e") / "e", mixture(CLUSTERED, 16), batch=500)


def test_the_size_says_the_kind() -> None:
    kinds = {count: embedding_index._kind(count) for count in (1, 200_000, 200_001, 2_000_000, 2_000_001)}
    assert list(kinds.values()) == ["flat", "flat", "ivf", "ivf", "ivfpq"]


def test_recall_is_measured_and_told(approximate: Embeddings) -> None:
    """The card's number, again: on the same utterances, each without itself, by brute force."""
    found, k = approximate, 10
    rows = embedding_index._sample(len(found), embedding_index.RECALL_QUERIES)
    units = found.vectors / np.linalg.norm(found.vectors, axis=1, keepdims=True)
    hits = []
    for row, ids in zip(rows, found.search(found.vectors[rows], k + 1)[1], strict=True):
        away = np.linalg.norm(units - units[row], axis=1)
        wanted = [i for i in np.argsort(away, kind="stable") if i != row][:k]
        got = [i for i in ids if i != row][:k]
        hits.append(len(set(wanted) & set(got)) / k)
    assert len(rows) == 256
    assert found.record["recall"] == pytest.approx(np.mean(hits), abs=1e-4)
    assert found.record["recall"] >= embedding_index.RECALL_WANTED
    assert 0 < found.index.nprobe < found.index.nlist == 54  # √3000, and not all of them are looked through


def test_distances_of_an_approximate_search_are_exact(approximate: Embeddings) -> None:
    queries = mixture(30, 16, seed=5)
    away, ids = approximate.search(queries, 6)
    for query, near, found in zip(queries, away, ids, strict=True):
        vectors = approximate.vectors[found]
        units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        np.testing.assert_allclose(near, np.linalg.norm(units - query / np.linalg.norm(query), axis=1), rtol=1e-4)
        assert sorted(near) == near.tolist()
        assert len(set(found.tolist())) == 6


def test_more_neighbours_than_the_lists_hold_are_found(approximate: Embeddings) -> None:
    away, ids = approximate.search(mixture(2, 16, seed=5), CLUSTERED + 5)
    assert ids.shape == (2, CLUSTERED)
    assert np.sort(ids, axis=1).tolist() == [list(range(CLUSTERED))] * 2
    assert np.isfinite(away).all()


def test_lists_are_looked_through_until_the_recall_is_reached(approximate: Embeddings) -> None:
    """With all lists, inverted lists are exact: a recall of 1 asks for the probes that no fewer give."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedding_index, "RECALL_WANTED", 1.1)
        before = approximate.index.nprobe
        recall = embedding_index._tuned(approximate)
        assert approximate.index.nprobe == approximate.index.nlist
        assert recall == 1.0 if approximate.record["kind"] == "ivf" else recall >= approximate.record["recall"]
        approximate.index.nprobe = before


def test_vectors_and_index_are_mapped_not_read(approximate: Embeddings, tmp_path: Path) -> None:
    assert isinstance(approximate.vectors, np.memmap)
    assert not approximate.vectors.flags.writeable
    assert type(faiss.downcast_InvertedLists(approximate.index.invlists)).__name__ == "OnDiskInvertedLists"
    with (Path("/proc/self/maps")).open() as maps:
        before = maps.read()
    found = built(tmp_path / "flat", mixture(5_000, 16), batch=5_000)
    assert f"{tmp_path}/flat/index.faiss" not in before
    with (Path("/proc/self/maps")).open() as maps:
        after = maps.read()
    assert f"{tmp_path}/flat/index.faiss" in after
    assert f"{tmp_path}/flat/embeddings.npy" in after
    assert len(found) == 5_000


def test_the_same_embeddings_give_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_index, "FLAT_UP_TO", 0)
    vectors = mixture(2_000, 8)
    for name, batch in (("a", 300), ("b", 1_999)):
        built(tmp_path / name, vectors, batch=batch)
    for file in ("embeddings.npy", "index.faiss", "utterances.txt", "embeddings.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_an_index_goes_to_the_gpu_where_faiss_has_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = built(tmp_path / "e", mixture(40, 4))
    asked: list[int] = []

    def search(queries: Vectors, k: int) -> tuple[Vectors, NDArray[np.int64]]:
        asked.append(k)
        return found.index.search(queries, k)  # type: ignore[no-any-return]

    def moved(resources: str, device: int, index: object) -> SimpleNamespace:
        assert (resources, device, index) == ("resources", 0, found.index)
        return SimpleNamespace(search=search)

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1, raising=False)
    monkeypatch.setattr(faiss, "StandardGpuResources", lambda: "resources", raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", moved, raising=False)
    monkeypatch.setattr(embeddings, "GPU_MOST", 10)
    again = embeddings.read(tmp_path / "e")
    found = again
    for k in (3, 10, 11):  # a GPU finds no more than so many
        wanted_away, wanted_ids = naive(found.vectors[:2], found.vectors, k, normalize=True)
        away, ids = again.search(found.vectors[:2], k)
        assert ids.tolist() == wanted_ids
        np.testing.assert_allclose(away, wanted_away, atol=1e-3)
    assert asked == [3, 10]


# ---------------------------------------------------------------- writing


def test_what_is_written_is_read(tmp_path: Path) -> None:
    vectors = mixture(23, 5)
    found = built(tmp_path / "e", vectors)
    np.testing.assert_array_equal(found.vectors, vectors)
    np.testing.assert_array_equal(np.load(tmp_path / "e/embeddings.npy", allow_pickle=False), vectors)
    assert (tmp_path / "e/utterances.txt").read_text() == "".join(f"u{i}\n" for i in range(23))
    assert found.utterances.tolist() == names(23)
    assert found.index.metric_type == faiss.METRIC_L2
    np.testing.assert_allclose(
        found.index.reconstruct_n(0, 23), vectors / np.linalg.norm(vectors, axis=1, keepdims=True), rtol=1e-6
    )
    card = json.loads((tmp_path / "e/embeddings.json").read_text())
    sizes = {
        name: (tmp_path / "e" / name).stat().st_size for name in ("embeddings.npy", "index.faiss", "utterances.txt")
    }
    assert card == {
        "run": "r", "set": "s", "count": 23, "embedding_dim": 5, "normalize": True, "kind": "flat", "recall": 1.0,
        "bytes": sizes, "crc32c": {name: embeddings.checksum(tmp_path / "e" / name) for name in sizes},
    }  # fmt: skip
    assert list(tmp_path.iterdir()) == [tmp_path / "e"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_embedding_that_is_not_finite_is_named(tmp_path: Path, value: float) -> None:
    vectors = mixture(23, 5)
    vectors[15, 2] = value
    with pytest.raises(InputError, match=r"utterance u15: expected a finite embedding, got NaN or infinity"):
        built(tmp_path / "e", vectors)
    assert not (tmp_path / "e").exists()


def test_batches_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    def write(*batches: Vectors) -> None:
        embedding_index.build(tmp_path / "e", iter(batches), names(9), normalize=True, facts={})

    for batches in ([mixture(8, 4)], [mixture(5, 4), mixture(5, 4)], [mixture(5, 4), mixture(4, 3)], []):
        with pytest.raises(ValueError, match=r"expected (9 embeddings|an embedding of each of 9)"):
            write(*batches)
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize("listed", [["a", "b", "a"], ["a", "b\u2028c", "d"], ["a", "", "d"], ["a", "b\n", "d"]])
def test_names_that_cannot_stand_are_refused(tmp_path: Path, listed: list[str]) -> None:
    with pytest.raises(InputError, match="expected each utterance once and without line breaks, got"):
        embedding_index.build(tmp_path / "e", [mixture(3, 2)], listed, normalize=True, facts={})


def test_a_set_without_utterances_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected at least one utterance, got none"):
        embedding_index.build(tmp_path / "e", [], [], normalize=True, facts={})


# ---------------------------------------------------------------- changes


def test_built_again_the_folder_is_replaced_and_what_was_read_stays(tmp_path: Path) -> None:
    vectors, others = mixture(4, 3), mixture(5, 3, seed=3)
    first = built(tmp_path / "e", vectors)
    again = built(tmp_path / "e", others)
    np.testing.assert_array_equal(again.vectors, others)
    np.testing.assert_array_equal(first.vectors, vectors)
    assert not (tmp_path / "e.part").exists()


def test_a_build_that_fails_leaves_the_older_folder(tmp_path: Path) -> None:
    built(tmp_path / "e", mixture(4, 3))
    before = {file.name: file.read_bytes() for file in (tmp_path / "e").iterdir()}
    broken = mixture(4, 3)
    broken[2, 0] = np.nan
    with pytest.raises(InputError, match="utterance u2: expected a finite embedding"):
        built(tmp_path / "e", broken)
    assert before == {file.name: file.read_bytes() for file in (tmp_path / "e").iterdir()}


# ---------------------------------------------------------------- reading what is not whole


def shorten(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:-2])

    return damage


def say(**changed: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        card = json.loads((folder / "embeddings.json").read_text())
        (folder / "embeddings.json").write_text(json.dumps(card | changed))

    return damage


def swap(name: str, data: bytes) -> Callable[[Path], None]:
    """Other content; the card's size and checksum with it."""

    def damage(folder: Path) -> None:
        (folder / name).write_bytes(data)
        card = json.loads((folder / "embeddings.json").read_text())
        card["bytes"][name] = len(data)
        card["crc32c"][name] = embeddings.checksum(folder / name)
        (folder / "embeddings.json").write_text(json.dumps(card))

    return damage


def flip(name: str) -> Callable[[Path], None]:
    """One other bit near the end."""

    def damage(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[-3] ^= 1
        (folder / name).write_bytes(data)

    return damage


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


DAMAGES = {
    "no card": (without("embeddings.json"), r"embeddings\.json: no set of embeddings there; run `dvc repro"),
    "card cut off": (
        shorten("embeddings.json"),
        r"embeddings\.json: expected a set of embeddings, got something that is",
    ),
    "no vectors": (without("embeddings.npy"), r"embeddings\.npy: expected \d+ bytes by embeddings.json, got 0;"),
    "no index": (without("index.faiss"), r"index\.faiss: expected \d+ bytes by embeddings.json, got 0;"),
    "no names": (without("utterances.txt"), r"utterances\.txt: expected \d+ bytes by embeddings.json, got 0;"),
    "vectors cut off": (shorten("embeddings.npy"), r"embeddings\.npy: expected 496 bytes by embeddings.json, got 494;"),
    "index cut off": (shorten("index.faiss"), r"index\.faiss: expected \d+ bytes by embeddings.json, got \d+;"),
    "names cut off": (shorten("utterances.txt"), r"utterances\.txt: expected 82 bytes by embeddings.json, got 80;"),
    "other count": (
        say(count=22),
        r"expected 22 embeddings of width 4 by embeddings.json, got \(23, 4\) and 23 utt",
    ),
    "other width": (say(embedding_dim=5), r"expected 23 embeddings of width 5 by embeddings.json, got \(23, 4\)"),
    "unknown kind": (
        say(kind="hnsw"),
        r"not the record of a set of embeddings: kind: Input should be 'flat'",
    ),
    "other kind": (
        say(kind="ivf"),
        r"index\.faiss: expected a FAISS index of the kind ivf .*: expected the kind \(b'IwFl',\), got \(b'IxF2',\)",
    ),
    "no sizes": (say(bytes=3), r"embeddings\.json: not the record of a set of embeddings: bytes"),
    "no index at all": (
        swap("index.faiss", b"words"),
        r"index\.faiss: expected a FAISS index .*: expected the kind \(b'IxF2',\), got",
    ),
    "no byte at all": (swap("index.faiss", b""), r"index\.faiss: expected a FAISS index .*: cannot mmap an empty file"),
    "no checksums": (say(crc32c={}), r"embeddings\.npy: expected the bytes that embeddings.json tells of, got others"),
    "a bit of the vectors": (flip("embeddings.npy"), r"embeddings\.npy: expected the bytes that embeddings.json"),
    "a bit of the index": (flip("index.faiss"), r"index\.faiss: expected the bytes that embeddings.json tells of"),
    "a bit of the names": (flip("utterances.txt"), r"utterances\.txt: expected the bytes that embeddings.json tells"),
    "no vectors at all": (swap("embeddings.npy", b"words"), r"embeddings\.npy: not embeddings that this project wrote"),
    "fewer names": (swap("utterances.txt", b"u0\n"), r"got \(23, 4\) and 1 utterances; run `dvc repro"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_folder_that_is_not_whole_is_refused(tmp_path: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    built(tmp_path / "e", np.full((23, 4), 2, np.float32))
    damage(tmp_path / "e")
    with pytest.raises(InputError, match=message):
        embeddings.read(tmp_path / "e")


@pytest.mark.parametrize("kind", ["flat", "ivf", "ivfpq"])
def test_faiss_reads_no_index_that_the_project_does_not_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    if kind in APPROXIMATE:
        flat, ivf = APPROXIMATE[kind]
        monkeypatch.setattr(embedding_index, "FLAT_UP_TO", flat)
        monkeypatch.setattr(embedding_index, "IVF_UP_TO", ivf)
    built(tmp_path / "e", mixture(300, 4))
    path, shape = tmp_path / "e/index.faiss", {"count": 300, "width": 4, "remedy": "mend it"}
    assert index_file.read_index(path, kind, **shape).ntotal == 300
    data = path.read_bytes()
    spoilt = {
        "another kind": b"IxPT" + data[4:],
        "another count": data[:8] + (299).to_bytes(8, "little") + data[16:],
        "another metric": data[:33] + bytes(4) + data[37:],
        "not trained": data[:32] + bytes(1) + data[33:],
        "a byte more": data + b"\0",
        "a byte less": data[:-1],
        "nothing": b"",
    }
    if kind != "flat":
        lists = data.index(b"ilar")
        at = len(data) - 16  # the last id but one
        spoilt |= {
            "lists in another file": data.replace(b"ilar", b"ilod"),
            "no lists": data[:37] + bytes(8) + data[45:],
            "many lists": data[:37] + (2**40).to_bytes(8, "little") + data[45:],
            "other sizes of codes": data[: lists + 12] + (3).to_bytes(8, "little") + data[lists + 20 :],
            "an id that is none": data[:at] + (300).to_bytes(8, "little") + data[at + 8 :],
            "a negative id": data[:at] + b"\xff" * 8 + data[at + 8 :],
            "an id twice": data[:at] + data[-8:] + data[at + 8 :],
            "longer lists": data[: lists + 32] + (2**63).to_bytes(8, "little") + data[lists + 40 :],
        }
    monkeypatch.setattr(faiss, "read_index", None)
    for what, other in spoilt.items():
        assert other != data, what
        path.write_bytes(other)
        with pytest.raises(InputError, match=rf"index\.faiss: expected a FAISS index of the kind {kind} .*; mend it"):
            index_file.read_index(path, kind, **shape)


def test_vectors_of_another_type_or_pickled_are_refused(tmp_path: Path) -> None:
    for array, message in (
        (np.zeros((3, 2)), r"expected \(N, E\) float32, got \(3, 2\) float64"),
        (np.zeros(6, np.float32), r"expected \(N, E\) float32, got \(6,\) float32"),
        (np.array([{}], dtype=object), "not embeddings that this project wrote"),
    ):
        built(tmp_path / "e", mixture(3, 2))
        np.save(tmp_path / "v.npy", array, allow_pickle=True)
        swap("embeddings.npy", (tmp_path / "v.npy").read_bytes())(tmp_path / "e")
        with pytest.raises(InputError, match=message):
            embeddings.read(tmp_path / "e")


# ---------------------------------------------------------------- of a run


def test_embeddings_of_another_run_set_or_trials_are_refused(tmp_path: Path) -> None:
    rows = [Row("here", f"u{i}", f"{i}.wav", "spoof" if i % 2 else "bonafide", content=f"{i}") for i in range(6)]
    table = trial_table.from_rows(rows, source="here")
    run = saved_run(tmp_path / "run", 1.0)
    facts = embeddings.identity(run, "dev", table)
    assert facts == {"run": "run", "weights": facts["weights"], "set": "dev", "trials": trial_table.fingerprint(table)}
    folder = tmp_path / "e"
    embedding_index.build(folder, [mixture(6, 3)], table.utterance.tolist(), normalize=True, facts=facts)
    assert embeddings.of_run(folder, run, "dev", table).utterances.tolist() == table.utterance.tolist()
    others = [
        (saved_run(tmp_path / "two", 1.0), "dev", table),
        (saved_run(tmp_path / "again/run", 2.0), "dev", table),
        (saved_run(tmp_path / "raw/run", 1.0, normalize=False), "dev", table),
        (run, "eval", table),
        (run, "dev", table.take(np.array([1, 0, 2, 3, 4, 5]))),
    ]
    for run_set_trials in others:
        with pytest.raises(InputError, match=r"e: expected the embeddings of \{.*\}, got those of \{.*\}; run `dvc"):
            embeddings.of_run(folder, *run_set_trials)
    listed = (folder / "utterances.txt").read_bytes()
    swap("utterances.txt", listed.replace(b"u1\n", b"u9\n"))(folder)
    with pytest.raises(InputError, match=r"e: expected the embeddings of"):
        embeddings.of_run(folder, run, "dev", table)


def saved_run(folder: Path, weight: float, *, normalize: bool = True) -> Path:
    centroids = Centroids(np.eye(3, dtype=np.float32)[:1], normalize, 0.0, "max")
    card = {"backend": "linear", "backend_parameters": {}, "kind": {"layers": [1], "channels": 8}, "reads": "pooled"}
    runs.save(folder, weights={"w": np.array([weight], np.float32)}, centroids=centroids, card=card)
    return folder
