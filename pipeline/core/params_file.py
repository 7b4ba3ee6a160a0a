"""Read `params.yaml`. Every error names the line."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, NodeEvent
from ruamel.yaml.parser import RoundTripParser

from pipeline.core.errors import ON_STDOUT, InputError
from pipeline.core.params import Keys, Params

MOST_PIECES, DEEPEST = 20_000, 20  # values in a parameter file, and sections in one another
SHOWN = 200  # characters of a value in a message


def load(path: Path) -> Params:
    """Read and check a parameter file. Raises InputError with file, line, key, the expected and the actual value."""
    if not path.is_file():
        raise InputError(f"{path}: no parameter file there; run from the project's folder")
    return _loaded(path, path.read_bytes())


@functools.lru_cache(maxsize=8)
def _loaded(path: Path, data: bytes) -> Params:
    """The parameters in the content of a file, which commands read at several places."""
    tree = _tree(path, data)
    if wrong := [f"{path}:{line}: {problem}" for line, problem in _unprintable(tree)]:
        raise InputError("\n".join(wrong))
    places = {keys: f"{path}:{line}" for keys, line in _lines(tree)}
    try:
        loaded = Params.model_validate(_plain(tree))
    except ValidationError as error:
        problems = (_say(path, places, problem) for problem in error.errors())
        raise InputError("\n".join(dict.fromkeys(problems))) from None
    loaded._places.update(places)
    if wrong := [*_no_set_to_tune(tree, loaded), *loaded.misfits()]:
        raise InputError("\n".join(wrong))
    return loaded


def _no_set_to_tune(tree: Any, loaded: Params) -> list[str]:
    """A message where fine-tuning names no set. The flow depends on that set with a frozen encoder, too."""
    name = (tree["encoder"].get("finetune") or {}).get("set")
    if name is None or name in loaded.sets:
        return []
    return [
        f"{loaded.where('encoder', 'finetune', 'set')}: expected one of the sets {', '.join(loaded.sets)}, got "
        f"{name!r}; with a frozen encoder, too, as the flow depends on this set"
    ]


def _tree(path: Path, data: bytes) -> Any:
    """The YAML of a file as ruamel.yaml's containers, which know their lines."""
    yaml = YAML(typ="rt")
    yaml.Parser = functools.partial(_Bounded, path=path)
    try:
        return yaml.load(data.decode("utf-8-sig"))
    except InputError:
        raise
    except MarkedYAMLError as error:
        mark = error.problem_mark
        line = f":{mark.line + 1}" if mark else ""
        raise InputError(f"{path}{line}: not valid YAML: {error.problem}") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML in UTF-8: {_short(error)}") from None
    except Exception as error:  # values that ruamel.yaml trips over, such as the date 2001-99-99
        raise InputError(
            f"{path}: expected parameters as YAML, got a value that cannot be read: {_short(error)}"
        ) from None


class _Bounded(RoundTripParser):
    """Raises InputError for YAML too large or too deep to be parameters, with aliases written out, and for tags.

    It looks at one piece of the text after the other, so that nothing is built from a file that is refused.
    """

    def __init__(self, loader: Any, path: Path) -> None:
        super().__init__(loader=loader)
        self._path = path
        self._sizes: dict[str, int] = {}  # name of an anchor -> pieces in what it names
        self._opened: list[tuple[str | None, int]] = []  # anchors of open lists and sections, and the pieces before
        self._count = 0

    def get_event(self) -> Any:
        """The next piece of the text."""
        event = super().get_event()
        where = f"{self._path}:{event.start_mark.line + 1}"
        anchor = getattr(event, "anchor", None)
        if isinstance(event, AliasEvent):
            if anchor not in self._sizes:
                raise InputError(f"{where}: expected an alias of a section above, got *{anchor}")
            self._count += self._sizes[anchor]
        elif isinstance(event, NodeEvent):
            if tag := getattr(event, "tag", None):
                raise InputError(f"{where}: expected no tag, got {_short(tag)}; remove it")
            self._count += 1
            if isinstance(event, CollectionStartEvent):
                self._opened.append((anchor, self._count))
            elif anchor:
                self._sizes[anchor] = 1
        elif isinstance(event, CollectionEndEvent):
            name, before = self._opened.pop()
            if name:
                self._sizes[name] = self._count - before + 1
        if self._count > MOST_PIECES or len(self._opened) > DEEPEST:
            raise InputError(
                f"{where}: expected parameters of at most {MOST_PIECES} values in {DEEPEST} levels, got more; are they "
                "aliases of aliases?"
            )
        return event


def _short(value: object) -> str:
    """A value in one line of a message."""
    try:
        text = str(value) if isinstance(value, Exception) else repr(value)
    except ValueError:  # an integer of more digits than Python writes
        text = "a number of too many digits"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _unprintable(node: Any) -> Iterator[tuple[int, str]]:
    """Yield line and problem of texts that no path and no name may have."""
    if isinstance(node, dict | list):
        for keys, line in _lines(node):
            value = functools.reduce(_below, keys, node)
            for text in (keys[-1], value):
                if isinstance(text, str) and (found := ON_STDOUT.search(text)):
                    name = ".".join(map(str, keys))
                    yield line, f"{name!a}: expected text without control characters, got {found[0]!a}; remove it"


def _below(node: Any, key: Any) -> Any:
    """The value below a key of `_lines`."""
    return node[key] if isinstance(node, list) else next(value for name, value in node.items() if str(name) == key)


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
            place = (lc.data or {}).get(key)  # None for a key that comes by `<<`: it has the line of the section
            line = place[0] if place else lc.line
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
    return f"{where}: {name}: expected {message}, got {_short(problem['input'])}"
