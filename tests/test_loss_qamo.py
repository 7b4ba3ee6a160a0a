from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.contracts import Centroids, Facts, Labels
from pipeline.losses import qamo

FOLDER = Path(__file__).parents[1] / ".." / "shared" / "golden"
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
    "score_mean": 2e-6,
    "score_max": 2e-6,
}
Arrays = Mapping[str, NDArray[Any]]


def read(name: str) -> Arrays:
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"no reference numbers at {path}")
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def golden() -> Arrays:
    return read("qamo.npz")


def make(centers: Tensor, **hyperparameters: Any) -> qamo.Loss:
    loss = qamo.Loss(Facts(embedding_dim=centers.shape[1], levels=len(centers), speakers=0), **hyperparameters)
    loss = loss.to(centers.dtype)
    loss.load_state_dict({"centers": centers})
    return loss


def label(is_bonafide: list[bool] | NDArray[Any], level: list[int] | NDArray[Any] | int) -> Labels:
    flags = torch.as_tensor(is_bonafide, dtype=torch.bool)
    levels = torch.full(flags.shape, level) if isinstance(level, int) else torch.as_tensor(level)
    return Labels(is_bonafide=flags, level=levels, speaker=torch.full(flags.shape, -1))


def random_case(levels: int = 3) -> tuple[qamo.Loss, Tensor, Labels]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(10, 6, dtype=torch.float64, generator=generator)
    loss = make(torch.randn(levels, 6, dtype=torch.float64, generator=generator))
    return loss, x, label([True] * 6 + [False] * 4, [0, 1, 2, -1, 1, -1, 0, -1, 2, 1])


def scores(centroids: Centroids, x: Tensor) -> Tensor:
    query = x / x.norm(dim=1, keepdim=True) if centroids.normalize_query else x
    similarities = query @ torch.as_tensor(centroids.vectors, dtype=x.dtype).T  # (B, K)
    if centroids.reduce == "mean":
        return similarities.mean(dim=1) + centroids.bias
    return similarities.max(dim=1).values + centroids.bias


def number(value: Tensor) -> float:
    return float(value.detach())


def softplus(value: float) -> float:
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "prefix"), [(torch.float32, ""), (torch.float64, "f64/")])
def test_meets_the_reference(golden: Arrays, case: str, dtype: torch.dtype, prefix: str) -> None:
    def close(got: Tensor | None, key: str) -> None:
        assert got is not None
        want = golden[f"{prefix}{case}/{key}"]
        allowed = ATOL[key] if dtype == torch.float32 else 1e-10 * np.abs(want).max(initial=0)
        np.testing.assert_allclose(got.detach().numpy(), want, rtol=0, atol=allowed, err_msg=key)

    flags = golden[f"{case}/is_bonafide"]
    for level, names in (
        (golden[f"{case}/q"], ("total", "grad_x", "grad_centers")),
        (np.full(len(flags), -1), ("noq_loss", "noq_grad_x", "noq_grad_centers")),
    ):
        loss = make(torch.tensor(golden["centers"], dtype=dtype))
        x = torch.tensor(golden[f"{case}/x"], dtype=dtype, requires_grad=True)
        value = loss(x, label(flags, level))
        value.backward()
        assert value.dtype == dtype
        for got, key in zip((value, x.grad, loss.centers.grad), names, strict=True):
            close(got, key)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "prefix"), [(torch.float32, ""), (torch.float64, "f64/")])
def test_each_term_meets_the_reference(golden: Arrays, case: str, dtype: torch.dtype, prefix: str) -> None:
    x = torch.tensor(golden[f"{case}/x"], dtype=dtype)
    labels = label(golden[f"{case}/is_bonafide"], golden[f"{case}/q"])
    centers = torch.tensor(golden["centers"], dtype=dtype)
    without, weighed = (number(make(centers, quality_weight=weight)(x, labels)) for weight in (0.0, 1.0))
    loss_cls, quality_ce = (float(golden[f"{prefix}{case}/{key}"]) for key in ("loss_cls", "quality_ce"))
    exact = dtype == torch.float64
    assert without == pytest.approx(loss_cls, rel=0, abs=1e-10 * abs(loss_cls) if exact else ATOL["loss_cls"])
    allowed = 1e-10 * (abs(quality_ce) + abs(loss_cls)) if exact else ATOL["quality_ce"]
    assert weighed - without == pytest.approx(quality_ce, rel=0, abs=allowed)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("reduce", ["mean", "max"])
def test_centroids_score_as_the_reference(golden: Arrays, case: str, reduce: Literal["mean", "max"]) -> None:
    centroids = make(torch.tensor(golden["centers"]), reduce=reduce).centroids()
    got = scores(centroids, torch.tensor(golden[f"{case}/x"]))
    np.testing.assert_allclose(got.numpy(), golden[f"{case}/score_{reduce}"], rtol=0, atol=2e-6)


def test_one_centroid_is_oc_softmax() -> None:
    arrays = read("oc_softmax.npz")
    loss = make(torch.tensor(arrays["center"], dtype=torch.float64))
    x = torch.tensor(arrays["mixed/x"], dtype=torch.float64, requires_grad=True)
    value = loss(x, label(arrays["mixed/is_bonafide"], 0))
    value.backward()
    assert number(value) == pytest.approx(float(arrays["f64/mixed/train/loss"]), rel=1e-10)
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), arrays["f64/mixed/train/grad_x"], rtol=0, atol=1e-9)


def test_numbers_derived_by_hand() -> None:
    loss = make(torch.tensor([[2.0, 0.0], [0.0, 5.0]], dtype=torch.float64), alpha=2.0, scale=3.0, quality_weight=0.5)
    x = torch.tensor([[3.0, 4.0], [3.0, 4.0], [-1.0, 0.0]], dtype=torch.float64)
    # Cosines (0.6, 0.8), twice, and (−1, 0). Level 0: u = 0.9 − 0.6; unknown: 0.9 − 0.8; spoof: 0 − 0.2.
    one_class = (softplus(2 * 0.3) + softplus(2 * 0.1) + softplus(2 * -0.2)) / 3
    # Quality, of the first row alone: logits 3 · (0.6 − 0.4, 0.8), so cross-entropy softplus(3 · (0.8 − 0.2)).
    value = loss(x, label([True, True, False], [0, -1, 1]))
    assert number(value) == pytest.approx(one_class + 0.5 * softplus(1.8), abs=1e-12)


def test_agrees_with_a_naive_loop() -> None:
    loss, x, labels = random_case()
    one_class, quality = [], []
    for row, bonafide, level in zip(x, labels.is_bonafide.tolist(), labels.level.tolist(), strict=True):
        cosines = [float(row @ c / (row.norm() * c.norm())) for c in loss.centers.detach()]
        if not bonafide:
            one_class.append(softplus(20.0 * (max(cosines) - 0.2)))
            continue
        one_class.append(softplus(20.0 * (0.9 - (max(cosines) if level < 0 else cosines[level]))))
        if level >= 0:
            logits = [32.0 * (cosine - 0.4 * (k == level)) for k, cosine in enumerate(cosines)]
            quality.append(math.log(sum(math.exp(logit) for logit in logits)) - logits[level])
    want = sum(one_class) / len(one_class) + 0.1 * sum(quality) / len(quality)
    assert len(quality) == 4
    assert number(loss(x, labels)) == pytest.approx(want, rel=1e-8)  # torch's softplus is linear above 20


def test_the_level_of_a_spoof_does_not_matter() -> None:
    loss, x, labels = random_case()
    other = label(labels.is_bonafide.numpy(), [0, 1, 2, -1, 1, -1, 2, 2, 0, -1])
    assert torch.equal(loss(x, labels), loss(x, other))


def test_loss_depends_neither_on_norms_nor_on_the_order_of_a_batch() -> None:
    loss, x, labels = random_case()
    value = number(loss(x, labels))
    norms = torch.logspace(-3, 3, 10, dtype=torch.float64)[:, None]
    assert number(loss(norms * x, labels)) == pytest.approx(value, rel=1e-12)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    shuffled = label(labels.is_bonafide[order].numpy(), labels.level[order].numpy())
    assert number(loss(x[order], shuffled)) == pytest.approx(value, rel=1e-12)
    longer = make(loss.centers.detach() * torch.tensor([[0.1], [1.0], [10.0]], dtype=torch.float64))
    assert number(longer(x, labels)) == pytest.approx(value, rel=1e-12)


def test_gradcheck_to_embeddings_and_centers() -> None:
    _, x, labels = random_case()
    centers = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    # Gentler slopes than the defaults: softplus turns linear, with a step of 2e-9, where α u passes 20.
    loss = make(centers, alpha=5.0, scale=4.0)

    def value(x: Tensor, centers: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(loss, {"centers": centers}, (x, labels))
        return out

    assert torch.autograd.gradcheck(value, (x.requires_grad_(), centers.requires_grad_()))


def test_without_graded_bonafide_the_quality_term_is_zero() -> None:
    loss, x, labels = random_case()
    for kept in (labels.level == -1, ~labels.is_bonafide):
        part = label(labels.is_bonafide[kept].numpy(), labels.level[kept].numpy())
        plain = make(loss.centers.detach(), quality_weight=0.0)
        assert torch.equal(loss(x[kept], part), plain(x[kept], part))


def test_centroids_are_unit_rows() -> None:
    centroids = make(torch.tensor([[3.0, 4.0], [0.0, -7.0]]), reduce="softmax").centroids()
    np.testing.assert_allclose(centroids.vectors, [[0.6, 0.8], [0.0, -1.0]], atol=1e-7)
    assert (centroids.normalize_query, centroids.bias, centroids.reduce) == (True, 0.0, "softmax")


def test_centers_come_from_the_seeded_generator() -> None:
    facts = Facts(embedding_dim=64, levels=4, speakers=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        first = qamo.Loss(facts)
        torch.manual_seed(7)
        want = torch.randn(4, 64)
    assert torch.equal(first.centers, want)
    assert [name for name, _ in first.named_parameters()] == ["centers"]


def test_autocast_does_not_touch_the_numbers() -> None:
    loss, x, labels = random_case()
    loss, half = loss.float(), x.bfloat16()
    want = loss(half.float(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = loss(half, labels)
    assert got.dtype == torch.float32
    assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("hyperparameters", "message"),
    [
        ({"alpha": 0.0}, "alpha > 0"),
        ({"alpha": math.nan}, "alpha > 0"),
        ({"scale": -1.0}, "scale > 0"),
        ({"margin": -0.1}, "margin ≥ 0"),
        ({"quality_weight": math.inf}, "quality_weight ≥ 0"),
        ({"margin_bonafide": 1.5}, "margin_spoof < margin_bonafide"),
        ({"margin_spoof": 0.9}, "margin_spoof < margin_bonafide"),
        ({"reduce": "median"}, "max, mean or softmax"),
    ],
)
def test_senseless_hyperparameters_are_refused(hyperparameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        qamo.Loss(Facts(embedding_dim=4, levels=2, speakers=0), **hyperparameters)


@pytest.mark.parametrize("level", [-2, 3])
def test_levels_out_of_range_are_refused(level: int) -> None:
    loss, x, labels = random_case()
    with pytest.raises(ValueError, match=rf"from -1 \(unknown\) to 2, got {level}"):
        loss(x, label(labels.is_bonafide.numpy(), level))
