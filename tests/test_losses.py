"""What every loss keeps, whatever its formula; `test_loss_<name>.py` has what is its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.core.contracts import Centroids, Facts, Labels
from pipeline.core.members import member
from tests.losses import NAMES, RECIPES, descended, label, number, random_case, restored, same_centroids, take

every_loss = pytest.mark.parametrize("name", NAMES)
ONE_CLASS = ["multi_centre", "oc_softmax", "per_layer_oc", "qamo", "samo"]
VECTORS = ["am_softmax", *ONE_CLASS]  # whose state begins with vectors that only their directions count of
# Gentler slopes than the defaults: softplus turns linear, with a step of 2e-9, where α u passes 20.
GENTLE: dict[str, dict[str, float]] = {name: {"alpha": 5.0} for name in ONE_CLASS}
GENTLE |= {"am_softmax": {"scale": 4.0}, "qamo": {"alpha": 5.0, "scale": 4.0}}


def test_every_loss_has_a_case() -> None:
    assert sorted(RECIPES) == NAMES


@every_loss
def test_it_says_whether_it_reads_quality(name: str) -> None:
    assert member("losses", name).Loss.quality is (name == "qamo")


@every_loss
@pytest.mark.parametrize("present", ["both", "bona fide", "spoof", "nobody known"])
def test_loss_and_gradients_are_finite_for_any_batch(name: str, present: str) -> None:
    loss, x, labels = random_case(name)
    if present == "nobody known":
        labels = label(labels.is_bonafide)
    elif present != "both":
        rows = labels.is_bonafide == (present == "bona fide")
        x, labels = x[rows], take(labels, rows)
    value = loss(x.requires_grad_(), labels)
    value.backward()
    assert value.shape == ()
    for tensor in (value, x.grad, *(p.grad for p in loss.parameters())):
        assert tensor is not None
        assert bool(tensor.isfinite().all())


@every_loss
def test_the_order_of_a_batch_does_not_matter(name: str) -> None:
    loss, x, labels = random_case(name)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    assert number(loss(x[order], take(labels, order))) == pytest.approx(number(loss(x, labels)), rel=1e-12)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "cross_entropy"])
def test_the_norms_of_embeddings_do_not_matter(name: str) -> None:
    loss, x, labels = random_case(name)
    norms = torch.logspace(-3, 3, len(x), dtype=x.dtype)[:, None]
    assert number(loss(norms * x, labels)) == pytest.approx(number(loss(x, labels)), rel=1e-12)


@pytest.mark.parametrize("name", VECTORS)
def test_the_norms_of_its_vectors_do_not_matter(name: str) -> None:
    loss, x, labels = random_case(name)
    value = number(loss(x, labels))
    vectors = next(iter(loss.state_dict().values()))
    vectors *= torch.logspace(-1, 2, len(vectors), dtype=x.dtype)[:, None]
    assert number(loss(x, labels)) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "hyperparameters"),
    [(name, GENTLE.get(name, {})) for name in NAMES] + [("cross_entropy", {"bonafide_weight": 3.0})],
)
def test_gradients_are_those_of_finite_differences(name: str, hyperparameters: dict[str, float]) -> None:
    loss, x, labels = random_case(name, **hyperparameters)
    parameters = {key: p.detach().clone().requires_grad_() for key, p in loss.named_parameters()}

    def value(x: Tensor, *values: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(loss, dict(zip(parameters, values, strict=True)), (x, labels))
        return out

    assert torch.autograd.gradcheck(value, (x.requires_grad_(), *parameters.values()))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("aoc", "qamo")])
def test_a_batch_of_one_class_is_the_mean_of_its_own_terms(name: str) -> None:
    loss, x, labels = random_case(name)
    flags = labels.is_bonafide
    parts = [number(loss(x[rows], take(labels, rows))) * int(rows.sum()) for rows in (flags, ~flags)]
    assert sum(parts) / len(x) == pytest.approx(number(loss(x, labels)), rel=1e-12)


@every_loss
def test_state_dict_holds_all_that_loss_and_score_need(name: str) -> None:
    trained, x, labels = random_case(name)
    recipe = RECIPES[name]
    fresh = restored(name, recipe.facts, trained.state_dict(), **recipe.hyperparameters).train(recipe.training)
    assert torch.equal(fresh(x, labels), trained(x, labels))
    assert same_centroids(fresh.centroids(), trained.centroids())


@every_loss
def test_autocast_does_not_touch_the_numbers(name: str) -> None:
    loss, x, labels = random_case(name)
    loss, half = loss.float(), x.bfloat16()
    want = loss(half.float(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = loss(half, labels)
    assert got.dtype == torch.float32
    assert torch.equal(got, want)


@every_loss
def test_it_makes_its_tensors_where_its_input_lies(name: str) -> None:
    loss, x, labels = random_case(name)
    want = loss(x, labels)
    with torch.device("meta"):  # where a tensor lands that is made without its device being said
        got = loss(x.requires_grad_(), labels)
        got.backward()
        record = loss.centroids()
    assert torch.equal(got, want)
    assert isinstance(record, Centroids)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
@every_loss
def test_a_gpu_gives_the_same_loss(name: str) -> None:
    loss, x, labels = random_case(name)
    want = number(loss(x, labels))
    on_gpu = Labels(labels.is_bonafide.cuda(), labels.level.cuda(), labels.speaker.cuda())
    assert number(loss.cuda()(x.cuda(), on_gpu)) == pytest.approx(want, rel=1e-9)
    assert loss.centroids().vectors.dtype == np.float32


@pytest.mark.parametrize(
    ("name", "shape", "normalize_query", "reduce"),
    [
        ("am_softmax", (1, 6), True, "max"),
        ("aoc", (1, 6), True, "max"),
        ("cross_entropy", (1, 6), False, "max"),
        ("multi_centre", (3, 6), True, "mean"),
        ("oc_softmax", (1, 6), True, "max"),
        ("per_layer_oc", (1, 12), True, "max"),
        ("qamo", (3, 6), True, "mean"),
        ("samo", (3, 6), True, "max"),
    ],
)
def test_what_scoring_gets(name: str, shape: tuple[int, int], normalize_query: bool, reduce: str) -> None:
    record = random_case(name)[0].centroids()
    assert record.vectors.shape == shape
    assert (record.normalize_query, record.reduce) == (normalize_query, reduce)
    if name == "cross_entropy":
        return
    assert record.bias == 0.0
    if name != "am_softmax":  # a difference of two unit vectors
        np.testing.assert_allclose(np.linalg.norm(record.vectors, axis=1), 1.0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "least_bonafide", "greatest_spoof", "rate"),
    [
        ("am_softmax", 0.9, -0.9, 0.05),
        ("cross_entropy", 2.0, -2.0, 0.5),
        ("oc_softmax", 0.8, 0.3, 0.05),
        ("per_layer_oc", 0.75, 0.3, 0.05),
    ],
)
def test_descent_raises_bonafide_above_spoof(
    name: str, least_bonafide: float, greatest_spoof: float, rate: float
) -> None:
    loss, x, labels = random_case(name)
    found, flags = descended(loss, x, labels, rate=rate), labels.is_bonafide.numpy()
    assert found[flags].min() > least_bonafide
    assert found[~flags].max() < greatest_spoof


def kaiming(*shape: int) -> Tensor:
    bound = math.sqrt(6 / (1 + 0.25**2) / shape[-1])
    return torch.empty(*shape).uniform_(-bound, bound)


@pytest.mark.parametrize(
    ("name", "facts", "hyperparameters", "key", "draw"),
    [
        ("am_softmax", Facts(64, 1, 0), {}, "class_vectors", lambda: torch.randn(2, 64)),
        ("multi_centre", Facts(64, 1, 0), {"centres": 4}, "centres", lambda: torch.randn(4, 64)),
        ("multi_centre", Facts(64, 1, 0), {}, "centres", lambda: torch.randn(2, 64)),
        ("oc_softmax", Facts(64, 1, 0), {}, "centre", lambda: kaiming(1, 64)),
        ("per_layer_oc", Facts(64, 1, 0, layers=4), {}, "centres", lambda: kaiming(4, 16)),
        ("qamo", Facts(64, 4, 0), {}, "centres", lambda: torch.randn(4, 64)),
    ],
)
def test_vectors_are_learned_and_come_from_the_seeded_generator(
    name: str, facts: Facts, hyperparameters: dict[str, int], key: str, draw: Callable[[], Tensor]
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        loss = member("losses", name).Loss(facts, **hyperparameters)
        torch.manual_seed(7)
        want = draw()
    parameters = dict(loss.named_parameters())
    assert list(parameters) == [key]
    torch.testing.assert_close(parameters[key].detach(), want, rtol=0, atol=0)


SENSELESS: list[tuple[str, dict[str, Any], str]] = [
    *[
        (name, hyperparameters, message)
        for name in ONE_CLASS
        for hyperparameters, message in (
            ({"alpha": 0.0}, "alpha > 0"),
            ({"alpha": math.inf}, "alpha > 0"),
            ({"alpha": math.nan}, "alpha > 0"),
            ({"margin_bonafide": 1.5}, "margin_spoof < margin_bonafide"),
            ({"margin_spoof": -1.1}, "margin_spoof < margin_bonafide"),
            ({"margin_bonafide": 0.5, "margin_spoof": 0.5}, "margin_spoof < margin_bonafide"),
        )
    ],
    ("am_softmax", {"scale": 0.0}, "scale > 0"),
    ("am_softmax", {"scale": math.inf}, "scale > 0"),
    ("am_softmax", {"margin": -0.1}, "margin ≥ 0"),
    ("am_softmax", {"margin": math.nan}, "margin ≥ 0"),
    ("am_softmax", {"margin": math.inf}, "margin ≥ 0"),
    *[("aoc", {"momentum": value}, "0 < momentum < 1") for value in (0.0, 1.0, -0.1, 1.5, math.nan)],
    *[
        ("cross_entropy", {"bonafide_weight": value}, "bonafide_weight > 0")
        for value in (0.0, -1.0, math.inf, math.nan)
    ],
    ("multi_centre", {"centres": 0}, "centres ≥ 1, got 0"),
    ("multi_centre", {"reduce": "median"}, "max, mean or softmax"),
    ("qamo", {"scale": -1.0}, "scale > 0"),
    ("qamo", {"margin": -0.1}, "margin ≥ 0"),
    ("qamo", {"quality_weight": math.inf}, "quality_weight ≥ 0"),
    ("qamo", {"reduce": "median"}, "max, mean or softmax"),
    ("samo", {"update_interval": 0}, "update_interval ≥ 1, got 0"),
]


@pytest.mark.parametrize(("name", "hyperparameters", "message"), SENSELESS)
def test_senseless_hyperparameters_are_refused(name: str, hyperparameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        member("losses", name).Loss(Facts(embedding_dim=4, levels=2, speakers=2, layers=2), **hyperparameters)
