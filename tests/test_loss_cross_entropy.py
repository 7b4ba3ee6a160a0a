from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pipeline.core.contracts import Facts
from tests.losses import label, number, random_case, restored, scores


def test_numbers_derived_by_hand() -> None:
    state = {
        "classify.weight": torch.tensor([[0.0, 1.0], [1.0, 0.0]]),
        "classify.bias": torch.tensor([0.5, 0.0]),
    }
    loss = restored("cross_entropy", Facts(embedding_dim=2, levels=1, speakers=0), state)
    # Logits (spoof, bona fide): (0.5, 2) and (1.5, 0).
    value = loss(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), label([True, False]))
    assert number(value) == pytest.approx((math.log1p(math.exp(-1.5)) + math.log1p(math.exp(-1.5))) / 2, abs=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("bonafide_weight", [None, 1.0, 9.0])
def test_agrees_with_a_naive_loop(bonafide_weight: float | None, smoothing: float) -> None:
    loss, x, labels = random_case("cross_entropy", bonafide_weight=bonafide_weight, label_smoothing=smoothing)
    weight, bias = loss.classify.weight.detach(), loss.classify.bias.detach()
    total = weights = 0.0
    for row, bonafide in zip(x, labels.is_bonafide.tolist(), strict=True):
        logits = [float(row @ w + b) for w, b in zip(weight, bias, strict=True)]
        own, other = (logits[1], logits[0]) if bonafide else (logits[0], logits[1])
        weighs, of_other = (bonafide_weight or 1.0), 1.0
        if not bonafide:
            weighs, of_other = of_other, weighs
        of_own, of_the_other = math.log1p(math.exp(other - own)), math.log1p(math.exp(own - other))
        total += (1 - smoothing) * weighs * of_own + smoothing / 2 * (weighs * of_own + of_other * of_the_other)
        weights += weighs
    assert number(loss(x, labels)) == pytest.approx(total / weights, abs=1e-12)


def test_the_score_is_the_log_odds_of_bonafide() -> None:
    loss, x, labels = random_case("cross_entropy")
    found = scores(loss, x)
    probability = loss.classify(x).softmax(dim=1)[:, 1].detach().numpy()
    np.testing.assert_allclose(found, np.log(probability / (1 - probability)), rtol=0, atol=1e-5)
    # The loss of the scores alone, as a logistic regression.
    signs = np.where(labels.is_bonafide.numpy(), 1, -1)
    assert number(loss(x, labels)) == pytest.approx(np.logaddexp(0, -signs * found).mean(), abs=1e-5)


@pytest.mark.parametrize("bonafide", [True, False])
def test_a_batch_of_one_class_is_its_own_mean(bonafide: bool) -> None:
    weighted, x, _ = random_case("cross_entropy", bonafide_weight=9.0)
    plain, _, _ = random_case("cross_entropy")
    labels = label([bonafide] * 9)
    assert number(weighted(x, labels)) == pytest.approx(number(plain(x, labels)), abs=1e-12)
