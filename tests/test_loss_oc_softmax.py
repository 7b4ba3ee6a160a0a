from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.core.contracts import Facts, Labels
from pipeline.losses import oc_softmax
from tests.losses import (
    DTYPES,
    Arrays,
    computes_in_float32_under_autocast,
    descended,
    golden_arrays,
    has_the_gradients_of_finite_differences,
    is_a_mean_over_both_classes,
    keeps_its_value_at_any_norm,
    keeps_its_value_in_any_order,
    label,
    meets,
    number,
    scores,
    softplus,
)

ATOL = {"loss": 1e-5, "grad_x": 1e-6, "grad_center": 5e-6, "score": 1e-6}
SETTINGS: dict[str, dict[str, float]] = {"train": {}, "default": {"margin_spoof": 0.5}}


@pytest.fixture(scope="module")
def golden() -> Arrays:
    return golden_arrays("oc_softmax.npz")


def make(centre: Tensor, **hyperparameters: Any) -> oc_softmax.Loss:
    facts = Facts(embedding_dim=centre.shape[1], levels=1, speakers=0)
    loss = oc_softmax.Loss(facts, **hyperparameters).to(centre.dtype)
    loss.load_state_dict({"centre": centre})
    return loss


def random_case(**hyperparameters: Any) -> tuple[oc_softmax.Loss, Tensor, Labels]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 6, dtype=torch.float64, generator=generator)
    centre = torch.randn(1, 6, dtype=torch.float64, generator=generator)
    return make(centre, **hyperparameters), x, label([True, False, False, True, True, False, False, True, False])


@pytest.mark.parametrize("setting", SETTINGS)
@DTYPES
def test_meets_the_reference(golden: Arrays, setting: str, dtype: torch.dtype, prefix: str) -> None:
    loss = make(torch.tensor(golden["center"], dtype=dtype), **SETTINGS[setting])
    x = torch.tensor(golden["mixed/x"], dtype=dtype, requires_grad=True)
    value = loss(x, label(golden["mixed/is_bonafide"]))
    value.backward()
    assert value.dtype == dtype
    for got, key in ((value, "loss"), (x.grad, "grad_x"), (loss.centre.grad, "grad_center")):
        meets(got, golden[f"{prefix}mixed/{setting}/{key}"], ATOL[key], key)


def test_scores_as_the_reference(golden: Arrays) -> None:
    got = scores(make(torch.tensor(golden["center"])), torch.tensor(golden["mixed/x"]))
    for prefix in ("", "f64/"):
        np.testing.assert_allclose(got, golden[f"{prefix}mixed/score"], rtol=0, atol=ATOL["score"])


def test_numbers_derived_by_hand() -> None:
    loss = make(torch.tensor([[0.0, 5.0]], dtype=torch.float64), alpha=2.0, margin_bonafide=0.7, margin_spoof=-0.1)
    # Cosines 0.8, 0.8 and −1: excess 0.7 − 0.8 for the bona fide, 0.8 + 0.1 and −1 + 0.1 for the spoofs.
    x = torch.tensor([[3.0, 4.0], [0.6, 0.8], [0.0, -7.0]], dtype=torch.float64)
    want = (softplus(2 * -0.1) + softplus(2 * 0.9) + softplus(2 * -0.9)) / 3
    assert number(loss(x, label([True, False, False]))) == pytest.approx(want, abs=1e-12)


def test_agrees_with_a_naive_loop() -> None:
    loss, x, labels = random_case()
    centre = loss.centre.detach()[0]
    total = 0.0
    for row, bonafide in zip(x, labels.is_bonafide.tolist(), strict=True):
        cosine = float(row @ centre / (row.norm() * centre.norm()))
        total += softplus(20.0 * (0.9 - cosine if bonafide else cosine - 0.2))
    assert number(loss(x, labels)) == pytest.approx(total / 9, rel=1e-8)  # torch's softplus is linear above 20


def test_loss_depends_neither_on_norms_nor_on_the_order_of_a_batch() -> None:
    loss, x, labels = random_case()
    keeps_its_value_in_any_order(loss, x, labels)
    keeps_its_value_at_any_norm(loss, x, labels)
    assert number(make(100 * loss.centre.detach())(x, labels)) == pytest.approx(number(loss(x, labels)), rel=1e-12)


def test_gradients_to_embeddings_and_centre() -> None:
    # A gentler slope than the default: softplus turns linear, with a step of 2e-9, where α u passes 20.
    has_the_gradients_of_finite_differences(*random_case(alpha=5.0))


def test_a_class_that_is_missing_drops_its_term() -> None:
    is_a_mean_over_both_classes(*random_case())


def test_the_index_scores_the_cosine() -> None:
    loss, x, _ = random_case()
    record = loss.centroids()
    assert record.vectors.shape == (1, 6)
    assert (record.normalize_query, record.bias, record.reduce) == (True, 0.0, "max")
    assert np.linalg.norm(record.vectors) == pytest.approx(1.0, abs=1e-6)
    cosines = torch.cosine_similarity(x, loss.centre.detach())
    np.testing.assert_allclose(scores(loss, 100 * x), cosines.numpy(), rtol=0, atol=1e-6)


def test_descent_raises_bonafide_above_spoof() -> None:
    loss, x, labels = random_case()
    found, flags = descended(loss, x, labels), labels.is_bonafide.numpy()
    assert found[flags].min() > 0.8
    assert found[~flags].max() < 0.3


def test_the_centre_is_learned_and_comes_from_the_seeded_generator() -> None:
    facts = Facts(embedding_dim=64, levels=1, speakers=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        first = oc_softmax.Loss(facts)
        torch.manual_seed(7)
        bound = math.sqrt(6 / (1 + 0.25**2) / 64)
        want = torch.empty(1, 64).uniform_(-bound, bound)
    torch.testing.assert_close(first.centre.detach(), want)
    assert [name for name, _ in first.named_parameters()] == ["centre"]


def test_autocast_does_not_touch_the_numbers() -> None:
    computes_in_float32_under_autocast(*random_case())


@pytest.mark.parametrize(
    ("hyperparameters", "message"),
    [
        ({"alpha": 0.0}, "alpha > 0"),
        ({"alpha": math.inf}, "alpha > 0"),
        ({"alpha": math.nan}, "alpha > 0"),
        ({"margin_bonafide": 1.5}, "margin_spoof < margin_bonafide"),
        ({"margin_spoof": 0.9}, "margin_spoof < margin_bonafide"),
        ({"margin_spoof": -1.1}, "margin_spoof < margin_bonafide"),
    ],
)
def test_senseless_hyperparameters_are_refused(hyperparameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        oc_softmax.Loss(Facts(embedding_dim=4, levels=1, speakers=0), **hyperparameters)
