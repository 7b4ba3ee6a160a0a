from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.core.contracts import Facts
from pipeline.losses import am_softmax
from tests.golden import Arrays, read_golden
from tests.losses import label, meets, number, random_case, restored, scores, value_and_gradients

ATOL = {"loss": 2e-5, "grad_x": 5e-6, "grad_centers": 5e-6, "score": 1e-6}


@pytest.fixture(scope="module")
def golden() -> Arrays:
    return read_golden("am_softmax")


def make(class_vectors: Tensor, **hyperparameters: Any) -> am_softmax.Loss:
    facts = Facts(embedding_dim=class_vectors.shape[1], levels=1, speakers=0)
    loss: am_softmax.Loss = restored("am_softmax", facts, {"class_vectors": class_vectors}, **hyperparameters)
    return loss


@pytest.mark.parametrize(
    ("dtype", "prefix", "margin"),
    # The reference holds its margin in float32, in float64 runs too.
    [(torch.float32, "", 0.9), (torch.float64, "f64/", float(np.float32(0.9)))],
)
def test_meets_the_reference(golden: Arrays, dtype: torch.dtype, prefix: str, margin: float) -> None:
    reference_rows = torch.tensor(golden["centers"], dtype=dtype)  # bona fide first
    loss = make(reference_rows.flip(0), margin=margin)
    value, to_x, to_vectors = value_and_gradients(loss, golden["mixed/x"], label(golden["mixed/is_bonafide"]))
    for got, key in ((value, "loss"), (to_x, "grad_x"), (to_vectors.flip(0), "grad_centers")):
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
    loss, x, labels = random_case("am_softmax")
    spoof, bona = loss.class_vectors.detach()
    total = 0.0
    for row, bonafide in zip(x, labels.is_bonafide.tolist(), strict=True):
        own, other = (bona, spoof) if bonafide else (spoof, bona)
        cosines = [float(row @ vector / (row.norm() * vector.norm())) for vector in (own, other)]
        logits = [20.0 * (cosines[0] - 0.9), 20.0 * cosines[1]]
        total += math.log(sum(math.exp(logit) for logit in logits)) - logits[0]
    assert number(loss(x, labels)) == pytest.approx(total / 9, rel=1e-12)


def test_classes_are_treated_alike() -> None:
    loss, x, labels = random_case("am_softmax")
    swapped = make(loss.class_vectors.detach().flip(0))
    value = number(loss(x, labels))
    assert number(swapped(x, label(~labels.is_bonafide.numpy()))) == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(scores(swapped, x), -scores(loss, x), rtol=0, atol=1e-6)


def test_an_embedding_of_zeros_is_indifferent() -> None:
    loss, x, _ = random_case("am_softmax")
    x = torch.zeros_like(x[:1]).requires_grad_()
    value = loss(x, label([True]))
    value.backward()
    assert number(value) == pytest.approx(math.log1p(math.exp(18.0)), abs=1e-12)
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_the_index_scores_the_difference_of_the_cosines() -> None:
    loss, x, _ = random_case("am_softmax")
    spoof, bona = (torch.cosine_similarity(x, vector[None]) for vector in loss.class_vectors.detach())
    np.testing.assert_allclose(scores(loss, 100 * x), (bona - spoof).numpy(), rtol=0, atol=1e-6)
