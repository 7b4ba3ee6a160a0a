"""Stores below a root: what is listed, what may go, and an HDF5 file that comes back byte by byte."""

import dataclasses
import json
import os
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from ruamel.yaml import YAML

from pipeline import commands
from pipeline.commands import cache as command
from pipeline.core import params_file, trial_table
from pipeline.core.contracts import CLEAN
from pipeline.core.encoder_sections import FinetuneParams
from pipeline.core.errors import InputError
from pipeline.encoder import kept, models
from pipeline.encoder.cards import Card
from pipeline.extraction import hdf5, hdf5_file, housekeeping, identity, needed, planning
from pipeline.features.specs import Spec, layer_array
from pipeline.features.store import Store
from pipeline.features.zarr_metadata import FORMAT
from tests.conftest import TINY
from tests.places import SETTINGS
from tests.test_gather import VIEWS, Cache, make_cache
from tests.test_store import tree

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
    (tmp_path / "params.yaml").write_text(SETTINGS.read_text())
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path, sets)


OLD = ("--older-than", "0")


def run(*words: str) -> None:
    command.main(list(words))


# ---------------------------------------------------------------- listing


def test_all_stores_are_found_with_what_they_hold(project: Project) -> None:
    dev, train = housekeeping.look(project.root, needed.here(project.receipts))
    assert (dev.store.path, train.store.path) == (project.store("dev"), project.store("train"))
    assert dev.layers == {CLEAN: LAYERS, "noise_0": LAYERS, "rawboost4_0": LAYERS}
    assert list(dev.layers) == [CLEAN, "noise_0", "rawboost4_0"]
    assert dev.shards == {CLEAN: 3, "noise_0": 3, "rawboost4_0": 3}
    assert dev.complete
    assert dev.users == (str(project.receipts / "dev.json"),)
    assert dev.size == sum(len(data) for data in tree(dev.store.path).values())


def test_a_store_that_lacks_a_shard_is_incomplete(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    Store.open(project.store("dev")).shard_path("noise_0/layer_05", 1).unlink()
    dev, train = housekeeping.look(project.root, needed.here(project.receipts))
    assert dev.shards == {CLEAN: 3, "noise_0": 2, "rawboost4_0": 3}
    assert (dev.complete, train.complete) == (False, True)
    run("ls")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("INCOMPLETE")
    assert lines[1] == "  10 utterances of 5 x 4, encoder e 1"
    assert "  noise_0: layers 2, 5, final; 2 of 3 shards" in lines
    assert "  needed by: data/features/dev.json" in lines
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
    run("gc", *OLD)
    said = capsys.readouterr().out
    assert "2 stores and encoders that nobody needs" in said
    assert "dev-" in said
    assert "eval-0123456789abcdef.zarr.part" in said
    assert f"{project.store('train').relative_to(project.folder)}  stays: needed by data/features/train.json\n" in said
    assert tree(project.folder) == before
    run("gc", "--yes", *OLD)
    assert "2 stores and encoders deleted" in capsys.readouterr().out
    assert gone
    assert tree(project.folder) == {path: data for path, data in before.items() if path not in gone}
    assert not part.exists()
    run("gc", "--yes", *OLD)
    assert "0 stores and encoders deleted" in capsys.readouterr().out


def test_gc_without_any_receipt_deletes_nothing(project: Project) -> None:
    for receipt in project.receipts.iterdir():
        receipt.unlink()
    before = tree(project.folder)
    with pytest.raises(InputError, match="expected receipts of features, got none; run from the project's folder"):
        run("gc", "--yes", *OLD)
    assert tree(project.folder) == before
    with pytest.raises(InputError, match="expected receipts of features, got none"):
        run("verify")


def test_gc_keeps_a_store_that_is_being_written(project: Project) -> None:
    store = project.store("dev")
    (project.receipts / "dev.json").unlink()
    before = tree(store)
    with Store.locked(store), pytest.raises(InputError, match="another extraction is writing this store"):
        run("gc", "--yes", *OLD)
    assert tree(store) == before


def test_a_receipt_that_is_none_stops_gc(project: Project) -> None:
    (project.receipts / "dev.json").write_text("{")
    before = tree(project.root)
    with pytest.raises(InputError, match=r"dev\.json: expected a receipt, got something that is not JSON"):
        run("gc", "--yes", *OLD)
    assert tree(project.root) == before


def age(path: Path, days: float) -> None:
    """Let all that is in a folder have been written some days ago."""
    when = time.time() - days * 86_400
    for one in (path, *path.rglob("*")):
        os.utime(one, (when, when))


def test_gc_keeps_what_was_written_to_lately(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    (project.receipts / "dev.json").unlink()
    part = project.store("train").with_name("eval-0123456789abcdef.zarr.part")  # an extraction that was killed
    part.mkdir()
    store = next(project.root.glob("*/dev-*.zarr"))
    run("gc", "--yes")
    said = capsys.readouterr().out
    for path in (store, part):
        assert f"{path.relative_to(project.folder)}  stays: written to in the last 7 days" in said
    age(store, 8)
    age(part, 6)
    run("gc", "--yes", "--older-than", "9")
    assert store.exists()
    (store / "zarr.json").touch()  # one file is enough
    run("gc", "--yes")
    assert store.exists()
    age(store, 8)
    run("gc", "--yes")
    assert (store.exists(), part.exists()) == (False, True)
    run("gc", "--yes", "--older-than", "5.5")
    assert not part.exists()


@pytest.mark.parametrize("days", ["-1", "nan", "inf", "week"])
def test_days_are_a_number(project: Project, capsys: pytest.CaptureFixture[str], days: str) -> None:
    with pytest.raises(SystemExit):
        run("gc", f"--older-than={days}")
    assert "expected a number of days, 0 or more, got" in capsys.readouterr().err


def test_gc_keeps_what_is_incomplete_unless_days_are_given(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    """No receipt of any state stands for it yet. Of a view that has arrays and no shard nothing is made, too."""
    (project.receipts / "dev.json").unlink()
    store = Store.open(next(project.root.glob("*/dev-*.zarr")))
    store.add_arrays("noise_1", LAYERS)
    tuning = under_way(project, "2" * 16, finetuning(seed=7), epochs=4)
    damaged = project.root / "0123456789abcdef/dev-0123456789abcdef.zarr/zarr.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{")
    folders = store.path, tuning, damaged.parent
    for folder in folders:
        age(folder, 300)
    run("gc", "--yes")
    said = capsys.readouterr().out
    assert said.count("  stays: it is incomplete or damaged; --older-than takes it, too\n") == 3
    assert "\n  noise_1: layers 2, 5, final; 0 of 3 shards\n" in said
    assert all(folder.is_dir() for folder in folders)
    run("gc", "--yes", "--older-than", "7")
    assert not [folder for folder in folders if folder.exists()]


def test_gc_leaves_alone_what_it_did_not_make(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """Zarr stores of other programs below features.root, and links."""
    (project.receipts / "dev.json").unlink()
    store = next(project.root.glob("*/dev-*.zarr"))
    others = [
        project.root / name
        for name in ("maps/europe.zarr", "maps/europe.zarr.part", f"{store.parent.name}/dev.zarr", "x/dev-0123.zarr")
    ]
    for path in others:
        path.mkdir(parents=True)
        (path / "zarr.json").write_text("{}")
    far = project.folder / "far"
    store.rename(far)
    store.symlink_to(far)
    before = tree(far)
    run("gc", "--yes", *OLD)
    assert f"stays: it is a link to {far}; delete the one or the other yourself" in capsys.readouterr().out
    assert tree(store) == before == tree(far)
    assert all((path / "zarr.json").is_file() for path in others)
    run("ls")


def test_gc_goes_on_where_another_one_deletes_the_same(project: Project) -> None:
    (project.receipts / "dev.json").unlink()
    dev = next(project.root.glob("*/dev-*.zarr"))
    found = [dev, dev.with_name(f"{dev.name}.part"), *([dev] * 2)]
    housekeeping.remove(found)
    assert not list(dev.parent.glob("dev-*"))
    shutil.rmtree(dev.parent)
    housekeeping.remove(found)
    assert not dev.parent.exists()


def test_receipts_of_choices_count(project: Project) -> None:
    """DVC deletes data/features/dev.json while it extracts the set anew."""
    chosen = project.folder / "data/selected/dev/2-clean.json"
    chosen.parent.mkdir(parents=True)
    (project.receipts / "dev.json").rename(chosen)
    run("gc", "--yes", *OLD)
    assert list(project.root.glob("*/dev-*.zarr"))


def test_gc_keeps_the_encoder_whose_features_are_needed(project: Project) -> None:
    """After a change of the parameters and `dvc repro encoder`, as long as there are receipts of its features."""
    receipt = project.receipts / "dev.json"
    facts = json.loads(receipt.read_text())
    facts["encoder"] |= {"weights_sha256": "3" * 64}
    receipt.write_text(json.dumps(facts))
    folders = [encoder(project, digit * 16, finetuning(seed=7)) for digit in "34"]
    run("gc", "--yes", *OLD)
    assert [folder.exists() for folder in folders] == [True, False]


# ---------------------------------------------------------------- encoders

FACTS = {
    "finetune_version": 1, "weights_sha256": "a" * 64, "window": {"samples": 40000, "pad": "repeat"},
    "normalize": "utterance", "backend": {"embedding_dim": 64}, "loss": {"alpha": 20.0},
}  # fmt: skip


def finetuning(**changes: Any) -> dict[str, Any]:
    """What decides a fine-tuning that the project's parameters name."""
    section = YAML(typ="safe").load(SETTINGS)["encoder"]["finetune"] | changes
    return FACTS | {"finetune": FinetuneParams.model_validate(section, strict=False).facts}


def encoder(project: Project, identity: str, facts: dict[str, Any], *, card: bool = False) -> Path:
    """A fine-tuned encoder that is kept; card: for which data/encoder.json stands."""
    folder = project.root / "encoders" / identity
    (folder / "run").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(1_000))
    told = dataclasses.asdict(models.load(TINY)[1])
    kept.seal(folder, told | {"source": f"encoders/{identity}", "weights_sha256": identity * 4}, facts)
    if card:
        found = kept.find(folder)
        assert found is not None
        (project.folder / "data/encoder.json").write_text(json.dumps(kept.receipt_of(found)))
    age(folder, 30)
    return folder


def under_way(project: Project, identity: str, facts: dict[str, Any], *, epochs: int) -> Path:
    folder = project.root / "encoders" / f"{identity}.checkpoint"
    folder.mkdir(parents=True)
    (folder / "asked.json").write_text(json.dumps(facts))
    for epoch in (2, epochs):
        (folder / f"weights_{epoch:04d}.safetensors").touch()
    age(folder, 30)
    return folder


def test_ls_says_which_parameters_made_an_encoder_and_how_complete_it_is(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder(project, "1" * 16, finetuning(), card=True)
    under_way(project, "2" * 16, finetuning(epochs=9), epochs=4)
    run("ls")
    lines = capsys.readouterr().out.splitlines()
    first = next(i for i, line in enumerate(lines) if "encoders/1111" in line)
    assert "INCOMPLETE" not in lines[first]
    assert lines[first + 1] == "  from weights aaaaaaaaaaaa, window samples 40000, pad repeat"
    assert lines[first + 2].startswith("  set train, backend sls, loss oc_softmax, layers [1, 2, 3, 4], ")
    assert "learning_rate (backend 0.001, centroids 0.001, layers 0.01, encoder 1e-06)" in lines[first + 2]
    assert lines[first + 3] == "  backend embedding_dim 64; loss alpha 20.0"
    assert lines[first + 4] == "  needed by: data/encoder.json"
    assert (
        lines[first + 5].endswith("2222.checkpoint  1.4 kB  INCOMPLETE: 4 of up to 9 epochs")
        or "INCOMPLETE: 4 of" in (lines[first + 5])
    )
    assert lines[first + 9] == "  needed by: nobody"
    assert lines[-1].startswith("2 stores, 2 fine-tuned encoders, ")


def test_gc_takes_encoders_that_nobody_needs(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    mine = encoder(project, "1" * 16, finetuning(), card=True)
    others = [
        encoder(project, "2" * 16, finetuning(seed=7)),
        under_way(project, "3" * 16, finetuning(seed=8), epochs=4),
        project.root / "encoders" / f"{'4' * 16}.part",
        project.root / "encoders" / f"{'4' * 16}.checkpoint.part",
    ]
    for folder in others[2:]:
        folder.mkdir()
        age(folder, 30)
    stranger = project.root / "encoders" / "thesis"
    stranger.mkdir()
    run("gc", "--older-than", "7")
    assert "4 stores and encoders that nobody needs; --yes deletes them" in capsys.readouterr().out
    assert all(folder.is_dir() for folder in others)
    run("gc", "--yes", "--older-than", "7")
    assert not [folder for folder in others if folder.exists()]
    assert sorted(path.name for path in mine.parent.iterdir()) == [mine.name, "thesis"]
    assert (mine / "model.safetensors").is_file()


@pytest.mark.parametrize("on", [True, False])
def test_gc_keeps_the_encoder_that_the_parameters_ask_for(
    project: Project, capsys: pytest.CaptureFixture[str], on: bool
) -> None:
    """And the training of it; another window or seed is another encoder."""
    window = {"samples": 64600, "pad": "repeat"}
    asked = [encoder(project, "1" * 16, finetuning()), under_way(project, "2" * 16, finetuning(), epochs=3)]
    other = [
        encoder(project, "3" * 16, finetuning() | {"window": window}),
        encoder(project, "4" * 16, finetuning(seed=2)),
    ]
    settings = project.folder / "params.yaml"
    settings.write_text(settings.read_text().replace("    on: false", f"    on: {str(on).lower()}"))
    run("gc", "--yes", *OLD)
    assert [folder.is_dir() for folder in asked] == [on, on]
    assert not [folder for folder in other if folder.exists()]
    assert ("stays: the parameters ask for it" in capsys.readouterr().out) == on


def test_gc_keeps_the_store_that_the_parameters_ask_for(project: Project, card: Card) -> None:
    """With the encoder and trial tables that are here, before there is a receipt; and while `prepare` makes a table."""
    settings = params_file.load(project.folder / "params.yaml")
    (project.folder / "data/encoder.json").write_text(json.dumps(dataclasses.asdict(card)))
    window = settings.extract.window.model_copy(update={"samples": 3_200})
    table = trial_table.read(project.folder / "data/trials/dev.csv")
    asked = stored(project.root, card, settings.extract).path
    others = [
        stored(project.root, card, settings.extract.model_copy(update={"window": window})).path,
        stored(project.root, dataclasses.replace(card, weights_sha256="f" * 64), settings.extract).path,
    ]
    fewer = Store.create(project.root, "dev", identity.spec_of(table.take(np.arange(9)), card, settings.extract)).path
    Path("data/trials/dev.csv").unlink()
    run("gc", "--yes", *OLD)
    assert [path.exists() for path in (asked, *others, fewer)] == [True, False, False, True]
    Path("data/trials/dev.csv").write_text(trial_table.to_csv(table))
    run("gc", "--yes", *OLD)
    assert [path.exists() for path in (asked, fewer)] == [True, False]


def test_gc_keeps_the_stores_of_the_tuned_encoder_that_the_parameters_ask_for(project: Project, card: Card) -> None:
    """Also where the card here is of another encoder, as after a change of seed and back again without `dvc repro`."""
    mine = encoder(project, "1" * 16, finetuning())
    encoder(project, "2" * 16, finetuning(seed=2), card=True)
    settings = project.folder / "params.yaml"
    settings.write_text(settings.read_text().replace("    on: false", "    on: true"))
    asked, other = (
        stored(project.root, dataclasses.replace(card, weights_sha256=sha256), params_file.load(settings).extract).path
        for sha256 in ("1" * 64, "2" * 64)
    )
    run("gc", "--yes", *OLD)
    assert [path.exists() for path in (mine, asked, other)] == [True, True, False]


def stored(root: Path, card: Card, settings: Any, *, name: str = "dev") -> Store:
    """An empty store of a set, as the parameters and a card ask for it, last written to a month ago."""
    table = trial_table.read(Path(f"data/trials/{name}.csv"))
    store = Store.create(root, name, identity.spec_of(table, card, settings))
    age(store.path, 30)
    return store


@pytest.mark.parametrize("here", [True, False])
def test_gc_keeps_what_the_parameters_may_ask_for_where_the_card_is_of_another_encoder(
    project: Project, card: Card, here: bool
) -> None:
    """After a change of encoder.source and before `dvc repro`, or without a card; nothing asks for another window."""
    settings = params_file.load(project.folder / "params.yaml").extract
    if here:
        other_card = dataclasses.asdict(card) | {"source": "somebody/xlsr", "weights_sha256": "f" * 64}
        (project.folder / "data/encoder.json").write_text(json.dumps(other_card))
    asked = stored(project.root, card, settings).path
    window = settings.window.model_copy(update={"samples": 3_200})
    other = stored(project.root, card, settings.model_copy(update={"window": window})).path
    run("gc", "--yes", *OLD)
    assert (asked.is_dir(), other.exists()) == (True, False)


def test_gc_says_how_complete_a_store_is_and_what_made_it(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    (project.receipts / "dev.json").unlink()
    store = Store.open(next(project.root.glob("*/dev-*.zarr")))
    store.shard_path("noise_0/layer_05", 1).unlink()
    run("gc")
    age(store.path, 30)
    run("gc", "--older-than", "7")
    said = capsys.readouterr().out
    assert store.path.name in said
    assert said.count("  10 utterances of 5 x 4, encoder e 1\n") == 4  # two stores, twice: what stays, and what may go
    assert said.count("  noise_0: layers 2, 5, final; 2 of 3 shards\n") == 2


# ---------------------------------------------------------------- one file


def test_plain_h5py_reads_what_is_exported(project: Project) -> None:
    run("export", "train", "out/train.h5", "--layers", "final", "2", "2", "--views", CLEAN, VIEWS[1], CLEAN)
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
    run("gc", "--yes", *OLD)
    run("import", "train.h5")
    assert "train.h5 -> data/cache" in capsys.readouterr().out
    Path("train.json").rename(project.receipts / "train.json")
    assert numbers(project.store("train")) == {name: data for name, data in before.items() if "done/" not in name}
    run("verify")


def numbers(store: Path) -> dict[str, bytes]:
    """The files of a store without its markers, which say who made the numbers."""
    return {name: data for name, data in tree(store).items() if "done/" not in name}


def receipt_of(store: Store) -> dict[str, Any]:
    return planning.receipt(store, set_name="train", names=(CLEAN, *VIEWS), layers=LAYERS)


def test_what_was_imported_is_named_by_every_receipt_until_it_is_computed_here(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where one shard of it is imported; `dvc repro -f extract`, which messages advise, does not change that."""
    store = Store.open(project.store("train"))
    before = receipt_of(store)
    assert "imported" not in before
    run("export", "train", "train.h5")
    places = [("noise_0", 2, 0), ("noise_0", 5, 1), (CLEAN, "final", 2)]
    for view, layer, shard in places:
        store.shard_path(f"{view}/{layer_array(layer)}", shard).unlink()
    run("import", "train.h5")
    found = receipt_of(Store.open(store.path))
    assert found["imported"] == {CLEAN: ["final"], "noise_0": [2, 5]}
    assert found == before | {"imported": found["imported"]}
    (project.receipts / "train.json").write_text(json.dumps(found))
    run("verify", "data/features/train.json")
    said = capsys.readouterr().out
    assert "all as they were written; imported, not computed here: layers of clean final; noise_0 2, 5\n" in said
    run("ls")
    assert "  noise_0: layers 2, 5, final; 3 of 3 shards\n    imported\n" in capsys.readouterr().out
    one = project.sets["train"]
    for view, layer, shard in places:  # as the extraction makes a shard whose files are deleted
        rows = slice(store.spec.rows(shard).start, store.spec.rows(shard).stop)
        v, k = (CLEAN, *VIEWS).index(view), LAYERS.index(layer)
        frames, pooled = {layer: one.frames[v, rows, k]}, {layer: one.pooled[v, rows, k]}
        counts = np.arange(10, dtype=np.int32)[rows] % 5 + 1
        store.write(view, shard, frames, pooled, counts, made="torch 2.9")
    assert receipt_of(Store.open(store.path)) == before


def test_an_import_adds_what_is_missing_and_leaves_the_rest(project: Project) -> None:
    run("export", "train", "train.h5", "--layers", "5", "--views", "noise_0")
    store = Store.open(project.store("train"))
    before = tree(store.path)
    for array in ("noise_0/layer_05", "noise_0/layer_02"):
        store.shard_path(array, 1).unlink()
    other = store.shard_path("noise_0/pooled_05", 0)
    old = other.stat().st_mtime_ns
    (store.path / "noise_0/layer_05/c/0.0123abcd.part").touch()  # of a writer that was killed
    run("import", "train.h5")
    lost, marker = str(store.shard_path("noise_0/layer_02", 1).relative_to(store.path)), "done/noise_0/00001.json"
    after = tree(store.path)
    assert json.loads(after.pop(marker)).keys() == json.loads(before.pop(marker)).keys() | {"made noise_0/layer_05"}
    assert after == {path: data for path, data in before.items() if path != lost}
    assert other.stat().st_mtime_ns == old


def test_what_is_not_there_cannot_be_exported(project: Project) -> None:
    with pytest.raises(InputError, match=r"dev\.json: no layer 3, 9; it has 2, 5, final"):
        run("export", "dev", "x.h5", "--layers", "3", "5", "9")
    with pytest.raises(InputError, match=r"dev\.json: no view codec; it has clean, rawboost4_0, noise_0"):
        run("export", "dev", "x.h5", "--views", "codec")
    os.mkfifo("pipe")
    for place, wrong in (("pipe", "a device or a pipe"), (".", "a folder")):
        with pytest.raises(InputError, match=f"expected a free place or a file, got {wrong}"):
            run("export", "dev", place)
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
        (lambda f: f.attrs.__setitem__("spec", "{"), "export` wrote, got something that is not JSON"),
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


def elsewhere(file: h5py.File, array: str, **options: Any) -> None:
    """The same array again, made in another way."""
    values = file[array][:]
    del file[array]
    file.create_dataset(array, data=values, **options)


def virtual(file: h5py.File) -> None:
    with h5py.File("other.h5", "w") as other:
        other["x"] = file["clean/layer_05"][:]
    layout = h5py.VirtualLayout((10, 5, 4), "float16")
    layout[:] = h5py.VirtualSource("other.h5", "x", (10, 5, 4))
    del file["clean/layer_05"]
    file.create_virtual_dataset("clean/layer_05", layout)


def external(file: h5py.File) -> None:
    Path("secret.bin").write_bytes(bytes(10 * 5 * 4 * 2))
    del file["clean/layer_05"]
    file.create_dataset("clean/layer_05", (10, 5, 4), "float16", external=[("secret.bin", 0, 400)])


def never_written(file: h5py.File) -> None:
    del file["clean/layer_05"]
    file.create_dataset("clean/layer_05", (10, 5, 4), "float16", chunks=(1, 5, 4), fillvalue=0.5)


def references(file: h5py.File) -> None:
    del file["n_frames"]
    file.create_dataset("n_frames", data=[file["clean"].ref] * 10, dtype=h5py.ref_dtype)


def other_frames(file: h5py.File) -> None:
    """Another number of frames, to which all means and deviations fit."""
    file["n_frames"][0] = 5
    for view in (CLEAN, *VIEWS):
        for name in ("02", "05", "final"):
            frames = file[f"{view}/layer_{name}"][0].astype(np.float32)
            file[f"{view}/pooled_{name}"][0] = np.stack([frames.mean(0), frames.std(0)])


def renumbered(file: h5py.File) -> None:
    for name in ("layer", "pooled"):
        file.move(f"clean/{name}_05", f"clean/{name}_201")


def spec(old: str, new: str) -> Callable[[h5py.File], None]:
    return lambda file: file.attrs.__setitem__("spec", file.attrs["spec"].replace(old, new))


def outside(file: h5py.File) -> None:
    del file["is_bonafide"]
    file.create_dataset("is_bonafide", (10,), "bool", external=[("secret.bin", 0, 10)])


def regions(file: h5py.File) -> None:
    found = [file["clean/layer_05"].regionref[0:1]] * 10
    del file["utterance"]
    file.create_dataset("utterance", data=found, dtype=h5py.regionref_dtype)


def twice(file: h5py.File) -> None:
    del file["clean/layer_05"]
    file["clean/layer_05"] = file["clean/layer_02"]


def linked(file: h5py.File, name: str, link: object) -> None:
    del file[name]
    file[name] = link


def put(array: str, where: object, value: float) -> Callable[[h5py.File], None]:
    return lambda file: file[array].__setitem__(where, value)


LINKS = {
    "external storage": (external, "clean/layer_05 in the file itself, got a name of other files"),
    "virtual dataset": (virtual, "clean/layer_05 in the file itself, got a name of other files"),
    "external link to a view": (lambda f: linked(f, "clean", h5py.ExternalLink("o.h5", "/")), "got a link as 'clean'"),
    "soft link to a layer": (
        lambda f: linked(f, "clean/layer_05", h5py.SoftLink("/clean/layer_02")), "got a link as 'layer_05'"
    ),
    "external link to counts": (lambda f: linked(f, "n_frames", h5py.ExternalLink("o.h5", "/x")), "link as 'n_frames'"),
    "link beside the views": (lambda f: f.__setitem__("x", h5py.SoftLink("/clean")), "got a link as 'x'"),
    "references": (
        references,
        r"expected n_frames of \(10,\) int32, got \(\(10,\), dtype\('O'\)\)",
    ),
    "filter": (lambda f: elsewhere(f, "clean/layer_05", compression="gzip"), "got filters; h5repack -f NONE"),
    "never written": (never_written, "expected 400 bytes of clean/layer_05, got 0"),
    "other array": (lambda f: f.__setitem__("clean/extra", [1]), "expected the arrays of layers in clean, got extra"),
    "other array of the set": (lambda f: f.__setitem__("extra", [1]), "expected views and .*, got extra"),
    "no layers": (lambda f: f.create_group("narrowband"), "expected the arrays of layers in narrowband, got none"),
    "view that is none": (lambda f: f.move("noise_0", "done"), "done"),
    "nan": (put("clean/layer_05", (7, 2, 1), np.nan), r"clean/layer_05: expected finite numbers, got NaN .* in row 7;"),
    "infinity": (put("noise_0/pooled_02", (9, 1, 3), np.inf), "noise_0/pooled_02: expected finite numbers, .* row 9;"),
    "no frames": (put("n_frames", 3, 0), "n_frames: expected 1 to 5, got 0 in row 3"),
    "too many frames": (put("n_frames", 4, 6), "n_frames: expected 1 to 5, got 6 in row 4"),
    "other frames": (other_frames, "expected the n_frames of shard 0 of .*, got others; move that store away"),
    "frames to which means do not fit": (
        put("n_frames", slice(1, 3), [3, 2]),
        r"clean/pooled_02: expected mean and deviation of layer_02 in row 1, of its first 3 frames, got others",
    ),
    "mean of another range": (put("noise_0/pooled_05", (9, 0, 3), 1e30), "noise_0/pooled_05: expected mean .* row 9,"),
    "negative deviation": (put("clean/pooled_final", (6, 1, 0), -0.5), "clean/pooled_final: expected mean .* row 6,"),
    "one array twice": (twice, "got a link as 'layer_02'"),
    "one view twice": (lambda f: f.__setitem__("noise_1", f["noise_0"]), "got a link as 'noise_0'"),
    "other bytes of classes": (outside, "bytes of is_bonafide in the file itself, got a name of other files"),
    "references to regions": (regions, "expected utterance of text, got references or other objects"),
    "reference as attribute": (
        lambda f: f["clean/layer_05"].attrs.__setitem__("r", f["clean"].ref),
        "expected no attribute r of /clean/layer_05",
    ),
    "layer that no encoder has": (renumbered, "expected layers up to 200 in clean, got 201"),
    "shard without end": (spec('"shard": 4', f'"shard": {2**40}'), "at most 1,048,576 utterances in a shard, got 1,0"),
    "fact that is no number": (spec('"e": 1', '"e": NaN'), "expected the facts of an encoder in the spec"),
    "window that is none": (spec('"e": 1', '"window": [1]'), "expected the facts of an encoder in the spec"),
    "attributes": (lambda f: f["clean"].attrs.__setitem__("attributes", '{"a": 1}'), "expected the version of clean"),
    "deep attributes": (
        lambda f: f["clean"].attrs.__setitem__("attributes", "[" * 9_999 + "]" * 9_999),
        "nests more than 64 deep",
    ),
    "spec of numbers": (lambda f: f.attrs.__setitem__("spec", 7), "that `bonafide cache export` wrote, got another"),
    "counts that are none": (
        lambda f: f.attrs.__setitem__("spec", f.attrs["spec"].replace('"utterances": 10', '"utterances": true')),
        "wrote, got another spec",
    ),
    "storage that is none": (
        lambda f: f.attrs.__setitem__("spec", f.attrs["spec"].replace('"e": 1', '"e": 1, "storage": "object"')),
        "expected the facts of an encoder in the spec",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", LINKS)
def test_only_what_export_writes_is_taken_in(project: Project, kind: str) -> None:
    """And nothing is replaced before all of it was checked: the store lacks a shard that the file has."""
    change, message = LINKS[kind]
    run("export", "train", "train.h5")
    Store.open(project.store("train")).shard_path("clean/layer_02", 1).unlink()
    before = tree(project.root)
    with h5py.File("train.h5", "a") as file:
        change(file)
    with pytest.raises(InputError, match=message) as error:
        run("import", "train.h5")
    assert "view" in kind or "train.h5" in str(error.value)
    assert {path: data for path, data in tree(project.root).items() if not path.endswith(".lock")} == before


def test_an_import_needs_room_on_the_disk(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    run("export", "train", "train.h5")
    before = tree(project.root)
    full = type(shutil.disk_usage("."))(10**9, 10**9, 0)
    monkeypatch.setattr(hdf5.shutil, "disk_usage", lambda _: full)
    run("import", "train.h5")  # of what is all there nothing is written
    Store.open(project.store("train")).shard_path("clean/layer_02", 1).unlink()
    with pytest.raises(InputError, match=r"expected \d+ B of free disk and 67.1 MB to spare, got 0 B; free some"):
        run("import", "train.h5")
    (lost,) = before.keys() - tree(project.root).keys()
    assert "clean/layer_02/" in lost


def test_a_file_on_which_hdf5_never_ends_is_refused(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    run("export", "train", "train.h5")
    monkeypatch.setattr(hdf5_file, "PATIENCE_S", 0.2)
    monkeypatch.setattr(hdf5_file, "_check_links", lambda *_: time.sleep(60))
    with pytest.raises(InputError, match=r"train\.h5: expected an HDF5 file .*, got a damaged one; export it anew"):
        run("import", "train.h5")


def test_a_file_on_which_hdf5_crashes_is_refused(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    run("export", "train", "train.h5")
    monkeypatch.setattr(hdf5_file, "_check_links", lambda *_: os.kill(os.getpid(), 9))
    with pytest.raises(InputError, match=r"train\.h5: expected an HDF5 file .*, got a damaged one; export it anew"):
        run("import", "train.h5")


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


def test_the_spec_is_that_of_the_store(project: Project) -> None:
    run("export", "dev", "dev.h5")
    with h5py.File("dev.h5") as file:
        spec, name = hdf5_file.spec_of(Path("dev.h5"), file)
    assert (spec, name) == (Store.open(project.store("dev")).spec, "dev")
    assert isinstance(spec, Spec)


@pytest.mark.parametrize("size", [0, 100, *range(1_000, 70_000, 10_368)])
def test_an_export_onto_a_full_disk_is_an_error_and_leaves_the_older_file(project: Project, size: int) -> None:
    Path("train.h5").write_bytes(b"older")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        with pytest.raises(OSError, match="make room, or allow writing there, and run the same command again"):
            run("export", "train", "train.h5")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert Path("train.h5").read_bytes() == b"older"
