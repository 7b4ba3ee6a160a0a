"""One cell of the ablation grid: a backend, a loss, layers and views, found by their names, with checked parameters.

A section `backends.<name>` or `losses.<name>` of the parameters holds keyword arguments of the member's constructor;
its signature says which there are and of what type. Where a loss uses quality (`Loss.quality`), its section also takes
`levels` and `thresholds`, which say how a MOS becomes `Labels.level`.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from pipeline.core.contracts import Facts, Labels, Tap
from pipeline.core.errors import InputError
from pipeline.core.members import check_backend, constructing, member
from pipeline.core.params import Params
from pipeline.core.sections import ViewsParams
from pipeline.core.trial_table import Trials
from pipeline.features import sampling
from pipeline.features.sampling import Augment


@dataclass(frozen=True)
class QualitySplit:
    """How a MOS becomes a quality level: the number of levels, and the MOS where they part (None: quantiles)."""

    levels: int = 1
    thresholds: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Cell:
    """A backend and a loss, ready to be made, the layers that they see and the views that they are trained on.

    The dicts hold what the parameters set, JSON-ready; the places say where, as `file:line: section`.
    """

    backend: Any
    backend_name: str
    backend_place: str
    backend_parameters: dict[str, Any]
    loss: Any
    loss_name: str
    loss_place: str
    loss_parameters: dict[str, Any]
    split: QualitySplit
    layers: tuple[Tap, ...]
    views: ViewsParams

    def make_backend(self, *, layers: int, channels: int) -> Any:
        """A new backend. Raises InputError for values that it refuses, and where it breaks the contract of its axis."""
        given = {"layers": layers, "channels": channels, **self.backend_parameters}
        with constructing("backends", self.backend_name, self.backend, **given), _refusals(self.backend_place):
            made = self.backend(**given)
        check_backend(made, self.backend_name)
        return made

    def make_loss(self, *, embedding_dim: int, speakers: int, layers: int) -> Any:
        """A new loss. Raises InputError for values that it refuses, and where it breaks the contract of its axis."""
        facts, given = Facts(embedding_dim, self.split.levels, speakers, layers), self.loss_parameters
        with constructing("losses", self.loss_name, self.loss, facts, **given), _refusals(self.loss_place):
            return self.loss(facts, **given)


@contextlib.contextmanager
def _refusals(place: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise InputError(f"{place}: {error}") from None


def find(params: Params, *, backend: str, loss: str, layers: str, views: str) -> Cell:
    """The cell of four names. Raises InputError for an unknown one or parameter, or a value of the wrong type."""
    backend_class, loss_class = member("backends", backend).Backend, member("losses", loss).Loss
    for axis, name, sections in (("backends", backend, params.backends), ("losses", loss, params.losses)):
        if name not in sections:
            raise InputError(f"{params.where(axis)}: no section {name}; add it, empty if need be: `{name}: {{}}`")
    for axis, name, choices in (("layers", layers, params.layers), ("views", views, params.views)):
        if name not in choices:
            raise InputError(f"{params.where(axis)}: expected one of {', '.join(choices) or 'none'}, got {name!r}")
    split, own = _quality_split(loss_class, params, loss)
    return Cell(
        backend=backend_class,
        backend_name=backend,
        backend_place=params.where("backends", backend),
        backend_parameters=_hyperparameters(
            backend_class, params.backends[backend], params, ("backends", backend), reserved=("layers", "channels")
        ),
        loss=loss_class,
        loss_name=loss,
        loss_place=params.where("losses", loss),
        loss_parameters=_hyperparameters(loss_class, own, params, ("losses", loss)),
        split=split,
        layers=params.layers[layers],
        views=params.views[views],
    )


def _hyperparameters(
    build: Callable[..., Any],
    given: Mapping[str, Any],
    params: Params,
    section: tuple[str, str],
    *,
    reserved: Sequence[str] = (),
) -> dict[str, Any]:
    """The keyword-only parameters of `build` that `given` sets, checked against names and annotated types.

    reserved: parameters that the pipeline gives and a user may not.
    Raises InputError naming the place and the key of an unknown, missing or mistyped parameter.
    """
    known = {
        name: parameter
        for name, parameter in inspect.signature(build, eval_str=True).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name not in reserved
    }
    for name in given:
        if name not in known:
            place = params.where(*section, name)
            raise InputError(f"{place}: not a parameter of {section[1]}; expected {', '.join(known) or 'none'}")
    for name, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and name not in given:
            raise InputError(f"{params.where(*section, name)}: missing; expected {parameter.annotation}")
    return {
        name: _checked(value, known[name].annotation, params.where(*section, name)) for name, value in given.items()
    }


def quality_labels(cell: Cell, train: Trials) -> tuple[tuple[float, ...], Labels]:
    """The MOS values at which the quality levels of a training set part, and its labels.

    Raises InputError where a level has no bona fide, neither clean nor in the views that are drawn.
    """
    cuts = sampling.thresholds(train, levels=cell.split.levels, given=cell.split.thresholds)
    labels = sampling.labels(train, cuts)
    augment = Augment(cell.views.draw, cell.views.probability)
    sampling.check_levels(labels, augment, levels=cell.split.levels, where=cell.loss_place)
    return cuts, labels


def _quality_split(loss: Any, params: Params, name: str) -> tuple[QualitySplit, dict[str, Any]]:
    """How levels are made, where the loss uses quality, and what is left of its section."""
    given = params.losses[name]
    if not loss.quality:
        return QualitySplit(), given
    levels = _checked(given.get("levels", 2), Annotated[int, Field(ge=1)], params.where("losses", name, "levels"))
    place = params.where("losses", name, "thresholds")
    cuts = _checked(given.get("thresholds"), list[float] | None, place)
    if cuts is not None and (len(cuts) != levels - 1 or cuts != sorted(set(cuts))):
        raise InputError(f"{place}: expected {levels - 1} rising MOS values for {levels} levels, got {cuts}")
    split = QualitySplit(levels, None if cuts is None else tuple(cuts))
    return split, {key: value for key, value in given.items() if key not in ("levels", "thresholds")}


def _checked(value: Any, annotation: Any, place: str) -> Any:
    try:
        return TypeAdapter(annotation, config=ConfigDict(strict=True)).validate_python(value)
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Input should be ")
        raise InputError(f"{place}: expected {message}, got {value!r}") from None
