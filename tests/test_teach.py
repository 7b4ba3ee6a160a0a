"""`bonafide teach`: scores against a naive loop, what detection makes of a taught package, undoing, what is refused."""

from __future__ import annotations

import contextlib
import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from dvc.repo import Repo
from numpy.typing import NDArray

from pipeline import commands, detect
from pipeline.core.errors import InputError
from pipeline.detect import assembly, recalibration, teaching
from pipeline.metrics.eer import eer_of
from tests import systems
from tests.systems import FRAMES, POOLED

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:_NoneStep:DeprecationWarning"),  # of a library that DVC uses
]
ARRAY = f"embeddings/{POOLED}/train/embeddings.npy"


def clips(folder: str, *, seed: int, count: int = 6) -> None:
    """Pink-like noise, which no set has."""
    Path(folder).mkdir()
    for i in range(count):
        rng = np.random.default_rng((seed, i))
        samples = np.convolve(rng.normal(size=3_200), np.ones(4 + seed))
        soundfile.write(f"{folder}/{i}.flac", 0.3 * samples / np.abs(samples).max(), 16_000)


def teach(run: str, *arguments: str) -> None:
    commands.dispatch(["teach", run, *arguments])


def taught(run: str, folder: str, name: str, out: str, label: str = "spoof") -> None:
    teach(run, folder, "--label", label, "--name", name, "--out", out)


@pytest.fixture(scope="module")
def lesson(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with two folders of clips; `one` was taught the first, `both` the second as well."""
    folder = tmp_path_factory.mktemp("lesson") / "project"
    shutil.copytree(project, folder)
    with contextlib.chdir(folder):
        clips("a", seed=1)
        clips("b", seed=2)
        taught(POOLED, "a", "acme-v3", "one")
        taught("one", "b", "other", "both")
    return folder


def naive(queries: NDArray[np.float32], folder: Path) -> list[float]:
    """The difference of the mean distances to the nearest of each class, one query after another."""
    known = np.load(folder / ARRAY).astype(float)
    known /= np.linalg.norm(known, axis=1, keepdims=True)
    rows = list(csv.DictReader((folder / "trials/train.csv").read_text().splitlines()))
    found = []
    for query in queries.astype(float):
        away = np.sqrt(((query / np.linalg.norm(query) - known) ** 2).sum(axis=1))
        means = {
            label: np.sort([d for d, row in zip(away, rows, strict=True) if row["label"] == label])[:3].mean()
            for label in ("spoof", "bonafide")
        }
        found.append(float(means["spoof"] - means["bonafide"]))
    return found


def test_scores_are_those_of_a_naive_loop(lesson: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(lesson)
    queries = np.load(f"data/embeddings/{POOLED}/eval/embeddings.npy")
    got = list(detect.load("one", windows="first").scores(systems.audio("eval")))
    assert got == pytest.approx(naive(queries, Path("one")), abs=1e-4)
    dev = np.array(naive(np.load(f"data/embeddings/{POOLED}/dev/embeddings.npy"), Path("one")))
    assert detect.load("one").threshold == pytest.approx(eer_of(dev, np.arange(12) % 2 == 0).threshold, abs=1e-4)


def test_clips_are_their_own_neighbours_and_their_scores_fall(lesson: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(lesson)
    paths = sorted(Path("b").iterdir())
    found = list(detect.load("both").detect(paths, explain=True))
    assert [one.neighbours[0].attack for one in found] == ["other"] * 6  # type: ignore[union-attr]
    assert max(one.neighbours[0].distance for one in found) < 1e-2  # type: ignore[union-attr]
    before, after = ([*detect.load(run).scores(paths)] for run in ("one", "both"))
    assert (np.array(after) < np.array(before)).all()


def test_the_card_says_what_was_taught_and_keeps_no_metrics(lesson: Path) -> None:
    card = json.loads((lesson / "both/package.json").read_text())
    assert [(one["name"], one["label"], one["count"]) for one in card["taught"]] == [
        ("acme-v3", "spoof", 6),
        ("other", "spoof", 6),
    ]
    assert {one["metrics"] for one in card["sets"]} == {None}
    assert "6 clips of acme-v3 (spoof), 6 clips of other (spoof)" in (lesson / "both/model_card.md").read_text()


def test_forgetting_gives_the_bytes_of_never_having_taught(lesson: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(lesson)
    original = Path("data", ARRAY).read_bytes()
    teach("both", "--forget", "other", "--out", "back")
    for name in (ARRAY, "trials/train.csv", f"embeddings/{POOLED}/train/embeddings.json"):
        assert Path("back", name).read_bytes() == Path("one", name).read_bytes()
    assert detect.load("back").threshold == detect.load("one").threshold
    teach("back", "--forget", "acme-v3", "--out", "blank")
    assert Path("blank", ARRAY).read_bytes() == original == Path("data", ARRAY).read_bytes()
    assert assembly.find("blank").taught == ()


def test_what_changes_is_counted(lesson: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.chdir(lesson):
        parts = assembly.find(POOLED)
        known, _ = teaching.taught(parts, sorted(Path("a").iterdir()), name="n", label="bonafide")
        found = teaching.changes(parts, known)
    assert [one.name for one in found] == ["dev", "eval"]
    for one in found:
        before, after = one.before > one.thresholds[0], one.after > one.thresholds[1]
        assert one.flipped().tolist() == [i for i in range(12) if before[i] != after[i]]
        assert one.hurt() == [f"{one.name}{i}" for i in range(0, 12, 2) if before[i] and not after[i]]
    lines = teaching.flips(found).splitlines()
    assert len(lines) == 1 + sum(len(one.flipped()) for one in found)


def test_flips_and_hurt_of_scores_by_hand() -> None:
    from pipeline.core.trial_table import Row, from_rows

    rows = [Row("", name, "-", "bonafide" if name < "c" else "spoof", attack="X") for name in "abcd"]
    before, after = np.array([3.0, 2.0, 1.0, -1.0]), np.array([3.0, -2.0, -1.0, -1.0])
    one = teaching.Change("s", from_rows(rows, source="-"), before, before, after, (0.0, 0.0))
    assert (one.flipped().tolist(), one.hurt()) == ([1, 2], ["b"])
    assert teaching.flips([one]).splitlines()[1:] == [
        "s,b,bonafide,X,2,-2,bonafide,spoof",
        "s,c,spoof,X,1,-1,bonafide,spoof",
    ]


def test_trials_with_the_bytes_of_a_clip_are_left_out(lesson: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(lesson)
    parts = assembly.find(POOLED)
    known, _ = teaching.taught(parts, systems.audio("eval")[1::2][:5], name="n", label="spoof")
    dev, own = teaching.changes(parts, known)
    assert (len(dev.trials), len(own.trials), len(own.after)) == (12, 7, 7)


def test_a_calibration_is_of_one_state_of_teaching(lesson: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(lesson)
    rows = [f"eval/{i}.flac,{'spoof' if i % 2 else 'bonafide'}" for i in range(12)]
    Path("audio/mine.csv").write_text("\n".join(["path,label", *rows, ""]))
    commands.dispatch(["calibrate", "one", "--on", "audio/mine.csv", "--out", "mine.json"])
    recalibration.applied(assembly.find("one"), Path("mine.json"))
    for other in ("both", POOLED):
        with pytest.raises(InputError, match="expected a calibration of"):
            recalibration.applied(assembly.find(other), Path("mine.json"))


def test_in_a_dvc_project_the_package_is_tracked(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(project, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    clips("a", seed=1)
    taught(POOLED, "a", "acme-v3", "free")
    assert "-> free; to undo, delete it" in capsys.readouterr().out
    Repo.init(no_scm=True)
    taught(POOLED, "a", "acme-v3", "kept")
    assert "-> kept, which DVC tracks by kept.dvc; to undo" in capsys.readouterr().out
    with Repo() as repo:
        assert [str(stage.outs[0]) for stage in repo.index.stages] == ["kept"]
        assert repo.status() == {}
        Path("kept/package.json").write_text("{}")
        assert "kept.dvc" in repo.status()


def test_what_cannot_be_taught_is_refused(lesson: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(lesson)
    Path("silent").mkdir()
    for i in range(6):
        soundfile.write(f"silent/{i}.flac", np.zeros(3_200 + i), 16_000)
    commands.dispatch(["package", POOLED, "--out", "plain"])
    for run, folder, name, out, message in (
        (POOLED, "audio/train", "new", "out", "20 of 20 clips have the bytes of others or of training"),
        (POOLED, "silent", "new", "out", "6 of 6 clips cannot be taught"),
        (POOLED, "a/0.flac", "new", "out", "at least 5 clips of new, better 20, got 1"),
        (POOLED, "missing", "new", "out", "at least 5 clips"),
        (POOLED, "a", "A1", "out", "has an attack of this name already"),
        ("one", "b", "acme-v3", "out", "has an attack of this name already"),
        ("one", "a", "again", "out", "6 of 6 clips have the bytes"),
        (POOLED, "a", "new", "one", "teaching replaces nothing"),
        ("plain", "a", "new", "out", "a plain package does not have"),
    ):
        with pytest.raises(InputError, match=message):
            taught(run, folder, name, out)
        assert not Path("out").exists()
    with pytest.raises(InputError, match="expected the name of a teaching, one of acme-v3, got x"):
        teach("one", "--forget", "x", "--out", "out")
    shutil.rmtree(f"data/embeddings/{FRAMES}")
    with pytest.raises(InputError, match="name a run of the grid in the section `analyse`"):
        taught(FRAMES, "a", "new", "out")


@pytest.mark.parametrize(
    "arguments",
    [
        ("a", "--label", "fake", "--name", "x"),
        ("a", "--label", "spoof", "--name", "../x"),
        ("a", "--label", "spoof"),
        ("a", "--forget", "x"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(arguments: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as caught:
        teach(POOLED, *arguments, "--out", "out")
    assert caught.value.code == 2
