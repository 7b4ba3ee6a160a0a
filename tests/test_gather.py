"""Gathering: from wherever features lie, ahead or not, the same bits in the same order, and no thread left behind."""

import dataclasses
import functools
import json
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.core import trial_table
from pipeline.core.contracts import CLEAN
from pipeline.core.errors import InputError
from pipeline.core.trial_table import Row, Trials, from_rows
from pipeline.features import dataset, sources, streaming
from pipeline.features.dataset import Dataset
from pipeline.features.sources import Held
from pipeline.features.specs import Spec
from pipeline.features.store import Store
from pipeline.features.zarr_metadata import FORMAT
from tests.test_store import tree

VIEWS = ("rawboost4_0", "noise_0")


@dataclasses.dataclass(frozen=True)
class Cache:
    """A store of ten utterances in three views with three layers, shards of four, and its receipt."""

    receipt: Path
    trials: Trials
    frames: np.ndarray  # (3, 10, 3, 5, 4) float16: view, utterance, layer, frame, channel
    pooled: np.ndarray  # (3, 10, 3, 2, 4) float32

    def open(self, **how: object) -> Dataset:
        return dataset.open_set(self.receipt, self.trials, root=self.receipt.parent, **({"reads": "frames"} | how))


def make_cache(folder: Path, name: str, *, seed: int = 0, first: int = 0) -> Cache:
    """A store with its receipt, below a folder; made once a process, and written anew each time."""
    files, made = _made(name, seed, first)
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return dataclasses.replace(made, receipt=folder / f"{name}.json")


@functools.cache
def _made(name: str, seed: int, first: int) -> tuple[dict[str, bytes], Cache]:
    """The files of a store and of its receipt, and what they hold."""
    with tempfile.TemporaryDirectory() as folder:
        made = _make(Path(folder), name, seed=seed, first=first)
        return tree(Path(folder)), made


def _make(folder: Path, name: str, *, seed: int, first: int) -> Cache:
    rng = np.random.default_rng(seed)
    rows = [
        Row(f"t:{i}", f"u{i}", f"{i}.wav", "spoof" if i % 3 else "bonafide", speaker=f"s{i % 2}" if i % 4 else "-")
        for i in range(first, first + 10)
    ]
    trials = from_rows(rows, source="t")
    spec = Spec({"e": 1}, trial_table.fingerprint(trials), utterances=10, frames=5, channels=4, shard=4)
    frames = rng.normal(size=(3, 10, 3, 5, 4)).astype(np.float16)
    n_frames = np.arange(10, dtype=np.int32) % 5 + 1
    valid = [[frames[v, i, :, : n_frames[i]].astype(np.float32) for i in range(10)] for v in range(3)]
    pooled = np.array([[np.stack([one.mean(1), one.std(1)], axis=1) for one in view] for view in valid], np.float32)
    layers = (2, 5, "final")
    store = Store.create(folder, name, spec)
    for v, view in enumerate((CLEAN, *VIEWS)):
        store.add_arrays(view, layers)
        for shard in range(spec.shards):
            part = slice(spec.rows(shard).start, spec.rows(shard).stop)
            store.write(
                view,
                shard,
                {layer: frames[v, part, k] for k, layer in enumerate(layers)},
                {layer: pooled[v, part, k] for k, layer in enumerate(layers)},
                n_frames[part],
            )
    views = [CLEAN, *VIEWS]
    facts = {key: value for key, value in dataclasses.asdict(spec).items() if key != "shard"}
    facts |= {"format": FORMAT, "store": spec.folder(name), "layers": layers, "views": views}
    (folder / f"{name}.json").write_text(json.dumps(facts | {"digest": store.digest(views, layers)}))
    return Cache(folder / f"{name}.json", trials, frames, pooled)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return make_cache(tmp_path, "train")


ADDRESSES = np.array([29, 0, 13, 7, 7, 20, 19])


@pytest.mark.parametrize("hold", ["disk", "ram", "device"])
@pytest.mark.parametrize("reads", ["frames", "pooled"])
def test_every_hold_gives_the_chosen_layers_of_the_chosen_views(cache: Cache, hold: str, reads: str) -> None:
    data = cache.open(reads=reads, layers=("final", 2), views=VIEWS[::-1], hold=hold)
    everything = getattr(cache, reads)[[0, 2, 1]][:, :, [2, 0]].reshape(30, 2, *getattr(cache, reads).shape[3:])
    features, n_frames = data.features(ADDRESSES)
    assert features.dtype == torch.float32
    np.testing.assert_array_equal(features.numpy(), everything[ADDRESSES].astype(np.float32))
    assert n_frames.tolist() == [5, 1, 4, 3, 3, 1, 5]
    assert (data.layers, data.views, data.kind["layers"]) == (("final", 2), VIEWS[::-1], ["final", 2])


def test_what_does_not_fit_is_refused_before_it_is_read(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 2 * 10 * 3 * 5 * 4 * 2  # views, utterances, layers, frames, channels, bytes
    monkeypatch.setattr(sources, "free_bytes", lambda _device: needed)
    assert isinstance(cache.open(views=VIEWS[:1], hold="ram").source, Held)
    monkeypatch.setattr(sources, "free_bytes", lambda _device: needed - 1)
    monkeypatch.setattr(sources.OnDisk, "gather", None)
    with pytest.raises(InputError, match=r"dataset\.hold: train takes 2,400 bytes \(10 utt.*set it to disk") as error:
        cache.open(views=VIEWS[:1], hold="ram")
    assert "2,399 are free on cpu" in str(error.value)


def test_free_bytes_are_those_of_the_machine_or_the_container() -> None:
    assert 2**20 < sources.free_bytes(torch.device("cpu")) < 2**50


def test_holding_reads_in_pieces(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "CHUNK_BYTES", 7 * 3 * 5 * 4 * 2)  # seven rows, which do not divide thirty
    held = cache.open(views=VIEWS, hold="ram").source
    np.testing.assert_array_equal(held.tensor.numpy(), cache.frames.reshape(30, 3, 5, 4))


# ---------------------------------------------------------------- gathering ahead


def some_batches(count: int = 23) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(30, size=rng.integers(1, 6)) for _ in range(count)]


@pytest.mark.parametrize(("small_bytes", "chunk_bytes"), [(0, 1), (0, 2_000), (0, 10**9), (10**9, 1)])
@pytest.mark.parametrize("hold", ["disk", "ram"])
@pytest.mark.parametrize("reads", ["frames", "pooled"])
def test_gathering_ahead_changes_no_bit_and_no_order(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, reads: str, hold: str, small_bytes: int, chunk_bytes: int
) -> None:
    monkeypatch.setattr(streaming, "SMALL_BYTES", small_bytes)
    monkeypatch.setattr(sources, "CHUNK_BYTES", chunk_bytes)
    data = cache.open(reads=reads, views=VIEWS, hold=hold)
    seen = 0
    for rows, (features, n_frames) in zip(some_batches(), streaming.stream(data.source, some_batches()), strict=True):
        expected, frames = data.features(rows)
        assert features.dtype == torch.float32
        assert features.shape == expected.shape
        assert features.numpy().tobytes() == expected.numpy().tobytes()
        assert n_frames.tolist() == frames.tolist()
        seen += 1
    assert seen == 23
    assert list(streaming.stream(data.source, [])) == []


def test_the_thread_is_ahead_of_the_consumer_but_not_far(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "SMALL_BYTES", 0)
    monkeypatch.setattr(sources, "CHUNK_BYTES", 1)
    data = cache.open()
    asked: list[int] = []

    def batches() -> Iterator[np.ndarray]:
        for i in range(9):
            asked.append(i)
            yield np.array([i])

    stream = streaming.stream(data.source, batches())
    for i in range(9):
        next(stream)
        assert len(asked) == min(i + 2, 9)
    stream.close()


def gatherers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("gather")]


@dataclasses.dataclass(frozen=True)
class Failing:
    """A source that fails at one address."""

    source: Held

    def __getattr__(self, name: str) -> object:
        return getattr(self.source, name)

    def gather(self, addresses: np.ndarray, out: torch.Tensor) -> None:
        if 5 in addresses:
            raise InputError("the disk is on fire")
        self.source.gather(addresses, out)


def test_what_fails_in_the_thread_is_raised_here_and_the_thread_ends(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "SMALL_BYTES", 0)
    monkeypatch.setattr(sources, "CHUNK_BYTES", 1)
    whole = cache.open(hold="ram")
    data = dataclasses.replace(whole, source=Failing(whole.source))
    seen = []
    with pytest.raises(InputError, match="the disk is on fire"):
        seen.extend(n_frames.item() for _, n_frames in streaming.stream(data.source, np.arange(10).reshape(10, 1)))
    assert seen == [1, 2, 3, 4, 5]
    assert not gatherers()


def test_small_batches_for_a_cpu_are_gathered_when_asked_for(cache: Cache) -> None:
    data = cache.open()
    row = 3 * 5 * 4 * 2
    for count, threads in ((streaming.SMALL_BYTES // row, 0), (streaming.SMALL_BYTES // row + 1, 1)):
        for features, _ in streaming.stream(data.source, [np.zeros(count, int), np.zeros(1, int)]):
            assert len(gatherers()) == threads
            assert torch.equal(features, torch.from_numpy(cache.frames[0, :1]).float().expand_as(features))
    assert not gatherers()


def test_a_consumer_that_leaves_takes_the_thread_along(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "SMALL_BYTES", 0)
    data = cache.open(views=VIEWS)
    for _ in streaming.stream(data.source, some_batches()):
        assert len(gatherers()) == 1
        break
    assert not gatherers()
    stream = streaming.stream(data.source, some_batches())
    next(stream)
    with pytest.raises(ZeroDivisionError):
        stream.throw(ZeroDivisionError)  # an error in a generator that hands the batches on
    assert not gatherers()
