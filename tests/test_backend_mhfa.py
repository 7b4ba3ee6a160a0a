from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.backends import mhfa
from pipeline.backends._shared import LayerWeights
from tests.backends import CHANNELS, FRAMES, LAYERS, N_FRAMES, WIDTH, arrays, layer_norm, make, noise, padded, weigh

pytestmark = pytest.mark.usefixtures("one_thread")

HEADS, COMPRESSED = 2, 6


def stream(utterance: Any, logits: Any) -> Any:
    """(L, n, D) -> (n, D): softmax-weighted layers, each frame to mean 0 and variance 1."""
    return np.stack([layer_norm(frame) for frame in weigh(utterance, logits)])


def test_it_agrees_with_a_naive_loop() -> None:
    backend, features = make("mhfa"), padded(np.nan)
    p = arrays(backend)
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
    backend = make("mhfa", heads=2, compression_dim=1)
    backend.score.weight.data = torch.tensor([[1.0], [-1.0]]).double()
    keys = torch.tensor([[[0.0], [np.log(3)], [50.0]]])
    # e⁰ : e^ln3 = 1 : 3 for the first head, 1 : ⅓ for the second; the third frame is padding.
    got = backend.attention(keys.double(), torch.tensor([[True, True, False]]))
    want = torch.tensor([[[0.25, 0.75], [0.75, 0.25], [0.0, 0.0]]])
    torch.testing.assert_close(got, want.double(), rtol=0, atol=1e-7)


def test_without_scores_it_is_the_plain_mean_of_the_values() -> None:
    backend, features = make("mhfa"), padded(np.nan)
    backend.score.weight.data.zero_()
    seen: list[Tensor] = []
    backend.project.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    backend(features, N_FRAMES)
    p = arrays(backend)
    for pooled, example, frames in zip(seen[0].detach(), features.numpy(), N_FRAMES.tolist(), strict=True):
        mean = stream(example[:, :frames], p["value_weights.logits"]).mean(axis=0)
        want = p["compress_values.weight"] @ mean + p["compress_values.bias"]
        np.testing.assert_allclose(pooled, np.concatenate([want] * HEADS), rtol=0, atol=1e-12)


def test_the_order_of_frames_does_not_matter() -> None:
    backend, features, order = (
        make("mhfa"),
        noise(2, LAYERS, FRAMES, CHANNELS),
        torch.tensor([3, 0, 6, 1, 8, 5, 2, 4, 7]),
    )
    n_frames = torch.full((2,), FRAMES)
    shuffled = backend(features[:, :, order], n_frames)
    torch.testing.assert_close(shuffled, backend(features, n_frames), rtol=0, atol=1e-12)


def test_keys_and_values_weigh_the_layers_apart_and_evenly_at_the_start() -> None:
    backend = mhfa.Backend(layers=LAYERS, channels=CHANNELS)
    weightings = [child for child in backend.children() if isinstance(child, LayerWeights)]
    assert [weighting.logits.tolist() for weighting in weightings] == [[0.0] * LAYERS] * 2


def test_it_has_the_published_number_of_parameters() -> None:
    published = mhfa.Backend(layers=24, channels=1024)
    compression, heads, project = 2 * (1024 * 128 + 128), 128 * 8, 8 * 128 * 256 + 256
    assert sum(p.numel() for p in published.parameters()) == 2 * 24 + compression + heads + project
