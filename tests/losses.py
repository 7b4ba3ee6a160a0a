"""What the tests of the losses share: labels, reference numbers, scores, and the properties that every loss has."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.core.contracts import Centroids, Labels
from pipeline.scoring import centroids, scorer

GOLDEN = Path(__file__).parents[1] / ".." / "shared" / "golden"
DTYPES = pytest.mark.parametrize(("dtype", "prefix"), [(torch.float32, ""), (torch.float64, "f64/")])
Arrays = Mapping[str, NDArray[Any]]
Column = Sequence[int] | NDArray[Any] | Tensor | int


def golden_arrays(name: str) -> Arrays:
    """The reference numbers of a file; skips the test where it is absent."""
    path = GOLDEN / name
    if not path.exists():
        pytest.skip(f"no reference numbers at {path}")
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def label(is_bonafide: Sequence[bool] | NDArray[Any] | Tensor, *, level: Column = -1, speaker: Column = -1) -> Labels:
    """Labels of a batch; a number is that of every utterance."""
    flags = torch.as_tensor(is_bonafide, dtype=torch.bool)
    columns = [torch.full(flags.shape, c) if isinstance(c, int) else torch.as_tensor(c) for c in (level, speaker)]
    return Labels(is_bonafide=flags, level=columns[0], speaker=columns[1])


def same_centroids(one: Centroids, other: Centroids) -> bool:
    """Whether both give the same scores."""
    how = (one.normalize_query, one.bias, one.reduce) == (other.normalize_query, other.bias, other.reduce)
    return how and np.array_equal(one.vectors, other.vectors)


def take(labels: Labels, rows: Tensor) -> Labels:
    return Labels(is_bonafide=labels.is_bonafide[rows], level=labels.level[rows], speaker=labels.speaker[rows])


def number(value: Tensor) -> float:
    return float(value.detach())


def softplus(value: float) -> float:
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))


def scores(loss: Any, x: Tensor) -> NDArray[np.float32]:
    """The deployed scores of embeddings (B, E): centroids, index, score."""
    index = centroids.build(loss.centroids())
    return scorer.score(x.detach().numpy().astype(np.float32), index, names=[str(row) for row in range(len(x))])


def meets(got: Tensor | None, want: NDArray[Any], atol: float, key: str = "") -> None:
    """Within atol of a reference in float32; in float64, within 1e-10 of its largest number."""
    assert got is not None
    allowed = atol if got.dtype == torch.float32 else 1e-10 * np.abs(want).max(initial=0)
    np.testing.assert_allclose(got.detach().numpy(), want, rtol=0, atol=allowed, err_msg=key)


def keeps_its_value_in_any_order(loss: nn.Module, x: Tensor, labels: Labels) -> None:
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    assert number(loss(x[order], take(labels, order))) == pytest.approx(number(loss(x, labels)), rel=1e-12)


def keeps_its_value_at_any_norm(loss: nn.Module, x: Tensor, labels: Labels) -> None:
    norms = torch.logspace(-3, 3, len(x), dtype=x.dtype)[:, None]
    assert number(loss(norms * x, labels)) == pytest.approx(number(loss(x, labels)), rel=1e-12)


def is_a_mean_over_both_classes(loss: nn.Module, x: Tensor, labels: Labels) -> None:
    """A batch of one class is the mean of its own terms."""
    flags = labels.is_bonafide
    parts = [number(loss(x[rows], take(labels, rows))) * int(rows.sum()) for rows in (flags, ~flags)]
    assert sum(parts) / len(x) == pytest.approx(number(loss(x, labels)), rel=1e-12)


def has_the_gradients_of_finite_differences(loss: nn.Module, x: Tensor, labels: Labels) -> None:
    """To the embeddings, and to every parameter."""
    parameters = {name: p.detach().clone().requires_grad_() for name, p in loss.named_parameters()}

    def value(x: Tensor, *values: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(loss, dict(zip(parameters, values, strict=True)), (x, labels))
        return out

    assert torch.autograd.gradcheck(value, (x.detach().clone().requires_grad_(), *parameters.values()))


def computes_in_float32_under_autocast(loss: nn.Module, x: Tensor, labels: Labels) -> None:
    loss, half = loss.float(), x.bfloat16()
    want = loss(half.float(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = loss(half, labels)
    assert got.dtype == torch.float32
    assert torch.equal(got, want)


def descended(loss: nn.Module, x: Tensor, labels: Labels, *, rate: float = 0.05) -> NDArray[np.float32]:
    """The scores after 200 steps of gradient descent of embeddings and loss."""
    x = x.detach().clone().requires_grad_()
    optimizer = torch.optim.SGD([x, *loss.parameters()], lr=rate)
    for _ in range(200):
        optimizer.zero_grad()
        loss(x, labels).backward()
        optimizer.step()
    return scores(loss, x)
