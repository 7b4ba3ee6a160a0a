"""Feature stores on object stores: the same bytes and numbers as on a disk, and clear words where one is out of reach.

S3 is a server on this machine that speaks its protocol (moto).
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import moto.backends
import numpy as np
import pytest
import torch
import zarr
from fsspec.implementations.memory import MemoryFileSystem
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem
from zarr.core.sync import sync
from zarr.storage import FsspecStore

from pipeline.commands import cache as command
from pipeline.core import errors, params_file, sections
from pipeline.core.contracts import CLEAN
from pipeline.core.errors import InputError, UnreachableError
from pipeline.core.files import folder_of, readable_size
from pipeline.core.object_store import is_local, is_there, read_files, sizes_below
from pipeline.core.sections import ExtractParams
from pipeline.encoder import xlsr
from pipeline.encoder.cards import Card
from pipeline.extraction import housekeeping as stores
from pipeline.extraction import needed, units
from pipeline.extraction.needed import Needed
from pipeline.features import dataset, sampling, sources, streaming
from pipeline.features import reader as reading
from pipeline.features.reader import Reader
from pipeline.features.receipt_files import open_receipts
from pipeline.features.sampling import Augment
from pipeline.features.store import Store
from pipeline.training import cells, heads
from pipeline.training.loop import Fitted
from tests import test_fit
from tests.conftest import Corpus
from tests.places import SETTINGS
from tests.test_cache import Project, project
from tests.test_extract import BOOSTED, PARAMS, boost, in_threads, make_encoder, run
from tests.test_gather import ADDRESSES, VIEWS, Cache, gatherers, make_cache, some_batches
from tests.test_store import SPEC, tree

ROOT = Path(__file__).parents[1]
INT8 = PARAMS.model_copy(update={"storage": "int8"})
BOOSTED_INT8 = BOOSTED.model_copy(update={"storage": "int8"})

pytestmark = pytest.mark.usefixtures("one_thread")
__all__ = ["in_threads", "project"]  # fixtures


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadedMotoServer]:
    """An S3 server, which the environment names."""
    log = logging.getLogger("werkzeug")
    before = log.level
    log.setLevel(logging.ERROR)
    known = frozenset(moto.backends.list_of_moto_modules())  # which it looks for in its folders at every request
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    with pytest.MonkeyPatch.context() as patched, fresh(patched):
        for name, value in {
            "AWS_ENDPOINT_URL": address(running),
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",
        }.items():
            patched.setenv(name, value)
        patched.setattr(moto.backends, "list_of_moto_modules", lambda: known)
        yield running
    running.stop()
    log.setLevel(before)


def address(server: ThreadedMotoServer) -> str:
    return f"http://127.0.0.1:{server.get_host_and_port()[1]}"


@contextlib.contextmanager
def fresh(patched: pytest.MonkeyPatch) -> Iterator[None]:
    """Within it s3fs looks at the environment anew; what it connected is closed afterwards."""
    patched.setattr(S3FileSystem, "_cache", made := {})
    patched.setattr(S3FileSystem, "retries", 1)
    yield
    for one in made.values():
        if one._s3 is not None and not one.asynchronous:
            fsspec.asyn.sync(one.loop, one._s3creator.__aexit__, None, None, None)


@pytest.fixture
def bucket(server: ThreadedMotoServer, request: pytest.FixtureRequest) -> Path:
    """A folder in a bucket of S3 that only this test has."""
    name = f"features-{abs(hash(request.node.nodeid)):x}"
    S3FileSystem().mkdir(name)
    return folder_of(f"s3://{name}/some/where")


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder of an object store in this process's memory."""
    yield folder_of("memory://features")
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture(params=["bucket", "memory"])
def root(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def on_s3(server: ThreadedMotoServer) -> dict[str, Cache]:
    """Two sets on S3, made once as each of their objects takes a while; leave them as they are."""
    S3FileSystem().mkdir("two-sets")
    folder = folder_of("s3://two-sets/features")
    return {name: make_cache(folder, name, seed=seed, first=10 * seed) for seed, name in enumerate(("train", "dev"))}


@pytest.fixture(params=["s3", "memory"])
def cached(request: pytest.FixtureRequest) -> Cache:
    """A set on an object store; leave it as it is."""
    if request.param == "s3":
        return request.getfixturevalue("on_s3")["train"]
    return make_cache(request.getfixturevalue("memory"), "train")


def store_of(one: Cache) -> Store:
    return open_receipts(one.receipt, root=one.receipt.parent)["train"][0]


def objects(folder: Path) -> dict[str, bytes]:
    """Every object below a folder with its bytes."""
    return {name: (folder / name).read_bytes() for name in sizes_below(folder)}


def delete(path: Path) -> None:
    path.fs.rm(path.path)


def refuse(_taps: tuple) -> xlsr.Encoder:
    raise AssertionError


# ---------------------------------------------------------------- extraction


@pytest.mark.parametrize("asked", [PARAMS, BOOSTED_INT8], ids=["clean", "views"])
@pytest.mark.usefixtures("in_threads")
def test_extraction_writes_the_files_that_it_writes_on_a_disk(
    corpus: Corpus, tmp_path: Path, root: Path, card: Card, asked: ExtractParams
) -> None:
    said: list[str] = []
    here, there = boost(corpus, tmp_path / "here", card, asked), boost(corpus, root, card, asked, say=said.append)
    assert there == here
    assert objects(root / there["store"]) == tree(tmp_path / "here" / here["store"])
    assert said[0].splitlines()[-1].endswith(f" to write at {root / here['store']}")  # which has no free space to tell
    again: list[str] = []
    assert boost(corpus, root, card, asked, say=again.append, encoder=refuse) == here
    assert "clean: 3 of 3 shards are complete; to do: nothing" in again[0]


def test_what_is_lost_is_made_again_and_nothing_else(corpus: Corpus, bucket: Path, card: Card) -> None:
    """A marker of shard 0, as an extraction that was killed leaves it, and one layer of shard 2."""
    receipt = run(corpus, bucket, card)
    before = objects(bucket / receipt["store"])
    delete(bucket / receipt["store"] / "done/clean/00000.json")
    delete(bucket / receipt["store"] / "clean/layer_03/c/2/0/0")
    seen: list[tuple[tuple, int]] = []

    class Counting(xlsr.Encoder):
        def forward(self, samples: torch.Tensor, valid: torch.Tensor) -> Any:
            found = super().forward(samples, valid)
            seen.append((tuple(found[0]), len(samples)))
            return found

    def make(taps: tuple) -> xlsr.Encoder:
        model = make_encoder(taps)
        model.__class__ = Counting
        return model

    said: list[str] = []
    assert run(corpus, bucket, card, say=said.append, encoder=make) == receipt
    assert "clean: 1 of 3 shards are complete; to do: layers 1, 3 in 2 shards" in said[0]
    assert sum(count for _, count in seen) == 4 + 2
    assert objects(bucket / receipt["store"]) == before


def test_another_process_is_seen(root: Path) -> None:
    """A listing is not kept: others write to the same store."""
    (root / "a/1").write_bytes(b"x")
    assert sizes_below(root) == {"a/1": 1}
    assert not is_there(root / "a/2")
    other = type(root.fs)(max_paths=1)  # another object, as another process has one
    other.pipe_file(f"{root.path}/a/2", b"yz")
    other.rm_file(f"{root.path}/a/1")
    assert sizes_below(root) == {"a/2": 2}
    assert (is_there(root / "a/1"), is_there(root / "a/2")) == (False, True)
    assert read_files([root / "a/1", root / "a/2"]) == {root / "a/2": b"yz"}


# ---------------------------------------------------------------- reading


def test_zarr_opens_the_address(on_s3: dict[str, Cache]) -> None:
    one = on_s3["train"]
    by_zarr = FsspecStore.from_url(str(store_of(one).path), read_only=True)
    group = zarr.open_group(by_zarr, mode="r")
    np.testing.assert_array_equal(group["clean/layer_05"][:], one.frames[0, :, 1])
    np.testing.assert_array_equal(group["noise_0/pooled_final"][:], one.pooled[2, :, 2])
    sync(by_zarr.fs._s3creator.__aexit__(None, None, None))


@pytest.mark.parametrize("hold", ["disk", "ram"])
@pytest.mark.parametrize("reads", ["frames", "pooled"])
def test_batches_are_those_of_a_disk(cached: Cache, tmp_path: Path, reads: str, hold: str) -> None:
    how = {"reads": reads, "layers": ("final", 2), "views": VIEWS[::-1], "hold": hold}
    here, there = make_cache(tmp_path, "train").open(**how), cached.open(**how)
    assert (here.source.at_hand, there.source.at_hand) == (True, hold == "ram")
    features, n_frames = there.features(ADDRESSES)
    expected, expected_frames = here.features(ADDRESSES)
    assert torch.equal(features, expected)
    assert torch.equal(n_frames, expected_frames)
    assert there.features(ADDRESSES[:0])[0].shape == (0, *there.source.row)
    streamed = zip(
        streaming.stream(there.source, some_batches()), streaming.stream(here.source, some_batches()), strict=True
    )
    assert all(torch.equal(a, b) and torch.equal(n, m) for (a, n), (b, m) in streamed)


def test_int8_is_read_with_the_scales_of_its_shard(corpus: Corpus, tmp_path: Path, memory: Path, card: Card) -> None:
    receipt = run(corpus, tmp_path, card, INT8)
    run(corpus, memory, card, INT8)
    disk, store = (Store.open(place / receipt["store"]) for place in (tmp_path, memory))
    for pooled in (False, True):
        here, there = (Reader(one, views=(CLEAN,), layers=(3, 1), pooled=pooled) for one in (disk, store))
        rows = np.array([9, 0, 1, 2, 7, 3, 4])
        found = there.gather(rows)
        assert found.abs().sum() > 0
        assert torch.equal(found, here.gather(rows))
    delete(store.path / "clean/scale_03/c/1/0")
    with pytest.raises(InputError, match=r"clean/scale_03/c/1/0: the shard is missing or damaged; .* -f extract"):
        Reader(store, views=(CLEAN,), layers=(3,), pooled=False)
    assert [store.missing(CLEAN, (1, 3), shard) for shard in range(3)] == [(), (3,), ()]


def test_rows_that_follow_each_other_are_one_request(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = make_cache(memory, "train")
    reader = one.open(layers=(5, "final")).source.reader
    whole, asked = reading.read_ranges, []

    def noted(folder: Path, names: list, starts: list, ends: list) -> list:
        asked.append(len(names))
        return whole(folder, names, starts, ends)

    monkeypatch.setattr(reading, "read_ranges", noted)
    for rows, runs in (
        (np.arange(10), 3),  # shards of four
        (np.array([4, 5, 6, 0, 1]), 2),
        (np.array([3, 4]), 2),
        (np.array([7, 6, 5]), 3),
        (np.array([2, 2]), 2),
        (np.array([0, 2]), 2),
    ):
        np.testing.assert_array_equal(reader.gather(rows).numpy(), one.frames[0][rows][:, [1, 2]])
        assert asked.pop() == 2 * runs  # layers
    assert not asked


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("damage", ["byte", "checksum", "cut", "short", "empty", "missing"])
def test_damaged_rows_are_refused_with_the_remedy(cached: Cache, damage: str) -> None:
    """Of the four rows of shard 1 the last is asked for; a byte that is not asked for goes unnoticed."""
    data, path = cached.open(), store_of(cached).shard_path("clean/layer_05", 1)
    good = path.read_bytes()
    length = 5 * 4 * 2 + 4
    bad = {
        "byte": flipped(good, 3 * length + 7),
        "checksum": flipped(good, 4 * length - 1),
        "cut": good[: 3 * length + 9],
        "short": good[: 2 * length],
        "empty": b"",
    }
    if damage == "missing":
        delete(path)
    else:
        path.write_bytes(bad[damage])
    try:
        data.features(np.array([3, 8] if damage in ("missing", "empty") else [3, 8, 4, 5]))
        words = "the shard is missing" if damage == "missing" else "rows of it are cut off or damaged"
        for rows in ([7], [0, 7, 9], [6, 7]):
            with pytest.raises(
                InputError, match=rf"clean/layer_05/c/1/0/0: {words}; .*`dvc repro -f extract`"
            ) as error:
                data.features(np.array(rows))
            assert str(path) in str(error.value)
            assert not isinstance(error.value, UnreachableError)
    finally:
        path.write_bytes(good)
    data.features(np.arange(10))


def test_a_thread_reads_ahead_of_a_store_that_is_not_at_hand(
    memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even batches that are small enough to be gathered from a disk when they are asked for."""
    monkeypatch.setattr(sources, "CHUNK_BYTES", 1)
    for place, threads in ((memory, 1), (tmp_path, 0)):
        source = make_cache(place, "train").open().source
        drawn: list[int] = []
        stream = streaming.stream(source, (drawn.append(i) or np.array([i]) for i in range(9)))
        for i in range(9):
            next(stream)
            assert len(gatherers()) == threads
            assert len(drawn) == min(i + 1 + threads, 9)
        stream.close()


def fitted(sets: dict[str, Cache], hold: str) -> Fitted:
    """A short training on frames and views, from a store."""
    train, dev = sets["train"].open(views=VIEWS, hold=hold), sets["dev"].open(hold=hold)
    cell = cells.find(params_file.load(SETTINGS), backend="asp", loss="aoc", layers="all", views="clean")
    return heads.fit(
        partial(cell.make_backend, layers=3, channels=4),
        partial(cell.make_loss, speakers=0, layers=3),
        train=train,
        dev=dev,
        labels=sampling.labels(train.trials, ()),
        params=test_fit.TRAIN.model_copy(update={"batch_size": 4, "epochs": 3}),
        seed=1,
        augment=Augment(VIEWS, 0.5),
    )


def test_training_from_an_object_store_is_training_from_a_disk(on_s3: dict[str, Cache], tmp_path: Path) -> None:
    sets = {name: make_cache(tmp_path, name, seed=seed, first=10 * seed) for seed, name in enumerate(on_s3)}
    here = fitted(sets, "disk")
    for hold in ("disk", "ram"):
        there = fitted(on_s3, hold)
        assert there.curves == here.curves
        assert there.dev_scores.tobytes() == here.dev_scores.tobytes()
        for name, tensor in here.backend.state_dict().items():
            assert torch.equal(there.backend.state_dict()[name], tensor)


# ---------------------------------------------------------------- out of reach


def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))


def no_server(monkeypatch: pytest.MonkeyPatch, _tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")


@pytest.mark.parametrize(
    ("change", "words"),
    [(no_credentials, "Unable to locate credentials"), (no_server, "Could not connect to the endpoint URL")],
)
def test_a_store_out_of_reach_is_told_whoever_asks(
    corpus: Corpus,
    on_s3: dict[str, Cache],
    card: Card,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[pytest.MonkeyPatch, Path], None],
    words: str,
) -> None:
    """And not taken for a store without shards, which would be made again."""
    one, store = on_s3["train"], store_of(on_s3["train"])
    receipts = tmp_path / "receipts"
    receipts.mkdir()
    (receipts / "train.json").write_bytes(one.receipt.read_bytes())
    asked: list[Callable[[Path, Store], object]] = [
        lambda there, _: run(corpus, there, card, encoder=refuse),
        lambda there, _: dataset.open_set(receipts / "train.json", one.trials, root=there, reads="frames"),
        lambda there, _: stores.look(there, needed.here(receipts)),
        lambda _, store: store.incomplete(CLEAN, (2,)),
        lambda _, store: store.digest([CLEAN], (2,)),
        lambda _, store: store.verify([CLEAN], (2,)),
        lambda _, store: store.add_arrays(CLEAN, (2,)),
        lambda _, store: stores.remove([store.path]),
    ]
    with monkeypatch.context() as patched, fresh(patched):
        change(patched, tmp_path)
        there, again = folder_of(str(one.receipt.parent)), Store(folder_of(str(store.path)), store.spec)
        for ask in asked:
            with pytest.raises(UnreachableError, match=rf"s3://.*expected an object store that can be read .*{words}"):
                ask(there, again)


def test_a_server_that_goes_while_it_is_read_is_told(on_s3: dict[str, Cache], monkeypatch: pytest.MonkeyPatch) -> None:
    one, store = on_s3["train"], store_of(on_s3["train"])
    leaving = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)  # all of them serve the same buckets
    leaving.start()
    with monkeypatch.context() as patched, fresh(patched):
        patched.setenv("AWS_ENDPOINT_URL", address(leaving))
        reader = Reader(Store.open(folder_of(str(store.path))), views=(CLEAN,), layers=(2,), pooled=False)
        np.testing.assert_array_equal(reader.gather(np.arange(3))[:, 0].numpy(), one.frames[0, :3, 0])
        leaving.stop()
        leaving._server.server_close()
        with pytest.raises(UnreachableError, match=r"s3://.*/clean/layer_02/c/0/0/0: .* run the same command again"):
            list(streaming.stream(sources.OnDisk(reader), [np.arange(3)]))
    assert not gatherers()


def test_a_bucket_that_is_not_there_is_told(
    corpus: Corpus, on_s3: dict[str, Cache], card: Card, tmp_path: Path
) -> None:
    nowhere = folder_of("s3://another-bucket/features")
    with pytest.raises(UnreachableError, match=r"s3://another-bucket/.*The specified bucket does not exist"):
        run(corpus, nowhere, card, encoder=refuse)
    with pytest.raises(UnreachableError, match="The specified bucket does not exist"):
        stores.look(nowhere, Needed())
    with pytest.raises(InputError, match=r"s3://another-bucket/.*: no feature store there; run `dvc repro -f extract`"):
        open_receipts(on_s3["train"].receipt, root=nowhere)


def test_what_may_not_be_written_stops_the_extraction_at_once(
    corpus: Corpus, memory: Path, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A unit that cannot be made leaves the others alone; a store that takes none leaves nothing to do."""
    batches: list[int] = []

    def make(taps: tuple) -> xlsr.Encoder:
        model = make_encoder(taps)
        model.register_forward_pre_hook(lambda _model, given: batches.append(len(given[0])))

        def forbidden(*_args: object, **_more: object) -> None:
            raise PermissionError("Access Denied")

        monkeypatch.setattr(MemoryFileSystem, "_open", forbidden)
        return model

    monkeypatch.setattr(units, "WRITING", 1)
    with pytest.raises(UnreachableError, match=r"memory:.*got PermissionError: Access Denied; check features\.root"):
        run(corpus, memory, card, encoder=make)
    assert sum(batches) <= 8  # the second of three shards is computed while the first is written


def test_an_error_of_the_store_ends_a_command_without_a_traceback(
    bucket: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tmp_path / "params.yaml"
    settings.write_text(SETTINGS.read_text().replace("  root: data/cache ", f"  root: {bucket} "))
    with monkeypatch.context() as patched, fresh(patched):
        no_credentials(patched, tmp_path)
        with pytest.raises(SystemExit) as left:
            errors.exit_on_input_error(lambda: command.main(["--params", str(settings), "ls"]))
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {bucket}: expected an object store")
    assert "AWS_ACCESS_KEY_ID" in said
    assert "Traceback" not in said


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(InputError, match=r's3://b/f: .*pip install "bonafide\[s3\]"'):
        sections.FeaturesParams(root="s3://b/f").folder  # noqa: B018
    with pytest.raises(
        InputError, match=r"nope://b/f: expected a folder, or the URL of one, .*; fsspec knows no 'nope'://"
    ):
        sections.FeaturesParams(root="nope://b/f").folder  # noqa: B018


def test_the_root_of_the_parameters_may_be_an_address(
    bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = SETTINGS.read_text()
    (tmp_path / "params.yaml").write_text(text.replace("  root: data/cache ", f"  root: {bucket} "))
    monkeypatch.setenv("DVC_ROOT", "/project")  # an experiment in a copy of the project uses the same store
    found = params_file.load(tmp_path / "params.yaml").features.folder
    assert (str(found), is_local(found)) == (str(bucket), False)
    assert sections.FeaturesParams(root="file:///disk/cache").folder == Path("/disk/cache")


# ---------------------------------------------------------------- bonafide cache


@pytest.fixture
def moved(project: Project, memory: Path) -> Project:
    """A project whose stores lie on an object store."""
    settings = project.folder / "params.yaml"
    settings.write_text(settings.read_text().replace("  root: data/cache ", f"  root: {memory} "))
    for name, data in tree(project.root).items():
        (memory / name).write_bytes(data)
    shutil.rmtree(project.root)
    return project


def folder(project: Project, name: str) -> str:
    """Where the store of a set lies below the root."""
    return project.store(name).relative_to(project.root).as_posix()


def test_all_commands_of_the_cache_work_there(moved: Project, memory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = objects(memory)
    train, dev = (folder(moved, name) for name in ("train", "dev"))
    sizes = {name: sum(sizes_below(memory / name).values()) for name in (train, dev)}

    def said(*words: str) -> str:
        command.main(list(words))
        return capsys.readouterr().out

    lines = said("ls").splitlines()
    assert lines[0] == f"{memory / dev}  {readable_size(sizes[dev])}"
    assert "  noise_0: layers 2, 5, final; 3 of 3 shards" in lines
    assert "  needed by: data/features/train.json" in lines
    assert lines[-1] == f"2 stores, 0 fine-tuned encoders, {readable_size(sum(sizes.values()))}"
    assert "dev.json: 63 shard files, all as they were written" in said("verify")
    said("export", "train", "train.h5")
    receipt = (moved.receipts / "train.json").read_bytes()
    (moved.receipts / "train.json").unlink()
    assert "1 stores and encoders that nobody needs" in said("gc", "--older-than", "0")
    assert objects(memory) == before
    assert "1 stores and encoders deleted" in said("gc", "--yes", "--older-than", "0")
    assert objects(memory) == {name: data for name, data in before.items() if not name.startswith(train)}
    assert f"train.h5 -> {memory}" in said("import", "train.h5")
    after = objects(memory)
    assert after.keys() == before.keys()
    assert all(
        after[name] == data or f"{train}/done/" in name for name, data in before.items()
    )  # which say who made it
    (moved.receipts / "train.json").write_bytes(receipt)
    delete(memory / dev / "noise_0/layer_05/c/1/0/0")
    lines = said("ls").splitlines()
    assert lines[0].endswith("  INCOMPLETE")
    assert "  noise_0: layers 2, 5, final; 2 of 3 shards" in lines
    with pytest.raises(InputError, match=r"1 of 63 shard files are damaged.*\n.*noise_0/layer_05/c/1/0/0.*no file"):
        command.main(["verify"])


def test_a_store_that_is_half_deleted_passes_for_none(
    moved: Project, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    doomed = memory / folder(moved, "dev")
    (moved.receipts / "dev.json").unlink()
    calls: list[int] = []

    def dies(self: MemoryFileSystem, path: list[str], **_more: object) -> None:
        calls.append(len(path))
        if len(calls) == 2:
            raise ConnectionError("gone")
        for place in path:
            self.rm_file(place)

    with monkeypatch.context() as patched:
        patched.setattr(MemoryFileSystem, "rm", dies)
        with pytest.raises(UnreachableError, match="ConnectionError: gone"):
            command.main(["gc", "--yes", "--older-than", "0"])
    assert calls[0] == 1
    with pytest.raises(InputError, match="no feature store there"):
        Store.open(doomed)
    command.main(["gc", "--yes", "--older-than", "0"])
    assert not sizes_below(doomed)


def test_stores_in_a_bucket_are_found_and_deleted(on_s3: dict[str, Cache], tmp_path: Path) -> None:
    root, receipt = on_s3["train"].receipt.parent, tmp_path / "train.json"
    receipt.write_bytes(on_s3["train"].receipt.read_bytes())
    bare = Store.create(root, "bare", dataclasses.replace(SPEC, trials="0" * 16))
    dev, train = (found for found in stores.look(root, needed.here(tmp_path)) if found.store.path != bare.path)
    assert (dev.users, train.users, train.complete) == ((), (str(receipt),), True)
    assert train.layers == dict.fromkeys((CLEAN, "noise_0", "rawboost4_0"), (2, 5, "final"))
    assert train.size == sum(len(data) for data in objects(train.store.path).values())

    def doomed(days: float) -> set[Path]:
        wanted = needed.here(tmp_path)
        return set(stores.leftovers(root, wanted, asked=lambda _: False, days=days, incomplete=True).doomed)

    assert doomed(0) == {dev.store.path, bare.path}
    assert doomed(1) == set()  # just written
    stores.remove([bare.path])
    assert doomed(0) == {dev.store.path}


def test_features_go_to_s3_and_come_back(project: Project, bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command.main(["push", "dev", str(bucket), "--layers", "5"])
    elsewhere = project.folder / "elsewhere"
    elsewhere.mkdir()
    shutil.copy("params.yaml", elsewhere)
    monkeypatch.chdir(elsewhere)
    command.main(["pull", "dev", str(bucket)])
    store, receipt = open_receipts(Path("data/features/dev.json"), root=Path("data/cache"))["dev"]
    assert receipt["layers"] == [5]
    assert {name: data for name, data in tree(project.store("dev")).items() if "layer_05/c/" in name} == {
        name: data for name, data in tree(store.path).items() if "layer_05/c/" in name
    }
    store.verify(receipt["views"], receipt["layers"])
