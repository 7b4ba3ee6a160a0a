"""The encoder on a GPU: the features of the CPU, whatever the batch, and no TF32."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.encoder import configuration
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
}
CONVOLUTIONS: dict[str, Any] = {
    "conv_dim": (128,) * 7,
    "conv_kernel": (10, 3, 3, 3, 3, 2, 2),
    "conv_stride": (5, 2, 2, 2, 2, 2, 2),
    "num_conv_pos_embedding_groups": 4,  # 64 channels a group, as XLSR has
    "layerdrop": 0.0,
    "apply_spec_augment": False,
}
LIKE_XLSR: dict[str, Any] = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    **{kind: (kind, LIKE_XLSR) for kind in ("wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat")},
    "wav2vec2, group norm": ("wav2vec2", {}),
    "data2vec-audio": ("data2vec-audio", {"num_conv_pos_embeddings": 5}),
    "wav2vec2-conformer": ("wav2vec2-conformer", LIKE_XLSR),
    "sew": ("sew", {"feat_extract_norm": "layer"}),
    "wav2vec2-bert": ("wav2vec2-bert", {}),
    "whisper": ("whisper", {"max_source_positions": 50, "encoder_ffn_dim": 512}),  # a second
}
Taps = dict[Any, Tensor]


def model_of(kind: str) -> Any:
    name, more = KINDS[kind]
    build = configuration.KINDS[name]
    sizes = SIZES if name in configuration.LOG_MEL else SIZES | CONVOLUTIONS
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(build.config_class(**sizes | more)).eval().requires_grad_(False)


def encoder(model: Any, device: str, precision: Any = "float32") -> Encoder:
    kind = model.config.model_type
    taps = tuple(tap for tap in TAPS if (kind, tap) != ("sew", "final"))
    normalize: Any = "none" if kind in configuration.LOG_MEL else "utterance"
    return Encoder(copy.deepcopy(model), taps=taps, normalize=normalize, precision=precision).to(device)


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


def test_every_kind_that_is_read_is_here() -> None:
    assert {name for name, _ in KINDS.values()} == {*configuration.KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_every_tap_is_that_of_the_cpu(kind: str) -> None:
    model = model_of(kind)
    samples, valid = windows()
    expected, n_frames = encoder(model, "cpu")(samples, valid)
    found, frames_found = on_gpu(encoder(model, "cuda"), samples, valid)
    half, _ = on_gpu(encoder(model, "cuda", "bfloat16"), samples, valid)
    assert frames_found.tolist() == n_frames.tolist()
    for tap in expected:
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
            for tap in together:
                assert difference(alone[tap], together[tap][i : i + 1], n_frames[i : i + 1]) < bound
    turned, _ = on_gpu(encode, samples.flip(0), valid.flip(0))
    for tap in together:
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
        assert all(torch.equal(first[tap], second[tap]) for tap in first)
