from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.core.contracts import Facts, Labels
from pipeline.core.errors import InputError
from pipeline.losses import aoc
from tests.golden import Arrays, read_golden
from tests.losses import DTYPES, label, meets, scores, take, value_and_gradients

ATOL = {"loss": 2e-6, "grad_x": 2e-6, "centroid": 5e-6}


@pytest.fixture(scope="module")
def golden() -> Arrays:
    return read_golden("aoc")


def make(embedding_dim: int, **hyperparameters: Any) -> aoc.Loss:
    return aoc.Loss(Facts(embedding_dim=embedding_dim, levels=1, speakers=0), **hyperparameters)


def batch(rows: int, bonafide: int, *, seed: int = 0, scale: float = 1.0) -> tuple[Tensor, Labels]:
    x = scale * torch.randn(rows, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x, label([index < bonafide for index in range(rows)])


@DTYPES
def test_meets_the_reference_batch_after_batch(golden: Arrays, dtype: torch.dtype, prefix: str) -> None:
    loss = make(32).to(dtype)
    for index in range(6):
        found = value_and_gradients(loss, golden[f"b{index}/x"], label(golden[f"b{index}/is_bonafide"]))
        for got, key in zip([*found, loss.centroid], ATOL, strict=True):
            meets(got, golden[f"{prefix}b{index}/{key}"], ATOL[key], key)
        assert int(loss.count) == golden[f"b{index}/n"]
        np.testing.assert_allclose(
            scores(loss, torch.tensor(golden[f"b{index}/x"])), golden[f"{prefix}b{index}/score"], rtol=0, atol=5e-6
        )
    loss(torch.tensor(golden["only_bonafide/x"], dtype=dtype), label([True] * 3))
    np.testing.assert_allclose(loss.centroid.numpy(), golden["only_bonafide/centroid"], rtol=0, atol=5e-6)
    assert int(loss.count) == golden["only_bonafide/n"]


def test_numbers_derived_by_hand() -> None:
    loss = make(2)
    # The mean of (3, 0) and (0, 1) is (1.5, 0.5): cosines 3/√10 and 1/√10, and −3/√10 for the spoof.
    value = loss(torch.tensor([[3.0, 0.0], [0.0, 1.0], [-2.0, 0.0]]), label([True, True, False]))
    assert float(value) == pytest.approx(1 - (3 + 1) / 2 / 10**0.5 - 3 / 10**0.5, abs=1e-6)
    # One more at (3, −1): (2 · (1.5, 0.5) + (3, −1)) / 3 = (2, 0), of cosine 3/√10 to it.
    value = loss(torch.tensor([[3.0, -1.0]]), label([True]))
    assert loss.centroid.tolist() == pytest.approx([2.0, 0.0], abs=1e-6)
    assert int(loss.count) == 3
    assert float(value) == pytest.approx(1 - 3 / 10**0.5, abs=1e-6)
    assert loss.centroids().vectors.tolist() == [[1.0, 0.0]]


def test_agrees_with_a_naive_loop() -> None:
    loss = make(4).double()
    seen: list[Tensor] = []
    for step in range(4):
        x, labels = batch(9, 2 + step, seed=step, scale=10.0**step)
        value = loss(x, labels)
        flags = labels.is_bonafide.tolist()
        seen += [row for row, bonafide in zip(x, flags, strict=True) if bonafide]
        centroid = sum(seen[1:], seen[0]) / len(seen)
        cosines = [float(row @ centroid / (row.norm() * centroid.norm())) for row in x]
        bonafide = [cosine for cosine, flag in zip(cosines, flags, strict=True) if flag]
        spoof = [cosine for cosine, flag in zip(cosines, flags, strict=True) if not flag]
        assert float(value) == pytest.approx(1 - sum(bonafide) / len(bonafide) + sum(spoof) / len(spoof), abs=1e-12)


def test_the_order_of_a_batch_does_not_matter_in_training() -> None:
    x, labels = batch(8, 3)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    loss, shuffled = make(4).double(), make(4).double()
    value = float(loss(x, labels))
    assert float(shuffled(x[order], take(labels, order))) == pytest.approx(value, abs=1e-12)


def test_the_gradient_does_not_flow_through_the_centroid() -> None:
    x, labels = batch(6, 2)
    moving = make(4).double()
    x.requires_grad_()
    moving(x, labels).backward()
    held = make(4).double()
    held.load_state_dict(moving.state_dict())
    y = x.detach().clone().requires_grad_()
    held.eval()(y, labels).backward()
    assert x.grad is not None
    assert y.grad is not None
    assert torch.equal(x.grad, y.grad)


def test_eval_mode_leaves_the_centroid_alone() -> None:
    loss = make(4).double()
    loss(*batch(6, 2))
    centroid, count = loss.centroid.clone(), int(loss.count)
    loss.eval()(*batch(6, 4, seed=1))
    assert torch.equal(loss.centroid, centroid)
    assert int(loss.count) == count == 2
    loss.train()(*batch(6, 4, seed=1))
    assert not torch.equal(loss.centroid, centroid)
    assert int(loss.count) == 6


def test_state_dict_carries_the_centroid_and_its_count() -> None:
    trained, restored = make(4).double(), make(4).double()
    trained(*batch(6, 2))
    restored.load_state_dict(trained.state_dict())
    later = batch(6, 3, seed=1)
    assert torch.equal(trained(*later), restored(*later))
    assert torch.equal(trained.centroid, restored.centroid)
    assert int(restored.count) == 5
    assert sorted(trained.state_dict()) == ["centroid", "count"]
    assert list(trained.parameters()) == []


def test_a_class_that_is_missing_drops_its_term() -> None:
    loss = make(4).double()
    x, labels = batch(6, 2)
    both = float(loss(x, labels))
    loss.eval()
    bonafide, spoof = loss(x[:2], label([True] * 2)), loss(x[2:], label([False] * 4))
    assert float(bonafide + spoof) == pytest.approx(both, abs=1e-12)
    assert 0 <= float(bonafide) <= 2
    assert -1 <= float(spoof) <= 1


def test_a_batch_without_bonafide_does_not_move_the_centroid() -> None:
    loss = make(4).double()
    loss(*batch(6, 2))
    centroid = loss.centroid.clone()
    loss(*batch(6, 0, seed=1))
    assert torch.equal(loss.centroid, centroid)
    assert int(loss.count) == 2


def test_before_any_bonafide_the_loss_is_zero_and_the_graph_stands() -> None:
    loss = make(4).double()
    x, labels = batch(6, 0)
    value = loss(x.requires_grad_(), labels)
    value.backward()
    assert float(value.detach()) == 0.0
    assert x.grad is not None
    assert torch.equal(x.grad, torch.zeros_like(x))
    assert int(loss.count) == 0


def test_centroids_before_any_bonafide_say_what_is_wrong() -> None:
    loss = make(4).double()
    loss(*batch(6, 0))
    with pytest.raises(InputError, match="no bona fide utterance was ever seen"):
        loss.centroids()


def test_autocast_does_not_touch_the_centroid() -> None:
    x, labels = batch(8, 3)
    half = x.bfloat16()
    plain, cast = make(4), make(4)
    want = plain(half.float(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = cast(half, labels)
    assert got.dtype == torch.float32
    assert torch.equal(got, want)
    assert torch.equal(cast.centroid, plain.centroid)


class Naive:
    """The centroid of each option, one embedding at a time."""

    def __init__(self, momentum: float | None, normalize: bool) -> None:
        self.momentum, self.normalize = momentum, normalize
        self.seen: list[Tensor] = []
        self.centroid = torch.zeros(4, dtype=torch.float64)

    def move(self, x: Tensor, flags: list[bool]) -> None:
        bonafide = [row for row, flag in zip(x, flags, strict=True) if flag]
        if self.normalize:
            bonafide = [row / row.norm() for row in bonafide]
        if not bonafide:
            return
        first = not self.seen
        self.seen += bonafide
        if self.momentum is None:
            self.centroid = sum(self.seen[1:], self.seen[0]) / len(self.seen)
            return
        mean = sum(bonafide[1:], bonafide[0]) / len(bonafide)
        self.centroid = mean if first else self.momentum * self.centroid + (1 - self.momentum) * mean


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("momentum", [None, 0.25, 0.9])
def test_forgetting_and_unit_length_agree_with_a_naive_loop(momentum: float | None, normalize: bool) -> None:
    loss, naive = make(4, momentum=momentum, normalize=normalize).double(), Naive(momentum, normalize)
    for step, bonafide in enumerate((0, 3, 1, 0, 5, 2)):
        x, labels = batch(6, bonafide, seed=step, scale=10.0**step)
        flags = labels.is_bonafide
        value = loss(x, labels)
        naive.move(x, flags.tolist())
        torch.testing.assert_close(loss.centroid, naive.centroid, rtol=1e-12, atol=0)
        assert int(loss.count) == len(naive.seen)
        cosines = torch.cosine_similarity(x, naive.centroid[None])
        bona = float((1 - cosines[flags]).mean()) if bonafide else 0.0
        assert float(value) == pytest.approx(bona + float(cosines[~flags].mean()), abs=1e-12)


def test_forgetting_derived_by_hand() -> None:
    loss = make(2, momentum=0.75)
    for x in ([[4.0, 0.0], [0.0, 8.0]], [[6.0, 0.0]]):
        loss(torch.tensor(x), label([True] * len(x)))
    # The first batch sets (2, 4); then three quarters of it, and a quarter of (6, 0).
    assert loss.centroid.tolist() == [3.0, 3.0]
    unit = make(2, normalize=True)
    unit(torch.tensor([[3.0, 4.0], [0.0, 9.0]]), label([True, True]))
    assert unit.centroid.tolist() == pytest.approx([0.3, 0.9])


def test_with_momentum_early_embeddings_are_forgotten() -> None:
    faithful, forgetful = make(4).double(), make(4, momentum=0.5).double()
    early, late = (torch.eye(4, dtype=torch.float64)[row][None] for row in (0, 1))
    for loss in (faithful, forgetful):
        for x in [early] * 10 + [late] * 10:
            loss(x, label([True]))
    assert faithful.centroid.tolist() == pytest.approx([0.5, 0.5, 0, 0])
    assert forgetful.centroid.tolist() == pytest.approx([2.0**-10, 1 - 2.0**-10, 0, 0])


def test_at_unit_length_norms_do_not_matter_in_training() -> None:
    x, labels = batch(8, 3)
    plain, longer = make(4, normalize=True).double(), make(4, normalize=True).double()
    norms = torch.logspace(-3, 3, 8, dtype=torch.float64)[:, None]
    assert float(longer(norms * x, labels)) == pytest.approx(float(plain(x, labels)), rel=1e-12)
    torch.testing.assert_close(longer.centroid, plain.centroid, rtol=0, atol=1e-12)
