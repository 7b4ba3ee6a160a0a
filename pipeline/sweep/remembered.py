"""What DVC found of files that many stages read, so that a sweep has it read each of them once.

For each stage DVC hashes all rooms of code that the stage depends on, and reads all of `params.yaml`. For each output
it reads Git's index. A sweep remembers what came out, by the names, sizes and times of files: by these DVC itself
decides whether to read a file again.
"""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.sweep.unchanged import facts


class Remembered:
    """What was found of each path."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], tuple[str, Any]] = {}

    def teach(self, stage: Any) -> None:
        """Let the dependencies of a stage of DVC ask here first."""
        from dvc.dependency.param import ParamsDependency

        for item in stage.deps:
            if item.protocol != "local":
                continue
            if isinstance(item, ParamsDependency):
                item.read_params = functools.partial(self._params, item, item.read_params)
            else:
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
