"""Entries of `dvc.lock`, changed without reading all the others.

DVC parses a whole lock file and writes it again, a few thousand lines a second, and a cell of the grid has more than a
hundred of them. Here the text of the other entries is left as it is. DVC would write the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

HEAD = "schema: '2.0'\nstages:\n"
ENTRY = re.compile(r"^(  [^\s'\"]\S*:\n)(?:    .*\n)+", re.M)  # its name, then what is in it
ANCHOR = re.compile(r"^ +(?:- |\S+: )*[&*]", re.M)  # what one entry says, another one may point at


def entry_of(stage: Any) -> str:
    """What `dvc.lock` says of a stage, in the lines that DVC would write. Empty for a stage of a `.dvc` file."""
    from dvc.stage import PipelineStage
    from dvc.stage.serialize import to_lockfile
    from dvc.utils.serialize import dumps_yaml

    if not isinstance(stage, PipelineStage):
        return ""
    text: str = dumps_yaml({"schema": "2.0", "stages": to_lockfile(stage)})
    return text.removeprefix(HEAD)


def put(text: str, entries: Iterable[str]) -> str | None:
    """The text of a lock file with these entries, in the place of those of the same name or at the end.

    text: empty where there is no lock file. None where it, or an entry, is not laid out as DVC lays it out.
    """
    body = text.removeprefix(HEAD)
    found = {match[1]: match[0] for match in ENTRY.finditer(body)}
    new = [(ENTRY.fullmatch(entry), entry) for entry in entries]
    if (text and not text.startswith(HEAD)) or "".join(found.values()) != body or ANCHOR.search(body):
        return None
    if any(match is None for match, _ in new):
        return None
    return HEAD + "".join((found | {match[1]: entry for match, entry in new if match}).values())
