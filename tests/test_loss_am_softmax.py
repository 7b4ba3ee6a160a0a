from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.core.contracts import Facts, Labels
from pipeline.losses import am_softmax
from tests.losses import (
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
)

ATOL = {"loss": 2e-5, "grad_x": 5e-6, "grad_centers": 5e-6, "score": 1e-6}


@pytest.fixture(scope="module")
def golden() -> Arrays:
    return golden_arrays("am_softmax.npz")


def make(class_vectors: Tensor, **hyperparameters: Any) -> am_softmax.Loss:
    facts = Facts(embedding_dim=class_vectors.shape[1], levels=1, speakers=0)
    loss = am_softmax.Loss(facts, **hyperparameters).to(class_vectors.dtype)
    loss.load_state_dict({"class_vectors": class_vectors})
    return loss


def random_case(**hyperparameters: Any) -> tuple[am_softmax.Loss, Tensor, Labels]:
    generator = torch.Generator().manual_seed(0)
    x, vectors = (torch.randn(rows, 6, dtype=torch.float64, generator=generator) for rows in (9, 2))
    return make(vectors, **hyperparameters), x, label([True, False, False, True, True, False, False, True, False])


@pytest.mark.parametrize(
    ("dtype", "prefix", "margin"),
    # The reference holds its margin in float32, in float64 runs too.
    [(torch.float32, "", 0.9), (torch.float64, "f64/", float(np.float32(0.9)))],
)
def test_meets_the_reference(golden: Arrays, dtype: torch.dtype, prefix: str, margin: float) -> None:
    reference_rows = torch.tensor(golden["centers"], dtype=dtype)  # bona fide first
    loss = make(reference_rows.flip(0), margin=margin)
    x = torch.tensor(golden["mixed/x"], dtype=dtype, requires_grad=True)
    value = loss(x, label(golden["mixed/is_bonafide"]))
    value.backward()
    assert value.dtype == dtype
    assert loss.class_vectors.grad is not None
    for got, key in ((value, "loss"), (x.grad, "grad_x"), (loss.class_vectors.grad.flip(0), "grad_centers")):
        meets(got, golden[f"{prefix}mixed/train/{key}"], ATOL[key], key)


def test_the_sigmoid_of_the_score_is_the_score_of_the_reference(golden: Arrays) -> None:
    found = scores(make(torch.tensor(golden["centers"]).flip(0)), torch.tensor(golden["mixed/x"]))
    for prefix in ("", "f64/"):
        np.testing.assert_allclose(1 / (1 + np.exp(-found)), golden[f"{prefix}mixed/score"], rtol=0, atol=ATOL["score"])
        logits = golden[f"{prefix}mixed/logits"]
        np.testing.assert_allclose(found, logits[:, 0] - logits[:, 1], rtol=0, atol=2e-6)


def test_the_published_values_are_the_defaults(golden: Arrays) -> None:
    loss = make(torch.tensor(golden["centers"]).flip(0))
    value = number(loss(torch.tensor(golden["mixed/x"]), label(golden["mixed/is_bonafide"])))
    assert value == pytest.approx(float(golden["mixed/train/loss"]), abs=ATOL["loss"])


def test_numbers_derived_by_hand() -> None:
    # Rows: spoof along the second axis, bona fide along the first. Cosines (spoof, bona fide) (0.8, 0.6) and (0, −1).
    loss = make(torch.tensor([[0.0, 2.0], [9.0, 0.0]], dtype=torch.float64), scale=3.0, margin=0.5)
    x = torch.tensor([[3.0, 4.0], [-2.0, 0.0]], dtype=torch.float64)
    # Bona fide: logits 3 · (0.8, 0.1), own 2.1 behind. Spoof: logits 3 · (−0.5, −1), own 1.5 ahead.
    want = (math.log1p(math.exp(2.1)) + math.log1p(math.exp(-1.5))) / 2
    assert number(loss(x, label([True, False]))) == pytest.approx(want, abs=1e-12)


def test_agrees_with_a_naive_loop() -> None:
    loss, x, labels = random_case()
    spoof, bona = loss.class_vectors.detach()
    total = 0.0
    for row, bonafide in zip(x, labels.is_bonafide.tolist(), strict=True):
        own, other = (bona, spoof) if bonafide else (spoof, bona)
        cosines = [float(row @ vector / (row.norm() * vector.norm())) for vector in (own, other)]
        logits = [20.0 * (cosines[0] - 0.9), 20.0 * cosines[1]]
        total += math.log(sum(math.exp(logit) for logit in logits)) - logits[0]
    assert number(loss(x, labels)) == pytest.approx(total / 9, rel=1e-12)


def test_loss_depends_neither_on_norms_nor_on_the_order_of_a_batch() -> None:
    loss, x, labels = random_case()
    keeps_its_value_in_any_order(loss, x, labels)
    keeps_its_value_at_any_norm(loss, x, labels)
    longer = make(loss.class_vectors.detach() * torch.tensor([[0.1], [50.0]], dtype=torch.float64))
    assert number(longer(x, labels)) == pytest.approx(number(loss(x, labels)), rel=1e-12)


def test_classes_are_treated_alike() -> None:
    loss, x, labels = random_case()
    swapped = make(loss.class_vectors.detach().flip(0))
    value = number(loss(x, labels))
    assert number(swapped(x, label(~labels.is_bonafide.numpy()))) == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(scores(swapped, x), -scores(loss, x), rtol=0, atol=1e-6)


def test_gradients_to_embeddings_and_class_vectors() -> None:
    has_the_gradients_of_finite_differences(*random_case(scale=4.0))


def test_a_class_that_is_missing_drops_its_term() -> None:
    is_a_mean_over_both_classes(*random_case())


def test_an_embedding_of_zeros_is_indifferent() -> None:
    loss, x, _ = random_case()
    x = torch.zeros_like(x[:1]).requires_grad_()
    value = loss(x, label([True]))
    value.backward()
    assert number(value) == pytest.approx(math.log1p(math.exp(18.0)), abs=1e-12)
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_the_index_scores_the_difference_of_the_cosines() -> None:
    loss, x, _ = random_case()
    record = loss.centroids()
    assert record.vectors.shape == (1, 6)
    assert (record.normalize_query, record.bias, record.reduce) == (True, 0.0, "max")
    spoof, bona = (torch.cosine_similarity(x, vector[None]) for vector in loss.class_vectors.detach())
    np.testing.assert_allclose(scores(loss, 100 * x), (bona - spoof).numpy(), rtol=0, atol=1e-6)


def test_descent_raises_bonafide_above_spoof() -> None:
    loss, x, labels = random_case()
    found, flags = descended(loss, x, labels), labels.is_bonafide.numpy()
    assert found[flags].min() > 0.9
    assert found[~flags].max() < -0.9


def test_class_vectors_are_learned_and_come_from_the_seeded_generator() -> None:
    facts = Facts(embedding_dim=64, levels=1, speakers=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        first = am_softmax.Loss(facts)
        torch.manual_seed(7)
        want = torch.randn(2, 64)
    assert torch.equal(first.class_vectors, want)
    assert [name for name, _ in first.named_parameters()] == ["class_vectors"]


def test_autocast_does_not_touch_the_numbers() -> None:
    computes_in_float32_under_autocast(*random_case())


@pytest.mark.parametrize(
    ("hyperparameters", "message"),
    [
        ({"scale": 0.0}, "scale > 0"),
        ({"scale": math.inf}, "scale > 0"),
        ({"margin": -0.1}, "margin ≥ 0"),
        ({"margin": math.nan}, "margin ≥ 0"),
        ({"margin": math.inf}, "margin ≥ 0"),
    ],
)
def test_senseless_hyperparameters_are_refused(hyperparameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        am_softmax.Loss(Facts(embedding_dim=4, levels=1, speakers=0), **hyperparameters)
