"""`bonafide cache push` and `pull`: features go to a place and come back byte for byte, or are refused."""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.core import trial_table
from pipeline.core.errors import InputError
from pipeline.features import dataset, receipt_files
from pipeline.features.reader import Reader
from pipeline.features.shard_bytes import encode_chunk, encode_shard
from pipeline.features.store import Store
from tests.places import SETTINGS
from tests.test_cache import run
from tests.test_gather import make_cache
from tests.test_store import tree

RECEIPT, TABLE = Path("data/features/train.json"), Path("data/trials/train.csv")
SHARDS = 3 * 3  # views, and shards of each


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the features of train, and beside it the place to which they were pushed; leave both alone."""
    folder = tmp_path_factory.mktemp("made") / "project"
    for name in ("data/cache", RECEIPT.parent, TABLE.parent):
        (folder / name).mkdir(parents=True)
    one = make_cache(folder / "data/cache", "train")
    one.receipt.rename(folder / RECEIPT)
    (folder / TABLE).write_text(trial_table.to_csv(one.trials))
    shutil.copy(SETTINGS, folder / "params.yaml")
    with contextlib.chdir(folder):
        run("push", "train", "../shared")
    return folder


@pytest.fixture
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project, the current folder."""
    monkeypatch.chdir(shutil.copytree(made, tmp_path / "project"))
    return Path()


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the place; the current folder is a project without features."""
    empty(tmp_path, made, monkeypatch)
    return Path(shutil.copytree(made.parent / "shared", tmp_path / "shared"))


def empty(folder: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "mine").mkdir()
    shutil.copy(made / "params.yaml", folder / "mine")
    monkeypatch.chdir(folder / "mine")


@pytest.fixture
def memory() -> Iterator[str]:
    """The URL of an object store in memory."""
    MemoryFileSystem.store.clear()
    yield "memory://features"
    MemoryFileSystem.store.clear()


def files_of(place: Path) -> list[Path]:
    return sorted(path for path in place.glob("*/*.zarr/*/*/c/*/*/*") if path.is_file())


def far(place: Path, **changes: Any) -> None:
    path = place / "sets/train.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_features_come_back_byte_for_byte(made: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("pull", "train", str(place))
    assert f"{SHARDS} shards copied" in capsys.readouterr().out
    receipt = json.loads(RECEIPT.read_text())
    assert tree(Path("data/cache") / receipt["store"]) == tree(made / "data/cache" / receipt["store"])
    assert receipt == json.loads((made / RECEIPT).read_text())
    table = trial_table.read(TABLE)
    assert set(table.path.tolist()) == {"-"}  # where the audio lies is nobody's business
    assert table.speaker.tolist() == trial_table.read(made / TABLE).speaker.tolist()
    receipt_files.open_sets(RECEIPT, table, root=Path("data/cache"))
    run("verify", str(RECEIPT))
    run("pull", "train", str(place))
    assert ": 0 shards copied" in capsys.readouterr().out


def test_who_made_features_comes_along(project: Path, memory: str) -> None:
    """Those that were imported there are so here; those that an encoder made there keep its libraries."""
    receipt = json.loads(RECEIPT.read_text())
    store = Store.open(project / "data/cache" / receipt["store"])
    marker = store.marker("clean", 1)
    store._mark("clean", 1, marker | {"made clean/layer_02": "imported", "made clean/layer_05": "torch 2.9"})
    RECEIPT.write_text(json.dumps(receipt | {"imported": {"clean": [2]}}))
    run("push", "train", memory)
    before = RECEIPT.read_text()
    shutil.rmtree("data/cache")
    RECEIPT.unlink()
    run("pull", "train", memory)
    assert json.loads(RECEIPT.read_text()) == json.loads(before)
    made = Store.open(store.path).made(["clean"], [2, 5])
    assert made == {("clean", 2): {"imported"}, ("clean", 5): {"torch 2.9"}}


def test_what_was_cut_off_goes_on(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taken: list[int] = []
    take = Store.take

    def dies(self: Store, view: str, shard: int, *rest: Any) -> None:
        if len(taken) == 4:
            raise KeyboardInterrupt
        taken.append(shard)
        take(self, view, shard, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(Store, "take", dies)
        with pytest.raises(KeyboardInterrupt):
            run("pull", "train", str(place))
    assert not RECEIPT.exists()
    part = next(Path("data/cache").glob("*/*.zarr")) / "clean/layer_02/c/0.0123abcd.part"  # of a writer that was killed
    part.touch()
    run("pull", "train", str(place))
    assert f"{SHARDS - 4} shards copied" in capsys.readouterr().out
    assert not part.exists()
    run("verify", str(RECEIPT))


def test_a_wrong_byte_is_refused(place: Path) -> None:
    wrong = files_of(place)[-1]
    data = bytearray(wrong.read_bytes())
    data[len(data) // 2] ^= 1
    wrong.write_bytes(data)
    with pytest.raises(
        InputError, match=r"1 shard files are damaged(?s:.*)expected sha256 \w+\.\.\., got \w+"
    ) as error:
        run("pull", "train", str(place))
    assert str(wrong) in str(error.value)
    assert not RECEIPT.exists()
    assert not TABLE.exists()
    assert not Path("data/cache", wrong.relative_to(place)).exists()
    wrong.unlink()
    with pytest.raises(InputError, match="got no file"):
        run("pull", "train", str(place))


def test_a_damaged_file_is_not_pushed(project: Path, memory: str) -> None:
    wrong = files_of(project / "data/cache")[0]
    wrong.write_bytes(wrong.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match="shard files are damaged"):
        run("push", "train", memory)
    assert not [name for name in MemoryFileSystem.store if "/sets/" in name]


def test_a_url_and_a_choice_of_layers(
    made: Path, project: Path, memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("push", "train", memory, "--layers", "5")
    assert not [name for name in MemoryFileSystem.store if "layer_02" in name]
    empty(tmp_path, made, monkeypatch)
    run("pull", "train", memory)
    assert json.loads(RECEIPT.read_text())["layers"] == [5]
    ((_, _, store, receipt),) = receipt_files.open_sets(RECEIPT, trial_table.read(TABLE), root=Path("data/cache"))
    there = Store(made / "data/cache" / receipt["store"], store.spec)
    for array in store.names("noise_0", [5]):
        assert store.shard_path(array, 1).read_bytes() == there.shard_path(array, 1).read_bytes()


def test_a_table_with_audio_stays_and_another_is_refused(made: Path, place: Path) -> None:
    TABLE.parent.mkdir(parents=True)
    shutil.copy(made / TABLE, TABLE)
    run("pull", "train", str(place))
    assert TABLE.read_bytes() == (made / TABLE).read_bytes()
    rows = trial_table.read(TABLE)
    TABLE.write_text(trial_table.to_csv(rows.take(np.arange(len(rows))[::-1])))
    with pytest.raises(InputError, match="the trials changed"):
        run("pull", "train", str(place))


def test_other_features_here_are_kept(made: Path, place: Path) -> None:
    shutil.copytree(made / "data/cache", "data/cache")
    store = Store.open(Path("data/cache") / json.loads((place / "sets/train.json").read_text())["store"])
    other = {layer: np.ones((4, 5, 4), np.float16) for layer in (2,)}
    store.write("clean", 0, other, {2: np.ones((4, 2, 4), np.float32)}, np.arange(4, dtype=np.int32) % 5 + 1)
    before = tree(store.path)
    with pytest.raises(InputError, match="has other bytes than in"):
        run("pull", "train", str(place))
    assert tree(store.path) == before


def test_receipts_of_strangers_are_checked(place: Path) -> None:
    before = (place / "sets/train.json").read_text()
    for changes, message in (
        ({"views": ["../../x"]}, "expected a view"),
        ({"layers": ["/x"]}, "numbers of layers"),
        ({"store": "../../elsewhere"}, "expected a store below the root"),
        ({"utterances": 11}, "receipt of 10 trials"),
        ({"utterances": 10.0}, "utterances: expected a whole number above 0, got 10.0"),
        ({"views": ["clean"] * 9_999}, "lists of views and layers, each once"),
        ({"layers": "25"}, "lists of views and layers, each once"),
        ({"encoder": {}}, "another spec"),
        ({"pool": [1]}, "expected a receipt, or those of a pool by set"),
        ({"pool": {"train": None}}, "expected a receipt, or those of a pool by set"),
        ({"digest": "0" * 64}, "expected the bytes that"),
    ):
        far(place, **changes)
        with pytest.raises(InputError, match=message):
            run("pull", "train", str(place))
        (place / "sets/train.json").write_text(before)
    assert not RECEIPT.exists()


@pytest.mark.parametrize(
    ("array", "spoil", "message"),
    [
        ("clean/layer_02", lambda b: np.full_like(b, np.nan), "expected finite numbers, and 1 frame"),
        ("clean/pooled_02", lambda b: np.full_like(b, np.inf), "expected finite numbers, and 1 frame"),
        ("n_frames", lambda b: b * 0, "expected finite numbers, and 1 frame"),
        ("n_frames", lambda b: b + 99, "expected finite numbers, and 1 frame"),
        ("clean/layer_02", lambda b: b[:2], "expected 244 bytes, got 156"),
        ("clean/layer_02", None, "expected rows with their checksums and their index, got others"),
    ],
)
def test_numbers_of_strangers_are_checked_before_they_are_taken(
    place: Path, array: str, spoil: Callable[[Any], Any] | None, message: str
) -> None:
    """Also where the marker has the checksum of their bytes."""
    store = Store.open(next(place.glob("*/*.zarr")))
    path, marker = store.shard_path(array, 0), store.marker("clean", 0)
    data = np.frombuffer(path.read_bytes(), np.uint8)
    if spoil is None:
        data = np.zeros_like(data)
    elif array == "n_frames":
        data = encode_chunk(spoil(data[:-4].view("<i4")))
    else:
        row, dtype = ((5, 4), "<f2") if "layer" in array else ((2, 4), "<f4")
        size = np.prod(row) * np.dtype(dtype).itemsize
        block = np.ascontiguousarray(data[: 4 * (size + 4)].reshape(4, -1)[:, :-4]).view(dtype).reshape(4, *row)
        data = encode_shard(spoil(block), shard=4)
    path.write_bytes(data.tobytes())
    store._mark("clean", 0, marker | {array: hashlib.sha256(data.tobytes()).hexdigest()})
    with pytest.raises(InputError, match=rf"nothing of their shard was taken; (?s:.*){message}"):
        run("pull", "train", str(place))
    assert not RECEIPT.exists()


def test_a_marker_of_other_values_is_refused(place: Path) -> None:
    store = Store.open(next(place.glob("*/*.zarr")))
    store._mark("clean", 0, store.marker("clean", 0) | {"clean/layer_02": 3})
    with pytest.raises(InputError, match=r"00000\.json: expected a marker of checksums, got another value of 'clean"):
        run("pull", "train", str(place))


def test_a_store_under_another_name_is_refused(place: Path) -> None:
    """The name is the fingerprint of the spec: another store in its place has another."""
    path = next(place.glob("*/*.zarr/zarr.json"))
    path.write_text(path.read_text().replace('"channels": 4', '"channels": 5'))
    with pytest.raises(InputError, match="another spec"):
        run("pull", "train", str(place))


def test_a_set_that_is_not_there_is_one_message(place: Path) -> None:
    with pytest.raises(InputError, match=r"no features of dev there; `bonafide cache push dev"):
        run("pull", "dev", str(place))
    with pytest.raises(SystemExit):
        run("pull", "../dev", str(place))


def test_pooled_arrays_alone(made: Path, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "pooled"
    run("push", "train", str(place), "--pooled")
    assert not [path for path in files_of(place) if "/layer_" in path.as_posix()]
    sizes = [sum(path.stat().st_size for path in files_of(root)) for root in (place, project / "data/cache")]
    assert sizes[0] < sizes[1] / 2
    empty(tmp_path, made, monkeypatch)
    run("pull", "train", str(place))
    run("verify", str(RECEIPT))
    ((_, _, store, receipt),) = receipt_files.open_sets(RECEIPT, trial_table.read(TABLE), root=Path("data/cache"))
    whole = json.loads((made / RECEIPT).read_text())
    assert receipt["pooled"] is True
    assert (receipt["store"], receipt["layers"]) == (whole["store"], whole["layers"])
    chosen = receipt_files.selected(store, receipt, layers=receipt["layers"][:1], views=[])
    assert chosen["pooled"] is True  # as the stage select has it
    original = Store.open(made / "data/cache" / whole["store"])
    pooled = Reader(store, views=["clean"], layers=receipt["layers"], pooled=True)
    expected = Reader(original, views=["clean"], layers=receipt["layers"], pooled=True)
    rows = np.array([0, 5])
    assert torch.equal(pooled.gather(rows), expected.gather(rows))
    table, root = trial_table.read(TABLE), Path("data/cache")
    assert len(dataset.open_set(RECEIPT, table, root=root, reads="pooled").trials) == len(table)
    with pytest.raises(InputError, match=r"train.json: expected features of frames, got pooled ones alone; choose"):
        dataset.open_set(RECEIPT, table, root=root, reads="frames")
    assert store.incomplete("clean", receipt["layers"])  # extraction would make the frames
    run("pull", "train", str(made.parent / "shared"))  # what is whole fills up what is not
    assert not store.incomplete("clean", receipt["layers"])
    assert len(dataset.open_set(RECEIPT, table, root=root, reads="frames").trials) == len(table)
    run("pull", "train", str(place))
    assert json.loads(RECEIPT.read_text()) == whole  # pooled arrays take no frames away
