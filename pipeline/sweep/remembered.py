"""What DVC found of files that many stages read, so that a sweep has it read each of them once.

For each stage DVC hashes all rooms of code that the stage depends on, and reads all of `params.yaml`. For each output
it reads Git's index. A sweep remembers what came out, by the names, sizes and times of files: by these DVC itself
decides whether to read a file again. Hashes are kept for the next sweep; DVC keeps those of files, and not of folders.
"""

from __future__ import annotations

import copy
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.core.files import write_text
from pipeline.sweep.unchanged import facts, facts_of, flow_files

HASHES = Path(".dvc/tmp/sweep/hashes.json")


class Remembered:
    """What was found of each path. root: the project's folder, with the hashes that were kept."""

    def __init__(self, root: Path) -> None:
        self._found: dict[tuple[str, str], tuple[str, Any]] = {}
        self._file = root / HASHES
        self._valid = _what_hashes_depend_on(root)
        self._hashes = self._kept()  # kind and path -> facts and hash
        self._is_new = False

    def keep(self) -> None:
        """Keep the hashes of all that is still there."""
        if self._is_new:
            there = {key: found for key, found in self._hashes.items() if Path(key.partition(" ")[2]).exists()}
            write_text(self._file, json.dumps({"valid": self._valid, "hashes": there}))
            self._is_new = False

    def _kept(self) -> dict[str, list[str]]:
        """The hashes of the sweep before, where they still hold."""
        try:
            kept = json.loads(self._file.read_text(encoding="utf-8"))
            hashes = kept["hashes"] if kept["valid"] == self._valid else {}
            return {key: [str(now), str(value)] for key, (now, value) in hashes.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or a damaged one
            return {}

    def teach(self, stage: Any) -> None:
        """Let the dependencies and outputs of a stage of DVC ask here first."""
        from dvc.dependency.param import ParamsDependency

        for item in (*stage.deps, *stage.outs):
            if item.protocol != "local":
                continue
            if isinstance(item, ParamsDependency):
                item.read_params = functools.partial(self._params, item, item.read_params)
                continue
            item.get_hash = functools.partial(self._hash, item, item.get_hash)
            if item.IS_DEPENDENCY:
                item._build = functools.partial(self._build, item._build)

    def teach_git(self, git: Any) -> None:
        """Let a repository of Git ask here first whether it tracks a file or folder. Another kind is left as it is."""
        from scmrepo.git import Git

        if isinstance(git, Git):
            git.is_tracked = functools.partial(self._is_tracked, git)

    def _is_tracked(self, git: Any, path: str) -> bool:
        """As `Git.is_tracked` of scmrepo, which DVC asks for each output."""
        repo = git.dulwich.repo

        def tracked() -> set[str]:
            files = [os.fsdecode(name) for name in repo.open_index()]
            return {place for name in files for place in (name, *map(str, PurePosixPath(name).parents))}

        found: set[str] = self._once(repo.index_path(), "tracked", tracked)
        return Path(os.path.relpath(path, git.root_dir)).as_posix() in found

    def _hash(self, item: Any, find: Callable[[], Any]) -> Any:
        """The hash of a file or folder, as `Output.get_hash` of DVC gives it."""
        from dvc_data.hashfile.hash_info import HashInfo

        now, key = facts(Path(item.fs_path)), f"{item.hash_name} {item.fs_path}"
        before, value = self._hashes.get(key, ("", ""))
        if now and before == now:
            return HashInfo(item.hash_name, value)
        found = find()
        if now and found.name == item.hash_name:
            self._hashes[key] = [now, found.value]
            self._is_new = True
        return found

    def _build(self, build: Callable[..., Any], odb: Any, path: str, fs: Any, kind: str, **options: Any) -> Any:
        """The hash of a file or folder, as `Output._build` of DVC gives it for a dependency."""
        return self._once(path, f"hash {kind}", lambda: build(odb, path, fs, kind, **options))

    def _params(self, item: Any, read: Callable[..., dict[str, Any]], flatten: bool = True) -> dict[str, Any]:
        """The values of parameters, as `ParamsDependency.read_params` of DVC gives them."""
        import dpath
        from dvc.utils.serialize import load_path

        if not (item.params and flatten and item.exists):
            return read(flatten=flatten)
        path = item.fs_path

        def values() -> Any:
            return load_path(path, item.repo.fs)

        def value(name: str) -> dict[str, Any]:
            try:
                return {name: dpath.get(self._once(path, "values", values), name, separator=".")}
            except KeyError:
                return {}

        found: dict[str, Any] = {}
        for name in item.params:
            found |= self._once(path, f"value {name}", functools.partial(value, name))
        return copy.deepcopy(found)  # what two stages share, DVC's lock file would hold as an alias

    def _once(self, path: str, what: str, find: Callable[[], Any]) -> Any:
        """What is found of a path, now or before; it is sought again where the path has changed."""
        now = facts(Path(path))
        before, found = self._found.get((path, what), ("", None))
        if not now or before != now:
            found = find()
            self._found[path, what] = (now, found)
        return found


def _what_hashes_depend_on(root: Path) -> dict[str, str]:
    """What decides the hash of a folder beside its files: DVC, and what it is told to ignore."""
    from dvc import __version__

    return {"dvc": __version__} | facts_of(Path(path) for path in flow_files(root) if path.endswith(".dvcignore"))
