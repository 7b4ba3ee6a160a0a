"""Every kind of encoder that is read: taps, layers cut off, padding and batches, as of wav2vec 2.0."""

import copy
import dataclasses
import json
import re
import sys
import types
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    SeamlessM4TFeatureExtractor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from pipeline.core import params_file, trial_table
from pipeline.core.encoder_sections import EncoderParams, FinetuneParams
from pipeline.core.errors import InputError
from pipeline.core.trial_table import Row
from pipeline.encoder import cards, configuration, models, xlsr
from pipeline.extraction import forward, identity
from pipeline.finetuning.regularization import regularize
from stages import extract
from tests.places import SETTINGS
from tests.test_finetune import FINETUNE

pytestmark = [
    pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask"),  # WavLM's own attention
    pytest.mark.usefixtures("no_trial_reading"),
]
SIZES = {"num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
CONVOLUTIONS = {
    "conv_dim": (16,) * 7, "conv_kernel": (10, 3, 3, 3, 3, 2, 2), "conv_stride": (5, 2, 2, 2, 2, 2, 2),
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
BINS = 8
LIKE_XLSR = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
W2V_BERT = {"feature_projection_input_dim": 2 * BINS, "conv_depthwise_kernel_size": 7}
WHISPER = {"num_mel_bins": BINS, "max_source_positions": 50, "encoder_ffn_dim": 48}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    **{kind: (kind, LIKE_XLSR) for kind in ("wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat")},
    "wavlm, base": ("wavlm", {"feat_extract_norm": "layer"}),
    "unispeech-sat, base": ("unispeech-sat", {"feat_extract_norm": "layer"}),
    "data2vec-audio": ("data2vec-audio", {"conv_pos_kernel_size": 5}),
    "data2vec-audio, even": ("data2vec-audio", {"conv_pos_kernel_size": 4}),
    "conformer, relative": ("wav2vec2-conformer", LIKE_XLSR | {"conv_depthwise_kernel_size": 7}),
    "conformer, rotary": ("wav2vec2-conformer", LIKE_XLSR | {"position_embeddings_type": "rotary"}),
    "conformer, none": ("wav2vec2-conformer", LIKE_XLSR | {"position_embeddings_type": None}),
    "sew": ("sew", {"feat_extract_norm": "layer"}),
    "sew, odd": ("sew", {"feat_extract_norm": "layer", "num_conv_pos_embeddings": 5, "squeeze_factor": 3}),
    "w2v-BERT": ("wav2vec2-bert", W2V_BERT),
    "w2v-BERT, relative": ("wav2vec2-bert", W2V_BERT | {"position_embeddings_type": "relative"}),
    "whisper": ("whisper", WHISPER),
}
LOG_MEL = configuration.LOG_MEL
GROUP_NORM = [kind for kind in configuration.KINDS if kind not in ("data2vec-audio", *LOG_MEL)]
SAMPLES = 3_200


def made(kind: str, **more: Any) -> Any:
    model = configuration.KINDS[kind]
    sizes = SIZES if kind in LOG_MEL else SIZES | CONVOLUTIONS
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        new = model(model.config_class(**sizes | more)).eval()
        for module in new.modules():  # statistics of training, which are not those of initialization
            if isinstance(module, torch.nn.BatchNorm1d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return new


def noise(n: int, samples: int = SAMPLES) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(0, 1, (n, samples)).astype(np.float32))


def load(folder: Path) -> tuple[Any, cards.Card]:
    return models.load(EncoderParams(source=str(folder), normalize="none"))


def encoder(model: Any, *taps: int | str, precision: Any = "float32") -> xlsr.Encoder:
    return xlsr.Encoder(copy.deepcopy(model), taps=taps, normalize="none", precision=precision)


def full(n: int, samples: int = SAMPLES) -> Tensor:
    return torch.full((n,), samples)


class Read(NamedTuple):
    """A model of transformers, the same read from its folder, its card, and what may be tapped."""

    original: Any
    model: Any
    card: cards.Card
    last: int | str


@pytest.fixture(scope="module", params=KINDS)
def read(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Read:
    kind, more = KINDS[request.param]
    folder = tmp_path_factory.mktemp("encoder")
    original = made(kind, **more)
    original.save_pretrained(folder)
    return Read(original, *load(folder), 3 if kind == "sew" else "final")


def of_transformers(kind: str, windows: Tensor) -> Tensor:
    """What transformers gives to a model of the kind."""
    clips = list(windows.numpy())
    if kind == "whisper":
        extractor = WhisperFeatureExtractor(feature_size=BINS, chunk_length=1)
        return extractor(clips, sampling_rate=16_000, return_tensors="pt").input_features
    if kind == "wav2vec2-bert":
        extractor = SeamlessM4TFeatureExtractor(feature_size=BINS, num_mel_bins=BINS)
        return extractor(clips, sampling_rate=16_000, return_tensors="pt").input_features
    return windows


def test_taps_are_the_hidden_states_of_the_original(read: Read) -> None:
    original, card = read.original, read.card
    kind = original.config.model_type
    with torch.inference_mode():
        output = original(of_transformers(kind, noise(2)), output_hidden_states=True)
    assert type(read.model) is type(original)
    assert card.architecture["model_type"] == kind
    taps, n_frames = encoder(read.model, 0, 1, 2, 3, read.last)(noise(2), full(2))
    assert n_frames.tolist() == [taps[0].shape[1]] * 2 == [card.frames(SAMPLES)] * 2
    for k in range(3):
        expected = output.hidden_states[k]
        assert kind == "whisper" or taps[k].shape == expected.shape
        torch.testing.assert_close(
            taps[k], expected[:, : taps[k].shape[1]], rtol=0, atol=1e-4 if kind in LOG_MEL else 1e-5
        )
    if read.last == "final":
        whole = output.last_hidden_state[:, : taps["final"].shape[1]]
        torch.testing.assert_close(taps["final"], whole, rtol=0, atol=1e-4 if kind in LOG_MEL else 1e-5)


def test_nothing_above_the_highest_tap_is_kept(read: Read) -> None:
    expected, _ = encoder(read.model, 0, 1, 2, 3)(noise(2), full(2))
    for tap, wanted in expected.items():
        cut = encoder(read.model, tap)
        assert len(xlsr.stack_of(cut.model).layers) == max(int(tap), 1)
        torch.testing.assert_close(cut(noise(2), full(2))[0][tap], wanted, rtol=0, atol=1e-6)


def test_a_batch_changes_nothing(read: Read) -> None:
    encode = encoder(read.model, 1, read.last)
    together, _ = encode(noise(3), full(3))
    for i in range(3):
        alone, _ = encode(noise(3)[i : i + 1], full(1))
        for tap in together:
            torch.testing.assert_close(alone[tap][0], together[tap][i], rtol=0, atol=2e-5)


def test_padding_changes_nothing(read: Read) -> None:
    encode = encoder(read.model, 0, 1, read.last)
    lengths = torch.tensor([1_100, 1_900, 2_000, 2_100, 3_200])  # odd and even numbers of frames in front
    windows = noise(len(lengths))
    for i, length in enumerate(lengths):
        windows[i, length:] = 7.0  # must not count
    padded, n_frames = encode(windows, lengths)
    for i, length in enumerate(lengths.tolist()):
        alone, (frames,) = encode(windows[i : i + 1, :length], full(1, length))
        assert n_frames[i] == frames == alone[0].shape[1] == read.card.frames(length) > 0
        for tap in padded:
            torch.testing.assert_close(padded[tap][i, :frames], alone[tap][0], rtol=0, atol=5e-5)


def test_bfloat16_stays_close(read: Read) -> None:
    valid = torch.tensor([3_200, 1_900])
    expected, n_frames = encoder(read.model, 1, read.last)(noise(2), valid)
    got, _ = encoder(read.model, 1, read.last, precision="bfloat16")(noise(2), valid)
    for tap, wanted in expected.items():
        for row, frames in enumerate(n_frames.tolist()):
            error = (got[tap][row, :frames] - wanted[row, :frames]).norm() / wanted[row, :frames].norm()
            assert 2e-5 < error < 0.05, (tap, error)


@pytest.mark.parametrize(("norm", "pad", "warns"), [("group", "zero", 1), ("group", "repeat", 0), ("layer", "zero", 0)])
def test_padding_with_a_group_norm_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], norm: str, pad: str, warns: int
) -> None:
    monkeypatch.chdir(tmp_path)
    text, count = re.subn(r"pad: \w+", f"pad: {pad}", (Path(__file__).parent / "params.yaml").read_text())
    assert count == 1
    Path("params.yaml").write_text(text)
    made("wav2vec2", feat_extract_norm=norm).save_pretrained("encoder")
    card = dataclasses.asdict(load(Path("encoder"))[1])
    Path("card.json").write_text(json.dumps(card | {"architecture": card["architecture"] | {"num_hidden_layers": 9}}))
    monkeypatch.setattr(extract.planning, "extract", lambda *_, **__: {})
    monkeypatch.setattr(extract.trial_table, "read", lambda _: None)
    words = "--set dev --trials t.csv --card card.json --receipt r.json"
    monkeypatch.setattr("sys.argv", ["extract", *words.split()])
    extract.main()
    assert capsys.readouterr().err.count("! encoder normalizes over time (feat_extract_norm: group)") == warns


@pytest.mark.parametrize("kind", GROUP_NORM)
def test_group_norms_see_padding(tmp_path: Path, kind: str) -> None:
    """Their mean is over time, so that padding shifts it; `pad: zero` warns of that, `pad: repeat` pads nothing."""
    made(kind).save_pretrained(tmp_path)
    encode, windows = encoder(load(tmp_path)[0], 1), noise(1)
    padded = encode(windows, torch.tensor([1_900]))[0][1]
    alone = encode(windows[:, :1_900], full(1, 1_900))[0][1]
    assert (padded[:, : alone.shape[1]] - alone).abs().max() > 1e-3


def test_final_of_an_encoder_that_squeezes_is_refused(tmp_path: Path) -> None:
    made("sew").save_pretrained(tmp_path)
    card = load(tmp_path)[1]
    assert (card.frames(SAMPLES), card.frames(720), card.frames(719)) == (4, 1, 0)
    with pytest.raises(InputError, match=r"extract\.layers: expected 0 to 3, .* got 'final'"):
        card.check_taps((1, "final"))


@pytest.mark.parametrize(("kind", "sizes"), [("wav2vec2-bert", W2V_BERT), ("whisper", WHISPER)])
def test_encoders_of_log_mel_features_take_samples_as_they_are(
    tmp_path: Path, kind: str, sizes: dict[str, Any]
) -> None:
    made(kind, **sizes).save_pretrained(tmp_path)
    assert models.load(EncoderParams(source=str(tmp_path), normalize="auto"))[1].normalize == "none"
    with pytest.raises(InputError, match=r"encoder\.normalize: expected none, .*config\.json"):
        models.load(EncoderParams(source=str(tmp_path), normalize="utterance"))


def test_a_whole_whisper_is_read_and_no_window_beyond_its_positions(tmp_path: Path) -> None:
    """Published ones hold a decoder, too, under `model.`."""
    whole = WhisperForConditionalGeneration(
        WhisperConfig(**SIZES | WHISPER, decoder_layers=1, decoder_attention_heads=4, vocab_size=8, pad_token_id=0)
    )
    whole.save_pretrained(tmp_path)
    model, card = load(tmp_path)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, whole.model.encoder.state_dict()[name])
    assert (card.frames(3_300), card.frames(16_000)) == (10, 50)
    with pytest.raises(InputError, match=r"extract\.window\.samples: expected at most 16000, .* got 16001"):
        card.frames(16_001)


def test_what_is_shorter_than_one_frame_is_named(tmp_path: Path) -> None:
    """25 ms are a frame of wav2vec 2.0; w2v-BERT needs 35 ms, and SEW 45 ms."""
    made("wav2vec2-bert", **W2V_BERT).save_pretrained(tmp_path)
    model, card = load(tmp_path)
    assert [card.frames(samples) for samples in (559, 560)] == [0, 1]

    def windows(rows: slice) -> Any:
        return noise(3).numpy()[rows], np.array([3_200, 559, 560])[rows]

    with pytest.raises(
        InputError, match=r"1 utterances are shorter than one frame(?s:.*)pad: repeat:\n  b: 559 samples"
    ):
        forward.compute(encoder(model, 1), windows, [1], batch=forward.BatchSize(8, grows=False), names=["a", "b", "c"])
    settings = params_file.load(SETTINGS).extract
    short = settings.model_copy(update={"window": settings.window.model_copy(update={"samples": 400})})
    table = trial_table.from_rows(
        (Row(name, name, name, label) for name, label in (("a", "bonafide"), ("b", "spoof"))), source="here"
    )
    with pytest.raises(InputError, match=r"extract\.window\.samples: expected enough for one frame of .*, got 400"):
        identity.spec_of(table, card, short)


def test_positions_that_a_conformer_does_not_have_are_refused(tmp_path: Path) -> None:
    made("wav2vec2-conformer", **LIKE_XLSR).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"position_embeddings_type": "relative_key"}))
    with pytest.raises(InputError, match="expected position_embeddings_type relative or rotary, got relative_key"):
        load(tmp_path)


def test_the_new_kinds_are_not_fine_tuned(tmp_path: Path) -> None:
    made("sew", feat_extract_norm="layer").save_pretrained(tmp_path)
    asked = EncoderParams(source=str(tmp_path), normalize="none").model_copy(update={"finetune": FinetuneParams})
    with pytest.raises(InputError, match=r"encoder\.finetune: expected an encoder like XLSR, got .*, a sew; freeze it"):
        models.load(asked)


@pytest.mark.parametrize("name", [name for name, (kind, _) in KINDS.items() if kind not in ("sew", *LOG_MEL)])
def test_a_noisy_encoder_of_every_kind_that_is_fine_tuned(tmp_path: Path, name: str) -> None:
    kind, more = KINDS[name]
    made(kind, **more).save_pretrained(tmp_path)
    model, _ = load(tmp_path)
    plain, noisy = encoder(model, 1, 3), encoder(model, 1, 3)
    shares = {"dropout": 0.2, "layer_drop": 0.5, "mask_frames": 0.5, "mask_channels": 0.2}
    regularize(noisy, FINETUNE.model_copy(update=shares))
    windows = noise(2, 16_000)

    def of(one: xlsr.Encoder) -> Tensor:
        torch.manual_seed(2)
        return torch.stack([*one.features(windows, full(2, 16_000))[0].values()])

    expected = of(plain.eval())
    assert torch.equal(of(noisy.eval()), expected)
    found = of(noisy.train())
    assert found.shape == expected.shape
    assert found.isfinite().all()
    assert not torch.allclose(found, expected, atol=0.01)
    assert torch.equal(of(noisy), found)
    assert torch.equal(of(plain.train()), of(plain))  # nothing draws from another generator
    found.sum().backward()


def in_one_file(path: Path, model: Any) -> Path:
    """A countermeasure around a model, with a back end whose names are like an encoder's."""
    weights = {f"net.front.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": weights | {"net.back.conv1.weight": torch.ones(2, 2, 3)}}, path)
    return path


@pytest.mark.parametrize(
    ("kind", "sizes", "beside"),
    [
        ("wav2vec2-bert", W2V_BERT, False),
        ("whisper", WHISPER | {"hidden_size": 128, "num_attention_heads": 2}, False),
        ("whisper", WHISPER, True),
        ("wav2vec2-bert", W2V_BERT | {"position_embeddings_type": "relative"}, True),
        ("sew", {"feat_extract_norm": "layer"}, True),
    ],
)
def test_one_file_of_weights_is_the_folder(tmp_path: Path, kind: str, sizes: dict[str, Any], beside: bool) -> None:
    original = made(kind, **sizes)
    original.save_pretrained(tmp_path / "folder")
    path = in_one_file(tmp_path / "best.pth", original)
    if beside:
        (tmp_path / "config.json").write_text((tmp_path / "folder/config.json").read_text())
    (found, card), (expected, of_folder) = load(path), load(tmp_path / "folder")
    assert card.architecture["model_type"] == kind
    assert card.architecture == of_folder.architecture
    samples, valid = noise(2), torch.tensor([SAMPLES, 2_000])
    taps, wanted = (encoder(model, 0, 1, 3)(samples, valid)[0] for model in (found, expected))
    for k in (0, 1, 3):
        torch.testing.assert_close(taps[k], wanted[k], rtol=0, atol=0)


TO_OPENAI = (
    ("self_attn.q_proj", "attn.query"), ("self_attn.k_proj", "attn.key"), ("self_attn.v_proj", "attn.value"),
    ("self_attn.out_proj", "attn.out"), ("self_attn_layer_norm", "attn_ln"), ("final_layer_norm", "mlp_ln"),
    ("fc1", "mlp.0"), ("fc2", "mlp.2"), ("layers.", "blocks."), ("layer_norm", "ln_post"),
    ("embed_positions.weight", "positional_embedding"),
)  # fmt: skip


def as_openai(name: str) -> str:
    for ours, theirs in TO_OPENAI:
        name = name.replace(ours, theirs)
    return name


class ModelDimensions:
    """Stands for the class of the package whisper, which some save beside the weights."""


@pytest.mark.parametrize("whole", [True, False])
def test_whisper_by_the_names_of_its_authors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool) -> None:
    """Their own files, with a decoder; and countermeasures around the encoder, with the dimensions as an object."""
    original = made("whisper", **WHISPER | {"hidden_size": 128, "num_attention_heads": 2})
    original.save_pretrained(tmp_path / "folder")
    weights = {f"encoder.{as_openai(name)}": tensor for name, tensor in original.state_dict().items()}
    decoder = {"blocks.0.attn.query.weight": torch.ones(2, 2), "positional_embedding": torch.ones(2, 2)}
    content: dict[str, Any] = {"dims": {"n_mels": BINS}}
    if whole:
        weights |= {f"decoder.{name}": tensor for name, tensor in decoder.items()}
    else:
        monkeypatch.setattr(ModelDimensions, "__module__", "whisper.model")
        for name in ("whisper", "whisper.model"):
            monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(ModelDimensions=ModelDimensions))
        weights = {f"whisper_model.{name}": tensor for name, tensor in weights.items()} | {
            "lcnn.conv1.weight": torch.ones(2, 2, 3)
        }
        content = {"dims": ModelDimensions()}
    torch.save(content | {"model_state_dict": weights}, tmp_path / "tiny.pt")
    (found, card), (expected, of_folder) = load(tmp_path / "tiny.pt"), load(tmp_path / "folder")
    assert card == dataclasses.replace(of_folder, source=card.source)  # the sha256 of the weights among others
    if whole:
        samples, valid = noise(2), torch.tensor([SAMPLES, 2_000])
        taps, wanted = (encoder(model, 0, 3, "final")(samples, valid)[0] for model in (found, expected))
        for k in (0, 3, "final"):
            torch.testing.assert_close(taps[k], wanted[k], rtol=0, atol=0)


def test_encoders_of_two_kinds_in_one_file_are_named(tmp_path: Path) -> None:
    pair = (("wav2vec2-bert", W2V_BERT), ("wav2vec2", LIKE_XLSR))
    weights = {f"{kind}.{n}": tensor for kind, sizes in pair for n, tensor in made(kind, **sizes).state_dict().items()}
    torch.save(weights, tmp_path / "both.pt")
    with pytest.raises(
        InputError, match=r"both.pt: expected one encoder, got 2, below 'wav2vec2-bert.', 'wav2vec2.'; "
    ):
        load(tmp_path / "both.pt")


@pytest.mark.parametrize("kind", ["folder", "file", "alone"])
def test_an_adapter_that_is_not_merged_is_refused(tmp_path: Path, kind: str) -> None:
    """Where the base's weights keep their names, transformers itself would leave the adapter out without a word."""
    model = made("wav2vec2", **LIKE_XLSR)
    model.save_pretrained(tmp_path)
    name = "encoder.layers.0.attention.q_proj.lora_A"
    weights = {name: torch.ones(2, 32)} | ({} if kind == "alone" else model.state_dict())
    torch.save(weights, tmp_path / "adapter.bin")
    if kind == "folder":
        (tmp_path / "model.safetensors").unlink()
        (tmp_path / "adapter.bin").rename(tmp_path / "pytorch_model.bin")
    said = "it is an adapter (LoRA) alone" if kind == "alone" else f"got 1 of an adapter among them; .*\n  {name}"
    with pytest.raises(InputError, match=said.replace("(LoRA)", r"\(LoRA\)")):
        load(tmp_path if kind == "folder" else tmp_path / "adapter.bin")


def test_what_one_file_does_not_show_is_asked_for(tmp_path: Path) -> None:
    wide = W2V_BERT | {"left_max_position_embeddings": 7}
    for kind, sizes, said in (
        ("sew", {"feat_extract_norm": "layer"}, "the weights of a sew do not show its architecture"),
        ("whisper", WHISPER, "expected a Whisper of 64 channels a head, got one of width 32"),
        ("wav2vec2-bert", wide, "expected the distances of w2v-BERT 2.0, 73 in .*, got 16 in heads of 8"),
    ):
        path = in_one_file(tmp_path / "best.pth", made(kind, **sizes))
        with pytest.raises(InputError, match=rf"best.pth: {said}.*; put the config.json of transformers beside the f"):
            load(path)
    torch.save({"back.conv1.weight": torch.ones(2, 2, 3)}, tmp_path / "resnet.pt")
    with pytest.raises(InputError, match=r"resnet.pt: expected an encoder, got no weight 'feature_extractor"):
        load(tmp_path / "resnet.pt")
