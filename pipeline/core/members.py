"""Find a member of an axis (backends, losses, corpora, quality estimators) by its name, and check its contract.

A member is one file: `member("losses", "qamo")` is the module `pipeline/losses/qamo.py`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.core.contracts import Centroids
from pipeline.core.errors import InputError

# The names that a member's file must define, and their meaning.
CONTRACTS = {
    "backends": {
        "Backend": "the class of the backend, a torch.nn.Module",
        "Backend.reads": "a class attribute, the word pooled or frames",
        "Backend.forward": "a method: (features, n_frames) -> embeddings (B, E)",
        "Backend.state_dict": "a method that the class has as a torch.nn.Module",
    },
    "losses": {
        "Loss": "the class of the loss, a torch.nn.Module",
        "Loss.quality": "a class attribute, True where the loss reads quality levels, else False",
        "Loss.forward": "a method: (embeddings, labels) -> a scalar",
        "Loss.centroids": "a method that returns pipeline.core.contracts.Centroids",
        "Loss.state_dict": "a method that the class has as a torch.nn.Module",
    },
    "corpora": {"trials": "a function: (root, protocol, split) -> pipeline.core.trial_table.Trials"},
    "quality": {
        "estimate": "a function: (samples) -> MOS, or None where the corpus gives the MOS",
        "identity": "a function: () -> the name of the estimator, its version and its model, as one word",
    },
}
VALUES: dict[str, tuple[Any, ...]] = {"Backend.reads": ("pooled", "frames"), "Loss.quality": (True, False)}


def names(axis: str) -> list[str]:
    """The members of an axis, sorted; files whose names begin with `_` are none."""
    folder = Path(__file__).parents[1] / axis
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


def member(axis: str, name: str) -> ModuleType:
    """Import the module of a member.

    axis: the folder below `pipeline/`, such as `losses`. name: the file without its suffix.
    Raises InputError for an unknown name, with the members there are, and for a file that lacks something that its axis
    asks for.
    """
    if name not in names(axis):
        raise InputError(
            f"expected {axis} to be one of {', '.join(names(axis))}, got {name!r}; "
            f"a new one is the file pipeline/{axis}/{name}.py"
        )
    module = importlib.import_module(f"pipeline.{axis}.{name}")
    for attribute, what in CONTRACTS.get(axis, {}).items():
        if attribute == "identity" and module.estimate is None:
            continue
        _check(module, attribute, f"pipeline/{axis}/{name}.py: expected `{attribute}`, {what}")
    return module


def check_backend(backend: Any, name: str) -> None:
    """Raise InputError for a backend, already made, that does not say how wide its embeddings are."""
    width = getattr(backend, "embedding_dim", None)
    if not isinstance(width, int) or isinstance(width, bool) or width < 1:
        raise InputError(
            f"pipeline/backends/{name}.py: expected `self.embedding_dim`, an int ≥ 1 that __init__ sets, "
            f"got {'none' if width is None else repr(width)}"
        )


@contextlib.contextmanager
def constructing(axis: str, name: str, build: Any, *given: Any, **named: Any) -> Iterator[None]:
    """Turn the errors of a constructor that does not take what its axis gives into InputError.

    build: the class; given, named: the arguments that it will be called with.
    """
    what = {"backends": "(*, layers, channels, ...)", "losses": "(facts, *, ...)"}[axis]
    expected = f"pipeline/{axis}/{name}.py: expected `{build.__name__}.__init__`, a method: {what}"
    try:
        inspect.signature(build).bind(*given, **named)
    except TypeError as error:
        raise InputError(f"{expected}; it does not take that: {error}") from None
    try:
        yield
    except AttributeError as error:  # which torch raises
        if "before Module.__init__() call" not in str(error):
            raise
        raise InputError(f"{expected}, that calls super().__init__() first; it does not") from None


def check_embeddings(backend: Any, embeddings: Any, *, count: int) -> None:
    """Raise InputError where a backend gives something other than embeddings (B, E). count: B."""
    expected, found = (count, backend.embedding_dim), tuple(getattr(embeddings, "shape", ()))
    if found != expected:
        got = f"shape {found}" if found else type(embeddings).__name__
        raise InputError(f"{_file(backend)}: expected `Backend.forward` to return embeddings {expected}, got {got}")


def check_loss(loss: Any, value: Any) -> None:
    """Raise InputError where a loss gives something other than a scalar that depends on what is trained."""
    shape = getattr(value, "shape", None)
    if shape is None or tuple(shape):
        got = type(value).__name__ if shape is None else f"shape {tuple(shape)}"
        raise InputError(f"{_file(loss)}: expected `Loss.forward` to return a scalar tensor, got {got}")
    if not value.requires_grad:
        raise InputError(
            f"{_file(loss)}: expected `Loss.forward` to return a scalar that depends on the embeddings, got one "
            "without a gradient"
        )


def check_centroids(loss: Any, found: Any) -> None:
    """Raise InputError where a loss gives something other than its centroids."""
    if not isinstance(found, Centroids):
        raise InputError(
            f"{_file(loss)}: expected `Loss.centroids` to return pipeline.core.contracts.Centroids, "
            f"got {type(found).__name__}"
        )


def _file(thing: Any) -> str:
    """The file that defines the class of a backend or a loss."""
    return f"{type(thing).__module__.replace('.', '/')}.py"


def _check(module: ModuleType, attribute: str, expected: str) -> None:
    """Raise InputError where a module, or a class of it, lacks an attribute or gives it another value than it may."""
    value: Any = module
    for word in attribute.split("."):
        if not hasattr(value, word) or getattr(value, word).__class__ is property:
            raise InputError(f"{expected}; there is none, add it")
        value = getattr(value, word)
    if getattr(value, "__name__", "") == "_forward_unimplemented":  # which torch gives a class without `forward`
        raise InputError(f"{expected}; there is none, add it")
    if attribute in VALUES and not any(type(value) is type(one) and value == one for one in VALUES[attribute]):
        raise InputError(f"{expected}; got {value!r}")
