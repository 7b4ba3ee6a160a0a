"""Packages: they detect where no project is, say what they are, and are refused where they are not what they say."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import re
import shutil
from collections.abc import Iterator, Set
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ruamel.yaml import YAML

from pipeline import commands, detect
from pipeline.commands import submit
from pipeline.core import trial_table
from pipeline.core.encoder_sections import EncoderParams, RandomEncoder
from pipeline.core.errors import InputError
from pipeline.detect import Detection, assembly, package, package_card
from pipeline.detect.model_card import markdown
from pipeline.encoder import kept, models
from pipeline.features import specs
from pipeline.scoring import runs
from tests import systems
from tests.golden import GOLDEN
from tests.systems import FRAMES, POOLED, ROOT

pytestmark = pytest.mark.usefixtures("one_thread")
RANDOM = RandomEncoder(layers=3, width=32, heads=4, feedforward=48, conv_channels=16, seed=5)  # the project's


@pytest.fixture(scope="module")
def made(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of the pooled run; leave it as it is."""
    folder = tmp_path_factory.mktemp("made") / "package"
    with contextlib.chdir(project):
        package.write(POOLED, folder)
    return folder


@pytest.fixture
def spoilt(made: Path, tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    return Path(shutil.copytree(made, tmp_path / "spoilt"))


def found(run: str | Path, project: Path, *, explain: bool = False, count: int | None = None) -> list[Detection]:
    """What detection finds in the files of eval, or in the first `count` of them."""
    paths = [project / path for path in systems.audio("eval")[:count]]
    return list(detect.load(run).detect(paths, explain=explain))  # type: ignore[arg-type]


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def set_encoder(**changes: object) -> None:
    settings = YAML(typ="safe").load(Path("params.yaml"))
    settings["encoder"].update(changes)
    settings["encoder"] = {key: value for key, value in settings["encoder"].items() if value is not None}
    YAML(typ="safe").dump(settings, Path("params.yaml"))


def edit(folder: Path, **changes: object) -> None:
    path = folder / package_card.CARD_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# ---------------------------------------------------------------- elsewhere


@pytest.mark.parametrize("run", [POOLED, FRAMES])
def test_it_detects_with_no_project_around(copied: Path, tmp_path: Path, run: str) -> None:
    before = found(run, copied, explain=True)
    package.write(run, tmp_path / "package")
    (tmp_path / "elsewhere").mkdir()
    with contextlib.chdir(tmp_path / "elsewhere"):
        for name in ("data", "params.yaml", "mine.csv"):
            shutil.move(copied / name, tmp_path / f"gone.{name}")
        shutil.move(tmp_path / "package", "received")
        assert found("received", copied, explain=True) == before
    assert len(before[0].neighbours) == 5
    assert before[0].probability is not None


def test_it_holds_just_what_detection_needs(made: Path) -> None:
    run, known = f"runs/{POOLED}", f"embeddings/{POOLED}/train"
    assert names(made) == {
        "package.json", "model_card.md", f"{run}/run.json", f"{run}/backend.safetensors",
        f"{run}/centroids.faiss", "trials/train.csv",
        f"{known}/embeddings.npy", f"{known}/embeddings.json", f"{known}/utterances.txt",
    }  # fmt: skip


def test_training_trials_tell_labels_and_attacks_alone(made: Path, project: Path) -> None:
    kept, whole = (trial_table.read(path) for path in (made / "trials/train.csv", project / "data/trials/train.csv"))
    for name in ("utterance", "is_bonafide", "attack", "content"):
        assert getattr(kept, name).tolist() == getattr(whole, name).tolist()
    for name in ("path", "speaker", "codec", "vocoder"):
        assert set(getattr(kept, name).tolist()) == {"-"}
    assert np.isnan(kept.quality).all()
    assert not np.isnan(whole.quality).any()


def test_a_run_that_was_not_analysed_has_no_neighbours(copied: Path, tmp_path: Path) -> None:
    shutil.rmtree("data/embeddings")
    card = package.write(POOLED, tmp_path / "package")
    assert card["training_embeddings"] is False
    assert not [name for name in names(tmp_path / "package") if name.startswith(("embeddings/", "trials/"))]
    system = detect.load(tmp_path / "package")
    assert system.score("audio/eval/0.flac") == pytest.approx(next(systems.scores(POOLED)), abs=1e-5)
    with pytest.raises(InputError, match="no embeddings of the training set there"):
        next(system.detect(["audio/eval/0.flac"], explain=True))


# ---------------------------------------------------------------- the encoder


def test_random_weights_are_named(made: Path) -> None:
    card = json.loads((made / "package.json").read_text())
    assert card["encoder"] == {
        "source": "random",
        "revision": None,
        "random": {"layers": 3, "width": 32, "heads": 4, "feedforward": 48, "conv_channels": 16, "seed": 5},
        "normalize": "utterance",
    }
    assert card["features"]["weights_sha256"] == tiny()[1].weights_sha256


def test_other_weights_behind_the_name_are_refused(spoilt: Path) -> None:
    card = json.loads((spoilt / "package.json").read_text())
    card["encoder"]["random"]["seed"] = 6
    edit(spoilt, encoder=card["encoder"])
    with pytest.raises(InputError, match="encoder random: expected what the run was trained with, weights_sha256 "):
        detect.load(spoilt)


def tiny() -> tuple:
    return models.load(EncoderParams(source="random", random=RANDOM, normalize="utterance"))


def test_a_local_folder_is_copied(copied: Path, tmp_path: Path) -> None:
    before = found(POOLED, copied)
    models.save(tiny()[0], Path("model"))
    set_encoder(source=str(copied / "model"), random=None)
    card = package.write(POOLED, tmp_path / "package")
    assert card["encoder"]["source"] == "encoder"
    assert card["encoder_source"]["source"] == "model"
    assert {name for name in names(tmp_path / "package") if name.startswith("encoder/")} == {
        "encoder/config.json",
        "encoder/model.safetensors",
    }
    assert str(tmp_path) not in (tmp_path / "package" / "package.json").read_text()
    shutil.rmtree("model")
    assert found(tmp_path / "package", copied) == before
    (tmp_path / "package/encoder/model.safetensors").write_bytes(b"cut off")
    with pytest.raises(InputError, match="could not load the local folder"):
        detect.load(tmp_path / "package")


def test_a_checkpoint_of_fairseqs_is_copied(copied: Path, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copy(GOLDEN / "tiny_fairseq.pt", tmp_path / "tiny.pt"))
    weights = models.load(EncoderParams(source=str(checkpoint), normalize="utterance"))[1].weights_sha256
    _train_on(weights)
    set_encoder(source=str(checkpoint), random=None)
    card = package.write(POOLED, tmp_path / "package")
    assert (card["encoder"]["source"], card["encoder_source"]["source"]) == ("encoder", "tiny.pt")
    for name in ("package.json", "model_card.md", "encoder/config.json"):
        assert str(tmp_path) not in (tmp_path / "package" / name).read_text()
    checkpoint.unlink()
    there = assembly.find(tmp_path / "package").encoder
    assert there.source == str(tmp_path / "package/encoder")
    assert models.load(there)[1].weights_sha256 == weights


def _train_on(weights: str) -> None:
    """Say in the project in the current folder that its runs were trained on features from such an encoder."""
    path, run = Path("data/features/dev.json"), Path(f"data/runs/{POOLED}/run.json")
    receipt, facts = json.loads(path.read_text()), json.loads(run.read_text())
    receipt["encoder"]["weights_sha256"] = weights
    facts["kind"]["encoder"] = specs.fingerprint(receipt["encoder"])
    path.write_text(json.dumps(receipt))
    run.write_text(json.dumps(facts))


def test_a_fine_tuned_encoder_is_copied(copied: Path, tmp_path: Path) -> None:
    before = found(POOLED, copied)
    model, tiny_card = tiny()
    folder = Path("data/cache/encoders/0123456789abcdef")
    models.save(model, folder)
    kept.seal(folder, vars(tiny_card), {})
    encoder = kept.find(folder)
    assert encoder is not None
    Path("data/encoder.json").write_text(json.dumps(kept.receipt_of(encoder)))
    settings = YAML(typ="safe").load(Path("params.yaml"))
    set_encoder(finetune=settings["encoder"]["finetune"] | {"on": True, "layers": [1, 3]})
    assert found(POOLED, copied) == before
    card = package.write(POOLED, tmp_path / "package")
    assert card["encoder"] == {"source": "encoder", "revision": None, "random": None, "normalize": "utterance"}
    assert "fine-tuned on train with sls and oc_softmax" in (tmp_path / "package/model_card.md").read_text()
    shutil.rmtree(folder)
    with pytest.raises(InputError, match=r"no fine-tuned encoder there, .* run `dvc repro -f encoder`"):
        detect.load(POOLED)
    assert found(tmp_path / "package", copied) == before
    (tmp_path / "package/encoder/config.json").unlink()
    with pytest.raises(InputError, match=r"1 files are missing or damaged.*\n.*encoder/config\.json"):
        detect.load(tmp_path / "package")


def test_an_encoder_folder_that_is_gone_is_not_looked_up_on_the_hub(spoilt: Path) -> None:
    edit(spoilt, encoder={"source": "encoder", "normalize": "utterance"})
    with pytest.raises(InputError, match=r"got none of 1; copy the package again.*\n  encoder/config\.json$"):
        detect.load(spoilt)
    files = json.loads((spoilt / "package.json").read_text())["files"]
    edit(spoilt, files=files | {"encoder/config.json": "0" * 64})
    with pytest.raises(InputError, match=r"1 files are missing or damaged.*\n  encoder/config\.json$"):
        detect.load(spoilt)


def test_a_hub_name_is_named_with_its_revision(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[EncoderParams] = []

    def loaded(params: EncoderParams, *, weights: Path) -> tuple:
        asked.append(params)
        return tiny()

    monkeypatch.setattr(models, "load_deployed", loaded)
    set_encoder(source="somebody/xlsr", revision="abc123", random=None)
    package.write(POOLED, tmp_path / "package")
    assert not [name for name in names(tmp_path / "package") if name.startswith("encoder/")]
    assert "somebody/xlsr, revision `abc123`" in (tmp_path / "package/model_card.md").read_text()
    detect.load(tmp_path / "package")
    assert [(one.source, one.revision) for one in asked] == [("somebody/xlsr", "abc123")] * 2


def test_an_encoder_that_the_run_was_not_trained_with_is_not_packed(copied: Path, tmp_path: Path) -> None:
    set_encoder(random=RANDOM.model_copy(update={"seed": 6}).model_dump())
    with pytest.raises(InputError, match=r"trained on an encoder with weights \w{16}\.\.\., got random with"):
        package.write(POOLED, tmp_path / "package")
    assert not (tmp_path / "package").exists()


# ---------------------------------------------------------------- the card


def test_the_card_tells_where_it_comes_from(made: Path, project: Path) -> None:
    card = json.loads((made / "package.json").read_text())
    data = project / "data"
    assert card["run"] == json.loads((data / f"runs/{POOLED}/run.json").read_text())
    assert card["threshold"] == card["run"]["dev_threshold"]
    assert (card["centroids"], card["embedding_dim"]) == (2, 64)
    told = {one["name"]: one for one in card["sets"]}
    assert {name: one["role"] for name, one in told.items()} == {
        "train": "training",
        "dev": "development",
        "eval": "evaluation",
    }
    for name, one in told.items():
        receipt = json.loads((data / f"features/{name}.json").read_text())
        assert (one["receipt"], one["utterances"]) == (receipt["digest"], systems.SIZES[name])
    assert told["eval"]["metrics"] == json.loads((data / f"metrics/{POOLED}/eval.json").read_text())
    assert told["train"]["metrics"] is None
    assert card["versions"]["torch"] == importlib.metadata.version("torch")
    assert set(card["files"]) == names(made) - {"package.json", "model_card.md"}
    for name, digest in card["files"].items():
        assert hashlib.sha256((made / name).read_bytes()).hexdigest() == digest


def test_threshold_and_calibration_of_the_card_are_those_of_the_project(made: Path, project: Path) -> None:
    with contextlib.chdir(project):
        here = assembly.find(POOLED)
    there = assembly.find(made)
    assert (there.name, there.train_set, there.threshold) == (here.name, here.train_set, here.threshold)
    assert there.calibration == here.calibration is not None
    assert there.rule == here.rule is not None
    assert (there.features, there.batch_size, there.device) == (here.features, here.batch_size, "auto")


def test_scores_that_cannot_be_calibrated_stay_so(copied: Path, tmp_path: Path) -> None:
    path = Path(f"data/dev_scores/{POOLED}.txt")
    lines = [line.split() for line in path.read_text().splitlines()]
    path.write_text("".join(f"{u} {a} {key} {(key == 'bonafide') * 1e-300}\n" for u, a, key, _ in lines))
    assert package.write(POOLED, tmp_path / "package")["calibration"] is None
    assert assembly.find(tmp_path / "package").calibration is None
    assert "**Calibration** none" in (tmp_path / "package/model_card.md").read_text()


def test_an_older_package_has_no_verdicts(spoilt: Path, project: Path) -> None:
    card = json.loads((spoilt / "package.json").read_text())
    del card["verdicts"]
    (spoilt / "package.json").write_text(json.dumps(card))
    assert [one.verdict for one in found(spoilt, project)] == [None] * 12


def test_the_model_card_tells_the_numbers(made: Path, project: Path) -> None:
    text = (made / "model_card.md").read_text()
    metrics = json.loads((project / f"data/metrics/{POOLED}/eval.json").read_text())
    card = runs.card(project / "data/runs" / POOLED)
    assert text.startswith(f"# {POOLED}\n")
    low, high = metrics["eer_interval"]
    row = next(line for line in text.splitlines() if line.startswith("| eval | 6 "))
    assert row.split(" | ")[2:5] == ["6", f"{metrics['eer']:.2f}", f"{low:.2f} to {high:.2f}"]
    assert f"**Threshold** {card['dev_threshold']:.6g}" in text
    assert "> Noise, not speech." in text
    assert "of 3200 samples at 16 kHz (0.20 s)" in text
    assert f"EER on eval by attack, %: A1 {metrics['attacks']['A1']['eer']:.2f}." in text
    assert "those in use: 3, 1" in text
    for word in ("quality_weight 0.1", "weights drawn from seed 5", "mean of the similarities", "A score is evidence"):
        assert word in text
    assert "\n\n\n" not in text


def test_sets_that_were_not_evaluated_are_told_so(copied: Path, tmp_path: Path) -> None:
    Path(f"data/metrics/{POOLED}/eval.json").unlink()
    Path("data/features/eval.json").unlink()
    card = package.write(POOLED, tmp_path / "package")
    assert card["sets"][-1]["metrics"] is card["sets"][-1]["receipt"] is None
    assert "| none was evaluated |" in (tmp_path / "package/model_card.md").read_text()


def test_the_same_run_gives_the_same_bytes(made: Path, project: Path, tmp_path: Path) -> None:
    with contextlib.chdir(project):
        package.write(POOLED, tmp_path / "package")
    assert names(tmp_path / "package") == names(made)
    for name in names(made):
        assert (tmp_path / "package" / name).read_bytes() == (made / name).read_bytes(), name


def test_the_card_in_the_docs_is_of_this_template(made: Path) -> None:
    """Written anew after a change of the template: `bonafide package`, then copied. Numbers may differ, words not."""

    def words(text: str) -> list[list[str]]:
        lines = [line for line in text.splitlines() if line and not line.startswith(("|", ">", "- seed", "python"))]
        plain = [re.sub(r"`[0-9a-f]{64}`|[-+\d.]+(, [\d.]+)*", "0", line) for line in lines if "EER on" not in line]
        return [
            sorted(re.findall(r"\w+", line)) for line in plain
        ]  # the project here has its parameters in another order

    found = (ROOT / "docs/model_card.md").read_text()
    assert found.startswith("# linear-qamo-all-clean-1\n\n*Written by `bonafide package linear-qamo-all-clean-1`")
    assert words(found) == words((made / "model_card.md").read_text())


# ---------------------------------------------------------------- refused


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("name", [f"runs/{POOLED}/backend.safetensors", f"runs/{POOLED}/centroids.faiss"])
def test_a_damaged_file_is_named(spoilt: Path, name: str) -> None:
    damage(spoilt / name)
    with pytest.raises(InputError, match=rf"spoilt: 1 files are missing or damaged; copy .*:\n  {re.escape(name)}$"):
        detect.load(spoilt)
    (spoilt / name).unlink()
    with pytest.raises(InputError, match=re.escape(name)):
        detect.load(spoilt)


@pytest.mark.parametrize("name", ["trials/train.csv", f"embeddings/{POOLED}/train/embeddings.npy"])
def test_what_explanations_need_is_checked_for_explanations(spoilt: Path, name: str) -> None:
    damage(spoilt / name)
    parts = detect.load(spoilt).parts
    with pytest.raises(InputError, match=rf"1 files are missing or damaged; copy .*:\n  {re.escape(name)}$"):
        parts.training()
    files = json.loads((spoilt / "package.json").read_text())["files"]
    edit(spoilt, files={listed: digest for listed, digest in files.items() if listed != name})
    with pytest.raises(InputError, match=rf"got none of 1; copy .*:\n  {re.escape(name)}$"):
        assembly.find(spoilt).training()


def test_files_are_read_when_they_are_needed_and_once(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    digest = package_card.digest
    monkeypatch.setattr(
        package_card, "digest", lambda path: read.append(path.relative_to(made).parts[0]) or digest(path)
    )
    parts = assembly.find(made)
    assert set(read) == {"runs"}
    read.clear()
    assert parts.training() is parts.training()
    assert sorted(read) == ["embeddings"] * 3 + ["trials"]


def test_people_may_write_into_the_model_card(spoilt: Path) -> None:
    with (spoilt / "model_card.md").open("a") as file:
        file.write("Licence: ours.\n")
    assert detect.load(spoilt).parts.name == POOLED


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 1}, "expected format 2 of packages, got 1, .*; package it again with `bonafide package`"),
        ({"threshold": "high"}, "not the card of a package"),
        ({"threshold": float("nan")}, "not the card of a package.*threshold: .*finite"),
        ({"calibration": {"slope": -1.0, "offset": 0.0}}, "not the card of a package.*slope"),
        ({"verdicts": {"error_rate": 2.0}}, "not the card of a package.*verdicts"),
        ({"name": "../../run"}, "not the card of a package.*name: "),
        ({"name": "/linear-qamo-all-clean-1"}, "not the card of a package.*name: "),
        ({"train_set": "../train"}, "not the card of a package.*train_set: "),
        ({"files": []}, "not the card of a package.*files: "),
        ({"files": {}, "training_embeddings": False}, f"got none of 3; .*runs/{POOLED}/backend.safetensors"),
        ({"files": {"../run.json": "0" * 64}}, "not the card of a package.*files.*pattern"),
        ({"files": {"/run.json": "0" * 64}}, "not the card of a package.*files.*pattern"),
        ({"files": {"runs/../../run.json": "0" * 64}}, "not the card of a package.*files.*pattern"),
        ({"files": {"run.json": None}}, "not the card of a package.*files"),
        (
            {"encoder": {"source": "/elsewhere/encoder", "normalize": "none"}},
            "not the card.*or a hub name as the source",
        ),
        ({"encoder": {"source": "a/../../b", "normalize": "none"}}, "not the card.*or a hub name as the source"),
        ({"features": {}}, "not the card of a package.*window: Field required"),
        ({"encoder": {"source": "random", "normalize": "utterance"}}, "not the card of a package"),
        (
            {"batch_size": 4_096, "features": {"window": {"samples": 2**16 + 1, "pad": "zero"}}},
            "not the card of a package.*batch_size windows of 268,435,456 samples at most",
        ),
        (
            {"features": {"window": {"samples": 800, "pad": "zero"}}},
            "the run was trained on other features than the card tells",
        ),
        ({"note": ["not a text"]}, "not the card of a package.*note: .*string"),
        ({"note": "x" * (package_card.MOST_TEXT + 1)}, "not the card of a package.*note: .*at most 100000 characters"),
        ({"run": "x"}, "not the card of a package.*run: .*object"),
        ({"run": {"seed": 1e101}}, r"not the card of a package.*run: .*expected numbers up to 1e\+100, got 1e\+101"),
        ({"run": {"deep": [{"note": "x" * 100_001}]}}, "run: .*texts of at most 100,000 characters, got 100,001"),
        ({"versions": ["2.13"]}, "not the card of a package.*versions: .*object"),
        ({"versions": {"torch": 2.13}}, r"not the card of a package.*versions\.torch: .*string"),
        ({"versions": {str(i): "1" for i in range(1_001)}}, "not the card of a package.*versions: .*at most 1000"),
        ({"centroids": 0}, "not the card of a package.*centroids: .*greater than or equal to 1"),
        ({"centroids": 2.0}, "not the card of a package.*centroids: .*integer"),
        ({"centroids": 3}, r"not the card of a package.*expected centroids as in run\.scoring, 2, got 3"),
        ({"embedding_dim": "64"}, "not the card of a package.*embedding_dim: .*integer"),
        ({"embedding_dim": 63}, r"not the card of a package.*expected embedding_dim as in run\.scoring, 64, got 63"),
        ({"encoder_source": "x"}, "not the card of a package.*encoder_source: "),
        (
            {"encoder_source": {"source": "x", "normalize": "loud"}},
            r"not the card of a package.*encoder_source\.normalize: .*'auto', 'utterance' or 'none'",
        ),
        (
            {"encoder_source": {"source": "x", "normalize": "none", "finetune": {"set": "../x"}}},
            r"not the card of a package.*encoder_source\.finetune\.set: ",
        ),
        ({"training_embeddings": 1}, "not the card of a package.*training_embeddings: .*boolean"),
        ({"training_embeddings": False}, "expected training_embeddings: true, as the names of files say"),
        ({"features": {"window": {"samples": 800, "pad": "zero"}, "x": float("inf")}}, "features: .*up to 1e.*got inf"),
        ({"sets": [{"name": "eval"}]}, r"not the card of a package.*sets\.0\.role: Field required"),
    ],
)
def test_a_card_that_is_none_is_refused(spoilt: Path, changes: dict, message: str) -> None:
    edit(spoilt, **changes)
    with pytest.raises(InputError, match=rf"(?s)package\.json: .*{message}"):
        detect.load(spoilt)


@pytest.mark.parametrize(
    "key", ["note", "run", "versions", "centroids", "embedding_dim", "encoder_source", "training_embeddings", "sets"]
)
def test_a_card_without_a_key_is_none(made: Path, key: str) -> None:
    told = json.loads((made / "package.json").read_text())
    package_card.checked(told, made)
    del told[key]
    with pytest.raises(InputError, match=rf"not the card of a package; .*:\n  {key}: Field required"):
        package_card.checked(told, made)


def test_a_card_that_tells_of_another_run_is_refused(spoilt: Path) -> None:
    run = json.loads((spoilt / "package.json").read_text())["run"]
    edit(spoilt, run=run | {"seed": 7})
    with pytest.raises(InputError, match=rf"expected below `run` what runs/{POOLED}/run\.json says; copy the package"):
        detect.load(spoilt)


def test_a_card_that_could_not_be_read_again_is_not_written(copied: Path, tmp_path: Path) -> None:
    settings = YAML(typ="safe").load(Path("params.yaml"))
    settings["report"]["note"] = "x" * (package_card.MOST_TEXT + 1)
    YAML(typ="safe").dump(settings, Path("params.yaml"))
    with pytest.raises(InputError, match=r"mend params\.yaml or the run, .*\n  note: .*at most 100000 characters"):
        package.write(POOLED, tmp_path / "package")
    assert not (tmp_path / "package").exists()


# ---------------------------------------------------------------- from strangers


def reseal(folder: Path, **changes: object) -> None:
    """Let the card tell of the files as they are now, as somebody would who made the package to do harm."""
    files = json.loads((folder / "package.json").read_text())["files"]
    listed = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files}
    with contextlib.suppress(ValueError, RecursionError):
        changes["run"] = json.loads((folder / f"runs/{POOLED}/run.json").read_bytes())
    edit(folder, files=listed, **changes)


@pytest.mark.parametrize("name", [f"runs/{POOLED}/centroids.faiss", "trials/train.csv", "runs", "encoder"])
def test_a_link_out_of_a_package_is_not_followed(spoilt: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    if (spoilt / name).exists():
        shutil.move(spoilt / name, outside)
    else:
        outside.mkdir()
    (spoilt / name).symlink_to(outside)
    with pytest.raises(InputError, match=rf"links that lead out of it or nowhere; .*\n  {re.escape(name)}$"):
        detect.load(spoilt)


@pytest.mark.parametrize("target", ["nowhere", "loop"])
def test_a_link_that_leads_nowhere_is_refused(spoilt: Path, target: str) -> None:
    (spoilt / "loop").symlink_to(target)
    with pytest.raises(InputError, match=r"lead out of it or nowhere; .*\n  loop$"):
        detect.load(spoilt)


def test_folders_without_end_are_refused(spoilt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As deep as the system has paths, which is deeper than Python's recursion goes before 3.12."""

    def walk(folder: Path) -> None:
        raise RecursionError

    monkeypatch.setattr(package_card.os, "walk", walk)
    with pytest.raises(InputError, match="expected the folder of a package, got one with folders nested without end"):
        detect.load(spoilt)


def test_links_within_a_package_are_followed(spoilt: Path) -> None:
    shutil.move(spoilt / "runs", spoilt / "kept")
    (spoilt / "runs").symlink_to("kept")
    assert detect.load(spoilt).parts.name == POOLED


def test_no_index_of_a_package_reaches_faiss(spoilt: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages of older versions hold one; FAISS would open the files that it names."""
    before = found(spoilt, project, explain=True)
    name = f"embeddings/{POOLED}/train/index.faiss"
    (spoilt / name).write_bytes(b"IwFl" + bytes(200))
    files = json.loads((spoilt / "package.json").read_text())["files"]
    edit(spoilt, files=files | {name: hashlib.sha256((spoilt / name).read_bytes()).hexdigest()})
    monkeypatch.setattr("pipeline.analysis.index_file.read_index", None)
    assert found(spoilt, project, explain=True) == before


HOSTILE = (None, -1, float("nan"), "x", {}, "[DEEP]")
FOR_PEOPLE = {"sets", "run", "versions", "note", "encoder_source", "files", "views", "train", "loss_parameters"}


def changed(value: object, new: object, *, but: Set[str] = frozenset()) -> Iterator[object]:
    """A JSON value with each of its parts, at any depth, replaced once."""
    yield new
    if isinstance(value, dict):
        for key, part in value.items():
            if key not in but:
                yield from (value | {key: other} for other in changed(part, new, but=but))
    elif isinstance(value, list) and value:
        yield from ([other, *value[1:]] for other in changed(value[0], new, but=but))


@pytest.mark.parametrize("new", [None, -1, float("nan"), "x", {}, [], True], ids=repr)
def test_any_value_of_a_card_is_taken_as_a_whole_or_refused(made: Path, new: object) -> None:
    """Also what is for people alone."""
    told = json.loads((made / "package.json").read_text())
    refused = 0
    for value in changed(told, new):
        try:
            package_card.checked(value, made)
        except InputError:
            refused += 1
    assert refused > len(told) - 3


@pytest.mark.parametrize(
    "name", ["package.json", f"runs/{POOLED}/run.json", f"embeddings/{POOLED}/train/embeddings.json"]
)
@pytest.mark.parametrize("new", HOSTILE, ids=lambda value: repr(value)[:12])
def test_any_value_of_a_card_is_read_or_refused(spoilt: Path, project: Path, name: str, new: object) -> None:
    """No other error comes, and scores are finite."""
    good = json.loads((spoilt / name).read_text())
    refused = 0
    for value in changed(good, new, but=FOR_PEOPLE):
        (spoilt / name).write_text(json.dumps(value).replace('"[DEEP]"', "[" * 10_000 + "]" * 10_000))
        if name != "package.json":
            reseal(spoilt)
        try:
            scores = [one.score for one in found(spoilt, project, explain=True, count=1)]
        except InputError:
            refused += 1
        else:
            assert np.isfinite(scores).all()
    assert refused > 0


def test_a_card_that_is_too_large_is_not_read(spoilt: Path) -> None:
    with (spoilt / "package.json").open("a") as file:
        file.write(" " * package_card.MOST_BYTES)
    with pytest.raises(InputError, match=r"package\.json: expected a card of a package of at most 16,777,216 bytes"):
        detect.load(spoilt)


def retell(folder: Path, **changes: object) -> None:
    """Change the card of the run."""
    path = folder / f"runs/{POOLED}/run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    reseal(folder)


@pytest.mark.parametrize(
    ("backend", "parameters", "message"),
    [
        ("linear", {"embedding_dim": 2**31}, "weights and card do not fit"),
        ("linear", {"embedding_dim": 10**12}, "expected numbers up to"),
        ("linear", {"embedding_dim": 63}, r"weights and card do not fit.*\n  project\.weight: expected \(63, 64\)"),
        ("linear", {"embedding_dim": 64, "other": 1}, "weights and card do not fit"),
        ("linear", {"embedding_dim": 64, "layers": 2}, "weights and card do not fit"),
        ("conformer_tcm", {"blocks": 2**31}, "expected a backend of 5 weights, as the file has, got one of more"),
        ("../detect/system", {}, "not the card of a trained run"),
    ],
)
def test_a_backend_that_the_weights_are_not_of_is_not_made(
    spoilt: Path, backend: str, parameters: dict, message: str
) -> None:
    retell(spoilt, backend=backend, backend_parameters=parameters)
    with pytest.raises(InputError, match=rf"(?s)runs/{POOLED}.*{message}"):
        detect.load(spoilt)


def test_layers_that_the_encoder_does_not_have_are_refused(spoilt: Path) -> None:
    kind = json.loads((spoilt / f"runs/{POOLED}/run.json").read_text())["kind"]
    retell(spoilt, kind=kind | {"layers": [3, 99]})
    with pytest.raises(InputError, match=r"expected 0 to 3 or final, got 99"):
        detect.load(spoilt)


def test_damaged_files_of_a_package_give_one_message(spoilt: Path, project: Path) -> None:
    """Bytes changed, cut and added, in each file that detection or explanation reads; the card lists them as whole."""
    rng = np.random.default_rng(0)
    listed = json.loads((spoilt / "package.json").read_text())["files"]
    outcomes = {"read": 0, "refused": 0}
    for name in sorted(listed):
        good = (spoilt / name).read_bytes()
        for _ in range(12):
            data = bytearray(good)
            at = int(rng.integers(min(len(data), rng.choice([64, 1_000]))))
            how = rng.integers(3)
            data[at : at + (how == 1) * 8] = rng.bytes(8 if how == 2 else 0)
            if how == 0:
                data[at] = rng.integers(256)
            (spoilt / name).write_bytes(bytes(data))
            reseal(spoilt)
            try:
                found(spoilt, project, explain=True, count=1)
                outcomes["read"] += 1
            except InputError:
                outcomes["refused"] += 1
        (spoilt / name).write_bytes(good)
    assert outcomes["refused"] > 20


def test_a_folder_of_other_things_is_left_alone(project: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep me")
    with contextlib.chdir(project), pytest.raises(InputError, match="got a folder of other things"):
        package.write(POOLED, tmp_path / "mine")
    assert names(tmp_path / "mine") == {"notes.txt"}


def test_the_current_folder_is_left_alone(copied: Path) -> None:
    before = names(copied)
    with pytest.raises(InputError, match=r"\.: expected a free place .*, got a folder of other things"):
        package.write(POOLED, Path())
    assert names(copied) == before
    assert not copied.with_name("copy.part").exists()


def test_another_index_is_not_packed(copied: Path, tmp_path: Path) -> None:
    path = Path(f"data/runs/{POOLED}/centroids.faiss")
    damage(path)
    with pytest.raises(InputError, match=rf"{path}: expected the index that was written with the run, got .*; run"):
        package.write(POOLED, tmp_path / "package")
    assert not (tmp_path / "package").exists()


@pytest.mark.parametrize("told", [{"threshold": 12.5}, {}, None])
def test_metrics_of_another_training_are_not_packed(copied: Path, tmp_path: Path, told: dict | None) -> None:
    path = Path(f"data/metrics/{POOLED}/eval.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"at_threshold": told}))
    message = rf"{POOLED}/eval\.json: expected metrics at the run's threshold .*; run `dvc repro -f flow/evaluate"
    with pytest.raises(InputError, match=message):
        package.write(POOLED, tmp_path / "package")
    assert not (tmp_path / "package").exists()


def test_a_training_set_that_the_parameters_lost_is_told(copied: Path, tmp_path: Path) -> None:
    settings = YAML(typ="safe").load(Path("params.yaml"))
    settings["sets"]["other"] = settings["sets"].pop("train")
    settings["train"]["set"] = settings["encoder"]["finetune"]["set"] = "other"
    YAML(typ="safe").dump(settings, Path("params.yaml"))
    message = f"params.yaml: expected the set train, which {POOLED} was trained on, below sets"
    with pytest.raises(InputError, match=message):
        package.write(POOLED, tmp_path / "package")


def test_an_older_package_is_replaced(copied: Path, spoilt: Path) -> None:
    (spoilt / "stray.txt").write_text("old")
    package.write(FRAMES, spoilt)
    assert assembly.find(spoilt).name == FRAMES
    assert not (spoilt / "stray.txt").exists()


def test_a_package_of_a_package_is_its_copy(made: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="got a package; copy its folder"):
        package.write(str(made), tmp_path / "again")


def test_embeddings_of_other_weights_are_not_packed(copied: Path, tmp_path: Path) -> None:
    path = Path(f"data/embeddings/{POOLED}/train/embeddings.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"weights": "0" * 16}))
    with pytest.raises(InputError, match="expected the embeddings of"):
        package.write(POOLED, tmp_path / "package")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("A07", "A07"),
        ("hifi_gan", "hifi_gan"),
        ("_x_", r"\_x\_"),
        ("<script>a|b</script>", r"\<script\>a\|b\</script\>"),
        ("[x](http://y) **b** `c` &lt;", r"\[x\](http://y) \*\*b\*\* \`c\` \&lt;"),
        ("a\nb\x1b[2J", r"a b\\x1b\[2J"),
    ],
)
def test_names_in_the_model_card_are_no_markup(text: str, shown: str) -> None:
    assert markdown(text) == shown


# ---------------------------------------------------------------- on the hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a hub, which keeps files as the cache of the real one does: links to blobs."""
    place = tmp_path / "hub"

    class Api:
        def create_repo(self, name: str, *, private: bool, exist_ok: bool, repo_type: str) -> None:
            assert (private, exist_ok, repo_type) == (True, True, "model")

        def upload_folder(self, *, repo_id: str, folder_path: Path, **_: object) -> SimpleNamespace:
            repository = place / repo_id.replace("/", "--")
            (repository / "blobs").mkdir(parents=True)
            for name in names(folder_path):
                blob = repository / "blobs" / hashlib.sha256(name.encode()).hexdigest()
                shutil.copy(folder_path / name, blob)
                link = repository / "snapshots/c0ffee" / name
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(blob)
            return SimpleNamespace(oid="c0ffee")

    def snapshot_download(name: str, *, revision: str | None, **_: object) -> str:
        found = place / name.replace("/", "--") / "snapshots" / (revision or "c0ffee")
        if not found.is_dir():
            raise OSError(f"{name}: 404")
        return str(found)

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return place


def test_a_package_goes_to_the_hub_and_detects_from_there(
    made: Path, copied: Path, hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.dispatch(["package", POOLED, "--out", str(tmp_path / "out"), "--push", "me/mine"])
    assert "hub:me/mine@c0ffee" in capsys.readouterr().out
    for name in ("hub:me/mine", "hub:me/mine@c0ffee"):
        assert found(name, copied) == found(made, copied)
    with pytest.raises(InputError, match="got a package; copy its folder"):
        package.write("hub:me/mine", tmp_path / "again")
    blob = hub / "me--mine/blobs" / hashlib.sha256(f"runs/{POOLED}/backend.safetensors".encode()).hexdigest()
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match=r"1 files are missing or damaged"):
        detect.load("hub:me/mine")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hub:me/other", r"hub:me/other: OSError: me/other: 404"),
        ("hub:me/mine@main", r"hub:me/mine@main: OSError"),
        ("hub:mine", r"expected a name on the hub, owner/name .*got 'mine'"),
        ("hub:../../etc/x", r"expected a name on the hub"),
    ],
)
@pytest.mark.usefixtures("hub")
def test_what_is_not_on_the_hub_is_one_message(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        detect.load(name)


def test_a_repository_of_something_else_is_no_package(hub: Path) -> None:
    (hub / "me--mine/snapshots/c0ffee").mkdir(parents=True)
    with pytest.raises(InputError, match=r"hub:me/mine: expected a package with package\.json"):
        detect.load("hub:me/mine")


@pytest.mark.usefixtures("copied")
def test_a_name_that_no_repository_has_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a name on the hub"):
        commands.dispatch(["package", POOLED, "--out", str(tmp_path / "out"), "--push", "mine"])
    assert not (tmp_path / "out").exists()


def test_a_package_is_submitted_to_the_arena(
    made: Path, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    about = {
        "system": {"name": "A", "slug": "a", "description": "", "code": "https://x.org", "checkpoint": "https://x.org"},
        "dataset": {"id": "Some/Set", "revision": "0123abc"},
        "artifact": {"bench_version": "1.0"},
        "submitter": {"hf_username": "you", "contact": "you"},
        "submitted_at": "2026-11-26",
    }
    arguments = [str(made), "--set", "eval", "--about", str(tmp_path / "about.yaml"), "--out", str(tmp_path / "out")]

    def run() -> None:
        YAML(typ="safe").dump(about, tmp_path / "about.yaml")
        commands.dispatch(["submit", *arguments])

    run()
    place = tmp_path / "out/.eval_results/Some/Set/scores.txt"
    written = [line.split() for line in place.read_text().splitlines()]
    assert [name for name, _ in written] == trial_table.read(Path("data/trials/eval.csv")).utterance.tolist()
    assert [float(score) for _, score in written] == list(systems.scores(POOLED))
    about["artifact"]["scores_url"] = "https://huggingface.co/you/model/resolve/0123abc/scores.txt"
    monkeypatch.setattr(detect, "load", None)  # scores that were uploaded are not made again
    run()
    assert "12 trials, none skipped" in capsys.readouterr().out
    assert (tmp_path / "out/submissions/a.yaml").is_file()
    arguments[2] = "nothing"
    with pytest.raises(InputError, match=r"data/trials/nothing.csv: no trial table there; run `dvc repro prepare`"):
        run()


def test_a_trial_without_audio_is_not_submitted(made: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    table = trial_table.read(Path("data/trials/eval.csv"))
    table.path[3] = "eval/none.flac"
    with pytest.raises(
        InputError, match=r"1 of 12 trials have no score; the Arena wants all:\n.*utterance eval3: .*none"
    ):
        submit._scored(str(made), "eval", table)
    with pytest.raises(InputError, match=r"params.yaml: sets: expected one of dev, eval, train, got 'test'"):
        submit._scored(str(made), "test", table)
