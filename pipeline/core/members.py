"""Members of an axis (backends, losses, corpora, quality estimators) found by their names."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from pipeline.core.errors import InputError


def names(axis: str) -> list[str]:
    """The members of an axis, sorted; files whose names begin with `_` are none."""
    folder = Path(__file__).parents[1] / axis
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


def member(axis: str, name: str) -> ModuleType:
    """The module of a member. Raises InputError, with the members there are, for an unknown name.

    axis: the folder below `pipeline/`, such as `losses`. name: the file without its suffix.
    """
    if name not in names(axis):
        raise InputError(
            f"expected {axis} to be one of {', '.join(names(axis))}, got {name!r}; "
            f"a new one is the file pipeline/{axis}/{name}.py"
        )
    return importlib.import_module(f"pipeline.{axis}.{name}")
