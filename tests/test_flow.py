"""The flow under DVC on a small corpus: everything once, nothing twice, and of a change only what it touches."""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
from ruamel.yaml import YAML

from pipeline.audio import decode
from pipeline.core import trial_table
from pipeline.sweep import starting
from pipeline.training.checkpoints import CheckpointFolder
from tests.places import SETTINGS
from tests.test_audio import write_bad
from tests.test_store import tree

ROOT = Path(__file__).parents[1]


class Project:
    """A copy of the project with a manifest corpus of noise, a tiny encoder and a grid of one backend, two losses."""

    def __init__(self, folder: Path, path: str) -> None:
        self.folder = folder
        self.env = {**os.environ, "PATH": path}
        for name in ("pipeline", "stages", "flow"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "dvc.lock"))
        for name in (
            "dvc.yaml",
            ".dvc/config",
            ".dvcignore",
            ".gitignore",
            "data/analysis/.gitkeep",
            "data/others/.gitkeep",
            "data/recordings/.gitkeep",
        ):
            (folder / name).parent.mkdir(exist_ok=True, parents=True)
            shutil.copy(ROOT / name, folder / name)
        self._corpus()
        self.set_params(_small(folder))
        self.run("git", "init", "-q")

    def _corpus(self) -> None:
        """48 utterances of noise below audio/, spoof of another colour, listed in a manifest."""
        (self.folder / "audio").mkdir()
        lines = ["utterance,path,label,split,attack,quality"]
        for i in range(48):
            spoof = i % 2
            samples = np.random.default_rng(i).normal(size=4_000)
            samples = np.convolve(samples, [1, -0.9 * spoof])[:4_000]
            soundfile.write(self.folder / "audio" / f"u{i}.flac", 0.1 * samples, 16_000)
            label, attack = ("spoof", "A1") if spoof else ("bonafide", "-")
            lines.append(f"u{i},u{i}.flac,{label},{'dev' if i >= 32 else 'train'},{attack},{1.5 + i % 3}")
        (self.folder / "mine.csv").write_text("\n".join(lines) + "\n")

    def params(self) -> dict:
        return YAML(typ="safe").load(self.folder / "params.yaml")

    def set_params(self, settings: dict) -> None:
        YAML(typ="safe").dump(settings, self.folder / "params.yaml")

    def run(self, *command: str, code: int = 0) -> str:
        """Run a command here; its output."""
        done = subprocess.run(command, cwd=self.folder, env=self.env, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def repro(self, *arguments: str) -> list[str]:
        """The stages that `dvc repro` ran, without the files of flow/ that they stand in."""
        return stages(self.run("dvc", "repro", *arguments))


def stages(said: str) -> list[str]:
    """The stages that ran, by what DVC said."""
    return re.findall(r"Running stage '(?:[^':]+:)?([^']+)'", said)


def _small(folder: Path) -> dict:
    settings = YAML(typ="safe").load(SETTINGS)
    corpus = {"corpus": "manifest", "protocol": "mine.csv", "root": str(folder / "audio"), "quality": "column"}
    settings["sets"] = {name: {**corpus, "split": name} for name in ("train", "dev")}
    settings["encoder"]["random"] = {
        "layers": 2, "width": 32, "heads": 2, "feedforward": 32, "conv_channels": 16, "seed": 1,
    }  # fmt: skip
    settings["extract"] |= {"layers": [1, 2], "window": {"samples": 4_000, "pad": "repeat"}, "shard": 20}
    settings["train"] |= {"epochs": 2}
    settings["layers"] = {"all": [1, 2], "last": [2]}
    settings["grid"] |= {"backend": ["linear"], "loss": ["aoc", "qamo"], "layers": ["all"], "seed": [1]}
    settings["evaluate"] = {"sets": ["dev"], "views": [], "finetuned": [], "bootstrap": 100, "asv": {}}
    settings["analyse"] |= {"backend": []}
    settings["report"] = {"sort_by": "dev"}
    return settings


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, warm_path: str) -> Project:
    """The project after its first `dvc repro`."""
    made = Project(tmp_path_factory.mktemp("project"), warm_path)
    ran = made.repro()
    sets = {f"{kind}@{name}" for kind in ("prepare", "extract", "select") for name in ("train", "dev")}
    assert set(ran) == {*names("aoc"), *names("qamo"), *sets, "encoder", "layers", "report"}
    return made


def names(loss: str, *, layers: str = "all", seed: int = 1) -> list[str]:
    """The stages of one cell up to the report, in order."""
    cell = f"linear-{loss}-{layers}-clean-{seed}"
    return [f"train@{cell}", f"score@{cell}-dev", f"evaluate@{cell}"]


def test_a_second_run_finds_nothing_to_do(project: Project) -> None:
    assert "Data and pipelines are up to date" in project.run("dvc", "repro")


def test_a_sweep_writes_the_files_and_locks_of_repro(project: Project, tmp_path: Path) -> None:
    """With one job both cells train in one process."""
    copy = tmp_path / "copy"
    shutil.copytree(project.folder, copy, ignore=shutil.ignore_patterns("data", "cache", "tmp", "dvc.lock"))
    (copy / "data/recordings").mkdir(parents=True)
    (copy / "data/others").mkdir()
    (copy / "data/analysis").mkdir()
    for kept in ("data/analysis/.gitkeep", "data/others/.gitkeep", "data/recordings/.gitkeep"):
        shutil.copy(project.folder / kept, copy / kept)
    swept = subprocess.run(
        ["bonafide", "sweep", "-j", "1"], cwd=copy, env=project.env, capture_output=True, text=True, check=False
    )
    assert swept.returncode == 0, swept.stderr
    assert "15 stages ran, 0 were restored" in swept.stdout
    ours, theirs = ({path: data for path, data in tree(folder / "data").items() if not timed(path)}
                    for folder in (copy, project.folder))  # fmt: skip
    assert ours == theirs
    assert any(path.startswith("runs/") for path in ours)
    for file in ("dvc.lock", "flow/score/dvc.lock", "flow/evaluate/dvc.lock"):
        one, other = (YAML(typ="safe").load(folder / file) for folder in (copy, project.folder))
        assert list(one["stages"]) == list(other["stages"])
        for lock in (one, other):
            lock["stages"].pop("report", None)  # it holds seconds
        assert one == other
    assert (
        "Data and pipelines are up to date"
        in subprocess.run(
            ["dvc", "status"], cwd=copy, env=project.env, capture_output=True, text=True, check=True
        ).stdout
    )


def test_halving_trains_the_better_loss_to_the_same_bits_and_leaves_the_other_to_dvc(
    project: Project, tmp_path: Path
) -> None:
    """From the end of the first epoch both go on: the better one at once, the other one by the `dvc repro` after it."""
    there, copy = project.folder, Project.__new__(Project)
    copy.folder, copy.env = tmp_path / "copy", project.env
    shutil.copytree(there, copy.folder)
    for path in ("data/runs", "data/metrics", "data/curves", ".dvc/cache/runs"):
        shutil.rmtree(copy.folder / path)
    lock = YAML(typ="safe").load(copy.folder / "dvc.lock")
    lock["stages"] = {name: own for name, own in lock["stages"].items() if not name.startswith(("train@", "report"))}
    YAML(typ="safe").dump(lock, copy.folder / "dvc.lock")
    said = copy.run("bonafide", "sweep", "--halving", "1")
    assert "after epoch 1, 1 of 2 systems dropped" in said
    rung = json.loads((copy.folder / "data/curves/halving.json").read_text())["rungs"][0]
    lost = rung["dropped"][0]["system"]
    kept = ({"linear-aoc", "linear-qamo"} - {lost}).pop()
    curves = {
        name: (there / f"data/curves/{name}-all-clean-1.csv").read_text().splitlines()[1] for name in (kept, lost)
    }
    (eer, loss), (lost_eer, lost_loss) = (
        (line.split(",")[4], line.split(",")[2]) for line in (curves[kept], curves[lost])
    )
    assert (float(eer), float(loss)) <= (float(lost_eer), float(lost_loss))
    assert tree(copy.folder / f"data/runs/{kept}-all-clean-1") == tree(there / f"data/runs/{kept}-all-clean-1")
    assert not (copy.folder / f"data/runs/{lost}-all-clean-1").exists()
    text, page = ((copy.folder / "data/report" / name).read_text() for name in ("leaderboard.txt", "index.html"))
    assert all("stopped early by their dev EER, without a row: 1 after epoch 1;" in found for found in (text, page))
    assert f"{lost}-all-clean-1 dropped dropped dropped" in " ".join(copy.run("bonafide", "status").split())
    changed = set(json.loads(copy.run("dvc", "status", "--json")))
    assert {name.rpartition(":")[2] for name in changed} == set(names(lost.removeprefix("linear-")))
    # The scores are those that DVC has of the very bits of this run, so that it runs no stage for them.
    assert copy.repro() == [f"train@{lost}-all-clean-1", "report"]
    assert tree(copy.folder / f"data/runs/{lost}-all-clean-1") == tree(there / f"data/runs/{lost}-all-clean-1")
    assert "stopped early" not in (copy.folder / "data/report/leaderboard.txt").read_text()


@pytest.mark.usefixtures("warm_processes")
def test_of_trainings_in_one_process_one_that_fails_fails_alone(project: Project, tmp_path: Path) -> None:
    def command(loss: str, layers: str) -> str:
        files = ("run", "metrics", "curves", "dev-scores", "seconds")
        return " ".join(
            ["python -m stages.train --backend linear --views clean --seed 1 --trials data/trials"]
            + [f"--features data/selected --loss {loss} --layers {layers}"]
            + [f"--{name} {tmp_path / layers / loss}.{name}" for name in files]
        )

    logs = [tmp_path / f"{number}.txt" for number in range(4)]
    commands = [command("aoc", "all"), command("qamo", "nope"), command("nope", "all"), command("qamo", "all")]
    work = starting.start_together(commands, logs, name="train@a", root=project.folder)
    work.process.join(60)
    said = [log.read_text() for log in logs]
    assert [work.code(number) for number in range(4)] == [0, 2, 2, 0], said
    assert "expected one of all, last, got 'nope'" in said[1]
    assert said[1].startswith("error: ")
    assert said[2].startswith("error: ")
    for loss, text in (("aoc", said[0]), ("qamo", said[3])):
        assert re.fullmatch(rf"{loss}\.run: 2 epochs in .* s, dev EER .* %\n(! .*\n)*", text)
        name = f"linear-{loss}-all-clean-1"
        assert (tmp_path / f"all/{loss}.metrics").read_bytes() == (
            project.folder / f"data/metrics/{name}.json"
        ).read_bytes()
        assert tree(tmp_path / f"all/{loss}.run") == tree(project.folder / f"data/runs/{name}")


def timed(path: str) -> bool:
    """Whether a file below data/ has seconds in it, or names such a file."""
    return path.startswith(("seconds/", "report/"))


def test_the_leaderboard_and_the_report_are_there(project: Project) -> None:
    text = (project.folder / "data/report/leaderboard.txt").read_text()
    metrics = json.loads((project.folder / "data/metrics/linear-aoc-all-clean-1/dev.json").read_text())
    assert f"{metrics['eer']:.2f}" in text
    trained = json.loads((project.folder / "data/metrics/linear-aoc-all-clean-1.json").read_text())
    assert trained["dev_threshold"] == metrics["threshold"]
    assert trained["dev_eer"] == metrics["eer"]  # the score that selects is the score that is deployed
    assert (metrics["bonafide"], metrics["spoof"], metrics["attacks"]["A1"]["spoof"]) == (8, 8, 8)
    assert "linear-qamo" in (project.folder / "data/report/index.html").read_text()


def stale(project: Project, *edited: str) -> set[str]:
    """The stages that DVC would run after an edit of some files, before what follows from their outputs."""
    before = {name: (project.folder / name).read_text() for name in edited}
    for name, text in before.items():
        (project.folder / name).write_text(f"{text}\n# edited\n")
    found = json.loads(project.run("dvc", "status", "--json").splitlines()[-1])
    for name, text in before.items():
        (project.folder / name).write_text(text)
    return {name.rpartition(":")[2] for name in found}


def test_an_edit_makes_stale_what_uses_it_and_nothing_else(project: Project) -> None:
    cells = [f"linear-{loss}-all-clean-1" for loss in ("aoc", "qamo")]
    evaluated = {f"evaluate@{cell}" for cell in cells}
    report = "pipeline/report/page/page.py", "pipeline/report/leaderboard.py"
    metrics = "pipeline/metrics/dcf.py", "pipeline/metrics/bootstrap.py"
    other = "pipeline/backends/asp.py"  # not in this grid
    assert stale(project, other, *report, *metrics) == {"report", *evaluated}
    assert stale(project, "pipeline/losses/qamo.py") == {f"train@{cells[1]}"}
    assert stale(project, "pipeline/backends/linear.py") == {
        name for cell in cells for name in (f"train@{cell}", f"score@{cell}-dev")
    }


def test_a_changed_loss_and_a_new_one_rerun_their_cells_alone(project: Project) -> None:
    """A parameter of one loss changes, a line of another; a third is one file and its name."""
    settings = project.params()
    settings["losses"]["qamo"]["quality_weight"] = 0.3
    project.set_params(settings)
    assert stale(project) == {names("qamo")[0]}
    copy = (project.folder / "pipeline/losses/cross_entropy.py").read_text()
    (project.folder / "pipeline/losses/mine.py").write_text(copy)
    settings["losses"]["mine"] = {}
    settings["grid"]["loss"].append("mine")
    project.set_params(settings)
    path = project.folder / "pipeline/losses/aoc.py"
    path.write_text(path.read_text() + "\n# edited\n")
    ran = set(project.repro())
    assert {*names("qamo"), *names("mine"), "report", names("aoc")[0]} <= ran
    assert ran <= {*names("qamo"), *names("mine"), *names("aoc"), "report"}  # the same weights of aoc may come out
    assert "linear-mine" in (project.folder / "data/report/leaderboard.txt").read_text()


def test_one_stage_of_one_cell_alone_gives_the_same_bits(project: Project) -> None:
    before = tree(project.folder / "data/runs/linear-qamo-all-clean-1")
    unfinished = project.folder / "data/runs/linear-qamo-all-clean-1.checkpoint"
    CheckpointFolder(unfinished, "of other parameters").write({}, {}, {})
    assert project.repro("-s", "-f", names("qamo")[0]) == names("qamo")[:1]
    assert tree(project.folder / "data/runs/linear-qamo-all-clean-1") == before
    assert not unfinished.exists()


def test_bad_input_ends_a_stage_with_one_message_and_code_2(project: Project) -> None:
    settings = project.params()
    settings["train"]["epoch"] = settings["train"].pop("epochs")
    YAML(typ="safe").dump(settings, project.folder / "bad.yaml")
    arguments = ["--set", "train", "--params", "bad.yaml", "--trials", "x.csv"]
    said = project.run("python", "-m", "stages.prepare", *arguments, code=2)
    assert re.search(r"^error: bad\.yaml:\d+: train\.epochs: missing\nbad\.yaml:\d+: train\.epoch: unknown", said)
    assert "Traceback" not in said


TRAIN = (
    "train --backend linear --loss aoc --layers all --views clean --seed 1 --trials data/trials --features {features} "
    "--run r --metrics m --curves c --dev-scores d --seconds s"
)
EXTRACT = "extract --set {set} --trials data/trials/dev.csv --card {card} --receipt r.json"
EVALUATE = (
    "evaluate --scores {scores} --trials data/trials --training {training} "
    "--dev-scores data/dev_scores/linear-aoc-all-clean-1.txt --metrics m --plots p"
)
SCORE = (
    "score --set {set} --run {run} --trials data/trials/dev.csv --features data/features/dev.json --scores s.txt "
    "--views v"
)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (EXTRACT.format(set="nope", card="data/encoder.json"), "sets: expected one of dev, train, got 'nope'"),
        (
            EXTRACT.format(set="dev", card="none.json"),
            "no card of an encoder there; run `dvc repro encoder`",
        ),
        (EXTRACT.format(set="dev", card="other.json"), "other.json: expected a card of an encoder, got JSON without"),
        (
            EXTRACT.format(set="dev", card="README"),
            "README: expected a card of an encoder, got something",
        ),
        (TRAIN.format(features="none"), "none/train.json: no receipt there; run `dvc repro -f extract`"),
        (TRAIN.format(features="mixed"), "run `dvc repro extract`"),
        (SCORE.format(set="dev", run="none"), "none/run.json: no trained run there; run `dvc repro`"),
        (SCORE.format(set="nope", run="data/runs/linear-aoc-all-clean-1"), "expected one of dev, train, got 'nope'"),
        (EVALUATE.format(scores="none", training="data/metrics/linear-aoc-all-clean-1.json"), "none/dev.txt"),
        (
            EVALUATE.format(scores="data/scores/linear-aoc-all-clean-1", training="other.json"),
            "run `dvc repro -f train`",
        ),
        (
            "report --params none.yaml --metrics data/metrics --plots p --curves c --seconds s --out o --summary m",
            "none.yaml",
        ),
        ("encoder --trials data/trials --card README/card.json", "README"),
    ],
)
def test_a_stage_that_cannot_go_on_says_why_and_ends_with_2(project: Project, command: str, said: str) -> None:
    (project.folder / "other.json").write_text("{}")
    (project.folder / "README").write_text("text")
    (project.folder / "mixed").mkdir(exist_ok=True)
    shutil.copy(project.folder / "data/features/train.json", project.folder / "mixed/dev.json")
    shutil.copy(project.folder / "data/features/dev.json", project.folder / "mixed/train.json")
    output = project.run("python", "-m", *f"stages.{command}".split(), code=2)
    assert output.count("error: ") == 1
    assert said in output
    assert "Traceback" not in output


@pytest.mark.parametrize(("kind", "said"), [("silent", "silent"), ("nan", "NaN"), ("cut flac", "breaks off")])
def test_audio_that_only_decoding_shows_to_be_bad_ends_extraction_with_2(
    project: Project, kind: str, said: str
) -> None:
    table = trial_table.read(project.folder / "data/trials/dev.csv")
    good = (project.folder / "audio/u33.flac").read_bytes()
    write_bad(kind, project.folder / "audio/u33.flac")
    damaged = decode.digest((project.folder / "audio/u33.flac").read_bytes())
    content = np.where(table.utterance == "u33", damaged, table.content)
    (project.folder / "bad.csv").write_text(trial_table.to_csv(dataclasses.replace(table, content=content)))
    command = EXTRACT.format(set="dev", card="data/encoder.json").replace("data/trials/dev.csv", "bad.csv")
    output = project.run("python", "-m", *f"stages.{command}".split(), code=2)
    (project.folder / "audio/u33.flac").write_bytes(good)
    assert re.search(
        r"error: 1 of \d+ units cannot be made, the others are complete; .*:\n  shard \d+ of clean: ", output
    )
    assert "1 of 16 utterances cannot be used:\n  utterance u33: " in output
    assert said in output
    assert "Traceback" not in output


def test_verify_finds_a_flipped_byte_below_a_receipt(project: Project) -> None:
    command = ["bonafide", "cache", "verify"]
    assert "data/features/dev.json: 5 shard files, all as they were written" in project.run(*command)
    shard = next(project.folder.glob("data/cache/*/dev-*.zarr/clean/layer_02/c/0/0/0"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:100] + bytes([whole[100] ^ 4]) + whole[101:])
    said = project.run(*command, code=2)
    assert "error: 1 of 5 shard files are damaged" in said
    assert str(shard.relative_to(project.folder)) in said
    shard.unlink()  # the remedy that the message names
    project.repro("-f", "-s", "extract@dev")
    assert shard.read_bytes() == whole
    assert project.repro() == []


def test_experiments_in_a_copy_of_the_project_use_its_stores(project: Project) -> None:
    settings = project.params()
    settings["grid"]["loss"] = ["aoc"]
    project.set_params(settings)
    project.repro()
    project.run("git", "config", "user.email", "nobody@example.org")
    project.run("git", "config", "user.name", "nobody")
    project.run("git", "add", "--all")
    project.run("git", "commit", "-qm", "state")
    stores = tree(project.folder / "data/cache")
    cell = [*names("aoc"), "report"]
    said = project.run("dvc", "exp", "run", "--temp", "-S", "train.epochs=4", "--name", "temporary")
    assert stages(said) == cell
    shown = json.loads(project.run("dvc", "exp", "show", "--json"))
    named = {exp["name"]: exp["revs"][0] for rev in shown for exp in rev.get("experiments") or []}
    found = named["temporary"]["data"]
    assert found["params"]["params.yaml"]["data"]["train"]["epochs"] == 4
    summary = found["metrics"]["data/summary.json"]["data"]
    assert summary["chosen"]["system"] == "linear-aoc"
    assert summary["chosen"]["dev_eer"] == summary["chosen"]["eer"]["dev"]  # evaluated on dev here
    assert tree(project.folder / "data/cache") == stores


def test_a_lost_store_comes_back_with_the_command_that_the_error_names(project: Project) -> None:
    project.repro()
    shutil.rmtree(project.folder / "data/cache")
    command = TRAIN.format(features="data/features")
    said = project.run("python", "-m", *f"stages.{command}".split(), code=2)
    assert "no feature store there; run `dvc repro -f extract`" in said
    assert "Traceback" not in said
    receipts = {path: path.read_bytes() for path in (project.folder / "data/features").iterdir()}
    assert set(project.repro("-f", "-s", "extract")) == {"extract@train", "extract@dev"}
    assert {path: path.read_bytes() for path in (project.folder / "data/features").iterdir()} == receipts
    assert project.repro() == []


def test_a_layer_a_seed_and_choices_of_layers_more_run_the_missing_cells_alone(project: Project) -> None:
    """A layer more is extracted and probed, and reruns no cell that does not read it.

    Of the grid with all of these DVC names the missing cells; those of two of the three choices run.
    """
    settings = project.params()
    settings["grid"]["loss"] = ["aoc"]
    settings["extract"]["layers"] = [1, 2, "final"]
    project.set_params(settings)
    assert stale(project) == {"extract@train", "extract@dev"}
    settings["layers"]["normed"] = ["final"]
    settings["grid"] |= {"layers": ["all", "last", "normed"], "seed": [1, 2]}
    project.set_params(settings)

    def missing(*choices: str) -> set[str]:
        cells = {(layers, seed) for layers in choices for seed in (1, 2)} - {("all", 1)}
        return {name for layers, seed in cells for name in names("aoc", layers=layers, seed=seed)}

    assert {name for name in stale(project) if "@linear" in name} == missing("all", "last", "normed")
    settings["grid"]["layers"] = ["last", "normed"]
    project.set_params(settings)
    sets = {f"{kind}@{name}" for kind in ("extract", "select") for name in ("train", "dev")}
    assert set(project.repro()) == {*sets, *missing("last", "normed"), "layers", "report"}
    card = json.loads((project.folder / "data/runs/linear-aoc-last-clean-2/run.json").read_text())
    assert (card["kind"]["layers"], card["seed"]) == ([2], 2)
    card = json.loads((project.folder / "data/runs/linear-aoc-normed-clean-1/run.json").read_text())
    assert card["kind"]["layers"] == ["final"]
    shown = json.loads((project.folder / "data/summary.json").read_text())["eer"]
    eers = [
        json.loads((project.folder / f"data/metrics/linear-aoc-last-clean-{seed}/dev.json").read_text())["eer"]
        for seed in (1, 2)
    ]
    assert shown["linear-aoc-last"] == pytest.approx(sum(eers) / 2, abs=1e-4)


def test_an_analysed_run_has_embeddings_further_scores_and_a_map(project: Project) -> None:
    """And a set more to evaluate on trains nothing; extraction looks whether that set and the others are complete."""
    settings = project.params()
    settings["sets"]["more"] = settings["sets"]["dev"]
    settings["evaluate"]["sets"] = ["dev", "more"]
    settings["grid"] |= {"layers": ["all"], "seed": [1]}
    settings["analyse"] |= {
        "backend": ["linear"],
        "loss": ["aoc"],
        "scorings": ["knn"],
        "points": 100,
        "projections": ["pca"],
    }
    project.set_params(settings)
    run = "linear-aoc-all-clean-1"
    evaluated = {"prepare@more", "extract@more", "select@more", "layers", f"score@{run}-more", f"evaluate@{run}"}
    analysed = {f"embed@{run}", f"rescore@{run}-knn", f"evaluate_rescored@{run}-knn", f"analyse@{run}", "report"}
    looked = {f"{kind}@{name}" for kind in ("extract", "select") for name in ("train", "dev")}
    assert evaluated | analysed <= set(project.repro()) <= evaluated | analysed | looked
    assert project.repro() == []
    one, other = (
        json.loads((project.folder / f"data/metrics/{run}/{name}.json").read_text()) for name in ("dev", "more")
    )
    assert one["eer"] == other["eer"]
    board = (project.folder / "data/report/leaderboard.txt").read_text()
    metrics = json.loads((project.folder / f"data/metrics/{run}-knn/dev.json").read_text())
    row = next(line for line in board.splitlines() if "linear-aoc-knn" in line)
    assert f"{metrics['eer']:.2f}" in row
    found = json.loads((project.folder / f"data/analysis/{run}/analysis.json").read_text())
    assert found["sets"] == ["train", "dev", "more"]
    assert f"Centroids of {run}" in (project.folder / "data/report/index.html").read_text()
    said = project.run("bonafide", "detect", "audio", "--run", run, "--explain", "--json").splitlines()
    found = [json.loads(line) for line in said if not line.startswith("warning: ")]  # of the evaluation, on stderr
    scored = {line["file"]: line["score"] for line in found}
    assert len(scored) == 48
    flow = (project.folder / f"data/scores/{run}/dev.txt").read_text().split("\n")
    assert f"{flow[0].split()[0]}.flac" in {Path(file).name for file in scored}


def test_two_sets_are_trained_on_together_in_augmented_views(project: Project) -> None:
    settings = project.params()
    manifest = (project.folder / "mine.csv").read_text().splitlines()
    part = [line.replace(",train,", ",more,") if line.startswith(("u2", "u30", "u31")) else line for line in manifest]
    (project.folder / "mine.csv").write_text("\n".join(part) + "\n")
    settings["sets"]["more"] = {**settings["sets"]["train"], "split": "more"}
    settings["pools"] = {"both": ["train", "more"]}
    settings["train"]["set"] = "both"
    settings["evaluate"]["sets"] = ["dev"]
    settings["analyse"]["backend"] = []
    settings["extract"]["views"] = ["rawboost4_0"]
    settings["evaluate"]["views"] = ["noise_0", "recorded_babble10_0"]
    listing = project.folder / "data/recordings/babble.txt"
    sounds = sorted(project.folder.glob("audio/*.flac"))[:3]
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  audio/{path.name}\n" for path in sounds]
    listing.write_text("".join(lines))
    settings["views"]["boosted"] = {"draw": ["rawboost4_0"], "probability": 0.4}
    settings["grid"] |= {"loss": ["aoc"], "layers": ["all"], "views": ["boosted"]}
    project.set_params(settings)
    ran = project.repro()
    assert {"extract@train", "extract@more", "pool@both", "train@linear-aoc-all-boosted-1", "report"} <= set(ran)
    receipts = {
        name: json.loads((project.folder / f"data/features/{name}.json").read_text()) for name in ("more", "dev")
    }
    assert {name: receipt["views"] for name, receipt in receipts.items()} == {
        "more": ["clean", "rawboost4_0"],
        "dev": ["clean", "noise_0", "recorded_babble10_0"],
    }
    assert list(receipts["dev"]["recordings"]) == ["recorded_babble10_0"]
    metrics = json.loads((project.folder / "data/metrics/linear-aoc-all-boosted-1/dev.json").read_text())
    assert list(metrics["views"]) == ["noise_0", "recorded_babble10_0"]
    assert "noise_0" in (project.folder / "data/report/metrics.csv").read_text()
    card = json.loads((project.folder / "data/runs/linear-aoc-all-boosted-1/run.json").read_text())
    assert card["views"] == {"draw": ["rawboost4_0"], "probability": 0.4}
    assert project.repro() == []
    listing.write_text("".join(lines[1:]))
    assert {"extract@train", "extract@more", "extract@dev"} <= stale(project)
    listing.write_text("".join(lines))
    assert stale(project) == set()


def test_the_fine_tuned_run_is_scored_and_evaluated_like_those_of_the_grid(project: Project) -> None:
    settings = project.params()
    del settings["sets"]["more"]
    settings |= {"pools": {}, "train": settings["train"] | {"set": "train"}}
    settings["extract"]["views"] = []
    settings["grid"]["views"] = ["clean"]
    del settings["views"]["boosted"]
    settings["encoder"]["finetune"] |= {"on": True, "backend": "linear", "layers": [1, 2], "epochs": 1}
    settings["evaluate"]["finetuned"] = ["tuned"]
    project.set_params(settings)
    ran = project.repro("flow/evaluate/dvc.yaml:evaluate_finetuned")
    own = ["finetuned@tuned", "evaluate_finetuned@tuned"]
    assert [stage for stage in ran if "tuned" in stage] == own
    assert {"encoder", "extract@dev"} <= set(ran)
    assert {stage.partition("@")[0] for stage in set(ran) - set(own)} <= {"encoder", "extract", "pool", "select"}
    trained, metrics = (
        json.loads((project.folder / f"data/metrics/{name}.json").read_text()) for name in ("tuned", "tuned/dev")
    )
    assert (trained["dev_eer"], trained["dev_threshold"]) == (metrics["eer"], metrics["threshold"])
    ran = project.repro("flow/analyse/dvc.yaml:analyse_finetuned")
    assert [stage for stage in ran if "tuned@" in stage] == ["embed_finetuned@tuned", "analyse_finetuned@tuned"]
    project.repro("-s", "report")  # the grid's metrics are those of the frozen encoder
    seconds = json.loads((project.folder / "data/seconds/tuned.json").read_text())
    assert seconds["weights"] == trained["weights"]
    row = next(
        line for line in (project.folder / "data/report/leaderboard.txt").read_text().splitlines() if "‡" in line
    )
    assert row.split()[1] == "tuned"
    assert f"{metrics['eer']:.2f}" in row
    assert f"{trained['parameters']:,}" in row
    assert f"{seconds['seconds']:.1f}" in row.split()
    assert "tuned" in json.loads((project.folder / "data/summary.json").read_text())["eer"]
    assert project.repro("flow/evaluate/dvc.yaml:evaluate_finetuned") == []
