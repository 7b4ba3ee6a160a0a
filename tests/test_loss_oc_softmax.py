from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.core.contracts import Facts
from pipeline.losses import oc_softmax
from tests.golden import Arrays, read_golden
from tests.losses import DTYPES, label, meets, number, random_case, restored, scores, softplus, value_and_gradients

ATOL = {"loss": 1e-5, "grad_x": 1e-6, "grad_center": 5e-6, "score": 1e-6}
SETTINGS: dict[str, dict[str, float]] = {"train": {}, "default": {"margin_spoof": 0.5}}


@pytest.fixture(scope="module")
def golden() -> Arrays:
    return read_golden("oc_softmax")


def make(centre: Tensor, **hyperparameters: Any) -> oc_softmax.Loss:
    facts = Facts(embedding_dim=centre.shape[1], levels=1, speakers=0)
    loss: oc_softmax.Loss = restored("oc_softmax", facts, {"centre": centre}, **hyperparameters)
    return loss


@pytest.mark.parametrize("setting", SETTINGS)
@DTYPES
def test_meets_the_reference(golden: Arrays, setting: str, dtype: torch.dtype, prefix: str) -> None:
    loss = make(torch.tensor(golden["center"], dtype=dtype), **SETTINGS[setting])
    found = value_and_gradients(loss, golden["mixed/x"], label(golden["mixed/is_bonafide"]))
    for got, key in zip(found, ("loss", "grad_x", "grad_center"), strict=True):
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
    loss, x, labels = random_case("oc_softmax")
    centre = loss.centre.detach()[0]
    total = 0.0
    for row, bonafide in zip(x, labels.is_bonafide.tolist(), strict=True):
        cosine = float(row @ centre / (row.norm() * centre.norm()))
        total += softplus(20.0 * (0.9 - cosine if bonafide else cosine - 0.2))
    assert number(loss(x, labels)) == pytest.approx(total / 9, rel=1e-8)  # torch's softplus is linear above 20


def test_the_index_scores_the_cosine() -> None:
    loss, x, _ = random_case("oc_softmax")
    cosines = torch.cosine_similarity(x, loss.centre.detach())
    np.testing.assert_allclose(scores(loss, 100 * x), cosines.numpy(), rtol=0, atol=1e-6)
