"""The reader: rows of a store in any order, equal to what zarr-python reads, whatever is mapped and forgotten."""

import dataclasses
import gc
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from pipeline.core.contracts import CLEAN
from pipeline.core.errors import InputError
from pipeline.core.files import folder_of
from pipeline.features import mapped, shard_bytes
from pipeline.features import reader as reading
from pipeline.features.reader import Reader
from pipeline.features.specs import fingerprint
from pipeline.features.store import Store
from tests.test_store import LAYERS, SPEC, blocks, filled


@pytest.mark.parametrize("pooled", [False, True])
def test_gather_equals_zarr_in_any_order(tmp_path: Path, pooled: bool) -> None:
    target = filled(tmp_path)
    reader = Reader(target, views=(CLEAN,), layers=LAYERS, pooled=pooled)
    group = zarr.open_group(target.path, mode="r")
    names = ["pooled_01", "pooled_final"] if pooled else ["layer_01", "layer_final"]
    rows = np.array([9, 0, 3, 3, 8, 4])
    expected = np.stack([group[f"clean/{name}"][:][rows] for name in names], axis=1)
    got = reader.gather(rows)
    np.testing.assert_array_equal(got.numpy(), expected)
    assert got.numpy().dtype == expected.dtype
    np.testing.assert_array_equal(reader.n_frames, np.arange(10) + 1)


@pytest.mark.parametrize("pooled", [False, True])
def test_addresses_name_utterances_in_views(tmp_path: Path, pooled: bool) -> None:
    """Utterance i of view v has the address v · N + i, in the order in which the views were asked for."""
    target = filled(tmp_path)
    for view, offset in (("noise_0", 100), ("narrowband", 200)):
        target.add_arrays(view, LAYERS)
        for shard in range(SPEC.shards):
            features, means, n_frames = blocks(SPEC, shard)
            target.write(view, shard, add(features, offset), add(means, offset), n_frames)
    reader = Reader(target, views=(CLEAN, "narrowband", "noise_0"), layers=("final", 1), pooled=pooled)
    addresses = np.array([29, 3, 0, 19, 10, 9, 20, 3])
    clean = Reader(target, views=(CLEAN,), layers=("final", 1), pooled=pooled).gather(addresses % 10)
    shift = torch.tensor([0, 200, 100])[addresses // 10][:, None, None, None]
    assert torch.equal(reader.gather(addresses), (clean + shift).to(clean.dtype))


def add(arrays: dict, offset: int) -> dict:
    return {name: (array + offset).astype(array.dtype) for name, array in arrays.items()}


def test_gather_fills_what_it_is_given_and_nothing_else(tmp_path: Path) -> None:
    reader = Reader(filled(tmp_path), views=(CLEAN,), layers=LAYERS, pooled=False)
    rows = np.array([4, 9, 4])
    memory = torch.full((5, *reader.row), -7, dtype=torch.float16)
    assert reader.gather(rows, memory[1:4]).data_ptr() == memory[1].data_ptr()
    assert torch.equal(memory[1:4], reader.gather(rows))
    assert (memory[[0, 4]] == -7).all()
    assert reader.gather(rows[:0]).shape == (0, *reader.row)


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "index", "rows"])
def test_reading_a_damaged_shard_is_refused_with_the_remedy(tmp_path: Path, damage: str) -> None:
    target = filled(tmp_path)
    path = target.shard_path("clean/layer_01", 1)
    data = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "rows":
        path.write_bytes(shard_bytes.encode_shard(blocks(SPEC, 1)[0][1][:2], shard=SPEC.shard))
    elif damage == "index":
        data[-10] ^= 1
        path.write_bytes(data)
    else:
        path.write_bytes(data[: 0 if damage == "empty" else -20])
    reader = Reader(target, views=(CLEAN,), layers=LAYERS, pooled=False)
    assert reader.gather(np.array([0])).isfinite().all()
    with pytest.raises(InputError, match="dvc repro -f extract") as error:
        reader.gather(np.array([0, 5]))
    assert str(path) in str(error.value)


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("place", [0, -1])
def test_a_damaged_row_is_refused_when_it_is_first_read_and_no_other(tmp_path: Path, pooled: bool, place: int) -> None:
    """A byte of its values, or of its checksum."""
    target = filled(tmp_path)
    path = target.shard_path("clean/pooled_final" if pooled else "clean/layer_final", 1)
    length = reading.Layout(
        ((2 if pooled else SPEC.frames), SPEC.channels), "float32" if pooled else "float16", 4
    ).length
    data = bytearray(path.read_bytes())
    data[length + (place % length)] ^= 1  # utterance 5
    path.write_bytes(data)
    reader = Reader(target, views=(CLEAN,), layers=LAYERS, pooled=pooled)
    assert reader.gather(np.array([4, 6, 4])).isfinite().all()
    for _ in range(2):
        with pytest.raises(InputError, match=r"row 1 of it is damaged; .*`dvc repro -f extract") as error:
            reader.gather(np.array([4, 5]))
        assert str(path) in str(error.value)


def swapped(one: Path, other: Path) -> None:
    mine, theirs = one.read_bytes(), other.read_bytes()
    one.write_bytes(theirs)
    other.write_bytes(mine)


def swap_rows(path: Path, length: int) -> None:
    """The first row of a shard file for the second, each with its own checksum."""
    data = path.read_bytes()
    path.write_bytes(data[length : 2 * length] + data[:length] + data[2 * length :])


def neighbours(store: Store, length: int) -> dict[str, Callable[[], None]]:
    """What a store may do that mixes up its own rows: all bytes are whole and stand behind a sound checksum."""
    place = partial(store.shard_path, "clean/layer_01")
    found: dict[str, Callable[[], None]] = {
        "two rows of a shard swapped": lambda: swap_rows(place(0), length),
        "two shards swapped": lambda: swapped(place(0), place(1)),
        "a shard over another": lambda: place(0).write_bytes(place(1).read_bytes()),
        "the shard of another layer": lambda: place(0).write_bytes(
            store.shard_path("clean/layer_final", 0).read_bytes()
        ),
        "counts of another shard": lambda: swapped(store.shard_path("n_frames", 0), store.shard_path("n_frames", 1)),
    }
    if store.spec.storage == "int8":
        scales = partial(store.shard_path, "clean/scale_01")
        found["scales of another shard"] = lambda: swapped(scales(0), scales(1))
    return found


@pytest.mark.parametrize("root", ["disk", "object store"])
@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_a_store_that_gives_a_neighbour_is_caught(tmp_path: Path, storage: str, root: str) -> None:
    spec = dataclasses.replace(SPEC, encoder=SPEC.encoder | {"storage": storage} if storage == "int8" else SPEC.encoder)
    place = tmp_path if root == "disk" else folder_of(f"memory://{tmp_path.name}-{storage}")
    store = filled(place, spec)
    length = reading.Layout((SPEC.frames, SPEC.channels), storage, 4).length
    names = ["n_frames", *(f"clean/{array.name}" for tap in LAYERS for array in spec.arrays(tap))]
    before = {path: path.read_bytes() for name in names for path in (store.shard_path(name, i) for i in range(3))}
    expected = Reader(store, views=(CLEAN,), layers=LAYERS, pooled=False).gather(np.arange(10))
    for kind, mix_up in neighbours(store, length).items():
        mix_up()
        with pytest.raises(InputError, match="not the one that was written there; delete it") as error:
            Reader(store, views=(CLEAN,), layers=LAYERS, pooled=False).gather(np.arange(10))
        assert str(store.path) in str(error.value), kind
        with pytest.raises(InputError, match="shard files are damaged"):
            store.verify((CLEAN,), LAYERS)
        for path, data in before.items():
            path.write_bytes(data)
    assert torch.equal(Reader(store, views=(CLEAN,), layers=LAYERS, pooled=False).gather(np.arange(10)), expected)


def test_a_store_of_an_older_version_says_nothing_of_its_rows_and_is_read(tmp_path: Path) -> None:
    store = filled(tmp_path)
    for path in (store.path / "done/clean").glob("0*.json"):
        older = {key: value for key, value in json.loads(path.read_text()).items() if "/" not in key or " " not in key}
        sums = {key: value for key, value in older.items() if key != "marker"}
        path.write_text(json.dumps(sums | {"marker": fingerprint(sums)}, indent=1, sort_keys=True) + "\n")
    assert store.missing(CLEAN, LAYERS, 0) == ()
    expected = Reader(filled(tmp_path / "new"), views=(CLEAN,), layers=LAYERS, pooled=False).gather(np.arange(10))
    assert torch.equal(Reader(store, views=(CLEAN,), layers=LAYERS, pooled=False).gather(np.arange(10)), expected)


@pytest.mark.parametrize("text", ["AAAA", "?", "", "AAAAAAAAAAAAAAAAAAAAAAAA"])
def test_a_marker_with_other_checksums_than_one_for_each_row_is_refused(tmp_path: Path, text: str) -> None:
    store = filled(tmp_path)
    path = store.path / "done/clean/00001.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rows clean/layer_01": text}))
    with pytest.raises(InputError, match=r"other checksums than one for each row; delete it.*`dvc repro -f extract"):
        Reader(store, views=(CLEAN,), layers=LAYERS, pooled=False)
    assert store.missing(CLEAN, LAYERS, 1) == LAYERS  # the next extraction makes it anew


def test_a_row_is_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader(filled(tmp_path), views=(CLEAN,), layers=LAYERS, pooled=False)
    checked: list[int] = []
    monkeypatch.setattr(reading, "crc32c", lambda data: checked.append(len(data)) or shard_bytes.crc32c(data))
    for rows in ([1, 5, 1], [5, 9], [1, 5, 9]):
        reader.gather(np.array(rows))
    row = SPEC.frames * SPEC.channels * 2
    assert checked.count(row) == len(LAYERS) * (3 + 1)  # the first batch holds a row twice


# ---------------------------------------------------------------- maps


def maps_of(path: Path) -> int:
    return Path("/proc/self/maps").read_text().count(f"{path}/")


def test_maps_keep_no_file_open_and_go_with_the_reader(tmp_path: Path) -> None:
    target = filled(tmp_path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    reader = Reader(target, views=(CLEAN,), layers=LAYERS, pooled=False)
    assert maps_of(target.path) == 0
    reader.gather(np.array([0]))
    assert maps_of(target.path) == len(LAYERS)
    reader.gather(np.arange(10))
    assert maps_of(target.path) == len(LAYERS) * SPEC.shards
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    del reader
    gc.collect()
    assert maps_of(target.path) == 0


def test_maps_are_forgotten_where_there_would_be_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_MAPS", 2 * len(LAYERS))
    target = filled(tmp_path)
    reader = Reader(target, views=(CLEAN,), layers=LAYERS, pooled=False)
    whole = torch.cat([reader.gather(np.array([i])) for i in range(10)])
    for rows in ([0, 4], [8, 0], [4, 5, 6], [9, 1]):
        torch.testing.assert_close(reader.gather(np.array(rows)), whole[rows], rtol=0, atol=0)
        assert maps_of(target.path) <= 2 * len(LAYERS)
    torch.testing.assert_close(reader.gather(np.arange(10)), whole, rtol=0, atol=0)  # more than the most, all at once


def test_where_the_kernel_allows_no_more_maps_the_old_ones_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = filled(tmp_path)
    reader = Reader(target, views=(CLEAN,), layers=LAYERS, pooled=False)
    whole = reader.gather(np.arange(10))
    reader = Reader(target, views=(CLEAN,), layers=LAYERS, pooled=False)
    real, room = mapped.put, 2 * len(LAYERS)

    def full(path: Path, at: np.ndarray) -> int:
        if maps_of(target.path) >= room:
            raise mapped.NoMoreMapsError("no more")
        return real(path, at)

    monkeypatch.setattr(mapped, "put", full)
    for rows in ([0, 4], [8, 0], [5, 6], [9]):
        assert torch.equal(reader.gather(np.array(rows)), whole[rows])
    with pytest.raises(InputError, match=r"zarr: no more; read fewer layers at once, set dataset\.hold to ram"):
        reader.gather(np.arange(10))
    room = 100
    assert torch.equal(reader.gather(np.arange(10)), whole)


def test_a_limit_of_addresses_is_told(tmp_path: Path) -> None:
    filled(tmp_path)
    code = (
        "import resource, sys; from pathlib import Path; from pipeline.core.errors import InputError\n"
        "from pipeline.features.mapped import reserve\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**36, 2**36))\n"
        "try: reserve(2**40)\n"
        "except InputError as error: print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "expected 1,099,511,627,776 bytes of addresses" in said
    assert "lift the limit (ulimit -v unlimited)" in said


def test_a_shard_larger_than_its_place_is_not_mapped_over_its_neighbour(tmp_path: Path) -> None:
    target = filled(tmp_path)
    path = target.shard_path("clean/layer_01", 0)
    path.write_bytes(path.read_bytes() + bytes(2**16))
    reader = Reader(target, views=(CLEAN,), layers=LAYERS, pooled=False)
    neighbour = reader.gather(np.array([4]))
    with pytest.raises(InputError, match="expected at most 4096 bytes, got 6"):
        reader.gather(np.array([0]))
    torch.testing.assert_close(reader.gather(np.array([4])), neighbour, rtol=0, atol=0)
