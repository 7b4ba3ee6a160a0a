"""Read `params.yaml`. Every error names the line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from pipeline.core.errors import InputError
from pipeline.core.params import Keys, Params


def load(path: Path) -> Params:
    """Read and check a parameter file. Raises InputError with file, line, key, the expected and the actual value."""
    if not path.is_file():
        raise InputError(f"{path}: no parameter file there; run from the project's folder")
    try:
        tree = YAML(typ="rt").load(path.read_bytes().decode("utf-8"))
    except MarkedYAMLError as error:
        mark = error.problem_mark
        line = f":{mark.line + 1}" if mark else ""
        raise InputError(f"{path}{line}: not valid YAML: {error.problem}") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML in UTF-8: {error}") from None
    places = {keys: f"{path}:{line}" for keys, line in _lines(tree)}
    try:
        loaded = Params.model_validate(_plain(tree))
    except ValidationError as error:
        problems = (_say(path, places, problem) for problem in error.errors())
        raise InputError("\n".join(dict.fromkeys(problems))) from None
    loaded._places.update(places)
    if wrong := loaded.misfits():
        raise InputError("\n".join(wrong))
    return loaded


def _plain(node: Any) -> Any:
    """Turn the containers and scalars of ruamel.yaml into plain Python ones."""
    if isinstance(node, dict):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


def _lines(node: Any, above: Keys = ()) -> Iterator[tuple[Keys, int]]:
    """Yield every key of a tree with its line; lines count from 1."""
    if isinstance(node, dict | list):
        lc: Any = node.lc  # type: ignore[union-attr]  # ruamel's containers know line and column
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            line, _ = lc.key(key) if isinstance(node, dict) else lc.item(key)
            keys = (*above, key if isinstance(key, int) and isinstance(node, list) else str(key))
            yield keys, line + 1
            yield from _lines(value, keys)


def _say(path: Path, places: Mapping[Keys, str], problem: Any) -> str:
    """One validation problem as `file:line: key: expected ..., got ...`."""
    keys: Keys = problem["loc"]
    missing = problem["type"] == "missing"
    known = next(keys[:end] for end in range(len(keys), -1, -1) if keys[:end] in places or not end)
    # The deeper parts of `loc` are names of types, not keys of the file.
    name = ".".join(str(key) for key in (keys if missing else known)) or "parameters"
    where = places.get(known, f"{path}:1")
    if problem["type"] == "extra_forbidden":
        return f"{where}: {name}: unknown parameter; remove it or mend its name"
    if missing:
        return f"{where}: {name}: missing"
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if problem["type"] == "value_error":
        return f"{where}: {name}: {message}"
    return f"{where}: {name}: expected {message}, got {problem['input']!r}"
