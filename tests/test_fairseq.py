"""Checkpoints of fairseq's: every layer as fairseq computes it, whatever stands around the encoder, and nothing run."""

import json
import os
import pickle
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import HubertConfig, HubertModel, Wav2Vec2Config, WavLMConfig, WavLMModel

from pipeline.core.encoder_sections import EncoderParams
from pipeline.core.errors import InputError
from pipeline.encoder import fairseq, models, tensor_files, xlsr
from pipeline.encoder.cards import Card
from tests.golden import GOLDEN, read_golden

LAYERS = (0, 1, 2, 3)
TOLERANCE = 1e-4  # of the golden numbers


def load(path: Path) -> tuple[Any, Any]:
    return models.load(EncoderParams(source=str(path), normalize="utterance"))


def encoder(path: Path) -> xlsr.Encoder:
    return xlsr.Encoder(load(path)[0], taps=(*LAYERS, "final"), normalize="none")


@pytest.fixture(scope="module")
def state() -> dict[str, Any]:
    """The whole of fairseq's tiny checkpoint."""
    found: dict[str, Any] = torch.load(GOLDEN / "tiny_fairseq.pt", weights_only=True)
    return found


def write(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize("file", ["tiny_fairseq.pt", "tiny_fairseq_args.pt"])
@pytest.mark.parametrize("case", ["main", "odd"])
def test_every_layer_is_fairseqs(file: str, case: str) -> None:
    golden = read_golden("fairseq_xlsr")
    for under, wave in ((case, "wave"), (f"{case}/norm", "wave_normalized")):
        windows = torch.from_numpy(golden[f"{case}/{wave}"])
        taps, _ = encoder(GOLDEN / file)(windows, torch.full((2,), windows.shape[1]))
        expected = {0: "layer_input", 1: "layer0", 2: "layer1", 3: "layer2", "final": "x"}
        for tap, name in expected.items():
            torch.testing.assert_close(taps[tap], torch.from_numpy(golden[f"{under}/{name}"]), rtol=0, atol=TOLERANCE)


def test_padding_is_masked_as_fairseq_masks_it() -> None:
    golden = read_golden("fairseq_xlsr")
    windows, lengths = torch.from_numpy(golden["pad/wave"]), torch.from_numpy(golden["pad/lengths"])
    taps, n_frames = encoder(GOLDEN / "tiny_fairseq.pt")(windows, lengths)
    assert n_frames.tolist() == golden["pad/frames"].tolist()
    for i, frames in enumerate(n_frames.tolist()):
        for tap, name in ((1, "layer0"), (3, "layer2"), ("final", "x")):
            expected = torch.from_numpy(golden[f"pad/{name}"])[i, :frames]
            torch.testing.assert_close(taps[tap][i, :frames], expected, rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module")
def pretrained() -> Card:
    """The card of the whole model."""
    return load(GOLDEN / "tiny_fairseq.pt")[1]


@pytest.mark.usefixtures("no_trial_reading")
@pytest.mark.parametrize("prefix", ["ssl_model.model.", "module.ssl_model.model.", "frontend.", ""])
@pytest.mark.parametrize("below", [None, "state_dict", "model"])
def test_a_countermeasure_gives_its_encoder(
    state: dict[str, Any],
    pretrained: Card,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    prefix: str,
    below: str | None,
) -> None:
    monkeypatch.setitem(fairseq.HEADS, 32, 4)  # a countermeasure does not tell
    weights = {prefix + name: tensor for name, tensor in state["model"].items()}
    weights |= {"LL.weight": torch.ones(2, 2)} if prefix else {}
    _, card = load(write(tmp_path / "best.pth", {below: weights} if below else weights))
    assert card.weights_sha256 == pretrained.weights_sha256
    assert card.architecture == pretrained.architecture


def test_a_width_whose_heads_nobody_knows_is_refused(state: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path / "best.pth", state["model"])
    with pytest.raises(
        InputError, match=r"with its number of attention heads, or one of width 768.*got one of width 32"
    ):
        load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("encoder.layers.1.fc1.bias"), "missing encoder.layers.1.feed_forward.intermediate_dense.bias"),
        (lambda w: w.update({"encoder.layers.0.adapter.weight": torch.ones(1)}), "encoder.layers.0.adapter.weight"),
        (
            lambda w: w.update({"encoder.layers.7.fc1.bias": torch.ones(64)}),
            "expected the layers 0 to 3, got 0, 1, 2, 7",
        ),
        (lambda w: w.update({"layer_norm.weight": torch.ones(7)}), r"layer_norm.weight: expected \(16,\), got \(7,\)"),
        (lambda w: w.pop("post_extract_proj.weight"), "lacks the weight 'post_extract_proj.weight'"),
        (lambda w: w.pop("encoder.layers.0.fc1.weight"), "lacks the weight 'encoder.layers.0.fc1.weight'"),
        (lambda w: w.pop(fairseq.FIRST), "got no weight"),
        (lambda w: w.update({f"b.{fairseq.FIRST}": torch.ones(1)}), "one encoder, got 2, below 'model.', 'model.b.'"),
        (
            lambda w: w.update({"feature_extractor.conv_layers.3.0.weight": torch.ones(16, 16, 5)}),
            r"expected convolutions of \(10, 3,.*got \(10, 3, 3, 5, 3, 2, 2\)",
        ),
    ],
)
def test_weights_that_are_missing_or_too_many_are_named(
    state: dict[str, Any], tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    weights = dict(state["model"])
    change(weights)
    path = write(tmp_path / "x.pt", {"cfg": state["cfg"], "model": weights})
    with pytest.raises(InputError, match=message) as error:
        load(path)
    assert str(path) in str(error.value)


class Harmful:
    """What a plain unpickling would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("harmed",)


def test_nothing_in_a_file_is_run(state: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "x.pt", {"model": state["model"], "extra": Harmful()})
    with pytest.raises(InputError, match=r"got one with posix\.mkdir; it is not loaded"):
        load(path)
    assert not (tmp_path / "harmed").exists()


def compared_without_end() -> bytes:
    """A pickle of 720 bytes: two keys of a dict are equal tuples, each of twice the same tuple, and so on."""
    towers = b"".join(
        b")q" + bytes([first]) + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(first, first + 50))
        for first in (0, 100)
    )
    return b"\x80\x02" + towers + b"}h\x32K\x01sh\x96K\x01s."


def test_a_file_that_takes_any_time_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_files, "SECONDS", 1)
    (tmp_path / "x.pt").write_bytes(compared_without_end())
    with pytest.raises(InputError, match=r"x\.pt: reading it takes more than 1 s of processor time, or ends"):
        load(tmp_path / "x.pt")


def test_a_trial_that_waits_for_ever_is_ended(
    state: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_files, "SECONDS", 1)
    monkeypatch.setattr(tensor_files, "WAITING", 1)
    monkeypatch.setattr(tensor_files, "_load", lambda _path: time.sleep(60))
    with pytest.raises(InputError, match=r"x\.pt: reading it takes more than 1 s of processor time, or ends"):
        load(write(tmp_path / "x.pt", {"model": state["model"]}))


def test_a_file_that_takes_any_memory_is_refused(
    state: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = write(tmp_path / "whole.pt", {"model": state["model"], "zeros": torch.zeros(10**6)})
    with zipfile.ZipFile(whole) as stored, zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as file:
        for name in stored.namelist():
            file.writestr(name, stored.read(name))
    with pytest.raises(InputError, match=r"as torch\.save writes it, got a compressed one with \d,\d\d\d,\d\d\d bytes"):
        load(tmp_path / "x.pt")
    monkeypatch.setattr(tensor_files, "LARGEST_HEADER", 0)
    one = torch.ones(1, dtype=torch.float16)
    path = write(tmp_path / "y.pt", {"model": state["model"] | {"encoder.layers.0.x": one.expand(10**9)}})
    with pytest.raises(InputError, match=r"expected weights of about .* bytes, .*, got 2,\d+,\d+,\d+: they share"):
        load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a checkpoint that torch.load reads"),
        (b"PK\x03\x04 cut off", "not a checkpoint that torch.load reads"),
        (pickle.dumps([1, 2], protocol=2), "expected a checkpoint|not a checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        load(tmp_path / "x.pt")


def test_other_content_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a dict of tensors, got a list"):
        load(write(tmp_path / "a.pt", [torch.ones(1)]))
    with pytest.raises(InputError, match="expected weights, or `model` or `state_dict` with weights, got epoch"):
        load(write(tmp_path / "b.pt", {"epoch": 3}))
    with pytest.raises(InputError, match=r"got no file .*nowhere\.pt"):
        load(tmp_path / "nowhere.pt")


# ---------------------------------------------------------------- kin of wav2vec 2.0, through transformers

SMALL = {
    "num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48,
    "conv_dim": (16,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip


@pytest.mark.parametrize(
    ("made", "config"),
    [
        (HubertModel, HubertConfig(**SMALL)),
        (HubertModel, HubertConfig(**SMALL, feat_extract_norm="layer", do_stable_layer_norm=True)),
        (WavLMModel, WavLMConfig(**SMALL)),
        (WavLMModel, WavLMConfig(**SMALL, feat_extract_norm="layer", do_stable_layer_norm=True)),
    ],
)
def test_kin_load_from_a_folder_with_every_layer(tmp_path: Path, made: Any, config: Any) -> None:
    torch.manual_seed(0)
    model = made(config).eval()
    model.save_pretrained(tmp_path)
    windows = torch.randn(2, 3_200)
    with torch.inference_mode():
        output = model(windows, output_hidden_states=True)
    loaded, card = load(tmp_path)
    assert isinstance(loaded, made)
    assert card.architecture["model_type"] == config.model_type
    taps, _ = encoder(tmp_path)(windows, torch.full((2,), 3_200))
    for k in LAYERS[:-1]:
        torch.testing.assert_close(taps[k], output.hidden_states[k], rtol=0, atol=1e-5)
    torch.testing.assert_close(taps["final"], output.last_hidden_state, rtol=0, atol=1e-5)
    cut = xlsr.Encoder(load(tmp_path)[0], taps=(1,), normalize="none")
    torch.testing.assert_close(cut(windows, torch.full((2,), 3_200))[0][1], output.hidden_states[1], rtol=0, atol=1e-5)


def test_code_that_a_folder_brings_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    (tmp_path / "mine.py").write_text(
        "from pathlib import Path\nfrom transformers import PretrainedConfig\n"
        f"Path({str(tmp_path / 'harmed')!r}).touch()\n"
        "class MyConfig(PretrainedConfig):\n    model_type = 'mine'\n"
    )
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.MyConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"encoder\.source: expected one of wav2vec2, hubert, wavlm, .*, got .*a mine"):
        load(tmp_path)
    assert not (tmp_path / "harmed").exists()


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    Wav2Vec2Config(**SMALL).save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text().replace('"wav2vec2"', '"bert"')
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"expected one of wav2vec2, hubert, wavlm, .*, got .*a bert"):
        load(tmp_path)
