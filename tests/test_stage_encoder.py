"""The stage `encoder`: a card as ever for a frozen encoder, weights and their card for a fine-tuned one."""

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2Model

from pipeline.core import params_file, trial_table
from pipeline.core.errors import InputError
from pipeline.encoder import cards, models
from stages import encoder
from tests.conftest import TINY, Corpus

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
    text = (ROOT / "params.yaml").read_text()
    start, end = text.index("encoder:\n"), text.index("\nfeatures:")
    text = text[:start] + section + text[end:]
    text = text.replace("samples: 40000", "samples: 3200").replace("root: data/demo", f"root: {root}")
    place.write_text(text.replace("device: auto", f"device: {device}"))
    return place


def run(monkeypatch: pytest.MonkeyPatch, place: Path, settings: Path) -> None:
    """The stage in `place`, with the paths that the flow gives it."""
    monkeypatch.chdir(place)
    paths = ["--trials", "data/trials", "--weights", "data/finetuned", "--card", "data/encoder.json"]
    monkeypatch.setattr(sys, "argv", ["encoder", "--params", str(settings), *paths])
    encoder.main()


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
    (note,) = (tmp_path / "data" / "finetuned").iterdir()
    assert note.name == "README.txt"
    assert note.read_text() == "The encoder is frozen and comes from random; encoder.finetune would train it.\n"


def test_fine_tuning_and_back(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tables(tmp_path, corpus)
    settings = parameters(tmp_path / "params.yaml", FINETUNE, root=root)
    run(monkeypatch, tmp_path, settings)
    said = capsys.readouterr().out
    assert "10 utterances to train on, 10 to select on" in said
    assert "mean of 1, 2: dev EER " in said
    card = json.loads((tmp_path / "data" / "encoder.json").read_text())
    loaded, found = models.load_deployed(params_file.load(settings).encoder, weights=Path("data/finetuned"))
    assert card == vars(found)
    assert (card["source"], card["normalize"]) == ("data/finetuned", "utterance")
    assert card["architecture"] == models.load(TINY)[1].architecture
    assert card["weights_sha256"] == cards.weights_sha256(Wav2Vec2Model.from_pretrained("data/finetuned"))
    before = models.load(TINY)[0].state_dict()
    moved = [name for name, tensor in loaded.state_dict().items() if not torch.equal(tensor, before[name])]
    assert moved
    assert not [name for name in moved if name.startswith(("feature_extractor", "encoder.layers.2"))]
    run_card = json.loads((tmp_path / "data" / "finetuned" / "run" / "run.json").read_text())
    assert len(run_card["quality_thresholds"]) == 1
    assert not list(tmp_path.glob("data/*.checkpoint*"))
    assert str(tmp_path) not in (tmp_path / "data" / "finetuned" / "config.json").read_text()

    run(monkeypatch, tmp_path, parameters(tmp_path / "params.yaml", FINETUNE.split("  finetune")[0], root=root))
    assert [path.name for path in (tmp_path / "data" / "finetuned").iterdir()] == ["README.txt"]
    assert json.loads((tmp_path / "data" / "encoder.json").read_text())["source"] == "random"


def test_unfinished_trainings_with_other_parameters_are_kept_and_told(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tables(tmp_path, corpus)
    other = tmp_path / "data" / "finetuned.checkpoint" / "0123456789abcdef"
    other.mkdir(parents=True)
    text = FINETUNE.replace("epochs: 2", "epochs: 1")
    run(monkeypatch, tmp_path, parameters(tmp_path / "params.yaml", text, root=root))
    assert "data/finetuned.checkpoint: holds unfinished trainings with other parameters" in capsys.readouterr().out
    assert list(other.parent.iterdir()) == [other]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named(corpus: Corpus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = tables(tmp_path, corpus)
    settings = parameters(tmp_path / "params.yaml", FINETUNE, device="cuda", root=root)
    with pytest.raises(InputError, match=r"extract\.device: expected a GPU that torch can use, got none"):
        run(monkeypatch, tmp_path, settings)


def test_a_folder_of_other_things_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "data" / "finetuned").mkdir(parents=True)
    (tmp_path / "data" / "finetuned" / "model.safetensors").write_text("mine")
    with pytest.raises(InputError, match=r"data/finetuned: expected a free place or an older folder with README\.txt"):
        run(monkeypatch, tmp_path, parameters(tmp_path / "params.yaml", DEMO))
    assert (tmp_path / "data" / "finetuned" / "model.safetensors").read_text() == "mine"
    assert not (tmp_path / "data" / "encoder.json").exists()
