"""The linear backend against a naive loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.backends import linear
from tests.backends import CHANNELS, LAYERS, WIDTH, arrays, layer_norm, make, noise, weigh

pytestmark = pytest.mark.usefixtures("one_thread")


def test_it_agrees_with_a_naive_loop() -> None:
    backend, features = make("linear"), noise(2, LAYERS, 2, CHANNELS)
    p = arrays(backend)
    got = backend(features, torch.tensor([7, 3])).detach().numpy()
    assert got.shape == (2, WIDTH)
    for row, example in zip(got, features.numpy(), strict=True):
        pooled = weigh(example, p["layer_weights.logits"]).reshape(-1)
        want = p["project.weight"] @ layer_norm(pooled, p["norm.weight"], p["norm.bias"]) + p["project.bias"]
        np.testing.assert_allclose(row, want, rtol=0, atol=1e-12)


def test_it_is_the_mean_over_layers_at_the_start() -> None:
    backend = linear.Backend(layers=LAYERS, channels=CHANNELS, embedding_dim=WIDTH).double()
    features = noise(2, LAYERS, 2, CHANNELS)
    alike = features.mean(dim=1, keepdim=True).expand(-1, LAYERS, -1, -1)
    n_frames = torch.tensor([7, 3])
    torch.testing.assert_close(backend(features, n_frames), backend(alike, n_frames), rtol=0, atol=1e-12)


def test_it_does_not_depend_on_the_scale_of_the_stream() -> None:
    backend, features = make("linear"), 100 * noise(2, LAYERS, 2, CHANNELS)
    n_frames = torch.tensor([7, 3])
    torch.testing.assert_close(backend(features, n_frames), backend(30 * features, n_frames), rtol=0, atol=1e-6)
