"""Find a member of an axis (backends, losses, corpora, quality estimators) by its name, and check its contract.

A member is one file: `member("losses", "qamo")` is the module `pipeline/losses/qamo.py`.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.core.errors import InputError

# The names that a member's file must define, and their meaning.
CONTRACTS = {
    "backends": {
        "Backend": "the class of the backend, a torch.nn.Module",
        "Backend.reads": "a class attribute, the word pooled or frames",
        "Backend.forward": "a method: (features, n_frames) -> embeddings (B, E)",
    },
    "losses": {
        "Loss": "the class of the loss, a torch.nn.Module",
        "Loss.quality": "a class attribute, True where the loss reads quality levels, else False",
        "Loss.forward": "a method: (embeddings, labels) -> a scalar",
        "Loss.centroids": "a method that returns pipeline.core.contracts.Centroids",
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
