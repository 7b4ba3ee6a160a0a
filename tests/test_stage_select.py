"""The stage `select`: receipts of just the layers and views of a choice, which one more layer or view leaves alone."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML

from pipeline.core import trial_table
from pipeline.core.contracts import CLEAN
from pipeline.core.errors import InputError
from pipeline.extraction import planning
from pipeline.features import receipt_files
from pipeline.features.dataset import open_set
from pipeline.features.receipt_files import open_receipts, read_receipts
from pipeline.features.store import Store
from stages import select
from tests.test_cache import Project, project
from tests.test_gather import VIEWS

__all__ = ["project"]  # a fixture
SELECTED, ANALYSED = Path("data/selected"), Path("data/analysed")


@pytest.fixture(autouse=True)
def choices(project: Project) -> None:
    """Three choices of layers and two of views."""
    settings = YAML(typ="safe").load(project.folder / "params.yaml")
    settings["extract"] |= {"layers": [2, 5, "final"], "views": list(VIEWS)}
    settings["layers"] = {"all": [2, 5, "final"], "turned": ["final", 2]}
    settings["views"] = {"clean": {"draw": [], "probability": 0.0}, "noisy": {"draw": ["noise_0"], "probability": 0.4}}
    settings["grid"] |= {"layers": ["all", "turned"], "views": ["clean", "noisy"]}
    settings["analyse"] |= {"layers": ["turned"], "views": ["noisy"]}
    YAML(typ="safe").dump(settings, project.folder / "params.yaml")


def run(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The receipts of the choices; those of the analysed ones lie in ANALYSED."""
    words = f"--features data/features/{name}.json --selected {SELECTED}/{name} --analysed {ANALYSED}/{name}"
    monkeypatch.setattr("sys.argv", ["select", *words.split()])
    select.main()
    return {path.stem: path.read_bytes() for path in sorted((SELECTED / name).iterdir())}


def change(project: Project, section: str, **entries: object) -> None:
    """Other parameters."""
    settings = YAML(typ="safe").load(project.folder / "params.yaml")
    settings[section] |= entries
    YAML(typ="safe").dump(settings, project.folder / "params.yaml")


def test_a_choice_has_its_own_layers_views_and_digest(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {name: json.loads(data) for name, data in run("train", monkeypatch).items()}
    store, whole = Store.open(project.store("train")), json.loads((project.receipts / "train.json").read_text())
    expected = {
        "all-clean": ([2, 5, "final"], [CLEAN]),
        "all-noisy": ([2, 5, "final"], [CLEAN, "noise_0"]),
        "turned-clean": (["final", 2], [CLEAN]),
        "turned-noisy": (["final", 2], [CLEAN, "noise_0"]),
    }
    assert {name: (one["layers"], one["views"]) for name, one in found.items()} == expected
    for name, (layers, views) in expected.items():
        assert found[name]["digest"] == store.digest(views, layers)
        assert found[name]["bytes"] == store.spec.bytes_of(len(layers)) * len(views)
        assert {key for key in found[name] if found[name][key] != whole.get(key)} <= {
            "layers",
            "views",
            "bytes",
            "digest",
        }
    assert len({one["digest"] for one in found.values()}) == 4


def test_an_evaluation_set_has_the_views_in_which_runs_score_it(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, also where training draws such a view; analysed runs read the clean one and what training draws."""
    change(project, "evaluate", sets=["dev"], views=["noise_0"])
    change(project, "report", sort_by="dev")
    found = {name: json.loads(data)["views"] for name, data in run("dev", monkeypatch).items()}
    scored = [CLEAN, "noise_0"]
    assert found == {"all-clean": scored, "all-noisy": scored, "turned-clean": scored, "turned-noisy": scored}
    change(project, "analyse", views=["clean"])
    run("dev", monkeypatch)
    assert json.loads((ANALYSED / "dev/turned-clean.json").read_text())["views"] == [CLEAN]


def test_a_run_reads_by_it_what_it_reads_by_the_whole_receipt(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("train", monkeypatch)
    table = trial_table.read(Path("data/trials/train.csv"))
    path = receipt_files.of_choice(SELECTED, "train", "turned-noisy")
    assert path == SELECTED / "train/turned-noisy.json"
    assert list(read_receipts(path)) == ["train"]
    whole = receipt_files.of_choice(project.receipts, "train", "turned-noisy")
    assert whole == project.receipts / "train.json"
    one, other = (
        open_set(each, table, root=project.root, reads="frames", layers=("final", 2), views=("noise_0",))
        for each in (path, whole)
    )
    assert (one.name, one.kind) == (other.name, other.kind) == ("train", other.kind)
    assert one.digest == json.loads(path.read_text())["digest"]
    rows = np.arange(20)
    np.testing.assert_array_equal(one.features(rows)[0].numpy(), other.features(rows)[0].numpy())
    with pytest.raises(InputError, match=r"expected the layers 5, the features have final, 2; add them"):
        open_set(path, table, root=project.root, reads="frames", layers=(5,))


def test_one_more_layer_and_view_leave_the_choices_without_them_byte_for_byte(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, store = project.receipts / "train.json", Store.open(project.store("train"))

    def extracted(views: tuple[str, ...], layers: tuple[int | str, ...]) -> None:
        path.write_text(json.dumps(planning.receipt(store, set_name="train", names=views, layers=layers)))

    extracted((CLEAN, "noise_0"), (2, 5, "final"))
    before = run("train", monkeypatch)
    one = project.sets["train"]
    store.add_arrays(CLEAN, (3,))
    store.add_arrays("noise_0", (3,))
    for view in (CLEAN, "noise_0"):
        for shard in range(store.spec.shards):
            rows = slice(store.spec.rows(shard).start, store.spec.rows(shard).stop)
            counts = np.arange(10, dtype=np.int32)[rows] % 5 + 1
            store.write(view, shard, {3: one.frames[1, rows, 2]}, {3: one.pooled[1, rows, 2]}, counts)
    extracted((CLEAN, "noise_0"), (2, 3, 5, "final"))
    assert run("train", monkeypatch) == before
    extracted((CLEAN, *VIEWS), (2, 5, "final"))
    assert run("train", monkeypatch) == before


def test_what_is_imported_is_named_in_the_choices_that_read_it(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = project.receipts / "train.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"imported": {CLEAN: [5], "noise_0": [2]}}))
    found = {name: json.loads(data).get("imported") for name, data in run("train", monkeypatch).items()}
    assert found == {
        "all-clean": {CLEAN: [5]},
        "all-noisy": {CLEAN: [5], "noise_0": [2]},
        "turned-clean": None,
        "turned-noisy": {"noise_0": [2]},
    }


def test_a_pool_has_the_choice_of_each_of_its_sets(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    receipts = {name: json.loads((project.receipts / f"{name}.json").read_text()) for name in ("train", "dev")}
    (project.receipts / "both.json").write_text(json.dumps({"pool": receipts}))
    run("both", monkeypatch)
    found = open_receipts(SELECTED / "both/turned-noisy.json", root=project.root)
    assert {name: (one["layers"], one["views"]) for name, (_, one) in found.items()} == {
        name: (["final", 2], [CLEAN, "noise_0"]) for name in ("train", "dev")
    }


def test_a_layer_that_is_not_extracted_is_told_with_the_remedy(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, store = project.receipts / "train.json", Store.open(project.store("train"))
    path.write_text(json.dumps(planning.receipt(store, set_name="train", names=(CLEAN,), layers=(2, 5))))
    with pytest.raises(InputError, match=r"expected the layers final, the features have 2, 5; add them to extract\.la"):
        run("train", monkeypatch)
    assert sys.argv[0] == "select"


def test_analysed_runs_have_receipts_that_no_other_choice_changes(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run("train", monkeypatch)
    assert [path.name for path in (ANALYSED / "train").iterdir()] == ["turned-noisy.json"]
    assert (ANALYSED / "train/turned-noisy.json").read_bytes() == found["turned-noisy"]
    change(project, "layers", five=[5])
    change(project, "grid", layers=["all", "five", "turned"])
    assert len(run("train", monkeypatch)) == 6
    assert [path.name for path in (ANALYSED / "train").iterdir()] == ["turned-noisy.json"]
    assert (ANALYSED / "train/turned-noisy.json").read_bytes() == found["turned-noisy"]


def test_the_fine_tuned_run_has_its_own(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = YAML(typ="safe").load(project.folder / "params.yaml")
    change(project, "encoder", finetune=settings["encoder"]["finetune"] | {"on": True, "layers": [5, 2]})
    change(project, "evaluate", finetuned=["mine"])
    change(project, "analyse", layers=[])
    run("train", monkeypatch)
    path = receipt_files.of_choice(ANALYSED, "train", receipt_files.FINETUNED)
    assert list((ANALYSED / "train").iterdir()) == [path]
    assert list(read_receipts(path)) == ["train"]
    found, store = json.loads(path.read_text()), Store.open(project.store("train"))
    assert (found["layers"], found["views"], found["digest"]) == ([5, 2], [CLEAN], store.digest([CLEAN], [5, 2]))
