"""The stage `finetuned` after a tiny fine-tuning: a run as `train` leaves one, with the scores that its audio gives."""

import contextlib
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile
import torch
from ruamel.yaml import YAML

from pipeline import commands, detect
from pipeline.audio import decode
from pipeline.core import params_file, trial_table
from pipeline.core.errors import InputError
from pipeline.core.trial_table import Row
from pipeline.encoder import kept
from pipeline.features.specs import fingerprint
from pipeline.metrics import scorefile
from pipeline.scoring import runs, scorer
from stages import analyse, embed, encoder, evaluate, extract, finetuned, score
from tests.conftest import Corpus
from tests.test_stage_encoder import FINETUNE, parameters, tables

LAYERS = [2, 1]  # that the backend reads, in this order
ARGUMENTS = {
    "card": "data/encoder.json", "trials": "data/trials", "features": "data/features",
    "run": "data/runs/mine", "metrics": "data/metrics/mine.json", "curves": "data/curves/mine.csv",
    "dev_scores": "data/dev_scores/mine.txt", "scores": "data/scores/mine",
    "seconds": "data/seconds/mine.json", "encoder_seconds": "data/seconds/encoders",
}  # fmt: skip
SET = {"set": "dev", "trials": "data/trials/dev.csv", "features": "data/features/dev.json"}


def run(stage: ModuleType, **options: str) -> None:
    """A stage in the current folder, with options as on the command line."""
    before = sys.argv
    sys.argv = ["stage", *(part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value))]
    try:
        stage.main()
    finally:
        sys.argv = before


def loaded(path: str) -> dict:
    return json.loads(Path(path).read_text())


def tuned_run() -> Path:
    """The run that the encoder was fine-tuned with."""
    return Path("data/cache/encoders") / loaded("data/encoder.json")["finetuned"]["identity"] / "run"


def change_run(**entries: object) -> None:
    """Let that run have been written with other entries in its card."""
    change(f"{tuned_run()}/run.json", **entries)
    reseal()


def reseal() -> None:
    folder = tuned_run().parent
    mark = loaded(f"{folder}/encoder.json")
    kept.seal(folder, mark["card"], mark["facts"])
    encoder = kept.find(folder)
    assert encoder is not None
    Path("data/encoder.json").write_text(json.dumps(kept.receipt_of(encoder)))


def noise(root: Path) -> Corpus:
    """Twelve utterances of 0.1 to 0.3 s below a folder, of which the spoof ones are of a darker colour."""
    root.mkdir()
    rows = []
    for i in range(12):
        rng = np.random.default_rng(i)
        samples = np.convolve(rng.normal(size=rng.integers(1_600, 4_800)), [1, 0.9 * (i % 2)])
        soundfile.write(root / f"{i}.wav", 0.1 * samples, 16_000)
        content = decode.digest((root / f"{i}.wav").read_bytes())
        label = "spoof" if i % 2 else "bonafide"
        rows.append(Row(f"{i}", f"u{i}", f"{i}.wav", label, quality=f"{1 + i / 3}", content=content))
    return root, trial_table.from_rows(rows, source="noise")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose encoder was fine-tuned for two epochs, its dev set extracted, before the stage."""
    folder = tmp_path_factory.mktemp("tuned")
    section = FINETUNE.replace("    layers: [1, 2]", f"    layers: {LAYERS}")
    root = tables(folder, noise(folder / "audio"))
    settings = YAML(typ="safe").load(parameters(folder / "params.yaml", section, root=root))
    settings["extract"]["layers"] = [1, 2, 3]
    settings["layers"] = {"all": [1], "upper": [3]}
    settings["evaluate"] |= {"sets": ["dev"], "finetuned": ["mine"]}
    settings["report"]["sort_by"] = "dev"
    YAML(typ="safe").dump(settings, folder / "params.yaml")
    with contextlib.chdir(folder):
        run(encoder, trials="data/trials", card="data/encoder.json", seconds="data/seconds/encoders")
        run(
            extract, set="dev", trials="data/trials/dev.csv", card="data/encoder.json",
            receipt="data/features/dev.json",
        )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def made(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of it after the stage."""
    folder = tmp_path_factory.mktemp("made") / "project"
    shutil.copytree(finished, folder)
    with contextlib.chdir(folder):
        run(finetuned, **ARGUMENTS)
    return folder


@pytest.fixture
def project(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it before the stage, to change; the current folder."""
    shutil.copytree(finished, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def test_dev_is_scored_as_its_audio_is(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    table = trial_table.read(Path("data/trials/dev.csv"))
    told = scorefile.parse(Path("data/dev_scores/mine.txt"))
    assert scorefile.own_key(told).is_bonafide.tolist() == table.is_bonafide.tolist()
    root = YAML(typ="safe").load(Path("params.yaml"))["sets"]["dev"]["root"]
    system = detect.load("mine", windows="run")
    heard = [system.score(Path(root) / path) for path in table.path.tolist()]
    np.testing.assert_allclose(told.score, heard, atol=1e-4)
    assert np.ptp(heard) > 1e-3


def test_attention_over_its_windows_is_the_mean(project: Path) -> None:
    """Its backend has heard one window of each utterance, so there is nothing that attention could have learnt."""
    settings = YAML(typ="safe").load(Path("params.yaml"))
    settings["extract"]["windows"] = {"count": 3, "hop": None, "reduce": "attention"}
    YAML(typ="safe").dump(settings, Path("params.yaml"))
    run(
        extract, set="dev", trials="data/trials/dev.csv", card="data/encoder.json",
        receipt="data/features/dev.json",
    )  # fmt: skip
    run(finetuned, **ARGUMENTS)
    table, receipt = trial_table.read(Path("data/trials/dev.csv")), Path("data/features/dev.json")
    data = scorer.open_set(Path("data/runs/mine"), receipt, table, root=Path("data/cache"))
    features, n_frames = data.features(np.arange(12))
    backend = runs.backend(tuned_run())
    with torch.inference_mode():
        each = np.stack([backend(window, n_frames).numpy() for window in features.unbind(1)])
    assert np.abs(np.diff(each, axis=0)).max() > 1e-3
    expected = scorer.score(each.mean(0), runs.index(Path("data/runs/mine")), names=table.utterance.tolist())
    np.testing.assert_allclose(scorefile.parse(Path("data/dev_scores/mine.txt")).score, expected, rtol=1e-4, atol=1e-5)
    system = detect.load("mine")
    heard = [system.score(Path(settings["sets"]["dev"]["root"]) / path) for path in table.path.tolist()]
    np.testing.assert_allclose(heard, expected, atol=1e-4)


def test_metrics_are_those_of_the_scores_by_a_naive_loop(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    told, card = loaded("data/metrics/mine.json"), loaded(f"{tuned_run()}/run.json")
    file = scorefile.parse(Path("data/dev_scores/mine.txt"))
    bonafide = scorefile.own_key(file).is_bonafide
    points = []
    for threshold in sorted(file.score):
        rejected = np.mean(file.score[bonafide] <= threshold)
        accepted = np.mean(file.score[~bonafide] > threshold)
        points.append((abs(rejected - accepted), 50 * (rejected + accepted), threshold))
    assert told["dev_eer"] == pytest.approx(min(points)[1], abs=1e-5)
    assert told["dev_threshold"] in file.score
    assert (told["epochs"], told["parameters"]) == (2, card["parameters"])


def test_the_run_is_the_one_that_was_fine_tuned(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    before, after = tuned_run(), Path("data/runs/mine")
    for file in (runs.BACKEND_FILE, runs.CENTROIDS_FILE):
        assert (before / file).read_bytes() == (after / file).read_bytes()
    tuned, card, receipt = loaded(f"{before}/run.json"), loaded(f"{after}/run.json"), loaded("data/features/dev.json")
    metrics = loaded("data/metrics/mine.json")
    assert metrics.pop("weights") == runs.fingerprint(after)
    assert metrics.items() <= card.items()
    assert card["kind"]["layers"] == LAYERS
    assert card["features"] == {"dev": receipt["digest"]}
    assert (card["train"]["set"], card["train"]["epochs"]) == ("train", 2)
    assert card["quality_thresholds"] == tuned["quality_thresholds"]
    lines = Path("data/curves/mine.csv").read_text().splitlines()
    assert lines[0] == "epoch,loss,dev_loss,train_eer,dev_eer"
    told = [[float(cell) for cell in line.split(",")] for line in lines[1:]]
    curves = [[epoch[name] for name in lines[0].split(",")] for epoch in tuned["curves"]]
    np.testing.assert_allclose(told, curves, rtol=1e-5)


def test_the_stages_of_any_run_go_on_from_there(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    run(score, run="data/runs/mine", scores="data/elsewhere/dev.txt", views="data/elsewhere/dev", **SET)
    assert Path("data/scores/mine/dev.txt").read_bytes() == Path("data/elsewhere/dev.txt").read_bytes()
    evaluate.main([
        "--trials", "data/trials", "--scores", "data/scores/mine",
        "--training", "data/metrics/mine.json", "--dev-scores", "data/dev_scores/mine.txt",
        "--metrics", "data/metrics/mine", "--plots", "data/plots/mine",
    ])  # fmt: skip
    found, told = loaded("data/metrics/mine/dev.json"), loaded("data/metrics/mine.json")
    assert (found["eer"], found["threshold"]) == (told["dev_eer"], told["dev_threshold"])


def test_its_seconds_are_those_of_the_fine_tuning(made: Path, project: Path) -> None:
    file = f"data/seconds/encoders/{tuned_run().parent.name}.json"
    trained = loaded(file)["seconds"]
    assert trained > 0
    weights = runs.fingerprint(made / "data/runs/mine")
    assert loaded(f"{made}/data/seconds/mine.json") == {"seconds": trained, "weights": weights}
    change(file, weights="of an encoder of this name that was trained elsewhere")
    run(finetuned, **ARGUMENTS)
    Path(file).unlink()
    run(finetuned, **ARGUMENTS)
    assert not Path("data/seconds/mine.json").exists()


def test_kind_and_dev_eer_are_those_of_the_cached_features(made: Path, project: Path) -> None:
    card = loaded(f"{tuned_run()}/run.json")
    told = {"dev_eer": 99.0, "dev_threshold": 99.0}  # as another arithmetic, of features or batches, would have it
    change_run(kind=card["kind"] | {"encoder": "0123456789abcdef"}, **told)
    run(finetuned, **ARGUMENTS)
    for path in ("data/runs/mine/run.json", "data/metrics/mine.json"):
        assert loaded(path) == loaded(str(made / path))
    encoder = fingerprint(loaded("data/features/dev.json")["encoder"])
    assert loaded("data/runs/mine/run.json")["kind"] == card["kind"] | {"encoder": encoder}


def change(path: str, **entries: object) -> None:
    Path(path).write_text(json.dumps(loaded(path) | entries))


def test_features_of_other_weights_are_refused(project: Path) -> None:
    features = loaded("data/features/dev.json")
    change("data/features/dev.json", encoder=features["encoder"] | {"weights_sha256": "f" * 64})
    message = r"dev\.json: expected features of the fine-tuned encoder, .*got .* f{16}\.\.\.; run `dvc repro extract`"
    with pytest.raises(InputError, match=message):
        run(finetuned, **ARGUMENTS)
    assert not Path("data/runs").exists()


def test_a_layer_that_is_not_cached_is_named(project: Path) -> None:
    change_run(kind=loaded(f"{tuned_run()}/run.json")["kind"] | {"layers": [2, "final"]})
    with pytest.raises(InputError, match=r"dev\.json: expected the layers final, the features have 1, 2, 3; add them"):
        run(finetuned, **ARGUMENTS)


def test_another_run_or_none_is_refused(project: Path) -> None:
    path = tuned_run() / "run.json"
    card = loaded(str(path))
    del card["finetune"], card["curves"]
    path.write_text(json.dumps(card))
    with pytest.raises(
        InputError, match=r"1 files of the fine-tuned encoder are damaged or missing.*\n.*run/run\.json"
    ):
        run(finetuned, **ARGUMENTS)
    reseal()
    message = r"run\.json: expected a fine-tuned run, got JSON without curves, finetune; run `dvc repro -f encoder`"
    with pytest.raises(InputError, match=message):
        run(finetuned, **ARGUMENTS)
    shutil.rmtree(tuned_run().parent)
    with pytest.raises(InputError, match=r"no fine-tuned encoder there, .*run `dvc repro -f encoder`"):
        run(finetuned, **ARGUMENTS)
    Path("data/encoder.json").unlink()
    with pytest.raises(InputError, match=r"encoder\.json: no card of an encoder there; run `dvc repro encoder`"):
        run(finetuned, **ARGUMENTS)


def test_it_is_analysed_explained_and_packaged_as_any_run(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    for name in ("train", "eval"):
        if Path(f"data/trials/{name}.csv").exists() and not Path(f"data/features/{name}.json").exists():
            run(
                extract, set=name, trials=f"data/trials/{name}.csv", card="data/encoder.json",
                receipt=f"data/features/{name}.json",
            )  # fmt: skip
    places = {"run": "data/runs/mine", "trials": "data/trials", "embeddings": "data/embeddings/mine"}
    embed.main(
        [part for name, value in places.items() for part in (f"--{name}", value)] + ["--features", "data/features"]
    )
    analyse.main([part for name, value in places.items() for part in (f"--{name}", value)] + ["--analysis", "a"])
    assert loaded("a/analysis.json")["run"] == "mine"
    assert params_file.load(Path("params.yaml")).analysed[-1] == "mine"

    root = Path(YAML(typ="safe").load(Path("params.yaml"))["sets"]["train"]["root"])
    first = root / trial_table.read(Path("data/trials/train.csv")).path[0]
    commands.dispatch(["package", "mine", "--out", "package"])
    for system in ("mine", "package"):
        (found,) = detect.load(system, windows="run").detect([first], explain=True)
        assert found.neighbours[0].utterance == "u0"
        assert found.neighbours[0].distance == pytest.approx(0, abs=1e-3)
        assert len(found.neighbours) == 5
