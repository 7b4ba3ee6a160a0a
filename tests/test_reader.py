"""The reader: rows of a store in any order, equal to what zarr-python reads, whatever is mapped and forgotten."""

import gc
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from pipeline.core.contracts import CLEAN
from pipeline.core.errors import InputError
from pipeline.features import mapped, shard_bytes
from pipeline.features import reader as reading
from pipeline.features.reader import Reader
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
