from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.core.contracts import Facts
from pipeline.losses import qamo
from tests.golden import Arrays, read_golden
from tests.losses import (
    DTYPES,
    REDUCES,
    Case,
    cosines,
    descended,
    label,
    meets,
    number,
    random_case,
    reduced,
    restored,
    scores,
    softplus,
    take,
    value_and_gradients,
    with_levels,
)

CASES = ["mixed", "nolow", "only_spoof", "only_bonafide"]
ATOL = {
    "loss_cls": 2e-5,
    "quality_ce": 5e-5,
    "total": 2e-5,
    "grad_x": 2e-6,
    "grad_centers": 5e-6,
    "noq_loss": 2e-5,
    "noq_grad_x": 2e-6,
    "noq_grad_centers": 1e-5,
}


@pytest.fixture(scope="module")
def golden() -> Arrays:
    return read_golden("qamo")


def make(centres: Tensor, **hyperparameters: Any) -> qamo.Loss:
    facts = Facts(embedding_dim=centres.shape[1], levels=len(centres), speakers=0)
    loss: qamo.Loss = restored("qamo", facts, {"centres": centres}, **hyperparameters)
    return loss


def case(levels: int = 3, **hyperparameters: Any) -> Case:
    return random_case(("qamo", with_levels(levels)), **hyperparameters)


@pytest.mark.parametrize("case", CASES)
@DTYPES
def test_meets_the_reference(golden: Arrays, case: str, dtype: torch.dtype, prefix: str) -> None:
    flags = golden[f"{case}/is_bonafide"]
    for level, names in (
        (golden[f"{case}/q"], ("total", "grad_x", "grad_centers")),
        (np.full(len(flags), -1), ("noq_loss", "noq_grad_x", "noq_grad_centers")),
    ):
        loss = make(torch.tensor(golden["centers"], dtype=dtype))
        found = value_and_gradients(loss, golden[f"{case}/x"], label(flags, level=level))
        for got, key in zip(found, names, strict=True):
            meets(got, golden[f"{prefix}{case}/{key}"], ATOL[key], key)


@pytest.mark.parametrize("case", CASES)
@DTYPES
def test_each_term_meets_the_reference(golden: Arrays, case: str, dtype: torch.dtype, prefix: str) -> None:
    x = torch.tensor(golden[f"{case}/x"], dtype=dtype)
    labels = label(golden[f"{case}/is_bonafide"], level=golden[f"{case}/q"])
    centres = torch.tensor(golden["centers"], dtype=dtype)
    without, weighed = (number(make(centres, quality_weight=weight)(x, labels)) for weight in (0.0, 1.0))
    loss_cls, quality_ce = (float(golden[f"{prefix}{case}/{key}"]) for key in ("loss_cls", "quality_ce"))
    exact = dtype == torch.float64
    assert without == pytest.approx(loss_cls, rel=0, abs=1e-10 * abs(loss_cls) if exact else ATOL["loss_cls"])
    allowed = 1e-10 * (abs(quality_ce) + abs(loss_cls)) if exact else ATOL["quality_ce"]
    assert weighed - without == pytest.approx(quality_ce, rel=0, abs=allowed)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("reduce", ["mean", "max"])
@pytest.mark.parametrize("name", ["qamo", "multi_centre"])
def test_scores_as_the_reference_with_quality_and_without(golden: Arrays, name: str, reduce: str, case: str) -> None:
    state = {"centres": torch.tensor(golden["centers"])}
    loss = restored(name, Facts(embedding_dim=16, levels=2, speakers=0), state, reduce=reduce)
    found = scores(loss, torch.tensor(golden[f"{case}/x"]))
    for prefix in ("", "f64/"):
        np.testing.assert_allclose(found, golden[f"{prefix}{case}/score_{reduce}"], rtol=0, atol=2e-6)


def test_one_centroid_is_oc_softmax() -> None:
    arrays = read_golden("oc_softmax")
    loss = make(torch.tensor(arrays["center"], dtype=torch.float64))
    labels = label(arrays["mixed/is_bonafide"], level=0)
    value, to_x, _ = value_and_gradients(loss, arrays["mixed/x"], labels)
    assert number(value) == pytest.approx(float(arrays["f64/mixed/train/loss"]), rel=1e-10)
    np.testing.assert_allclose(to_x.numpy(), arrays["f64/mixed/train/grad_x"], rtol=0, atol=1e-9)


def test_numbers_derived_by_hand() -> None:
    loss = make(torch.tensor([[2.0, 0.0], [0.0, 5.0]], dtype=torch.float64), alpha=2.0, scale=3.0, quality_weight=0.5)
    x = torch.tensor([[3.0, 4.0], [3.0, 4.0], [-1.0, 0.0]], dtype=torch.float64)
    # Cosines (0.6, 0.8), twice, and (−1, 0). Level 0: u = 0.9 − 0.6; unknown: 0.9 − 0.8; spoof: 0 − 0.2.
    one_class = (softplus(2 * 0.3) + softplus(2 * 0.1) + softplus(2 * -0.2)) / 3
    # Quality, of the first row alone: logits 3 · (0.6 − 0.4, 0.8), so cross-entropy softplus(3 · (0.8 − 0.2)).
    value = loss(x, label([True, True, False], level=[0, -1, 1]))
    assert number(value) == pytest.approx(one_class + 0.5 * softplus(1.8), abs=1e-12)


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_agrees_with_a_naive_loop(levels: int) -> None:
    loss, x, labels = case(levels)
    one_class, quality = [], []
    for row, bonafide, level in zip(x, labels.is_bonafide.tolist(), labels.level.tolist(), strict=True):
        near = [float(row @ c / (row.norm() * c.norm())) for c in loss.centres.detach()]
        if not bonafide:
            one_class.append(softplus(20.0 * (max(near) - 0.2)))
            continue
        one_class.append(softplus(20.0 * (0.9 - (max(near) if level < 0 else near[level]))))
        if level >= 0:
            logits = [32.0 * (cosine - 0.4 * (k == level)) for k, cosine in enumerate(near)]
            quality.append(math.log(sum(math.exp(logit) for logit in logits)) - logits[level])
    want = sum(one_class) / len(one_class) + 0.1 * sum(quality) / len(quality)
    assert len(quality) == 4
    assert number(loss(x, labels)) == pytest.approx(want, rel=1e-8)  # torch's softplus is linear above 20


def test_the_level_of_a_spoof_does_not_matter() -> None:
    loss, x, labels = case()
    level = torch.where(labels.is_bonafide, labels.level, 2 - labels.level.clamp(min=0))
    assert torch.equal(loss(x, labels), loss(x, label(labels.is_bonafide, level=level)))


@pytest.mark.parametrize("levels", [1, 2, 4])
def test_neither_norms_nor_the_order_of_a_batch_matter_for_any_number_of_levels(levels: int) -> None:
    loss, x, labels = case(levels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    norms = torch.logspace(-3, 3, len(x), dtype=x.dtype)[:, None]
    longer = make(loss.centres.detach() * torch.logspace(-1, 1, levels, dtype=torch.float64)[:, None])
    value = number(loss(x, labels))
    assert number(loss((norms * x)[order], take(labels, order))) == pytest.approx(value, rel=1e-12)
    assert number(longer(x, labels)) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("levels", [1, 2, 4])
def test_gradients_for_any_number_of_levels(levels: int) -> None:
    loss, x, labels = case(levels, alpha=5.0, scale=4.0)  # gentle slopes: softplus turns linear where α u passes 20

    def value(x: Tensor, centres: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(loss, {"centres": centres}, (x, labels))
        return out

    assert torch.autograd.gradcheck(value, (x.requires_grad_(), loss.centres.detach().clone().requires_grad_()))


def test_names_of_the_levels_do_not_matter() -> None:
    loss, x, labels = case(4)
    rename = torch.tensor([3, 0, 1, 2])  # new number of each level
    renamed = make(loss.centres.detach()[rename.argsort()])
    level = torch.where(labels.level < 0, -1, rename[labels.level.clamp(min=0)])
    value = number(renamed(x, label(labels.is_bonafide, level=level)))
    assert value == pytest.approx(number(loss(x, labels)), rel=1e-12)
    np.testing.assert_allclose(scores(renamed, x), scores(loss, x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("levels", [1, 2, 4])
@REDUCES
def test_the_index_scores_the_cosines(levels: int, reduce: Literal["max", "mean", "softmax"]) -> None:
    loss, x, _ = case(levels, reduce=reduce)
    np.testing.assert_allclose(scores(loss, 100 * x), reduced(cosines(x, loss.centres), reduce), rtol=0, atol=1e-6)


def test_descent_gathers_bonafide_by_level() -> None:
    generator = torch.Generator().manual_seed(3)
    group = torch.arange(24) % 3  # bona fide of either level along the first two axes, spoof along the third
    x = torch.eye(4)[group] + 0.1 * torch.randn(24, 4, generator=generator)
    labels = label(group < 2, level=torch.where(group < 2, group, -1))
    loss = make(torch.tensor([[1.0, 1.0, 0.5, 0.0], [1.0, 1.0, 0.0, 0.5]]), reduce="max")
    found, flags = descended(loss, x, labels, rate=0.02), labels.is_bonafide.numpy()
    assert found[flags].min() > 0.7
    assert found[~flags].max() < 0.4
    first, second = loss.centroids().vectors
    assert first[0] > 0.7 > 0.4 > first[1]
    assert second[1] > 0.7 > 0.4 > second[0]


def test_without_graded_bonafide_the_quality_term_is_zero() -> None:
    loss, x, labels = case()
    for kept in (labels.level == -1, ~labels.is_bonafide):
        part = take(labels, kept)
        plain = make(loss.centres.detach(), quality_weight=0.0)
        assert torch.equal(loss(x[kept], part), plain(x[kept], part))


def test_centroids_are_unit_rows() -> None:
    centroids = make(torch.tensor([[3.0, 4.0], [0.0, -7.0]]), reduce="softmax").centroids()
    np.testing.assert_allclose(centroids.vectors, [[0.6, 0.8], [0.0, -1.0]], atol=1e-7)
    assert (centroids.normalize_query, centroids.bias, centroids.reduce) == (True, 0.0, "softmax")


@pytest.mark.parametrize("level", [-2, 3])
def test_levels_out_of_range_are_refused(level: int) -> None:
    loss, x, labels = case()
    with pytest.raises(ValueError, match=rf"from -1 \(unknown\) to 2, got {level}"):
        loss(x, label(labels.is_bonafide, level=level))
