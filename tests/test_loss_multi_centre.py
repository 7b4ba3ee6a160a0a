from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.core.contracts import Facts
from pipeline.losses import multi_centre, oc_softmax, qamo
from tests.golden import Arrays, read_golden
from tests.losses import (
    DTYPES,
    REDUCES,
    cosines,
    label,
    meets,
    number,
    random_case,
    reduced,
    restored,
    same_centroids,
    scores,
    softplus,
    value_and_gradients,
    with_centres,
)

CASES = ["mixed", "nolow", "only_spoof", "only_bonafide"]
ATOL = {"noq_loss": 2e-5, "noq_grad_x": 2e-6, "noq_grad_centers": 1e-5}


@pytest.fixture(scope="module")
def golden() -> Arrays:
    return read_golden("qamo")


def make(centres: Tensor, **hyperparameters: Any) -> multi_centre.Loss:
    facts = Facts(embedding_dim=centres.shape[1], levels=1, speakers=0)
    state = {"centres": centres}
    loss: multi_centre.Loss = restored("multi_centre", facts, state, centres=len(centres), **hyperparameters)
    return loss


@pytest.mark.parametrize("case", CASES)
@DTYPES
def test_meets_the_reference_of_qamo_without_quality(
    golden: Arrays, case: str, dtype: torch.dtype, prefix: str
) -> None:
    loss = make(torch.tensor(golden["centers"], dtype=dtype))
    found = value_and_gradients(loss, golden[f"{case}/x"], label(golden[f"{case}/is_bonafide"]))
    for got, key in zip(found, ("noq_loss", "noq_grad_x", "noq_grad_centers"), strict=True):
        meets(got, golden[f"{prefix}{case}/{key}"], ATOL[key], key)


@DTYPES
def test_one_centre_meets_the_reference_of_oc_softmax(dtype: torch.dtype, prefix: str) -> None:
    arrays = read_golden("oc_softmax")
    loss = make(torch.tensor(arrays["center"], dtype=dtype))
    found = value_and_gradients(loss, arrays["mixed/x"], label(arrays["mixed/is_bonafide"]))
    atol = {"loss": 1e-5, "grad_x": 1e-6, "grad_center": 5e-6}
    for got, (key, allowed) in zip(found, atol.items(), strict=True):
        meets(got, arrays[f"{prefix}mixed/train/{key}"], allowed, key)
    if dtype == torch.float32:  # centroids are float32 whatever the loss computes in
        np.testing.assert_allclose(
            scores(loss, torch.tensor(arrays["mixed/x"])), arrays["mixed/score"], rtol=0, atol=1e-6
        )


def test_is_qamo_without_quality_and_oc_softmax_with_one_centre() -> None:
    loss, x, labels = random_case("multi_centre")
    whole = qamo.Loss(Facts(embedding_dim=6, levels=3, speakers=0), quality_weight=0.0).double()
    whole.load_state_dict({"centres": loss.centres.detach()})
    assert number(loss(x, labels)) == pytest.approx(number(whole(x, labels)), rel=1e-12)
    assert same_centroids(loss.centroids(), whole.centroids())
    loss, x, labels = random_case(("multi_centre", with_centres(1)), reduce="max")
    single = oc_softmax.Loss(Facts(embedding_dim=6, levels=1, speakers=0)).double()
    single.load_state_dict({"centre": loss.centres.detach()})
    assert number(loss(x, labels)) == pytest.approx(number(single(x, labels)), rel=1e-12)
    assert same_centroids(loss.centroids(), single.centroids())


def test_numbers_derived_by_hand() -> None:
    loss = make(torch.tensor([[2.0, 0.0], [0.0, 5.0]], dtype=torch.float64), alpha=2.0)
    # Cosines (0.6, 0.8), (0.8, 0.6) and (−1, 0): the nearest are 0.8, 0.8 and 0.
    x = torch.tensor([[3.0, 4.0], [4.0, 3.0], [-1.0, 0.0]], dtype=torch.float64)
    want = (softplus(2 * 0.1) + softplus(2 * 0.6) + softplus(2 * -0.2)) / 3
    assert number(loss(x, label([True, False, False]))) == pytest.approx(want, abs=1e-12)


def test_agrees_with_a_naive_loop() -> None:
    loss, x, labels = random_case("multi_centre")
    total = 0.0
    for row, bonafide in zip(x, labels.is_bonafide.tolist(), strict=True):
        nearest = max(float(row @ c / (row.norm() * c.norm())) for c in loss.centres.detach())
        total += softplus(20.0 * (0.9 - nearest if bonafide else nearest - 0.2))
    assert number(loss(x, labels)) == pytest.approx(total / 9, rel=1e-8)  # torch's softplus is linear above 20


def test_the_order_of_the_centres_does_not_matter() -> None:
    loss, x, labels = random_case("multi_centre")
    assert number(make(loss.centres.detach().flip(0))(x, labels)) == pytest.approx(number(loss(x, labels)), rel=1e-12)


def test_a_centre_that_is_nearest_to_nobody_does_not_move() -> None:
    loss = make(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
    loss(torch.tensor([[0.9, 0.1], [0.1, 0.9]]), label([True, False])).backward()
    assert loss.centres.grad is not None
    assert loss.centres.grad.abs().sum(dim=1).gt(0).tolist() == [True, True, False]


@REDUCES
def test_the_index_scores_the_cosines(reduce: Literal["max", "mean", "softmax"]) -> None:
    loss, x, _ = random_case("multi_centre", reduce=reduce)
    record = loss.centroids()
    assert record.vectors.shape == (3, 6)
    assert (record.normalize_query, record.bias, record.reduce) == (True, 0.0, reduce)
    np.testing.assert_allclose(scores(loss, 100 * x), reduced(cosines(x, loss.centres), reduce), rtol=0, atol=1e-6)


def test_centroids_are_unit_rows() -> None:
    record = make(torch.tensor([[3.0, 4.0], [0.0, -7.0]])).centroids()
    np.testing.assert_allclose(record.vectors, [[0.6, 0.8], [0.0, -1.0]], atol=1e-7)


def test_descent_finds_two_groups_of_bonafide() -> None:
    generator = torch.Generator().manual_seed(3)
    group = torch.eye(4)[torch.arange(24) % 3]  # bona fide along the first two axes, spoof along the third
    x = group + 0.1 * torch.randn(24, 4, generator=generator)
    labels = label((torch.arange(24) % 3 < 2).numpy())
    loss = make(torch.tensor([[1.0, 0.2, 0.9, 0.0], [0.2, 1.0, 0.9, 0.0]]), reduce="max")
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        loss(x, labels).backward()
        optimizer.step()
    found, flags = scores(loss, x), labels.is_bonafide.numpy()
    assert found[flags].min() > 0.7
    assert found[~flags].max() < 0.4
