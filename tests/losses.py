"""What the tests of the losses share: labels, a random case of every loss, scores, and comparison with references."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.contracts import Centroids, Facts, Labels
from pipeline.core.members import member
from pipeline.scoring import centroids, scorer

NAMES = sorted(path.stem for path in (Path(__file__).parents[1] / "pipeline" / "losses").glob("[!_]*.py"))
DTYPES = pytest.mark.parametrize(("dtype", "prefix"), [(torch.float32, ""), (torch.float64, "f64/")])
REDUCES = pytest.mark.parametrize("reduce", ["max", "mean", "softmax"])
Column = Sequence[int] | NDArray[Any] | Tensor | int
Case = tuple[Any, Tensor, Labels]  # a loss, embeddings (B, E) and their labels


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


# A random case of every loss

MIXED = label([True, False, False, True, True, False, False, True, False])


@dataclass(frozen=True)
class Recipe:
    """How a random case is made: state are the shapes of what is drawn, fixed is the rest of the loss's state."""

    facts: Facts
    state: Mapping[str, tuple[int, ...]]
    labels: Labels = MIXED
    fixed: Mapping[str, Tensor] = field(default_factory=dict)
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    training: bool = True


def with_centres(count: int) -> Recipe:
    """Of multi_centre."""
    return Recipe(Facts(6, 1, 0), {"centres": (count, 6)}, hyperparameters={"centres": count})


def with_levels(count: int) -> Recipe:
    """Of qamo: six bona fide, two of them of unknown level, and four spoofs."""
    level = torch.tensor([0, 1, 2, -1, 3, -1, 0, -1, 2, 1])
    labels = label([True] * 6 + [False] * 4, level=torch.where(level < 0, -1, level % count))
    return Recipe(Facts(6, count, 0), {"centres": (count, 6)}, labels)


RECIPES = {
    "am_softmax": Recipe(Facts(6, 1, 0), {"class_vectors": (2, 6)}),
    "aoc": Recipe(Facts(6, 1, 0), {"centroid": (6,)}, fixed={"count": torch.tensor(5)}, training=False),
    "cross_entropy": Recipe(Facts(6, 1, 0), {"classify.weight": (2, 6), "classify.bias": (2,)}),
    "multi_centre": with_centres(3),
    "oc_softmax": Recipe(Facts(6, 1, 0), {"centre": (1, 6)}),
    "per_layer_oc": Recipe(Facts(12, 1, 0, layers=3), {"centres": (3, 4)}),
    "qamo": with_levels(3),
    # Speaker 2 has no centre; bona fide of enrolled, other and unknown speakers.
    "samo": Recipe(
        Facts(6, 1, 4),
        {"centres": (4, 6)},
        label([True] * 6 + [False] * 4, speaker=[0, 1, 2, -1, 3, 0, 0, -1, 2, 3]),
        fixed={"enrolled": torch.tensor([True, True, False, True])},
    ),
}


def restored(name: str, facts: Facts, state: Mapping[str, Tensor], **hyperparameters: Any) -> Any:
    """A loss with this state, in the state's precision."""
    loss = member("losses", name).Loss(facts, **hyperparameters).to(next(iter(state.values())).dtype)
    loss.load_state_dict(dict(state))
    return loss


def random_case(case: str | tuple[str, Recipe], **hyperparameters: Any) -> Case:
    """A loss with random vectors, random embeddings and labels of both classes, in float64."""
    name, recipe = (case, RECIPES[case]) if isinstance(case, str) else case
    generator = torch.Generator().manual_seed(0)
    shapes = [(len(recipe.labels.level), recipe.facts.embedding_dim), *recipe.state.values()]
    x, *vectors = (torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in shapes)
    state = dict(zip(recipe.state, vectors, strict=True)) | dict(recipe.fixed)
    loss = restored(name, recipe.facts, state, **{**recipe.hyperparameters, **hyperparameters})
    return loss.train(recipe.training), x, recipe.labels


# What is compared


def number(value: Tensor) -> float:
    return float(value.detach())


def softplus(value: float) -> float:
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))


def cosines(x: Tensor, vectors: Tensor) -> Tensor:
    """(B, K)."""
    return torch.cosine_similarity(x[:, None], vectors.detach()[None], dim=2)


def reduced(similar: Tensor, reduce: str) -> NDArray[Any]:
    """Scores (B,) of similarities (B, K), by the definition of each way."""
    ways = {
        "max": similar.max(dim=1).values,
        "mean": similar.mean(dim=1),
        "softmax": (similar.softmax(dim=1) * similar).sum(dim=1),
    }
    return ways[reduce].numpy()


def scores(loss: Any, x: Tensor) -> NDArray[np.float32]:
    """The deployed scores of embeddings (B, E): centroids, index, score."""
    index = centroids.build(loss.centroids())
    return scorer.score(x.detach().numpy().astype(np.float32), index, names=[str(row) for row in range(len(x))])


def value_and_gradients(loss: Any, x: NDArray[Any], labels: Labels) -> list[Tensor]:
    """The loss, its gradient to the embeddings, and those to the parameters."""
    parameters = dict(loss.named_parameters())
    embeddings = torch.tensor(x, dtype=next(iter(loss.state_dict().values())).dtype, requires_grad=True)
    value = loss(embeddings, labels)
    value.backward()
    assert value.dtype == embeddings.dtype
    found = [value, *(tensor.grad for tensor in (embeddings, *parameters.values()))]
    assert all(tensor is not None for tensor in found)
    return found


def meets(got: Tensor, want: NDArray[Any], atol: float, key: str = "") -> None:
    """Within atol of a reference in float32; in float64, within 1e-10 of its largest number."""
    allowed = atol if got.dtype == torch.float32 else 1e-10 * np.abs(want).max(initial=0)
    np.testing.assert_allclose(got.detach().numpy(), want, rtol=0, atol=allowed, err_msg=key)


def descended(loss: Any, x: Tensor, labels: Labels, *, rate: float = 0.05) -> NDArray[np.float32]:
    """The scores after 200 steps of gradient descent of embeddings and loss."""
    x = x.detach().clone().requires_grad_()
    optimizer = torch.optim.SGD([x, *loss.parameters()], lr=rate)
    for _ in range(200):
        optimizer.zero_grad()
        loss(x, labels).backward()
        optimizer.step()
    return scores(loss, x)
