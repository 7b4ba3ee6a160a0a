"""The encoder: taps are the full model's hidden states, and neither batch nor padding changes them."""

import copy
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Wav2Vec2FeatureExtractor
from transformers.models.hubert.modeling_hubert import HubertModel
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2Model
from transformers.models.wavlm.modeling_wavlm import WavLMModel

from pipeline.core.encoder_sections import EncoderParams
from pipeline.core.errors import InputError
from pipeline.encoder import cards, checksums, models, xlsr
from pipeline.extraction.identity import FEATURES_VERSION
from tests.conftest import TINY

pytestmark = pytest.mark.usefixtures("no_trial_reading")
SAMPLES = 3_200


def noise(n: int, samples: int = SAMPLES, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 0.1, (n, samples)).astype(np.float32))


def full(n: int, samples: int = SAMPLES) -> torch.Tensor:
    return torch.full((n,), samples)


@pytest.fixture(scope="module")
def model() -> Wav2Vec2Model:
    return models.load(TINY)[0]


def encoder(
    model: Wav2Vec2Model, *taps: int | str, normalize: str = "utterance", precision: str = "float32"
) -> xlsr.Encoder:
    return xlsr.Encoder(copy.deepcopy(model), taps=taps, normalize=normalize, precision=precision)


def test_taps_are_the_hidden_states_of_the_whole_model(model: Wav2Vec2Model) -> None:
    windows = noise(2)
    with torch.inference_mode():
        output = model(xlsr.normalized(windows, torch.ones(2, SAMPLES, dtype=torch.bool)), output_hidden_states=True)
    taps, n_frames = encoder(model, 0, 1, 2, 3, "final")(windows, full(2))
    for k in range(4):
        torch.testing.assert_close(taps[k], output.hidden_states[k], rtol=0, atol=1e-6)
    torch.testing.assert_close(taps["final"], output.last_hidden_state, rtol=0, atol=1e-6)
    torch.testing.assert_close(model.encoder.layer_norm(taps[3]), taps["final"], rtol=0, atol=1e-6)
    assert (taps[3] - taps["final"]).abs().max() > 0.1
    assert n_frames.tolist() == [taps[0].shape[1]] * 2 == [9, 9]


@pytest.mark.parametrize(("taps", "kept"), [((0,), 1), ((1,), 1), ((2, 1), 2), ((3,), 3), ((0, "final"), 3)])
def test_nothing_above_the_highest_tap_is_kept(model: Wav2Vec2Model, taps: tuple, kept: int) -> None:
    cut = encoder(model, *taps)
    whole = encoder(model, 0, 1, 2, 3, "final")
    assert len(cut.model.encoder.layers) == kept
    got, expected = cut(noise(2), full(2))[0], whole(noise(2), full(2))[0]
    assert tuple(got) == taps
    for tap in taps:
        torch.testing.assert_close(got[tap], expected[tap], rtol=0, atol=1e-6)


def test_batch_size_changes_nothing(model: Wav2Vec2Model) -> None:
    encode = encoder(model, 1, 3, "final")
    windows = noise(5)
    together, _ = encode(windows, full(5))
    for i in range(5):
        alone, _ = encode(windows[i : i + 1], full(1))
        for tap in together:
            torch.testing.assert_close(alone[tap][0], together[tap][i], rtol=0, atol=1e-5)


@pytest.mark.parametrize("normalize", ["utterance", "none"])
def test_padding_to_a_window_changes_nothing(model: Wav2Vec2Model, normalize: str) -> None:
    encode = encoder(model, 0, 1, 3, "final", normalize=normalize)
    lengths = torch.tensor([400, 1_900, 3_200])
    windows = noise(3)
    for i, length in enumerate(lengths):
        windows[i, length:] = 7.0  # whatever stands in the padding must not count
    padded, n_frames = encode(windows, lengths)
    for i, length in enumerate(lengths.tolist()):
        alone, (frames,) = encode(windows[i : i + 1, :length], full(1, length))
        assert n_frames[i] == frames == alone[0].shape[1]
        for tap in padded:
            torch.testing.assert_close(padded[tap][i, :frames], alone[tap][0], rtol=0, atol=2e-5)


def test_normalisation_is_transformers_own() -> None:
    windows = 3 * noise(3) + 0.5
    windows[2] *= 1e-4  # quiet enough for the epsilon to show
    expected = Wav2Vec2FeatureExtractor(do_normalize=True)(list(windows.numpy()), sampling_rate=16_000).input_values
    got = xlsr.normalized(windows, torch.ones(3, SAMPLES, dtype=torch.bool))
    np.testing.assert_allclose(got.numpy(), np.stack(expected), atol=2e-4)
    unnormalised = encoder(models.load(TINY)[0], 1, normalize="none")
    assert (
        unnormalised(windows, full(3))[0][1] - encoder(models.load(TINY)[0], 1)(windows, full(3))[0][1]
    ).abs().max() > 0.01


@pytest.mark.parametrize("samples", [400, 719, 720, 16_000, 64_600, 66_800])
def test_frames_by_the_card(samples: int) -> None:
    card = models.load(TINY)[1]
    published = {400: 1, 719: 1, 720: 2, 16_000: 49, 64_600: 201, 66_800: 208}
    assert card.frames(samples) == published[samples]
    assert card.frames(399) == 0


def test_eval_mode_without_anything_random(model: Wav2Vec2Model) -> None:
    config = model.config
    assert not model.training
    assert not config.apply_spec_augment
    rates = (config.layerdrop, config.hidden_dropout, config.attention_dropout, config.activation_dropout)
    assert (*rates, config.feat_proj_dropout) == (0,) * 5
    assert not any(p.requires_grad for p in model.parameters())
    encode = encoder(model, 3)
    torch.testing.assert_close(encode(noise(2), full(2))[0][3], encode(noise(2), full(2))[0][3], rtol=0, atol=0)


def test_random_weights_come_from_their_own_seed() -> None:
    torch.manual_seed(1)
    first = models.load(TINY)[1]
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.rand(1) == after  # the global generator was left alone
    assert models.load(TINY)[1] == first
    other = TINY.model_copy(update={"random": TINY.random.model_copy(update={"seed": 6})})
    assert models.load(other)[1].weights_sha256 != first.weights_sha256


def folder_params(folder: Path) -> EncoderParams:
    return EncoderParams(source=str(folder), normalize="utterance")


def test_a_local_folder_is_the_same_encoder(model: Wav2Vec2Model, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    loaded, card = models.load(folder_params(tmp_path))
    assert card.weights_sha256 == models.load(TINY)[1].weights_sha256
    assert card.architecture == models.load(TINY)[1].architecture
    torch.testing.assert_close(
        encoder(loaded, 2)(noise(2), full(2))[0][2], encoder(model, 2)(noise(2), full(2))[0][2], rtol=0, atol=0
    )


def test_missing_weights_are_refused_not_invented(model: Wav2Vec2Model, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.layers.1.attention.k_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks 1 weights.*encoder\.layers\.1\.attention\.k_proj\.weight"):
        models.load(folder_params(tmp_path))


def test_a_source_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"encoder\.source: expected a hub name or a folder"):
        models.load(folder_params(tmp_path))


def test_numbers_have_not_changed() -> None:
    """Golden numbers of this project's own; if they must change, raise FEATURES_VERSION and write the new ones here."""
    seconds = torch.arange(SAMPLES) / 16_000
    wave = (0.1 * torch.sin(2 * torch.pi * 200 * seconds) + 0.05 * torch.sin(2 * torch.pi * 1_370 * seconds))[None]
    taps, _ = encoder(models.load(TINY)[0], 0, 2, "final")(wave, full(1))
    found = {
        tap: [round(v, 4) for v in (x.mean().item(), x.std().item(), x[0, 4, 7].item())] for tap, x in taps.items()
    }
    golden = {0: [-0.2005, 0.6606, 0.4733], 2: [-0.2058, 0.6594, 0.4671], "final": [0.0, 1.0017, 1.0661]}
    assert FEATURES_VERSION == 1
    for tap, expected in golden.items():
        np.testing.assert_allclose(found[tap], expected, atol=3e-4, err_msg="raise FEATURES_VERSION")


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # transformers' WavLM, with padding
@pytest.mark.parametrize("kind", [Wav2Vec2Model, HubertModel, WavLMModel])
@pytest.mark.parametrize("pad", [False, True])
def test_bfloat16_computes_in_it_and_stays_close(model: Wav2Vec2Model, kind: type, pad: bool) -> None:
    """Eight bits of mantissa, 2^-9 an operation; the residual stream between the layers is float32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        made = kind(kind.config_class(**model.config.to_diff_dict())).eval()
    valid = torch.tensor([3_200, 1_900]) if pad else full(2)
    expected, _ = encoder(made, 0, 1, 3, "final")(noise(2), valid)
    half = encoder(made, 0, 1, 3, "final", precision="bfloat16")
    got, n_frames = half(noise(2), valid)
    linear = [part for part in half.modules() if isinstance(part, torch.nn.Linear)]
    assert all(part.weight.dtype == torch.bfloat16 for part in linear)
    for tap, wanted in expected.items():
        assert tap == 0 or got[tap].dtype == torch.float32
        for row, frames in enumerate(n_frames.tolist()):
            error = (got[tap][row, :frames].float() - wanted[row, :frames]).norm() / wanted[row, :frames].norm()
            assert 1e-4 < error < 0.03, (tap, error)
    assert not torch.equal(got[3], got[3].bfloat16().float())


def test_weights_are_hashed_once(model: Wav2Vec2Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model.save_pretrained(tmp_path / "encoder")
    monkeypatch.setattr(checksums, "SETTLED_S", 0)
    first = models.load(folder_params(tmp_path / "encoder"))[1]
    monkeypatch.setattr(cards, "weights_sha256", None)
    assert models.load(folder_params(tmp_path / "encoder"))[1] == first
    (tmp_path / "encoder" / "model.safetensors").touch()
    with pytest.raises(TypeError, match="not callable"):
        models.load(folder_params(tmp_path / "encoder"))


# ---------------------------------------------------------------- from strangers


def tell(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def sharded(model: Wav2Vec2Model, folder: Path, **places: str) -> Path:
    """The model in two files, by an index; places: of the first and the second file, as the index names them."""
    model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    named = dict(zip(weights, itertools.cycle(places.values())))
    for place in places.values():
        file = folder / place
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: weights[name] for name in weights if named[name] == place}, file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": named}))
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {"_attn_implementation": "somebody/kernels"},
        {"attn_implementation": "eager"},
        {"_attn_implementation_internal": "flash_attention_2"},
        {"auto_map": {"AutoModel": "mine.Model"}, "architectures": ["Mine"]},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        {"dtype": "float16"},
        {"torch_dtype": "nonsense"},
        {"transformers_weights": "../../elsewhere.safetensors"},
        {"hidden_dropout": 0.5, "layerdrop": 1.0},
        {"id2label": "x", "output_attentions": True, "output_hidden_states": 7},
    ],
)
def test_keys_of_a_configuration_that_are_not_known_do_nothing(
    model: Wav2Vec2Model, tmp_path: Path, changes: dict[str, object]
) -> None:
    model.save_pretrained(tmp_path)
    tell(tmp_path, **changes)
    loaded, card = models.load(folder_params(tmp_path))
    assert card.weights_sha256 == models.load(TINY)[1].weights_sha256
    assert loaded.config._attn_implementation == model.config._attn_implementation
    torch.testing.assert_close(
        encoder(loaded, 2)(noise(2), full(2))[0][2], encoder(model, 2)(noise(2), full(2))[0][2], rtol=0, atol=0
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: Input should be less than or equal to 200"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers: Input should be a valid integer"),
        ({"hidden_size": -1}, "hidden_size"),
        ({"hidden_size": 2**16, "intermediate_size": 2**16}, r"asks for [\d,]+ weights, the files have [\d,]+ bytes"),
        ({"num_attention_heads": 5}, "expected a hidden_size that num_attention_heads"),
        ({"conv_dim": [16, 16]}, "not the configuration of a wav2vec2: .*(?s:.*)convolutional layers"),
        ({"conv_stride": [0] * 7}, "conv_stride"),
        ({"conv_stride": [2] * 6 + [1]}, "expected conv_stride of 80 samples or more in all, got 64"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps"),
        ({"hidden_act": "os.system"}, "hidden_act"),
        ({"hidden_act": ["gelu"]}, "hidden_act"),
        ({"add_adapter": True}, "add_adapter"),
        ({"model_type": ["wav2vec2"]}, "has no model_type"),
        ({"id2label": json.loads("[" * 90 + "]" * 90)}, "nests more than 64 deep"),
    ],
)
def test_values_of_a_configuration_are_checked(
    model: Wav2Vec2Model, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    model.save_pretrained(tmp_path)
    tell(tmp_path, **changes)
    with pytest.raises(InputError, match=message) as error:
        models.load(folder_params(tmp_path))
    assert str(tmp_path) in str(error.value)


def test_weights_of_an_index_in_subfolders_are_read_and_hashed_anew(
    model: Wav2Vec2Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The remembered checksum stands for every file that is read, also for those below the folder."""
    monkeypatch.setattr(checksums, "SETTLED_S", 0)
    folder = sharded(model, tmp_path / "encoder", first="a.safetensors", second="deep/er/b.safetensors")
    first = models.load(folder_params(folder))[1]
    assert first.weights_sha256 == models.load(TINY)[1].weights_sha256
    weights = load_file(folder / "deep/er/b.safetensors")
    name = sorted(weights)[0]
    save_file(weights | {name: weights[name] + 1}, folder / "deep/er/b.safetensors", metadata={"format": "pt"})
    assert models.load(folder_params(folder))[1].weights_sha256 != first.weights_sha256


@pytest.mark.parametrize("place", ["../b.safetensors", "deep/../../b.safetensors", "{folder}/b.safetensors"])
def test_an_index_that_leads_out_of_its_folder_is_refused(model: Wav2Vec2Model, tmp_path: Path, place: str) -> None:
    place = place.format(folder=tmp_path)
    folder = sharded(model, tmp_path / "encoder", first="deep/a.safetensors", second=place)
    with pytest.raises(InputError, match=r"index\.json: expected files of weights below its folder, got \d+ others"):
        models.load(folder_params(folder))


def test_an_index_that_leads_out_by_a_link_is_refused(model: Wav2Vec2Model, tmp_path: Path) -> None:
    folder = sharded(model, tmp_path / "encoder", first="a.safetensors", second="deep/b.safetensors")
    (folder / "deep").rename(tmp_path / "elsewhere")
    (folder / "deep").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"below its folder, got 'deep/b\.safetensors', a link out of it"):
        models.load(folder_params(folder))


@pytest.mark.parametrize("told", [None, [], {}, {"x": 1}, {"x": None}, {"x": "config.json"}, {"x": "a\0.bin"}])
def test_an_index_of_something_else_is_refused(model: Wav2Vec2Model, tmp_path: Path, told: object) -> None:
    folder = sharded(model, tmp_path / "encoder", first="a.safetensors", second="b.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": told}))
    with pytest.raises(InputError, match=str(folder)):
        models.load(folder_params(folder))


def test_an_adapter_beside_the_weights_is_not_loaded(model: Wav2Vec2Model, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "/elsewhere", "peft_type": "LORA"}')
    assert models.load(folder_params(tmp_path))[1].weights_sha256 == models.load(TINY)[1].weights_sha256


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_damaged_weights_give_one_message(model: Wav2Vec2Model, tmp_path: Path, name: str) -> None:
    model.save_pretrained(tmp_path)
    if name.endswith(".bin"):
        (tmp_path / "model.safetensors").unlink()
        torch.save(model.state_dict(), tmp_path / name)
        assert models.load(folder_params(tmp_path))[1].weights_sha256 == models.load(TINY)[1].weights_sha256
    good, rng, refused = (tmp_path / name).read_bytes(), np.random.default_rng(0), 0
    for _ in range(30):
        data = bytearray(good)
        data[int(rng.integers(min(len(data), rng.choice([16, 4_000]))))] = rng.integers(256)
        (tmp_path / name).write_bytes(bytes(data)[: int(rng.choice([len(good), rng.integers(len(good))]))])
        try:
            models.load(folder_params(tmp_path))
        except InputError as error:
            refused += str(tmp_path) in str(error)
    assert refused > 15
