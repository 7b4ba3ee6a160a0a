from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.core.contracts import Facts, Labels
from pipeline.losses import cross_entropy
from tests.losses import (
    computes_in_float32_under_autocast,
    descended,
    has_the_gradients_of_finite_differences,
    keeps_its_value_in_any_order,
    label,
    number,
    scores,
)


def make(weight: Tensor, bias: Tensor, bonafide_weight: float | None = None) -> cross_entropy.Loss:
    facts = Facts(embedding_dim=weight.shape[1], levels=1, speakers=0)
    loss = cross_entropy.Loss(facts, bonafide_weight=bonafide_weight).to(weight.dtype)
    loss.load_state_dict({"classify.weight": weight, "classify.bias": bias})
    return loss


def random_case(bonafide_weight: float | None = None) -> tuple[cross_entropy.Loss, Tensor, Labels]:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((7, 5), (2, 5), (2,))
    )
    return make(weight, bias, bonafide_weight), x, label([True, False, False, True, False, False, False])


def test_numbers_derived_by_hand() -> None:
    loss = make(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([0.5, 0.0]))
    # Logits (spoof, bona fide): (0.5, 2) and (1.5, 0).
    value = loss(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), label([True, False]))
    assert number(value) == pytest.approx((math.log1p(math.exp(-1.5)) + math.log1p(math.exp(-1.5))) / 2, abs=1e-6)


@pytest.mark.parametrize("bonafide_weight", [None, 1.0, 9.0])
def test_agrees_with_a_naive_loop(bonafide_weight: float | None) -> None:
    loss, x, labels = random_case(bonafide_weight)
    weight, bias = loss.classify.weight.detach(), loss.classify.bias.detach()
    total = weights = 0.0
    for row, bonafide in zip(x, labels.is_bonafide.tolist(), strict=True):
        logits = [float(row @ w + b) for w, b in zip(weight, bias, strict=True)]
        own, other = (logits[1], logits[0]) if bonafide else (logits[0], logits[1])
        weighs = (bonafide_weight or 1.0) if bonafide else 1.0
        total += weighs * math.log1p(math.exp(other - own))
        weights += weighs
    assert number(loss(x, labels)) == pytest.approx(total / weights, abs=1e-12)


def test_the_score_is_the_log_odds_of_bonafide() -> None:
    loss, x, labels = random_case()
    record = loss.centroids()
    assert record.vectors.shape == (1, 5)
    assert (record.normalize_query, record.reduce) == (False, "max")
    found = scores(loss, x)
    probability = loss.classify(x).softmax(dim=1)[:, 1].detach().numpy()
    np.testing.assert_allclose(found, np.log(probability / (1 - probability)), rtol=0, atol=1e-5)
    # The loss of the scores alone, as a logistic regression.
    signs = np.where(labels.is_bonafide.numpy(), 1, -1)
    assert number(loss(x, labels)) == pytest.approx(np.logaddexp(0, -signs * found).mean(), abs=1e-5)


def test_descent_raises_bonafide_above_spoof() -> None:
    loss, x, labels = random_case()
    found, flags = descended(loss, x, labels, rate=0.5), labels.is_bonafide.numpy()
    assert found[flags].min() > 2
    assert found[~flags].max() < -2


@pytest.mark.parametrize("bonafide", [True, False])
def test_a_batch_of_one_class_is_its_own_mean(bonafide: bool) -> None:
    weighted, x, _ = random_case(9.0)
    plain, _, _ = random_case()
    labels = label([bonafide] * 7)
    assert number(weighted(x, labels)) == pytest.approx(number(plain(x, labels)), abs=1e-12)


def test_order_of_a_batch_does_not_matter() -> None:
    keeps_its_value_in_any_order(*random_case(3.0))


@pytest.mark.parametrize("bonafide_weight", [None, 3.0])
def test_gradients_to_embeddings_and_layer(bonafide_weight: float | None) -> None:
    has_the_gradients_of_finite_differences(*random_case(bonafide_weight))


def test_autocast_does_not_touch_the_numbers() -> None:
    computes_in_float32_under_autocast(*random_case(3.0))


@pytest.mark.parametrize("bonafide_weight", [0.0, -1.0, math.inf, math.nan])
def test_senseless_weights_are_refused(bonafide_weight: float) -> None:
    with pytest.raises(ValueError, match="bonafide_weight > 0"):
        cross_entropy.Loss(Facts(embedding_dim=4, levels=1, speakers=0), bonafide_weight=bonafide_weight)
