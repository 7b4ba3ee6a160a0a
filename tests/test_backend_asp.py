"""Attentive statistics pooling against a naive loop, and its statistics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.backends import asp
from tests.backends import (
    CHANNELS,
    FRAMES,
    LAYERS,
    N_FRAMES,
    WIDTH,
    arrays,
    gradients,
    layer_norm,
    make,
    noise,
    padded,
    weigh,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def test_it_agrees_with_a_naive_loop() -> None:
    backend, features = make("asp"), padded(np.nan)
    p = arrays(backend)
    got = backend(features, N_FRAMES).detach().numpy()
    assert got.shape == (3, WIDTH)
    for row, example, frames in zip(got, features.numpy(), N_FRAMES.tolist(), strict=True):
        stream = weigh(example[:, :frames], p["layer_weights.logits"])  # (T, D)
        stream = np.stack([layer_norm(frame, p["norm.weight"], p["norm.bias"]) for frame in stream])
        hidden = [np.tanh(p["bottleneck.weight"] @ frame + p["bottleneck.bias"]) for frame in stream]
        scores = np.exp([float((p["score.weight"] @ h).item()) for h in hidden])
        attention = scores / scores.sum()
        mean = sum(a * frame for a, frame in zip(attention, stream, strict=True))
        variance = sum(a * frame**2 for a, frame in zip(attention, stream, strict=True)) - mean**2
        pooled = np.concatenate([mean, np.sqrt(np.maximum(variance, asp.VARIANCE_FLOOR))])
        np.testing.assert_allclose(row, p["project.weight"] @ pooled + p["project.bias"], rtol=0, atol=1e-10)


def test_statistics_derived_by_hand() -> None:
    frames = torch.tensor([[[1.0, 5.0], [3.0, 5.0], [9.0, 9.0]]])
    # Weights ½, ½, 0: mean (2, 5); deviation 1, and the floor where nothing varies.
    got = asp.attentive_statistics(frames, torch.tensor([[0.5, 0.5, 0.0]]))
    assert got.tolist()[0] == pytest.approx([2.0, 5.0, 1.0, asp.VARIANCE_FLOOR**0.5])


def test_it_keeps_the_deviation_of_a_channel_with_a_large_offset() -> None:
    frames = 3000.0 + 0.1 * noise(1, 200, 1)
    got = asp.attentive_statistics(frames.float(), torch.full((1, 200), 1 / 200))
    assert float(got[0, 1]) == pytest.approx(float(frames.std(correction=0)), rel=2e-3)


def test_with_uniform_attention_is_plain_mean_and_deviation() -> None:
    backend, features = make("asp"), padded(np.nan)
    backend.score.weight.data.zero_()
    seen: list[Tensor] = []
    backend.project.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    backend(features, N_FRAMES)
    for pooled, example, frames in zip(seen[0], features, N_FRAMES.tolist(), strict=True):
        stream = backend.norm(backend.layer_weights(example[None, :, :frames]))[0]  # (T, D)
        deviation = stream.std(dim=0, correction=0).clamp(min=asp.VARIANCE_FLOOR**0.5)
        torch.testing.assert_close(pooled, torch.cat([stream.mean(dim=0), deviation]), rtol=0, atol=1e-12)


def test_attention_sums_to_one_over_the_valid_frames() -> None:
    backend = make("asp")
    valid = torch.arange(FRAMES) < N_FRAMES[:, None]
    attention = backend.attention(noise(3, FRAMES, CHANNELS), valid)
    assert torch.equal(attention > 0, valid)
    torch.testing.assert_close(attention.sum(dim=1), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-12)


def test_gradient_is_finite_for_constant_and_single_frames() -> None:
    features = noise(2, LAYERS, 1, CHANNELS).expand(-1, -1, FRAMES, -1)
    for gradient in gradients(make("asp"), features, torch.tensor([FRAMES, 1])):
        assert bool(gradient.isfinite().all())
