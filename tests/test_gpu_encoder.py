"""The encoder on a GPU: the features of the CPU, whatever the batch, and no TF32."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import HubertConfig, HubertModel, Wav2Vec2Config, Wav2Vec2Model, WavLMConfig, WavLMModel

from pipeline.encoder.xlsr import Encoder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask"),  # WavLM's own attention
]
SAMPLES = 16_000
TAPS = (0, 1, 2, 4, "final")
SIZES: dict[str, Any] = {
    "num_hidden_layers": 4,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "conv_dim": (128,) * 7,
    "num_conv_pos_embedding_groups": 4,  # 64 channels a group, as XLSR has
    "layerdrop": 0.0,
    "apply_spec_augment": False,
}
LIKE_XLSR: dict[str, Any] = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "wav2vec2": (Wav2Vec2Model, Wav2Vec2Config, LIKE_XLSR),
    "wav2vec2, group norm": (Wav2Vec2Model, Wav2Vec2Config, {}),
    "hubert": (HubertModel, HubertConfig, LIKE_XLSR),
    "wavlm": (WavLMModel, WavLMConfig, LIKE_XLSR),
}
Taps = dict[Any, Tensor]


def model_of(kind: str) -> Any:
    build, config, more = KINDS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(config(**SIZES, **more)).eval().requires_grad_(False)


def encoder(model: Any, device: str, precision: Any = "float32") -> Encoder:
    return Encoder(copy.deepcopy(model), taps=TAPS, normalize="utterance", precision=precision).to(device)


def windows() -> tuple[Tensor, Tensor]:
    """Eight windows of noise in eight colours, three of them shorter than the window."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.1, (8, SAMPLES))
    smooth = np.cumsum(noise, axis=1) * np.linspace(0, 0.05, 8)[:, None]
    return torch.from_numpy((noise + smooth).astype(np.float32)), torch.tensor([SAMPLES] * 5 + [9_000, 4_000, 720])


def on_gpu(encode: Encoder, samples: Tensor, valid: Tensor) -> tuple[Taps, Tensor]:
    taps, n_frames = encode(samples.cuda(), valid)
    return {tap: frames.cpu() for tap, frames in taps.items()}, n_frames


def difference(found: Tensor, expected: Tensor, n_frames: Tensor) -> float:
    """The norm of the difference over the norm of what is expected, of valid frames, of the worst utterance."""
    rows = [
        float((a[:n] - b[:n]).norm() / b[:n].norm()) for a, b, n in zip(found, expected, n_frames.tolist(), strict=True)
    ]
    return max(rows)


@pytest.mark.parametrize("kind", KINDS)
def test_every_tap_is_that_of_the_cpu(kind: str) -> None:
    model = model_of(kind)
    samples, valid = windows()
    expected, n_frames = encoder(model, "cpu")(samples, valid)
    found, frames_found = on_gpu(encoder(model, "cuda"), samples, valid)
    half, _ = on_gpu(encoder(model, "cuda", "bfloat16"), samples, valid)
    assert frames_found.tolist() == n_frames.tolist()
    for tap in TAPS:
        assert found[tap].dtype == half[tap].dtype == torch.float32
        assert difference(found[tap], expected[tap], n_frames) < 1e-4
        assert 1e-4 < difference(half[tap], expected[tap], n_frames) < 3e-2


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_batch_size_and_batch_mates_change_nothing(kind: str, precision: str) -> None:
    encode = encoder(model_of(kind), "cuda", precision)
    samples, valid = windows()
    together, n_frames = on_gpu(encode, samples, valid)
    bound = {"float32": 1e-4, "bfloat16": 2e-2}[precision]
    if kind != "wav2vec2, group norm":  # its first norm counts the padding, so a window alone must keep its padding
        for i in range(len(valid)):
            alone, _ = on_gpu(encode, samples[i : i + 1], valid[i : i + 1])
            for tap in TAPS:
                assert difference(alone[tap], together[tap][i : i + 1], n_frames[i : i + 1]) < bound
    turned, _ = on_gpu(encode, samples.flip(0), valid.flip(0))
    for tap in TAPS:
        assert difference(turned[tap].flip(0), together[tap], n_frames) < bound


def test_float32_means_float32() -> None:
    """TF32 keeps 10 bits of a factor: its error would be near 3e-4 of the result."""
    encoder(model_of("wav2vec2"), "cuda")
    generator = torch.Generator().manual_seed(0)
    sounds, kernel = (torch.randn(*shape, generator=generator) for shape in ((4, 256, 500), (256, 256, 3)))
    exact = torch.nn.functional.conv1d(sounds.double(), kernel.double())
    found = torch.nn.functional.conv1d(sounds.cuda(), kernel.cuda()).cpu().double()
    assert float((found - exact).norm() / exact.norm()) < 5e-6
    product = (sounds[0].T.cuda() @ kernel[:, :, 0].cuda()).cpu().double()
    exact = sounds[0].T.double() @ kernel[:, :, 0].double()
    assert float((product - exact).norm() / exact.norm()) < 5e-6


def test_the_same_batch_gives_the_same_bits() -> None:
    for precision in ("float32", "bfloat16"):
        encode = encoder(model_of("wav2vec2"), "cuda", precision)
        first, second = (on_gpu(encode, *windows())[0] for _ in range(2))
        assert all(torch.equal(first[tap], second[tap]) for tap in TAPS)
