from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.contracts import Centroids, Facts, Labels
from pipeline.errors import InputError
from pipeline.losses import aoc

GOLDEN = Path(__file__).parents[1] / ".." / "shared" / "golden" / "aoc.npz"
Arrays = Mapping[str, NDArray[Any]]


@pytest.fixture(scope="module")
def golden() -> Arrays:
    if not GOLDEN.exists():
        pytest.skip(f"no reference numbers at {GOLDEN}")
    with np.load(GOLDEN, allow_pickle=False) as arrays:
        return dict(arrays)


def make(embedding_dim: int) -> aoc.Loss:
    return aoc.Loss(Facts(embedding_dim=embedding_dim, levels=1, speakers=0))


def label(is_bonafide: list[bool] | NDArray[Any]) -> Labels:
    flags = torch.as_tensor(is_bonafide, dtype=torch.bool)
    unknown = torch.full(flags.shape, -1)
    return Labels(is_bonafide=flags, level=unknown, speaker=unknown)


def batch(rows: int, bonafide: int, *, seed: int = 0, scale: float = 1.0) -> tuple[Tensor, Labels]:
    x = scale * torch.randn(rows, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x, label([index < bonafide for index in range(rows)])


def scores(centroids: Centroids, x: Tensor) -> Tensor:
    query = x / x.norm(dim=1, keepdim=True) if centroids.normalize_query else x
    similarities = query @ torch.as_tensor(centroids.vectors, dtype=x.dtype).T  # (B, K)
    return similarities.max(dim=1).values + centroids.bias


@pytest.mark.parametrize(("dtype", "prefix"), [(torch.float32, ""), (torch.float64, "f64/")])
def test_meets_the_reference_batch_after_batch(golden: Arrays, dtype: torch.dtype, prefix: str) -> None:
    loss = make(32).to(dtype)
    atol = {"loss": 2e-6, "grad_x": 2e-6, "centroid": 5e-6, "score": 5e-6}

    def close(got: Tensor, key: str) -> None:
        want = golden[prefix + key]
        allowed = atol[key.split("/")[-1]] if dtype == torch.float32 else 1e-10 * np.abs(want).max()
        np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=allowed, err_msg=key)

    for index in range(6):
        x = torch.tensor(golden[f"b{index}/x"], dtype=dtype, requires_grad=True)
        value = loss(x, label(golden[f"b{index}/is_bonafide"]))
        value.backward()
        assert value.dtype == dtype
        assert x.grad is not None
        close(value.detach(), f"b{index}/loss")
        close(x.grad, f"b{index}/grad_x")
        close(loss.centroid, f"b{index}/centroid")
        assert int(loss.count) == golden[f"b{index}/n"]
        if dtype == torch.float32:  # centroids are float32 whatever the loss computes in
            close(scores(loss.centroids(), x.detach()), f"b{index}/score")
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


def test_loss_does_not_depend_on_the_order_or_in_eval_mode_the_norms_of_a_batch() -> None:
    x, labels = batch(8, 3)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    forward, shuffled = make(4).double(), make(4).double()
    value = forward(x, labels)
    assert float(shuffled(x[order], label(labels.is_bonafide[order].numpy()))) == pytest.approx(float(value), abs=1e-12)
    norms = torch.logspace(-3, 3, 8, dtype=torch.float64)[:, None]
    assert float(forward.eval()(norms * x, labels)) == pytest.approx(float(value), abs=1e-12)


def test_gradcheck_with_the_centroid_held() -> None:
    loss = make(4).double()
    x, labels = batch(6, 2)
    loss(x, labels)
    loss.eval()
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), x.requires_grad_())


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


def test_autocast_does_not_touch_the_numbers() -> None:
    x, labels = batch(8, 3)
    half = x.bfloat16()
    plain, cast = make(4), make(4)
    want = plain(half.float(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = cast(half, labels)
    assert got.dtype == torch.float32
    assert torch.equal(got, want)
    assert torch.equal(cast.centroid, plain.centroid)


def test_the_centroid_averages_the_bonafide_of_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = batch(8, 3)
    other, other_labels = batch(8, 0, seed=1), batch(5, 5, seed=2)
    alone = make(4).double()
    alone(torch.cat([x, other_labels[0]]), label([True] * 3 + [False] * 5 + [True] * 5))

    def add_the_other_rank(packed: Tensor) -> None:
        packed += torch.cat([other_labels[0].sum(0), torch.tensor([5.0])])

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", add_the_other_rank)
    ranked = make(4).double()
    ranked(x, labels)
    torch.testing.assert_close(ranked.centroid, alone.centroid, rtol=0, atol=1e-12)
    assert int(ranked.count) == int(alone.count) == 8
    ranked(other[0], other[1])  # a rank without bona fide takes part all the same
    assert int(ranked.count) == 13
