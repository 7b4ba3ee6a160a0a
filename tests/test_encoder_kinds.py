"""Every kind of encoder that is read: taps, layers cut off, padding and batches, as of wav2vec 2.0."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2Model

from pipeline.core.sections import EncoderParams
from pipeline.encoder import configuration, models, xlsr
from stages import extract

pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # WavLM's own attention
SIZES = {
    "num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48,
    "conv_dim": (16,) * 7, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
LIKE_XLSR = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    **{kind: (kind, LIKE_XLSR) for kind in ("wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat")},
    "wavlm, base": ("wavlm", {"feat_extract_norm": "layer"}),
    "unispeech-sat, base": ("unispeech-sat", {"feat_extract_norm": "layer"}),
    "data2vec-audio": ("data2vec-audio", {"conv_pos_kernel_size": 5}),
    "data2vec-audio, even": ("data2vec-audio", {"conv_pos_kernel_size": 4}),
    "conformer, relative": ("wav2vec2-conformer", LIKE_XLSR | {"conv_depthwise_kernel_size": 7}),
    "conformer, rotary": ("wav2vec2-conformer", LIKE_XLSR | {"position_embeddings_type": "rotary"}),
    "conformer, none": ("wav2vec2-conformer", LIKE_XLSR | {"position_embeddings_type": None}),
}
GROUP_NORM = [kind for kind in configuration.KINDS if kind != "data2vec-audio"]  # which has no such variant
SAMPLES = 3_200


def made(kind: str, **more: Any) -> Any:
    model = configuration.KINDS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        new = model(model.config_class(**SIZES, **more)).eval()
        for module in new.modules():  # statistics of training, which are not those of initialization
            if isinstance(module, torch.nn.BatchNorm1d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return new


def noise(n: int, samples: int = SAMPLES) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(0, 1, (n, samples)).astype(np.float32))


@pytest.fixture(scope="module", params=KINDS)
def original(request: pytest.FixtureRequest) -> Any:
    kind, more = KINDS[request.param]
    return made(kind, **more)


@pytest.fixture
def folder(original: Any, tmp_path: Path) -> Path:
    original.save_pretrained(tmp_path)
    return tmp_path


def load(folder: Path) -> tuple[Wav2Vec2Model, Any]:
    return models.load(EncoderParams(source=str(folder), normalize="none"))


def encoder(folder: Path, *taps: int | str) -> xlsr.Encoder:
    return xlsr.Encoder(load(folder)[0], taps=taps, normalize="none")


def full(n: int, samples: int = SAMPLES) -> Tensor:
    return torch.full((n,), samples)


def test_taps_are_the_hidden_states_of_the_original(original: Any, folder: Path) -> None:
    with torch.inference_mode():
        output = original(noise(2), output_hidden_states=True)
    loaded, card = load(folder)
    assert type(loaded) is type(original)
    assert card.architecture["model_type"] == original.config.model_type
    taps, n_frames = encoder(folder, 0, 1, 2, 3, "final")(noise(2), full(2))
    for k in range(3):
        torch.testing.assert_close(taps[k], output.hidden_states[k], rtol=0, atol=1e-5)
    torch.testing.assert_close(taps["final"], output.last_hidden_state, rtol=0, atol=1e-5)
    assert n_frames.tolist() == [taps[0].shape[1]] * 2 == [card.frames(SAMPLES)] * 2


@pytest.mark.parametrize("tap", [0, 1, 2, 3])
def test_nothing_above_the_highest_tap_is_kept(folder: Path, tap: int) -> None:
    cut = encoder(folder, tap)
    assert len(cut.model.encoder.layers) == max(tap, 1)
    expected = encoder(folder, 0, 1, 2, 3, "final")(noise(2), full(2))[0][tap]
    torch.testing.assert_close(cut(noise(2), full(2))[0][tap], expected, rtol=0, atol=1e-6)


def test_a_batch_changes_nothing(folder: Path) -> None:
    encode = encoder(folder, 1, 3, "final")
    together, _ = encode(noise(5), full(5))
    for i in range(5):
        alone, _ = encode(noise(5)[i : i + 1], full(1))
        for tap in together:
            torch.testing.assert_close(alone[tap][0], together[tap][i], rtol=0, atol=2e-5)


def test_padding_changes_nothing(folder: Path) -> None:
    encode = encoder(folder, 0, 1, 3, "final")
    lengths, windows = torch.tensor([720, 1_900, 3_200]), noise(3)
    for i, length in enumerate(lengths):
        windows[i, length:] = 7.0  # must not count
    padded, n_frames = encode(windows, lengths)
    for i, length in enumerate(lengths.tolist()):
        alone, (frames,) = encode(windows[i : i + 1, :length], full(1, length))
        assert n_frames[i] == frames == alone[0].shape[1]
        for tap in padded:
            torch.testing.assert_close(padded[tap][i, :frames], alone[tap][0], rtol=0, atol=5e-5)


def test_bfloat16_stays_close(folder: Path) -> None:
    valid = torch.tensor([3_200, 1_900])
    expected, n_frames = encoder(folder, 1, 3, "final")(noise(2), valid)
    half = xlsr.Encoder(load(folder)[0], taps=(1, 3, "final"), normalize="none", precision="bfloat16")
    got, _ = half(noise(2), valid)
    for tap, wanted in expected.items():
        for row, frames in enumerate(n_frames.tolist()):
            error = (got[tap][row, :frames] - wanted[row, :frames]).norm() / wanted[row, :frames].norm()
            assert 1e-4 < error < 0.05, (tap, error)


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
    encode, windows = encoder(tmp_path, 1), noise(1)
    padded = encode(windows, torch.tensor([1_900]))[0][1]
    alone = encode(windows[:, :1_900], full(1, 1_900))[0][1]
    assert (padded[:, : alone.shape[1]] - alone).abs().max() > 1e-3
