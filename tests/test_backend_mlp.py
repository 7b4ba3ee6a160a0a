from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.backends import mlp
from tests.backends import CHANNELS, LAYERS, N_FRAMES, WIDTH, arrays, layer_norm, make, noise, weigh

pytestmark = pytest.mark.usefixtures("one_thread")

HIDDEN = 6


def test_it_agrees_with_a_naive_loop() -> None:
    backend, features = make("mlp").eval(), noise(3, LAYERS, 2, CHANNELS)
    p = arrays(backend)
    got = backend(features, N_FRAMES).detach().numpy()
    assert got.shape == (3, WIDTH)
    for row, example in zip(got, features.numpy(), strict=True):
        x = weigh(example, p["layer_weights.logits"]).reshape(-1)  # means, then deviations
        x = layer_norm(x, p["norm.weight"], p["norm.bias"])
        for i in range(2):
            x = np.maximum(p[f"hidden.{i}.0.weight"] @ x + p[f"hidden.{i}.0.bias"], 0)
        np.testing.assert_allclose(row, p["project.weight"] @ x + p["project.bias"], rtol=0, atol=1e-12)


def test_derived_by_hand() -> None:
    backend = mlp.Backend(layers=1, channels=1, embedding_dim=1, hidden_dim=2, hidden_layers=1).double().eval()
    backend.norm.eps = 0.0
    p = dict(backend.named_parameters())
    p["hidden.0.0.weight"].data = torch.tensor([[2.0, 1.0], [1.0, 2.0]]).double()
    p["hidden.0.0.bias"].data.zero_()
    backend.project.weight.data = torch.tensor([[10.0, 100.0]]).double()
    backend.project.bias.data.fill_(0.5)
    # The pair (5, 3) has mean 4 and deviation 1: normalized (1, -1). Hidden (2 - 1, 1 - 2) = (1, -1), ReLU (1, 0).
    assert backend(torch.tensor([[[[5.0], [3.0]]]]).double(), torch.tensor([2])).tolist() == [[10.5]]


@pytest.mark.parametrize("hidden_layers", [1, 2, 3])
def test_parameters_are_those_of_the_layers(hidden_layers: int) -> None:
    counted = sum(p.numel() for p in make("mlp", hidden_layers=hidden_layers).parameters())
    first, further = 2 * CHANNELS * HIDDEN + HIDDEN, HIDDEN * HIDDEN + HIDDEN
    assert counted == LAYERS + 4 * CHANNELS + first + (hidden_layers - 1) * further + HIDDEN * WIDTH + WIDTH


def test_scale_of_the_stream_does_not_matter() -> None:
    backend, features = make("mlp").eval(), 100 * noise(2, LAYERS, 2, CHANNELS)
    torch.testing.assert_close(backend(features, N_FRAMES[:2]), backend(30 * features, N_FRAMES[:2]), rtol=0, atol=1e-5)


def test_dropout_acts_in_training_and_follows_torchs_generator() -> None:
    backend, features = make("mlp", dropout=0.4).train(), noise(2, LAYERS, 2, CHANNELS)
    torch.manual_seed(1)
    first = backend(features, N_FRAMES[:2])
    other = backend(features, N_FRAMES[:2])
    torch.manual_seed(1)
    assert torch.equal(backend(features, N_FRAMES[:2]), first)
    assert not torch.equal(other, first)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_senseless_dropout_is_refused(dropout: float) -> None:
    with pytest.raises(ValueError, match="dropout"):
        make("mlp", dropout=dropout)
