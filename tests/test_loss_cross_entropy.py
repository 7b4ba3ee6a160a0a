from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.contracts import Facts, Labels
from pipeline.losses import cross_entropy


def make(weight: Tensor, bias: Tensor, bonafide_weight: float | None = None) -> cross_entropy.Loss:
    facts = Facts(embedding_dim=weight.shape[1], levels=1, speakers=0)
    loss = cross_entropy.Loss(facts, bonafide_weight=bonafide_weight).to(weight.dtype)
    loss.load_state_dict({"classify.weight": weight, "classify.bias": bias})
    return loss


def label(is_bonafide: list[bool]) -> Labels:
    flags = torch.tensor(is_bonafide)
    unknown = torch.full(flags.shape, -1)
    return Labels(is_bonafide=flags, level=unknown, speaker=unknown)


def number(value: Tensor) -> float:
    return float(value.detach())


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
    centroids = loss.centroids()
    assert centroids.vectors.shape == (1, 5)
    assert (centroids.normalize_query, centroids.reduce) == (False, "max")
    scores = x.numpy() @ centroids.vectors[0] + centroids.bias
    probability = loss.classify(x).softmax(dim=1)[:, 1].detach().numpy()
    np.testing.assert_allclose(scores, np.log(probability / (1 - probability)), rtol=0, atol=1e-5)
    # The loss of the scores alone, as a logistic regression.
    signs = np.where(labels.is_bonafide.numpy(), 1, -1)
    assert number(loss(x, labels)) == pytest.approx(np.logaddexp(0, -signs * scores).mean(), abs=1e-5)


def test_descent_raises_bonafide_above_spoof() -> None:
    loss, x, labels = random_case()
    optimizer = torch.optim.SGD(loss.parameters(), lr=1.0)
    for _ in range(200):
        optimizer.zero_grad()
        loss(x, labels).backward()
        optimizer.step()
    centroids = loss.centroids()
    scores = x.numpy() @ centroids.vectors[0] + centroids.bias
    flags = labels.is_bonafide.numpy()
    assert scores[flags].min() > scores[~flags].max()


@pytest.mark.parametrize("bonafide", [True, False])
def test_a_batch_of_one_class_is_its_own_mean(bonafide: bool) -> None:
    weighted, x, _ = random_case(9.0)
    plain, _, _ = random_case()
    labels = label([bonafide] * 7)
    assert number(weighted(x, labels)) == pytest.approx(number(plain(x, labels)), abs=1e-12)


def test_order_of_a_batch_does_not_matter() -> None:
    loss, x, labels = random_case(3.0)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    shuffled = label(labels.is_bonafide[order].tolist())
    assert number(loss(x[order], shuffled)) == pytest.approx(number(loss(x, labels)), abs=1e-12)


def test_gradcheck() -> None:
    loss, x, labels = random_case(3.0)
    assert torch.autograd.gradcheck(lambda x, *_: loss(x, labels), (x.requires_grad_(), *loss.parameters()))


def test_autocast_does_not_touch_the_numbers() -> None:
    loss, x, labels = random_case(3.0)
    loss, half = loss.float(), x.bfloat16()
    want = loss(half.float(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = loss(half, labels)
    assert got.dtype == torch.float32
    assert torch.equal(got, want)


@pytest.mark.parametrize("bonafide_weight", [0.0, -1.0, math.inf, math.nan])
def test_senseless_weights_are_refused(bonafide_weight: float) -> None:
    with pytest.raises(ValueError, match="bonafide_weight > 0"):
        cross_entropy.Loss(Facts(embedding_dim=4, levels=1, speakers=0), bonafide_weight=bonafide_weight)
