"""Find a member of an axis (backends, losses, corpora, quality estimators) by its name.

A member is one file: `member("losses", "qamo")` is the module `pipeline/losses/qamo.py`.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from pipeline.core.errors import InputError


def member(axis: str, name: str) -> ModuleType:
    """Import the module of a member. Raises InputError, with the names of all members, for an unknown name.

    axis: the folder below `pipeline/`, such as `losses`. name: the file without its suffix.
    """
    folder = Path(__file__).parents[1] / axis
    names = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))
    if name not in names:
        raise InputError(
            f"expected {axis} to be one of {', '.join(names)}, got {name!r}; "
            f"a new one is the file pipeline/{axis}/{name}.py"
        )
    return importlib.import_module(f"pipeline.{axis}.{name}")
