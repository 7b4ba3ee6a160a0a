"""The stage `encoder`: a card as ever for a frozen encoder, weights and their card for a fine-tuned one."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2Model

from pipeline.core import params_file, trial_table
from pipeline.core.errors import InputError
from pipeline.core.sections import FeaturesParams
from pipeline.encoder import cards, kept, models
from pipeline.finetuning import finetune, plan, processes
from pipeline.training import loop
from stages import encoder
from tests.conftest import TINY, Corpus
from tests.places import SETTINGS

ROOT = Path(__file__).parents[1]
DEMO = """encoder:
  source: random
  random: {layers: 4, width: 128, heads: 4, feedforward: 256, conv_channels: 64, seed: 1}
  normalize: utterance
"""
DEMO_CARD = """{
  "source": "random",
  "weights_sha256": "SHA256",
  "architecture": {
    "model_type": "wav2vec2",
    "num_hidden_layers": 4,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-05,
    "do_stable_layer_norm": true,
    "feat_extract_norm": "layer",
    "feat_extract_activation": "gelu",
    "conv_bias": true,
    "conv_dim": [
      64,
      64,
      64,
      64,
      64,
      64,
      64
    ],
    "conv_kernel": [
      10,
      3,
      3,
      3,
      3,
      2,
      2
    ],
    "conv_stride": [
      5,
      2,
      2,
      2,
      2,
      2,
      2
    ],
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16
  },
  "normalize": "utterance"
}
"""
FINETUNE = """encoder:
  source: random
  random: {layers: 3, width: 32, heads: 4, feedforward: 48, conv_channels: 16, seed: 5}
  normalize: utterance
  finetune:
    backend: linear
    loss: qamo
    layers: [1, 2]
    views: {draw: [rawboost4_0], probability: 0.4}
    seed: 1
    epochs: 2
    batch_size: 4
    accumulate: 1
    learning_rate: {encoder: 0.001, backend: 0.001, centroids: 0.001, layers: 0.01}
    weight_decay: 0.0001
    patience: 2
    average_best: 2
    freeze_front_end: true
    gradient_checkpointing: true
    precision: float32
"""


def parameters(place: Path, section: str, *, device: str = "cpu", root: str = "data/demo") -> Path:
    """The project's parameters with another section `encoder`."""
    text = SETTINGS.read_text()
    start, end = text.index("encoder:\n"), text.index("\nfeatures:")
    text = text[:start] + section + text[end:]
    text = text.replace("samples: 40000", "samples: 3200").replace("root: data/demo", f"root: {root}")
    place.write_text(text.replace("device: auto", f"device: {device}"))
    return place


def run(monkeypatch: pytest.MonkeyPatch, place: Path, settings: Path) -> None:
    """The stage in `place`, with the paths that the flow gives it."""
    monkeypatch.chdir(place)
    paths = ["--trials", "data/trials", "--card", "data/encoder.json"]
    monkeypatch.setattr(sys, "argv", ["encoder", "--params", str(settings), *paths])
    encoder.main()


ENCODERS = Path("data/cache/encoders")


def receipt() -> dict:
    return json.loads(Path("data/encoder.json").read_text())


def tuned_folder() -> Path:
    return ENCODERS / receipt()["finetuned"]["identity"]


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The identities of the fine-tunings that compute."""
    done: list[str] = []
    real = finetune.finetune

    def watched(model: Any, asked: plan.Asked, **more: Any) -> Any:
        done.append(asked.identity)
        return real(model, asked, **more)

    monkeypatch.setattr(finetune, "finetune", watched)
    return done


def tables(place: Path, corpus: Corpus) -> str:
    """Trial tables of both sets; the root of their audio."""
    root, table = corpus
    (place / "data" / "trials").mkdir(parents=True)
    for name in ("train", "dev"):
        (place / "data" / "trials" / f"{name}.csv").write_text(trial_table.to_csv(table))
    return str(root)


OFF = FINETUNE[FINETUNE.index("  finetune:") :].replace("finetune:\n", "finetune:\n    on: false\n")


@pytest.mark.parametrize("line", ["", "  finetune: null\n", OFF])
def test_a_frozen_encoder_has_the_card_it_had_before_there_was_fine_tuning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str
) -> None:
    settings = parameters(tmp_path / "params.yaml", DEMO + line)
    run(monkeypatch, tmp_path, settings)
    found = (tmp_path / "data" / "encoder.json").read_text()
    model, _ = models.load(params_file.load(settings).encoder)
    assert found == DEMO_CARD.replace("SHA256", cards.weights_sha256(model))
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["encoder.json"]


def test_fine_tuning_and_back(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tables(tmp_path, corpus)
    settings = parameters(tmp_path / "params.yaml", FINETUNE, root=root)
    run(monkeypatch, tmp_path, settings)
    said = capsys.readouterr().out
    assert "10 utterances to train on, 10 to select on" in said
    assert re.search(r"2 epochs, (mean of|taken) [12](, 2)?: dev EER ", said)
    card, folder = receipt(), tuned_folder()
    loaded, found = models.load_deployed(params_file.load(settings).encoder, weights=folder)
    assert card.items() >= vars(found).items()
    assert set(card) == {*vars(found), "finetuned"}
    assert (card["source"], card["normalize"]) == (f"encoders/{folder.name}", "utterance")
    assert card["architecture"] == models.load(TINY)[1].architecture
    assert card["weights_sha256"] == cards.weights_sha256(Wav2Vec2Model.from_pretrained(folder))
    before = models.load(TINY)[0].state_dict()
    moved = [name for name, tensor in loaded.state_dict().items() if not torch.equal(tensor, before[name])]
    assert moved
    assert not [name for name in moved if name.startswith(("feature_extractor", "encoder.layers.2"))]
    run_card = json.loads((folder / "run" / "run.json").read_text())
    assert len(run_card["quality_thresholds"]) == 1
    assert [path.name for path in ENCODERS.iterdir()] == [folder.name]
    assert str(tmp_path) not in (folder / "config.json").read_text() + Path("data/encoder.json").read_text()

    run(monkeypatch, tmp_path, parameters(tmp_path / "params.yaml", FINETUNE.split("  finetune")[0], root=root))
    assert receipt()["source"] == "random"
    assert "finetuned" not in receipt()
    assert [path.name for path in ENCODERS.iterdir()] == [folder.name]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_run_twice_it_computes_once(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trainings: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    settings = parameters(tmp_path / "params.yaml", FINETUNE, root=tables(tmp_path, corpus))
    run(monkeypatch, tmp_path, settings)
    first, kept_files = Path("data/encoder.json").read_bytes(), files(ENCODERS)
    capsys.readouterr()
    run(monkeypatch, tmp_path, settings)
    assert trainings == [receipt()["finetuned"]["identity"]]
    assert Path("data/encoder.json").read_bytes() == first
    assert files(ENCODERS) == kept_files
    assert f"{tuned_folder()}: fine-tuned before" in capsys.readouterr().out


def test_going_back_to_old_parameters_finds_the_old_encoder(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trainings: list[str]
) -> None:
    root, receipts = tables(tmp_path, corpus), []
    for rate in ("0.001", "0.002", "0.001", "0.002"):
        section = FINETUNE.replace("encoder: 0.001", f"encoder: {rate}").replace("epochs: 2", "epochs: 1")
        run(monkeypatch, tmp_path, parameters(tmp_path / "params.yaml", section, root=root))
        receipts.append(Path("data/encoder.json").read_bytes())
    assert receipts[0] == receipts[2] != receipts[1] == receipts[3]
    assert sorted(trainings) == sorted(path.name for path in ENCODERS.iterdir())


def test_a_comment_in_the_code_and_another_place_of_the_audio_compute_nothing(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, warm_env: dict[str, str]
) -> None:
    """In processes of their own, on a copy of the code whose every module has a comment more."""
    place, code = tmp_path / "project", tmp_path / "code"
    place.mkdir()
    root = Path(tables(place, corpus))
    settings = parameters(place / "params.yaml", FINETUNE.replace("epochs: 2", "epochs: 1"), root=str(root))
    for name in ("pipeline", "stages"):
        shutil.copytree(ROOT / name, code / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = ["python", "-m", "stages.encoder", "--params", str(settings)]
    command += ["--trials", "data/trials", "--card", "data/encoder.json"]
    environment = warm_env | {"PYTHONPATH": str(code)}

    def said() -> str:
        ran = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=True)
        return ran.stdout

    assert "epochs, mean of 1: dev EER" in said()
    first = (place / "data/encoder.json").read_bytes()
    for path in code.rglob("*.py"):
        path.write_text(path.read_text() + "\n# a comment\n")
    root.rename(root.with_name("moved"))  # and nothing of the audio is read
    text = settings.read_text().replace(f"root: {root}", f"root: {root.with_name('moved')}")
    settings.write_text(text)
    again = said()
    assert "fine-tuned before" in again
    assert "epochs, mean of" not in again
    assert (place / "data/encoder.json").read_bytes() == first


def test_killed_it_goes_on_from_its_checkpoint(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class KilledError(Exception):
        pass

    root = tables(tmp_path, corpus)
    settings = parameters(tmp_path / "params.yaml", FINETUNE, root=root)
    run(monkeypatch, tmp_path, settings)
    undisturbed = Path("data/encoder.json").read_bytes(), files(tuned_folder())
    identity = tuned_folder().name
    shutil.rmtree(ENCODERS)
    Path("data/encoder.json").unlink()
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0)
    real = loop.train_epoch

    def dying(learner: loop.Learner, optimizer: Any, epoch: int) -> float:
        if epoch == 2:
            raise KilledError
        return real(learner, optimizer, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_epoch", dying)
        with pytest.raises(KilledError):
            run(monkeypatch, tmp_path, settings)
    assert [path.name for path in ENCODERS.iterdir()] == [f"{identity}.checkpoint"]
    assert not Path("data/encoder.json").exists()
    header, line = (ENCODERS / f"{identity}.checkpoint/curves.csv").read_text().splitlines()
    assert header == "epoch,loss,dev_loss,train_eer,dev_eer"
    assert line.startswith("1,")
    other = FINETUNE.replace("encoder: 0.001", "encoder: 0.002")  # does not trip over it
    run(monkeypatch, tmp_path, parameters(tmp_path / "params.yaml", other, root=root))
    assert (ENCODERS / f"{identity}.checkpoint").is_dir()
    capsys.readouterr()
    run(monkeypatch, tmp_path, parameters(settings, FINETUNE, root=root))
    said = capsys.readouterr()
    assert "1 epochs are done; going on with the next" in said.out + said.err
    assert (Path("data/encoder.json").read_bytes(), files(tuned_folder())) == undisturbed
    assert not list(ENCODERS.glob("*.checkpoint"))


@pytest.mark.parametrize("name", ["model.safetensors", "run/backend.safetensors", "config.json"])
def test_damage_is_noticed(corpus: Corpus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    section = FINETUNE.replace("epochs: 2", "epochs: 1")
    settings = parameters(tmp_path / "params.yaml", section, root=tables(tmp_path, corpus))
    run(monkeypatch, tmp_path, settings)
    path = tuned_folder() / name
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    message = rf"1 files .* damaged or missing; delete the folder and run `dvc repro -f encoder`.*\n.*{name}"
    with pytest.raises(InputError, match=message):
        run(monkeypatch, tmp_path, settings)
    shutil.rmtree(tuned_folder())
    run(monkeypatch, tmp_path, settings)
    assert tuned_folder().is_dir()


def test_a_folder_appears_only_when_it_is_whole(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trainings: list[str]
) -> None:
    section = FINETUNE.replace("epochs: 2", "epochs: 1")
    settings = parameters(tmp_path / "params.yaml", section, root=tables(tmp_path, corpus))
    with monkeypatch.context() as patch:
        patch.setattr(kept, "seal", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            run(monkeypatch, tmp_path, settings)
    assert not (ENCODERS / trainings[0]).exists()
    run(monkeypatch, tmp_path, settings)
    assert trainings == [tuned_folder().name] * 2
    # What the failed writer left has its name, and goes with the first folder that another process writes there.
    assert [path.name for path in ENCODERS.iterdir() if path.suffix != ".part"] == [tuned_folder().name]


def test_an_encoder_that_is_gone_or_another_is_an_error_that_says_how_to_get_it(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    section = FINETUNE.replace("epochs: 2", "epochs: 1")
    settings = parameters(tmp_path / "params.yaml", section, root=tables(tmp_path, corpus))
    run(monkeypatch, tmp_path, settings)
    encoders, card = params_file.load(settings).encoder, Path("data/encoder.json")
    features = params_file.load(settings).features.folder
    assert kept.weights_of(encoders, card, features=features) == tuned_folder()
    mark = tuned_folder() / "encoder.json"
    told = json.loads(mark.read_text())
    mark.write_text(json.dumps(told | {"files": told["files"] | {"run/run.json": "0" * 64}}))
    with pytest.raises(InputError, match=r"got other files; move the folder away and run `dvc repro -f encoder`"):
        kept.weights_of(encoders, card, features=features)
    shutil.rmtree(tuned_folder())
    with pytest.raises(InputError, match=r"no fine-tuned encoder there, .*encoder\.json.*; run `dvc repro -f encoder`"):
        kept.weights_of(encoders, card, features=features)
    assert kept.weights_of(TINY, card, features=features) is None
    card.write_text(json.dumps({"source": "random"}))
    with pytest.raises(InputError, match=r"expected a fine-tuned encoder, got a frozen one"):
        kept.weights_of(encoders, card, features=features)


def test_where_features_lie_on_an_object_store_encoders_are_kept_in_the_project() -> None:
    there = FeaturesParams(root="memory://bucket/features").folder
    assert kept.folder_of(there) == ENCODERS
    assert kept.folder_of(Path("/disk/features")) == Path("/disk/features/encoders")


def test_several_processes_do_all_and_none_is_started_for_an_encoder_that_is_there(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = tables(tmp_path, corpus)
    several = FINETUNE.replace("epochs: 2", "epochs: 1\n    processes: 2")
    settings = parameters(tmp_path / "params.yaml", several, root=root)
    started: list[Any] = []
    monkeypatch.setattr(processes, "start", lambda *given: started.append(given))
    run(monkeypatch, tmp_path, settings)
    paths = ["--trials", "data/trials", "--card", "data/encoder.json"]
    assert started == [(["-m", "stages.encoder", "--params", str(settings), *paths], 2)]
    assert not Path("data/encoder.json").exists()
    run(monkeypatch, tmp_path, parameters(settings, several.replace("processes: 2", "processes: 1"), root=root))
    run(monkeypatch, tmp_path, parameters(settings, several, root=root))
    assert len(started) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named(corpus: Corpus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = tables(tmp_path, corpus)
    settings = parameters(tmp_path / "params.yaml", FINETUNE, device="cuda", root=root)
    with pytest.raises(InputError, match=r"extract\.device: expected a GPU that torch can use, got none"):
        run(monkeypatch, tmp_path, settings)


def test_a_folder_of_other_things_is_left_alone(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trainings: list[str]
) -> None:
    section = FINETUNE.replace("epochs: 2", "epochs: 1")
    settings = parameters(tmp_path / "params.yaml", section, root=tables(tmp_path, corpus))
    run(monkeypatch, tmp_path, settings)
    (tuned_folder() / "encoder.json").unlink()
    before = files(tuned_folder())
    with pytest.raises(InputError, match=r"no mark of a fine-tuned encoder there; delete the folder and run"):
        run(monkeypatch, tmp_path, settings)
    assert files(tuned_folder()) == before
    assert len(trainings) == 1
