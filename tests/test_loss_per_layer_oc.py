from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.backends import per_layer
from pipeline.core.contracts import Facts
from pipeline.losses import oc_softmax, per_layer_oc
from tests.golden import read_golden
from tests.losses import DTYPES, label, meets, number, random_case, restored, scores, softplus, value_and_gradients

LAYERS, WIDTH = 3, 4


def make(centres: Tensor, **hyperparameters: Any) -> per_layer_oc.Loss:
    facts = Facts(embedding_dim=centres.numel(), levels=1, speakers=0, layers=len(centres))
    loss: per_layer_oc.Loss = restored("per_layer_oc", facts, {"centres": centres}, **hyperparameters)
    return loss


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def cosines(row: Tensor, centres: Tensor) -> list[float]:
    """Of each layer's segment of one embedding to that layer's centre."""
    width = centres.shape[1]
    return [cosine(row[k * width : (k + 1) * width], centre) for k, centre in enumerate(centres)]


@pytest.mark.parametrize(("setting", "hyperparameters"), [("train", {}), ("default", {"margin_spoof": 0.5})])
@DTYPES
def test_one_layer_meets_the_reference_of_oc_softmax(
    dtype: torch.dtype, prefix: str, setting: str, hyperparameters: dict[str, float]
) -> None:
    arrays = read_golden("oc_softmax")
    loss = make(torch.tensor(arrays["center"], dtype=dtype), **hyperparameters)
    found = value_and_gradients(loss, arrays["mixed/x"], label(arrays["mixed/is_bonafide"]))
    atol = {"loss": 1e-5, "grad_x": 1e-6, "grad_center": 5e-6}
    for got, (key, allowed) in zip(found, atol.items(), strict=True):
        meets(got, arrays[f"{prefix}mixed/{setting}/{key}"], allowed, key)
    np.testing.assert_allclose(
        scores(loss, torch.tensor(arrays["mixed/x"])), arrays[f"{prefix}mixed/score"], rtol=0, atol=1e-6
    )


def test_is_the_mean_of_one_oc_softmax_a_layer() -> None:
    loss, x, labels = random_case("per_layer_oc")
    singles = []
    for segment, centre in zip(x.split(WIDTH, dim=1), loss.centres.detach(), strict=True):
        single = oc_softmax.Loss(Facts(embedding_dim=WIDTH, levels=1, speakers=0)).double()
        single.load_state_dict({"centre": centre[None]})
        singles.append(number(single(segment, labels)))
    assert number(loss(x, labels)) == pytest.approx(sum(singles) / LAYERS, rel=1e-12)


def test_numbers_derived_by_hand() -> None:
    loss = make(torch.tensor([[0.0, 5.0], [2.0, 0.0]], dtype=torch.float64), alpha=2.0)
    # Bona fide: cosines 0.8 and 0, excess 0.1 and 0.9. Spoof: 1 and −0.6, excess 0.8 and −0.8.
    x = torch.tensor([[3.0, 4.0, 0.0, 9.0], [0.0, 0.1, -3.0, 4.0]], dtype=torch.float64)
    want = (softplus(2 * 0.1) + softplus(2 * 0.9) + softplus(2 * 0.8) + softplus(2 * -0.8)) / 4
    assert number(loss(x, label([True, False]))) == pytest.approx(want, abs=1e-12)


def test_agrees_with_a_naive_loop() -> None:
    loss, x, labels = random_case("per_layer_oc")
    total = 0.0
    for row, bonafide in zip(x, labels.is_bonafide.tolist(), strict=True):
        for s in cosines(row, loss.centres.detach()):
            total += softplus(20.0 * (0.9 - s if bonafide else s - 0.2)) / (9 * LAYERS)
    assert number(loss(x, labels)) == pytest.approx(total, rel=1e-8)  # torch's softplus is linear above 20


def test_the_norms_of_the_segments_do_not_matter() -> None:
    loss, x, labels = random_case("per_layer_oc")
    segments = torch.tensor([0.1, 1.0, 50.0], dtype=torch.float64).repeat_interleave(WIDTH)
    assert number(loss(segments * x, labels)) == pytest.approx(number(loss(x, labels)), rel=1e-12)


def test_the_order_of_the_layers_does_not_matter() -> None:
    loss, x, labels = random_case("per_layer_oc")
    turned = make(loss.centres.detach().roll(1, dims=0))
    assert number(turned(x.roll(WIDTH, dims=1), labels)) == pytest.approx(number(loss(x, labels)), rel=1e-12)


def test_each_centre_learns_from_its_own_layer() -> None:
    loss, x, labels = random_case("per_layer_oc")
    x[:, WIDTH : 2 * WIDTH] = 0
    loss(x, labels).backward()
    assert loss.centres.grad is not None
    assert loss.centres.grad.abs().sum(dim=1).gt(0).tolist() == [True, False, True]


@pytest.mark.parametrize("length", [1.0, 30.0])
def test_the_index_scores_the_mean_of_the_cosines(length: float) -> None:
    loss, x, _ = random_case("per_layer_oc")
    x = torch.cat([length * part / part.norm(dim=1, keepdim=True) for part in x.split(WIDTH, dim=1)], dim=1)
    want = [sum(cosines(row, loss.centres.detach())) / LAYERS for row in x]
    np.testing.assert_allclose(scores(loss, x), want, rtol=0, atol=1e-6)


def test_with_its_backend_the_score_is_the_fused_decision_of_the_layers() -> None:
    generator = torch.Generator().manual_seed(2)
    backend = per_layer.Backend(layers=LAYERS, channels=5, layer_dim=WIDTH)
    features = torch.randn(6, LAYERS, 2, 5, generator=generator)
    x = backend(features, torch.full((6,), 9)).detach()
    loss = make(torch.randn(LAYERS, WIDTH, generator=generator))
    want = [sum(cosines(row, loss.centres.detach())) / LAYERS for row in x]
    np.testing.assert_allclose(scores(loss, x), want, rtol=0, atol=1e-6)


def test_segments_of_other_backends_weigh_by_their_length() -> None:
    loss, x, _ = random_case("per_layer_oc")
    for row, score in zip(x, scores(loss, x), strict=True):
        lengths = [float(part.norm()) for part in row.split(WIDTH)]
        parts = zip(lengths, cosines(row, loss.centres.detach()), strict=True)
        want = sum(length * s for length, s in parts) / (math.sqrt(LAYERS) * float(row.norm()))
        assert score == pytest.approx(want, abs=1e-6)


def test_an_embedding_that_the_layers_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match=r"multiple of the 3 tapped layers.*got 64; take the backend per_layer"):
        per_layer_oc.Loss(Facts(embedding_dim=64, levels=1, speakers=0, layers=3))


@pytest.mark.parametrize("layers", [0, -2])
def test_facts_know_at_least_one_layer(layers: int) -> None:
    with pytest.raises(ValueError, match=f"layers ≥ 1.*layers={layers}"):
        Facts(embedding_dim=4, levels=1, speakers=0, layers=layers)
    assert Facts(embedding_dim=4, levels=1, speakers=0).layers == 1
