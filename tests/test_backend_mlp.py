from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pipeline.backends import mlp
from pipeline.backends._shared import LayerWeights
from tests.backends import (
    check_initialisation_follows_the_seed,
    noise,
    randomise,
)

pytestmark = pytest.mark.usefixtures("one_thread")

LAYERS, CHANNELS, WIDTH, HIDDEN = 3, 4, 5, 6
N_FRAMES = torch.tensor([7, 4, 1])


def make(**changed: Any) -> mlp.Backend:
    settings: dict[str, Any] = {"embedding_dim": WIDTH, "hidden_dim": HIDDEN, "hidden_layers": 2, "dropout": 0.4}
    backend = mlp.Backend(layers=LAYERS, channels=CHANNELS, **(settings | changed))
    randomise(backend)
    return backend.eval()


def test_it_agrees_with_a_naive_loop() -> None:
    backend, features = make(), noise(3, LAYERS, 2, CHANNELS)
    p = {name: parameter.detach().numpy() for name, parameter in backend.named_parameters()}
    got = backend(features, N_FRAMES).detach().numpy()
    assert got.shape == (3, WIDTH)
    weights = np.exp(p["layer_weights.logits"])
    weights /= weights.sum()
    for row, example in zip(got, features.numpy(), strict=True):
        x = sum(w * layer.reshape(-1) for w, layer in zip(weights, example, strict=True))  # means, then deviations
        x = (x - x.mean()) / np.sqrt(x.var() + 1e-5) * p["norm.weight"] + p["norm.bias"]
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
    # The pair (5, 3) has mean 4 and deviation 1: normalised (1, -1). Hidden (2 - 1, 1 - 2) = (1, -1), ReLU (1, 0).
    assert backend(torch.tensor([[[[5.0], [3.0]]]]).double(), torch.tensor([2])).tolist() == [[10.5]]


@pytest.mark.parametrize("hidden_layers", [1, 2, 3])
def test_parameters_are_those_of_the_layers(hidden_layers: int) -> None:
    counted = sum(p.numel() for p in make(hidden_layers=hidden_layers).parameters())
    first, further = 2 * CHANNELS * HIDDEN + HIDDEN, HIDDEN * HIDDEN + HIDDEN
    assert counted == LAYERS + 4 * CHANNELS + first + (hidden_layers - 1) * further + HIDDEN * WIDTH + WIDTH


def test_a_batch_is_each_of_its_utterances() -> None:
    backend, features = make(), noise(3, LAYERS, 2, CHANNELS)
    together = backend(features, N_FRAMES)
    for row in range(3):
        alone = backend(features[row : row + 1], N_FRAMES[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-12)


def test_scale_of_the_stream_does_not_matter() -> None:
    backend, features = make(), 100 * noise(2, LAYERS, 2, CHANNELS)
    torch.testing.assert_close(backend(features, N_FRAMES[:2]), backend(30 * features, N_FRAMES[:2]), rtol=0, atol=1e-5)


def test_dropout_acts_in_training_and_follows_torchs_generator() -> None:
    backend, features = make(), noise(2, LAYERS, 2, CHANNELS)
    backend.train()
    torch.manual_seed(1)
    first = backend(features, N_FRAMES[:2])
    other = backend(features, N_FRAMES[:2])
    torch.manual_seed(1)
    assert torch.equal(backend(features, N_FRAMES[:2]), first)
    assert not torch.equal(other, first)


def test_initialisation_follows_torchs_generator() -> None:
    check_initialisation_follows_the_seed(lambda: mlp.Backend(layers=LAYERS, channels=CHANNELS))


def test_gradcheck() -> None:
    backend, features = make(), noise(2, LAYERS, 2, CHANNELS).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: backend(x, N_FRAMES[:2]), (features, *backend.parameters()))


def test_what_it_reads_and_how_wide_it_is() -> None:
    assert (make().reads, make().embedding_dim) == ("pooled", WIDTH)
    assert mlp.Backend(layers=2, channels=3).embedding_dim == 128
    assert [type(child) for child in make().children()].count(LayerWeights) == 1


@pytest.mark.parametrize("name", ["embedding_dim", "hidden_dim", "hidden_layers"])
@pytest.mark.parametrize("value", [0, -3])
def test_senseless_widths_are_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name}.*≥ 1.*{value}"):
        make(**{name: value})


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_senseless_dropout_is_refused(dropout: float) -> None:
    with pytest.raises(ValueError, match="dropout"):
        make(dropout=dropout)
