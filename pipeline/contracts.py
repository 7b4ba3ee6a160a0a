"""The records that rooms hand to each other, and finding a member of an axis by its name.

A backend, loss or corpus is one file, found by its name: `member("losses", "qamo")` is `pipeline/losses/qamo.py`.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter, ValidationError

from pipeline.errors import InputError

if TYPE_CHECKING:  # torch takes a second to import, and what scores or reports does not need it
    from torch import Tensor

Reduce = Literal["max", "mean", "softmax"]


@dataclass(frozen=True)
class Labels:
    """What a batch of B utterances knows besides its features.

    is_bonafide: (B,) bool. level: (B,) int, quality level, 0 is the worst, -1 unknown.
    speaker: (B,) int, index of the speaker, -1 unknown.
    """

    is_bonafide: Tensor
    level: Tensor
    speaker: Tensor


@dataclass(frozen=True)
class Facts:
    """What a loss must know of the data before it sees any: widths and counts."""

    embedding_dim: int
    levels: int
    speakers: int

    def __post_init__(self) -> None:
        if self.embedding_dim < 1 or self.levels < 1 or self.speakers < 0:
            raise ValueError(f"expected embedding_dim ≥ 1, levels ≥ 1, speakers ≥ 0, got {self}")


@dataclass(frozen=True)
class Centroids:
    """All that scoring needs of a trained loss.

    vectors: (K, E) float32, finite. The score of an embedding x is reduce_k(vectors_k · q) + bias, where q is x, or
    x / ‖x‖ when `normalize_query`; `softmax` is the sum of the similarities weighted by their own softmax.
    """

    vectors: NDArray[np.float32]
    normalize_query: bool
    bias: float
    reduce: Reduce

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or self.vectors.dtype != np.float32 or not len(self.vectors):
            raise ValueError(f"expected (K, E) float32 vectors, got {self.vectors.shape} {self.vectors.dtype}")
        if not np.isfinite(self.vectors).all() or not math.isfinite(self.bias):
            raise ValueError("centroids must be finite")
        if self.reduce not in ("max", "mean", "softmax"):
            raise ValueError(f"expected reduce to be max, mean or softmax, got {self.reduce!r}")


def member(axis: str, name: str) -> ModuleType:
    """The module `pipeline.<axis>.<name>`. Raises InputError, with the members there are, for an unknown name."""
    folder = Path(__file__).parent / axis
    names = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    if name not in names:
        raise InputError(
            f"expected {axis} to be one of {', '.join(names)}, got {name!r}; "
            f"a new one is the file pipeline/{axis}/{name}.py"
        )
    return importlib.import_module(f"pipeline.{axis}.{name}")


def hyperparameters(build: Callable[..., Any], given: Mapping[str, Any], *, section: str) -> dict[str, Any]:
    """The keyword-only parameters of `build` that `given` sets, checked against names and annotated types.

    Raises InputError naming `section` and the key for an unknown, missing or mistyped parameter.
    """
    known = {
        name: parameter
        for name, parameter in inspect.signature(build, eval_str=True).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    for name in given:
        if name not in known:
            raise InputError(f"{section}.{name} is not a parameter; expected {', '.join(known) or 'none'}")
    for name, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and name not in given:
            raise InputError(f"{section}.{name} is missing; expected {parameter.annotation}")
    return {name: _checked(value, known[name].annotation, f"{section}.{name}") for name, value in given.items()}


def _checked(value: Any, annotation: Any, where: str) -> Any:
    try:
        return TypeAdapter(annotation, config=ConfigDict(strict=True)).validate_python(value)
    except ValidationError as error:
        raise InputError(f"{where}: {error.errors()[0]['msg'].lower()}, got {value!r}") from None
