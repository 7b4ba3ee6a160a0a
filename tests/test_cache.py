"""Stores below a root: what is listed, what may go, and an HDF5 file that comes back byte by byte."""

import dataclasses
import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline import commands
from pipeline.commands import cache as command
from pipeline.core import trial_table
from pipeline.core.contracts import CLEAN
from pipeline.core.errors import InputError
from pipeline.extraction import hdf5, housekeeping
from pipeline.features.specs import Spec
from pipeline.features.store import Store
from pipeline.features.zarr_metadata import FORMAT
from tests.test_gather import VIEWS, Cache, make_cache
from tests.test_store import tree

ROOT = Path(__file__).parents[1]
LAYERS = (2, 5, "final")


@dataclasses.dataclass(frozen=True)
class Project:
    """A folder with features of two sets, their receipts, tables and parameters; the current folder of the test."""

    folder: Path
    sets: dict[str, Cache]

    @property
    def root(self) -> Path:
        return self.folder / "data/cache"

    @property
    def receipts(self) -> Path:
        return self.folder / "data/features"

    def store(self, name: str) -> Path:
        return self.root / json.loads((self.receipts / f"{name}.json").read_text())["store"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    root, receipts = tmp_path / "data/cache", tmp_path / "data/features"
    for folder in (root, receipts, tmp_path / "data/trials"):
        folder.mkdir(parents=True)
    sets = {name: make_cache(root, name, seed=seed) for seed, name in enumerate(("train", "dev"))}
    for name, one in sets.items():
        one.receipt.rename(receipts / f"{name}.json")
        (tmp_path / f"data/trials/{name}.csv").write_text(trial_table.to_csv(one.trials))
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path, sets)


def run(*words: str) -> None:
    command.main(list(words))


# ---------------------------------------------------------------- listing


def test_all_stores_are_found_with_what_they_hold(project: Project) -> None:
    dev, train = housekeeping.look(project.root, project.receipts)
    assert (dev.store.path, train.store.path) == (project.store("dev"), project.store("train"))
    assert dev.layers == {CLEAN: LAYERS, "noise_0": LAYERS, "rawboost4_0": LAYERS}
    assert list(dev.layers) == [CLEAN, "noise_0", "rawboost4_0"]
    assert dev.shards == {CLEAN: 3, "noise_0": 3, "rawboost4_0": 3}
    assert dev.complete
    assert dev.receipts == (project.receipts / "dev.json",)
    assert dev.size == sum(len(data) for data in tree(dev.store.path).values())


def test_a_store_that_lacks_a_shard_is_incomplete(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    Store.open(project.store("dev")).shard_path("noise_0/layer_05", 1).unlink()
    dev, train = housekeeping.look(project.root, project.receipts)
    assert dev.shards == {CLEAN: 3, "noise_0": 2, "rawboost4_0": 3}
    assert (dev.complete, train.complete) == (False, True)
    run("ls")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("INCOMPLETE")
    assert lines[1] == "  10 utterances of 5 x 4, encoder e 1"
    assert "  noise_0: layers 2, 5, final; 2 of 3 shards" in lines
    assert "  receipts: data/features/dev.json" in lines
    assert lines[-1].startswith("2 stores, ")


def test_verify_reads_all_that_the_receipts_stand_for(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    run("verify")
    said = capsys.readouterr().out
    files = 3 * 3 * (3 * 2 + 1)  # views, shards, arrays of layers and n_frames
    assert f"data/features/dev.json: {files} shard files, all as they were written" in said
    assert "train.json" in said
    path = Store.open(project.store("train")).shard_path("clean/pooled_02", 0)
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    run("verify", "data/features/dev.json")
    with pytest.raises(InputError, match=r"1 of .* shard files are damaged") as error:
        run("verify")
    assert "clean/pooled_02/c/0/0/0" in str(error.value)


# ---------------------------------------------------------------- removing


def test_gc_deletes_what_no_receipt_needs_and_only_when_told(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    (project.receipts / "dev.json").unlink()
    part = project.store("train").with_name("eval-0123456789abcdef.zarr.part")
    part.mkdir()
    before = tree(project.folder)
    gone = [path for path in before if "/dev-" in path]
    run("gc")
    said = capsys.readouterr().out
    assert "2 stores that no receipt here needs" in said
    assert "dev-" in said
    assert "eval-0123456789abcdef.zarr.part" in said
    assert "train-" not in said
    assert tree(project.folder) == before
    run("gc", "--yes")
    assert "2 stores deleted" in capsys.readouterr().out
    assert gone
    assert tree(project.folder) == {path: data for path, data in before.items() if path not in gone}
    assert not part.exists()
    run("gc", "--yes")
    assert "0 stores deleted" in capsys.readouterr().out


def test_gc_without_any_receipt_deletes_nothing(project: Project) -> None:
    for receipt in project.receipts.iterdir():
        receipt.unlink()
    before = tree(project.folder)
    with pytest.raises(InputError, match="expected receipts of features, got none; run from the project's folder"):
        run("gc", "--yes")
    assert tree(project.folder) == before
    with pytest.raises(InputError, match="expected receipts of features, got none"):
        run("verify")


def test_gc_keeps_a_store_that_is_being_written(project: Project) -> None:
    store = project.store("dev")
    (project.receipts / "dev.json").unlink()
    before = tree(store)
    with Store.locked(store), pytest.raises(InputError, match="another extraction is writing this store"):
        run("gc", "--yes")
    assert tree(store) == before


def test_a_receipt_that_is_none_stops_gc(project: Project) -> None:
    (project.receipts / "dev.json").write_text("{")
    before = tree(project.root)
    with pytest.raises(InputError, match=r"dev\.json: expected a receipt, got something that is not JSON"):
        run("gc", "--yes")
    assert tree(project.root) == before


# ---------------------------------------------------------------- one file


def test_plain_h5py_reads_what_is_exported(project: Project) -> None:
    run("export", "train", "out/train.h5", "--layers", "final", "2", "--views", CLEAN, VIEWS[1])
    one = project.sets["train"]
    with h5py.File("out/train.h5") as file:
        assert sorted(file) == ["clean", "is_bonafide", "n_frames", "noise_0", "utterance"]
        assert file["utterance"].asstr()[:].tolist() == one.trials.utterance.tolist()
        assert file["is_bonafide"][:].tolist() == one.trials.is_bonafide.tolist()
        np.testing.assert_array_equal(file["n_frames"][:], np.arange(10) % 5 + 1)
        assert sorted(file["noise_0"]) == ["layer_02", "layer_final", "pooled_02", "pooled_final"]
        for view, number in ((CLEAN, 0), (VIEWS[1], 2)):
            for name, layer in (("02", 0), ("final", 2)):
                np.testing.assert_array_equal(file[f"{view}/layer_{name}"][:], one.frames[number, :, layer])
                np.testing.assert_array_equal(file[f"{view}/pooled_{name}"][:], one.pooled[number, :, layer])
        assert file["clean/layer_02"].chunks == (1, 5, 4)
    assert not list(Path("out").glob("*.part"))


def test_what_is_exported_comes_back_byte_by_byte(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    run("export", "train", "train.h5")
    before = tree(project.store("train"))
    (project.receipts / "train.json").rename("train.json")
    run("gc", "--yes")
    run("import", "train.h5")
    assert "train.h5 -> data/cache" in capsys.readouterr().out
    Path("train.json").rename(project.receipts / "train.json")
    assert tree(project.store("train")) == before
    run("verify")


def test_an_import_adds_what_is_missing_and_leaves_the_rest(project: Project) -> None:
    run("export", "train", "train.h5", "--layers", "5", "--views", "noise_0")
    store = Store.open(project.store("train"))
    before = tree(store.path)
    for array in ("noise_0/layer_05", "noise_0/layer_02"):
        store.shard_path(array, 1).unlink()
    other = store.shard_path("noise_0/pooled_05", 0)
    old = other.stat().st_mtime_ns
    run("import", "train.h5")
    lost = str(store.shard_path("noise_0/layer_02", 1).relative_to(store.path))
    assert tree(store.path) == {path: data for path, data in before.items() if path != lost}
    assert other.stat().st_mtime_ns == old


def test_what_is_not_there_cannot_be_exported(project: Project) -> None:
    with pytest.raises(InputError, match=r"dev\.json: no layer 3, 9; it has 2, 5, final"):
        run("export", "dev", "x.h5", "--layers", "3", "5", "9")
    with pytest.raises(InputError, match=r"dev\.json: no view codec; it has clean, rawboost4_0, noise_0"):
        run("export", "dev", "x.h5", "--views", "codec")
    table = trial_table.read(Path("data/trials/dev.csv"))
    Path("data/trials/dev.csv").write_text(trial_table.to_csv(table.take(np.arange(9))))
    with pytest.raises(InputError, match=r"dev\.json: not the receipt of these trials"):
        run("export", "dev", "x.h5")
    assert not list(Path().glob("x.h5*"))


def test_a_pool_has_no_file_of_its_own(project: Project) -> None:
    receipts = {name: json.loads((project.receipts / f"{name}.json").read_text()) for name in ("train", "dev")}
    (project.receipts / "both.json").write_text(json.dumps({"pool": receipts}))
    Path("data/trials/both.csv").write_text(trial_table.to_csv(project.sets["dev"].trials))
    with pytest.raises(InputError, match=r"both\.json: expected the receipt of one set, got a pool of 2"):
        run("export", "both", "x.h5")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.attrs.__setitem__("format", FORMAT + 1), f"expected features of store format {FORMAT}, got"),
        (lambda f: f.attrs.__delitem__("spec"), "that `bonafide cache export` wrote, got another"),
        (lambda f: f.attrs.__setitem__("spec", "{"), "that `bonafide cache export` wrote, got another"),
        (lambda f: f.attrs.__setitem__("set", "../../x"), "expected the name of a set and a fingerprint"),
        (lambda f: f.__delitem__("clean/pooled_05"), r"expected clean/pooled_05 of \(10, 2, 4\) float32, got nothing"),
        (lambda f: f.__delitem__("n_frames"), r"expected n_frames of \(10,\) int32, got nothing"),
        (lambda f: (f.__delitem__("clean/layer_05"), f.create_dataset("clean/layer_05", (10, 5, 3), "float16")),
         r"expected clean/layer_05 of \(10, 5, 4\) float16, got \(\(10, 5, 3\)"),
        (lambda f: f.move("clean", "..x"), "expected the name of a view"),
    ],
)  # fmt: skip
def test_a_file_of_something_else_is_refused(project: Project, change: object, message: str) -> None:
    run("export", "train", "train.h5")
    before = tree(project.root)
    with h5py.File("train.h5", "a") as file:
        change(file)  # type: ignore[operator]
    with pytest.raises(InputError, match=message) as error:
        run("import", "train.h5")
    assert "train.h5" in str(error.value)
    assert {path: data for path, data in tree(project.root).items() if not path.endswith(".lock")} == before


def test_what_is_no_file_is_refused(project: Project) -> None:
    with pytest.raises(InputError, match=r"nowhere\.h5: no such file"):
        run("import", "nowhere.h5")
    with pytest.raises(InputError, match=r"params\.yaml: expected an HDF5 file"):
        run("import", "params.yaml")


def test_the_command_is_found_and_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        commands.dispatch(["cache", "--help"])
    assert "bonafide cache export train train.h5 --layers 5 9" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        commands.dispatch(["cache", "export", "train", "x.h5", "--layers", "first"])
    assert "expected the number of a layer or final, got 'first'" in capsys.readouterr().err


def test_bytes_are_told_in_units_of_a_thousand() -> None:
    assert [command._bytes(size) for size in (999, 1_000, 1_250_000, 5e12)] == ["999 B", "1.0 kB", "1.2 MB", "5.0 TB"]


def test_the_spec_is_that_of_the_store(project: Project) -> None:
    run("export", "dev", "dev.h5")
    with h5py.File("dev.h5") as file:
        spec, name = hdf5._spec(Path("dev.h5"), file)
    assert (spec, name) == (Store.open(project.store("dev")).spec, "dev")
    assert isinstance(spec, Spec)
