from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.backends import mhfa
from pipeline.backends._shared import LayerWeights
from tests.backends import (
    check_each_utterance_alone,
    check_its_input_is_left_alone,
    check_padding_is_ignored,
    noise,
    randomise,
    with_padding,
)

pytestmark = pytest.mark.usefixtures("one_thread")

LAYERS, FRAMES, CHANNELS, WIDTH, HEADS, COMPRESSED = 3, 7, 4, 5, 2, 6
N_FRAMES = torch.tensor([7, 4, 1])


def make(**changed: Any) -> mhfa.Backend:
    settings: dict[str, Any] = {"embedding_dim": WIDTH, "heads": HEADS, "compression_dim": COMPRESSED}
    backend = mhfa.Backend(layers=LAYERS, channels=CHANNELS, **(settings | changed))
    randomise(backend)
    return backend


def padded(fill: float) -> Tensor:
    return with_padding(noise(len(N_FRAMES), LAYERS, FRAMES, CHANNELS), N_FRAMES, fill)


def stream(utterance: Any, logits: Any) -> Any:
    """(L, n, D) -> (n, D): softmax-weighted layers, each frame to mean 0 and variance 1."""
    weights = np.exp(logits) / np.exp(logits).sum()
    frames = sum(w * layer for w, layer in zip(weights, utterance, strict=True))
    return np.stack([(frame - frame.mean()) / np.sqrt(frame.var() + 1e-5) for frame in frames])


def test_it_agrees_with_a_naive_loop() -> None:
    backend, features = make(), padded(np.nan)
    p = {name: parameter.detach().numpy() for name, parameter in backend.named_parameters()}
    got = backend(features, N_FRAMES).detach().numpy()
    assert got.shape == (3, WIDTH)
    for row, example, frames in zip(got, features.numpy(), N_FRAMES.tolist(), strict=True):
        keys = stream(example[:, :frames], p["key_weights.logits"])
        values = stream(example[:, :frames], p["value_weights.logits"])
        pooled = []
        for head in range(HEADS):
            exponents = []
            for key in keys:
                compressed = p["compress_keys.weight"] @ key + p["compress_keys.bias"]
                exponents.append(np.exp(p["score.weight"][head] @ compressed))
            total = np.zeros(COMPRESSED)
            for exponent, value in zip(exponents, values, strict=True):
                compressed = p["compress_values.weight"] @ value + p["compress_values.bias"]
                total += exponent / sum(exponents) * compressed
            pooled.append(total)
        want = p["project.weight"] @ np.concatenate(pooled) + p["project.bias"]
        np.testing.assert_allclose(row, want, rtol=0, atol=1e-12)


def test_attention_derived_by_hand() -> None:
    backend = make(heads=2, compression_dim=1)
    backend.score.weight.data = torch.tensor([[1.0], [-1.0]]).double()
    keys = torch.tensor([[[0.0], [np.log(3)], [50.0]]])
    # e⁰ : e^ln3 = 1 : 3 for the first head, 1 : ⅓ for the second; the third frame is padding.
    got = backend.attention(keys.double(), torch.tensor([[True, True, False]]))
    want = torch.tensor([[[0.25, 0.75], [0.75, 0.25], [0.0, 0.0]]])
    torch.testing.assert_close(got, want.double(), rtol=0, atol=1e-7)


def test_without_scores_it_is_the_plain_mean_of_the_values() -> None:
    backend, features = make(), padded(np.nan)
    backend.score.weight.data.zero_()
    seen: list[Tensor] = []
    backend.project.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    backend(features, N_FRAMES)
    p = {name: parameter.detach().numpy() for name, parameter in backend.named_parameters()}
    for pooled, example, frames in zip(seen[0].detach(), features.numpy(), N_FRAMES.tolist(), strict=True):
        mean = stream(example[:, :frames], p["value_weights.logits"]).mean(axis=0)
        want = p["compress_values.weight"] @ mean + p["compress_values.bias"]
        np.testing.assert_allclose(pooled, np.concatenate([want] * HEADS), rtol=0, atol=1e-12)


@pytest.mark.parametrize("fill", [np.nan, np.inf, 1e30])
def test_what_padding_holds_is_ignored(fill: float) -> None:
    check_padding_is_ignored(make(), padded(fill), N_FRAMES)


def test_a_padded_batch_is_each_of_its_utterances() -> None:
    check_each_utterance_alone(make(), padded(np.nan), N_FRAMES, atol=1e-12)


def test_the_order_of_frames_does_not_matter() -> None:
    backend, features, order = make(), noise(2, LAYERS, FRAMES, CHANNELS), torch.tensor([3, 0, 6, 1, 5, 2, 4])
    n_frames = torch.full((2,), FRAMES)
    shuffled = backend(features[:, :, order], n_frames)
    torch.testing.assert_close(shuffled, backend(features, n_frames), rtol=0, atol=1e-12)


def test_it_does_not_write_into_its_input() -> None:
    check_its_input_is_left_alone(make(), padded(np.nan), N_FRAMES)


def test_gradcheck() -> None:
    backend, features = make(), padded(0.0)[:2].requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: backend(x, N_FRAMES[:2]), (features, *backend.parameters()))


def test_keys_and_values_weigh_the_layers_apart_and_evenly_at_the_start() -> None:
    backend = mhfa.Backend(layers=LAYERS, channels=CHANNELS)
    weightings = [child for child in backend.children() if isinstance(child, LayerWeights)]
    assert [weighting.logits.tolist() for weighting in weightings] == [[0.0] * LAYERS] * 2


def test_what_it_reads_how_wide_it_is_and_how_large() -> None:
    assert (make().reads, make().embedding_dim) == ("frames", WIDTH)
    published = mhfa.Backend(layers=24, channels=1024)
    assert published.embedding_dim == 256
    compression, heads, project = 2 * (1024 * 128 + 128), 128 * 8, 8 * 128 * 256 + 256
    assert sum(p.numel() for p in published.parameters()) == 2 * 24 + compression + heads + project


@pytest.mark.parametrize("name", ["embedding_dim", "heads", "compression_dim"])
@pytest.mark.parametrize("value", [0, -3])
def test_senseless_widths_are_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name}.*≥ 1.*{value}"):
        make(**{name: value})
