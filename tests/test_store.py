"""The store: plain Zarr on disk, equal to zarr-python's bytes, growing by layers, and never quietly wrong."""

import dataclasses
import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.codecs import BytesCodec, Crc32cCodec

from pipeline.core.contracts import CLEAN
from pipeline.core.errors import InputError
from pipeline.features import shard_bytes, store, zarr_metadata
from pipeline.features.specs import Spec
from pipeline.features.store import Store

SPEC = Spec(encoder={"weights_sha256": "ab"}, trials="t", utterances=10, frames=3, channels=4, shard=4)
LAYERS = (1, "final")


def blocks(spec: Spec, shard: int, layers: tuple[int | str, ...] = LAYERS) -> tuple[dict, dict, np.ndarray]:
    """Features, pooled and n_frames of one shard, all values different."""
    rows = spec.rows(shard)
    rng = np.random.default_rng(shard)
    features = {layer: rng.normal(size=(len(rows), spec.frames, spec.channels)).astype(np.float16) for layer in layers}
    pooled = {layer: rng.normal(size=(len(rows), 2, spec.channels)).astype(np.float32) for layer in layers}
    return features, pooled, np.arange(rows.start, rows.stop, dtype=np.int32) + 1


def filled(root: Path, spec: Spec = SPEC) -> Store:
    target = Store.create(root, "dev", spec)
    target.add_arrays(CLEAN, LAYERS)
    for shard in range(spec.shards):
        target.write(CLEAN, shard, *blocks(spec, shard))
    return target


def tree(path: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


@given(n=st.integers(1, 5), shard=st.integers(5, 7), width=st.integers(1, 9), dtype=st.sampled_from(["<f2", "<f4"]))
def test_shard_bytes_are_those_of_zarr_python(n: int, shard: int, width: int, dtype: str) -> None:
    block = np.random.default_rng(width).normal(size=(n, 2, width)).astype(dtype)
    memory: dict = {}
    array = zarr.create_array(
        zarr.storage.MemoryStore(memory),
        shape=(n, 2, width),
        chunks=(1, 2, width),
        shards=(shard, 2, width),
        dtype=dtype,
        fill_value=float("nan"),
        serializer=BytesCodec(),
        compressors=[Crc32cCodec()],
        filters=None,
    )
    array[:] = block
    assert shard_bytes.encode_shard(block, shard=shard).tobytes() == memory["c/0/0/0"].to_bytes()


def test_plain_zarr_reads_it(tmp_path: Path) -> None:
    target = filled(tmp_path)
    group = zarr.open_group(target.path, mode="r")
    assert group.attrs["spec"] == dataclasses.asdict(SPEC)
    assert sorted(name for name, _ in group.members()) == ["clean", "done", "n_frames"]
    assert sorted(group[CLEAN].array_keys()) == ["layer_01", "layer_final", "pooled_01", "pooled_final"]
    np.testing.assert_array_equal(group["n_frames"][:], np.arange(10) + 1)
    for shard in range(SPEC.shards):
        features, pooled, _ = blocks(SPEC, shard)
        rows = slice(SPEC.rows(shard).start, SPEC.rows(shard).stop)
        np.testing.assert_array_equal(group["clean/layer_01"][rows], features[1])
        np.testing.assert_array_equal(group["clean/pooled_final"][rows], pooled["final"])


def test_holes_are_nan(tmp_path: Path) -> None:
    target = Store.create(tmp_path, "dev", SPEC)
    target.add_arrays(CLEAN, LAYERS)
    target.write(CLEAN, 1, *blocks(SPEC, 1))
    group = zarr.open_group(target.path, mode="r")
    assert np.isnan(group["clean/layer_01"][:4]).all()
    assert np.isfinite(group["clean/layer_01"][4:8]).all()
    assert (group["n_frames"][:4] == -1).all()


def test_growth_by_a_layer_leaves_the_others_alone(tmp_path: Path) -> None:
    target = filled(tmp_path)
    before = tree(target.path)
    assert target.missing(CLEAN, (1, 2, "final"), 0) == (2,)
    target.add_arrays(CLEAN, (2,))
    for shard in range(SPEC.shards):
        target.write(CLEAN, shard, *blocks(SPEC, shard, (2,)))
    after = tree(target.path)
    changed = {name for name, data in before.items() if after[name] != data}
    assert changed == {f"done/clean/{shard:05d}.json" for shard in range(SPEC.shards)}
    assert {name.split("/")[1] for name in after.keys() - before.keys()} == {"layer_02", "pooled_02"}
    assert target.missing(CLEAN, (1, 2, "final"), 0) == ()


def test_bytes_written_are_the_bytes_estimated(tmp_path: Path) -> None:
    spec = dataclasses.replace(SPEC, utterances=8)  # whole shards: their indexes are estimated a row
    target = filled(tmp_path, spec)
    shards = sum(p.stat().st_size for p in (target.path / "clean").rglob("c/*/*/*") if p.is_file())
    index_checksums = shard_bytes.CRC_BYTES * spec.shards * 2 * len(LAYERS)
    assert shards == spec.bytes_of(len(LAYERS)) + index_checksums


def test_verify_finds_every_flipped_byte(tmp_path: Path) -> None:
    target = filled(tmp_path)
    files = [
        p for p in target.path.rglob("*") if p.is_file() and p.parent.name not in ("clean", "done") and "c" in p.parts
    ]
    assert target.verify([CLEAN], LAYERS) == len(files) == SPEC.shards * 5
    rng = np.random.default_rng(0)
    for path in files:
        data = bytearray(path.read_bytes())
        data[rng.integers(len(data))] ^= 1
        good = path.read_bytes()
        path.write_bytes(data)
        with pytest.raises(InputError, match="1 of 15 shard files are damaged") as error:
            target.verify([CLEAN], LAYERS)
        assert str(path) in str(error.value)
        path.write_bytes(good)


@pytest.mark.parametrize(
    ("array", "layers"), [("clean/layer_01", (1,)), ("clean/pooled_final", ("final",)), ("n_frames", LAYERS)]
)
def test_a_lost_shard_file_is_to_do_again(tmp_path: Path, array: str, layers: tuple[int | str, ...]) -> None:
    target = filled(tmp_path)
    before = tree(target.path)
    target.shard_path(array, 1).unlink()
    assert [target.missing(CLEAN, LAYERS, shard) for shard in range(SPEC.shards)] == [(), layers, ()]
    target.write(CLEAN, 1, *blocks(SPEC, 1))
    assert tree(target.path) == before


def test_verify_names_a_missing_shard(tmp_path: Path) -> None:
    target = filled(tmp_path)
    path = target.shard_path("clean/layer_01", 2)
    path.unlink()
    with pytest.raises(InputError, match="got no file"):
        target.verify([CLEAN], LAYERS)


def test_digest_pins_the_bytes_and_needs_all_shards(tmp_path: Path) -> None:
    target, other = filled(tmp_path / "a"), Store.create(tmp_path / "b", "dev", SPEC)
    other.add_arrays(CLEAN, LAYERS)
    for shard in (2, 0):
        other.write(CLEAN, shard, *blocks(SPEC, shard))
    with pytest.raises(InputError, match="shard 1 of n_frames is missing; run `dvc repro -f extract`"):
        other.digest([CLEAN], LAYERS)
    other.write(CLEAN, 1, *blocks(SPEC, 1))
    assert target.digest([CLEAN], LAYERS) == other.digest([CLEAN], LAYERS)
    features, pooled, n_frames = blocks(SPEC, 1)
    features[1][0, 0, 0] += 1
    other.write(CLEAN, 1, features, pooled, n_frames)
    assert target.digest([CLEAN], LAYERS) != other.digest([CLEAN], LAYERS)
    assert target.digest([CLEAN], ["final"]) == other.digest([CLEAN], ["final"])


def test_stores_of_other_specs_and_formats_are_refused(tmp_path: Path) -> None:
    target = filled(tmp_path)
    with pytest.raises(InputError, match="shard: the store has 4, the parameters say 5"):
        Store.create(tmp_path, "dev", dataclasses.replace(SPEC, shard=5))
    attributes = json.loads((target.path / "zarr.json").read_text())
    attributes["attributes"]["format"] = zarr_metadata.FORMAT - 1
    (target.path / "zarr.json").write_text(json.dumps(attributes))
    with pytest.raises(
        InputError, match=f"expected store format {zarr_metadata.FORMAT}, got {zarr_metadata.FORMAT - 1}"
    ):
        Store.create(tmp_path, "dev", SPEC)
    (target.path / "zarr.json").write_text("{")
    with pytest.raises(InputError, match="not JSON; move the store away"):
        Store.open(target.path)
    (target.path / "zarr.json").unlink()
    with pytest.raises(InputError, match=r"a folder without zarr\.json; move it away"):
        Store.create(tmp_path, "dev", SPEC)
    with pytest.raises(InputError, match="no feature store there; run `dvc repro -f extract`"):
        Store.open(tmp_path / "elsewhere.zarr")


@pytest.mark.parametrize("shard", [0, -4, 2.5, "4", None])
def test_a_spec_that_is_none_is_refused(tmp_path: Path, shard: object) -> None:
    path = filled(tmp_path).path
    whole = json.loads((path / "zarr.json").read_text())
    whole["attributes"]["spec"]["shard"] = shard
    (path / "zarr.json").write_text(json.dumps(whole))
    with pytest.raises(
        InputError, match=r"zarr\.json: expected the spec of a feature store, got another; move the store"
    ):
        Store.open(path)


@pytest.mark.parametrize("mask", [1, 32, 128])
def test_a_marker_with_any_other_byte_counts_for_nothing(tmp_path: Path, mask: int) -> None:
    target = filled(tmp_path)
    path = target.path / "done/clean/00001.json"
    whole = path.read_bytes()
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ mask]) + whole[i + 1 :])
        try:
            assert target.missing(CLEAN, LAYERS, 1) == LAYERS, i
            assert target.incomplete(CLEAN, LAYERS) == {1: LAYERS}, i
        except InputError as error:
            assert f"{path}: expected a marker, got something that is not JSON; delete it" in str(error)  # noqa: PT017
    path.write_bytes(whole[:-1])
    assert target.missing(CLEAN, LAYERS, 1) == LAYERS
    target.write(CLEAN, 1, *blocks(SPEC, 1))
    assert path.read_bytes() == whole


def test_a_marker_from_before_markers_had_a_checksum_counts(tmp_path: Path) -> None:
    target = filled(tmp_path)
    path = target.path / "done/clean/00001.json"
    older = json.loads(path.read_text())
    del older["marker"]
    path.write_text(json.dumps(older, indent=1, sort_keys=True) + "\n")
    assert target.missing(CLEAN, LAYERS, 1) == ()
    assert target.digest([CLEAN], LAYERS) == filled(tmp_path / "new").digest([CLEAN], LAYERS)


def test_metadata_that_is_damaged_is_made_anew(tmp_path: Path) -> None:
    target, attributes = filled(tmp_path), {"views_version": 1}
    target.add_arrays("noise_0", LAYERS, attributes=attributes)
    before = tree(target.path)
    files = [name for name in before if name.endswith("zarr.json")]
    assert len(files) == 3 + 2 * (2 + 4)  # store, n_frames, done; of a view: itself, its markers, its arrays
    for name in files:
        (target.path / name).write_bytes(before[name].replace(b'"zarr_format": 3', b'"zarr_format": 2'))
        assert tree(target.path) != before
        Store.create(tmp_path, "dev", SPEC)
        target.add_arrays(CLEAN, LAYERS)
        target.add_arrays("noise_0", LAYERS, attributes=attributes)
        assert tree(target.path) == before, name
    target.add_arrays("noise_0", (2,))
    assert target.attributes("noise_0") == attributes


def test_a_full_disk_is_told_with_the_file_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system tells no file where it is not the opening of one that fails."""
    target = filled(tmp_path)
    before = tree(target.path)

    def full(_file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        OSError, match=r"No space left on device; make room, .*, and run the same command again"
    ) as error:
        target.write(CLEAN, 1, *blocks(SPEC, 1))
    assert error.value.errno == errno.ENOSPC
    assert error.value.filename in {str(target.path / name) for name in before}
    assert {name: data for name, data in tree(target.path).items() if not name.endswith(".part")} == before


def test_other_encoders_and_trials_get_other_folders() -> None:
    folders = {
        SPEC.folder("dev"),
        SPEC.folder("eval"),
        dataclasses.replace(SPEC, encoder={"weights_sha256": "cd"}).folder("dev"),
        dataclasses.replace(SPEC, trials="u").folder("dev"),
    }
    assert len(folders) == 4


def test_two_extractions_on_one_store_exclude_each_other(tmp_path: Path) -> None:
    path = tmp_path / "x.zarr"
    with Store.locked(path), pytest.raises(InputError, match="another extraction"), Store.locked(path):
        pass
    with Store.locked(path):
        pass


@given(seed=st.integers(0, 2**32 - 1), exponent=st.integers(-6, 4))
def test_int8_of_what_int8_gives_back_is_the_same_bytes(seed: int, exponent: int) -> None:
    """So that an exported set comes back as it was."""
    frames = (np.random.default_rng(seed).normal(size=(3, 5, 4)) * 10.0**exponent).astype(np.float16)
    steps, scales = shard_bytes.quantized(frames)
    again, same = shard_bytes.quantized((steps * scales).astype(np.float16))
    np.testing.assert_array_equal(again, steps)
    np.testing.assert_array_equal(same, scales)


def test_a_channel_of_zeros_is_zeros_in_int8() -> None:
    frames = np.zeros((2, 3, 2), np.float16)
    frames[1, 2, 1] = -3
    steps, scales = shard_bytes.quantized(frames)
    np.testing.assert_array_equal(steps * scales, frames)
    assert scales.tolist() == [0, np.float32(3) / np.float32(127)]


def test_holes_of_int8_are_nan(tmp_path: Path) -> None:
    target = Store.create(tmp_path, "dev", dataclasses.replace(SPEC, encoder={**SPEC.encoder, "storage": "int8"}))
    target.add_arrays(CLEAN, LAYERS)
    target.write(CLEAN, 1, *blocks(SPEC, 1))
    group = zarr.open_group(target.path, mode="r")
    values = group["clean/layer_01"][:] * np.repeat(group["clean/scale_01"][:], SPEC.shard, axis=0)[:10, None]
    assert np.isnan(values[[0, 1, 2, 3, 8, 9]]).all()
    assert np.isfinite(values[4:8]).all()


@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_a_shard_that_is_half_written_again_is_not_complete(
    tmp_path: Path, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of it is lost; whoever mends that is killed after the first file: nobody takes it for a shard."""
    spec = dataclasses.replace(SPEC, encoder={**SPEC.encoder, "storage": storage}) if storage == "int8" else SPEC
    target = filled(tmp_path, spec)
    before, digest = tree(target.path), target.digest((CLEAN,), LAYERS)
    target.shard_path("clean/pooled_01", 1).unlink()
    assert target.missing(CLEAN, LAYERS, 1) == (1,)
    features, pooled, n_frames = blocks(spec, 1)
    whole, written = store.write_bytes, []

    def killed(path: Path, *args: object, **options: object) -> None:
        if "/c/" in str(path):
            written.append(path)
            if len(written) > 1:
                raise KeyboardInterrupt
        whole(path, *args, **options)

    monkeypatch.setattr(store, "WRITERS", 1)
    monkeypatch.setattr(store, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        target.write(CLEAN, 1, {1: features[1] * np.float16(2)}, {1: pooled[1] * 2}, n_frames)
    monkeypatch.setattr(store, "write_bytes", whole)
    assert len(written) >= 2
    target.shard_path("clean/pooled_01", 1).write_bytes(before["clean/pooled_01/c/1/0/0"])  # all files are there again
    assert target.missing(CLEAN, LAYERS, 1) == (1,)
    with pytest.raises(InputError, match=r"shard 1 of clean/\w+_01 is missing"):
        target.digest((CLEAN,), LAYERS)
    target.write(CLEAN, 1, {1: features[1]}, {1: pooled[1]}, n_frames)
    assert target.digest((CLEAN,), LAYERS) == digest
    assert tree(target.path) == before
