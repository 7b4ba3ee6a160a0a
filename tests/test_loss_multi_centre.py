from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.core.contracts import Facts, Labels
from pipeline.losses import multi_centre, oc_softmax, qamo
from tests.losses import (
    DTYPES,
    Arrays,
    computes_in_float32_under_autocast,
    golden_arrays,
    has_the_gradients_of_finite_differences,
    is_a_mean_over_both_classes,
    keeps_its_value_at_any_norm,
    keeps_its_value_in_any_order,
    label,
    meets,
    number,
    same_centroids,
    scores,
    softplus,
)

CASES = ["mixed", "nolow", "only_spoof", "only_bonafide"]
ATOL = {"noq_loss": 2e-5, "noq_grad_x": 2e-6, "noq_grad_centers": 1e-5}


@pytest.fixture(scope="module")
def golden() -> Arrays:
    return golden_arrays("qamo.npz")


def make(centres: Tensor, **hyperparameters: Any) -> multi_centre.Loss:
    facts = Facts(embedding_dim=centres.shape[1], levels=1, speakers=0)
    loss = multi_centre.Loss(facts, centres=len(centres), **hyperparameters).to(centres.dtype)
    loss.load_state_dict({"centres": centres})
    return loss


def random_case(centres: int = 3, **hyperparameters: Any) -> tuple[multi_centre.Loss, Tensor, Labels]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 6, dtype=torch.float64, generator=generator)
    vectors = torch.randn(centres, 6, dtype=torch.float64, generator=generator)
    return make(vectors, **hyperparameters), x, label([True, False, False, True, True, False, False, True, False])


def cosines(x: Tensor, vectors: Tensor) -> Tensor:
    return torch.cosine_similarity(x[:, None], vectors[None], dim=2)  # (B, K)


@pytest.mark.parametrize("case", CASES)
@DTYPES
def test_meets_the_reference_of_qamo_without_quality(
    golden: Arrays, case: str, dtype: torch.dtype, prefix: str
) -> None:
    loss = make(torch.tensor(golden["centers"], dtype=dtype))
    x = torch.tensor(golden[f"{case}/x"], dtype=dtype, requires_grad=True)
    value = loss(x, label(golden[f"{case}/is_bonafide"]))
    value.backward()
    assert value.dtype == dtype
    for got, key in ((value, "noq_loss"), (x.grad, "noq_grad_x"), (loss.centres.grad, "noq_grad_centers")):
        meets(got, golden[f"{prefix}{case}/{key}"], ATOL[key], key)


@DTYPES
def test_one_centre_meets_the_reference_of_oc_softmax(dtype: torch.dtype, prefix: str) -> None:
    arrays = golden_arrays("oc_softmax.npz")
    loss = make(torch.tensor(arrays["center"], dtype=dtype))
    x = torch.tensor(arrays["mixed/x"], dtype=dtype, requires_grad=True)
    value = loss(x, label(arrays["mixed/is_bonafide"]))
    value.backward()
    atol = {"loss": 1e-5, "grad_x": 1e-6, "grad_center": 5e-6}
    for got, key in ((value, "loss"), (x.grad, "grad_x"), (loss.centres.grad, "grad_center")):
        meets(got, arrays[f"{prefix}mixed/train/{key}"], atol[key], key)
    if dtype == torch.float32:  # centroids are float32 whatever the loss computes in
        np.testing.assert_allclose(scores(loss, x), arrays["mixed/score"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("reduce", ["mean", "max"])
def test_scores_as_the_reference(golden: Arrays, case: str, reduce: Literal["mean", "max"]) -> None:
    found = scores(make(torch.tensor(golden["centers"]), reduce=reduce), torch.tensor(golden[f"{case}/x"]))
    for prefix in ("", "f64/"):
        np.testing.assert_allclose(found, golden[f"{prefix}{case}/score_{reduce}"], rtol=0, atol=2e-6)


def test_is_qamo_without_quality_and_oc_softmax_with_one_centre() -> None:
    loss, x, labels = random_case()
    whole = qamo.Loss(Facts(embedding_dim=6, levels=3, speakers=0), quality_weight=0.0).double()
    whole.load_state_dict({"centers": loss.centres.detach()})
    assert number(loss(x, labels)) == pytest.approx(number(whole(x, labels)), rel=1e-12)
    assert same_centroids(loss.centroids(), whole.centroids())
    loss, x, labels = random_case(centres=1, reduce="max")
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
    loss, x, labels = random_case()
    total = 0.0
    for row, bonafide in zip(x, labels.is_bonafide.tolist(), strict=True):
        nearest = max(float(row @ c / (row.norm() * c.norm())) for c in loss.centres.detach())
        total += softplus(20.0 * (0.9 - nearest if bonafide else nearest - 0.2))
    assert number(loss(x, labels)) == pytest.approx(total / 9, rel=1e-8)  # torch's softplus is linear above 20


def test_loss_depends_neither_on_norms_nor_on_the_order_of_batch_and_centres() -> None:
    loss, x, labels = random_case()
    keeps_its_value_in_any_order(loss, x, labels)
    keeps_its_value_at_any_norm(loss, x, labels)
    longer = loss.centres.detach() * torch.tensor([[0.1], [1.0], [10.0]], dtype=torch.float64)
    assert number(make(longer.flip(0))(x, labels)) == pytest.approx(number(loss(x, labels)), rel=1e-12)


def test_gradients_to_embeddings_and_centres() -> None:
    # A gentler slope than the default: softplus turns linear, with a step of 2e-9, where α u passes 20.
    has_the_gradients_of_finite_differences(*random_case(alpha=5.0))


def test_a_centre_that_is_nearest_to_nobody_does_not_move() -> None:
    loss = make(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
    loss(torch.tensor([[0.9, 0.1], [0.1, 0.9]]), label([True, False])).backward()
    assert loss.centres.grad is not None
    assert loss.centres.grad.abs().sum(dim=1).gt(0).tolist() == [True, True, False]


def test_a_class_that_is_missing_drops_its_term() -> None:
    is_a_mean_over_both_classes(*random_case())


@pytest.mark.parametrize("reduce", ["max", "mean", "softmax"])
def test_the_index_scores_the_cosines(reduce: Literal["max", "mean", "softmax"]) -> None:
    loss, x, _ = random_case(reduce=reduce)
    record = loss.centroids()
    assert record.vectors.shape == (3, 6)
    assert (record.normalize_query, record.bias, record.reduce) == (True, 0.0, reduce)
    similar = cosines(x, loss.centres.detach())
    want = {
        "max": similar.max(dim=1).values,
        "mean": similar.mean(dim=1),
        "softmax": (similar.softmax(dim=1) * similar).sum(dim=1),
    }[reduce]
    np.testing.assert_allclose(scores(loss, 100 * x), want.numpy(), rtol=0, atol=1e-6)


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


def test_centres_are_learned_and_come_from_the_seeded_generator() -> None:
    facts = Facts(embedding_dim=64, levels=1, speakers=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        first = multi_centre.Loss(facts, centres=4)
        torch.manual_seed(7)
        want = torch.randn(4, 64)
    assert torch.equal(first.centres, want)
    assert [name for name, _ in first.named_parameters()] == ["centres"]
    assert multi_centre.Loss(facts).centres.shape == (2, 64)


def test_autocast_does_not_touch_the_numbers() -> None:
    computes_in_float32_under_autocast(*random_case())


@pytest.mark.parametrize(
    ("hyperparameters", "message"),
    [
        ({"centres": 0}, "centres ≥ 1, got 0"),
        ({"alpha": 0.0}, "alpha > 0"),
        ({"alpha": math.nan}, "alpha > 0"),
        ({"margin_bonafide": 1.5}, "margin_spoof < margin_bonafide"),
        ({"margin_spoof": 0.9}, "margin_spoof < margin_bonafide"),
        ({"margin_spoof": -1.1}, "margin_spoof < margin_bonafide"),
        ({"reduce": "median"}, "max, mean or softmax"),
    ],
)
def test_senseless_hyperparameters_are_refused(hyperparameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        multi_centre.Loss(Facts(embedding_dim=4, levels=1, speakers=0), **hyperparameters)
