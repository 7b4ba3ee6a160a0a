from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.backends import per_layer
from tests.backends import CHANNELS, LAYERS, N_FRAMES, WIDTH, arrays, layer_norm, make, noise

pytestmark = pytest.mark.usefixtures("one_thread")


def test_it_agrees_with_a_naive_loop() -> None:
    backend, features = make("per_layer"), noise(3, LAYERS, 2, CHANNELS)
    p = arrays(backend)
    got = backend(features, N_FRAMES).detach().numpy()
    assert got.shape == (3, LAYERS * WIDTH)
    for row, example in zip(got, features.numpy(), strict=True):
        for k in range(LAYERS):
            x = layer_norm(example[k].reshape(-1))  # means, then deviations
            x = np.array([x @ p["weight"][k, :, e] + p["bias"][k, 0, e] for e in range(WIDTH)])
            np.testing.assert_allclose(row[k * WIDTH : (k + 1) * WIDTH], x / np.sqrt(x @ x), rtol=0, atol=1e-12)


def test_derived_by_hand() -> None:
    backend = make("per_layer", layers=2, channels=1, layer_dim=2)
    backend.weight.data = torch.tensor([[[3.0, 0.0], [0.0, 4.0]], [[1.0, 0.0], [1.0, 0.0]]]).double()
    backend.bias.data = torch.tensor([[[0.0, 0.0]], [[0.0, -2.0]]]).double()
    # The pairs (5, 3) and (1, 9) are normalized to ±(1, -1): (3, -4) at unit length, and (0, 0) moved to (0, -2).
    got = backend(torch.tensor([[[[5.0], [3.0]], [[1.0], [9.0]]]]).double(), torch.tensor([2]))
    assert got[0].tolist() == pytest.approx([0.6, -0.8, 0.0, -1.0], abs=1e-5)


def test_every_segment_has_unit_length() -> None:
    lengths = make("per_layer")(30 * noise(3, LAYERS, 2, CHANNELS), N_FRAMES).unflatten(1, (LAYERS, WIDTH)).norm(dim=2)
    torch.testing.assert_close(lengths, torch.ones(3, LAYERS, dtype=torch.float64), rtol=0, atol=1e-12)


def test_a_layer_is_seen_by_its_own_segment_alone() -> None:
    backend, features = make("per_layer"), noise(2, LAYERS, 2, CHANNELS)
    before = backend(features, N_FRAMES[:2]).unflatten(1, (LAYERS, WIDTH))
    features[:, 1] += noise(2, 2, CHANNELS, seed=1)
    after = backend(features, N_FRAMES[:2]).unflatten(1, (LAYERS, WIDTH))
    assert (before != after).any(dim=2).any(dim=0).tolist() == [False, True, False]


def test_scale_of_the_stream_does_not_matter_in_any_layer() -> None:
    backend, features = make("per_layer"), 100 * noise(2, LAYERS, 2, CHANNELS)
    scale = torch.tensor([1.0, 30.0, 900.0], dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(
        backend(features, N_FRAMES[:2]), backend(scale * features, N_FRAMES[:2]), rtol=0, atol=1e-5
    )


def test_constant_statistics_have_finite_gradients() -> None:
    backend, features = (
        make("per_layer"),
        torch.full((1, LAYERS, 2, CHANNELS), 3.0, dtype=torch.float64).requires_grad_(),
    )
    backend(features, N_FRAMES[:1]).sum().backward()
    for tensor in (features, *backend.parameters()):
        assert tensor.grad is not None
        assert bool(tensor.grad.isfinite().all())


def test_initialization_is_torchs_of_a_linear_layer() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        backend = per_layer.Backend(layers=25, channels=32)
    for drawn in backend.parameters():
        assert float(drawn.detach().abs().max()) == pytest.approx(1 / 64**0.5, rel=0.01)
        assert float(drawn.detach().std()) == pytest.approx(1 / (3 * 64) ** 0.5, rel=0.05)


def test_its_number_of_parameters() -> None:
    assert sum(p.numel() for p in make("per_layer").parameters()) == LAYERS * (2 * CHANNELS * WIDTH + WIDTH)
