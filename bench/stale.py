"""Which stages an edit makes stale: for every file of the code, the stages that depend on it.

    python bench/stale.py [PROJECT ...]

Of each project, this one where none is named, with the parameters that it has. A stage is stale where the file, or a
folder that has it, is a dependency of the stage. What follows from the outputs of those stages is not counted, as an
edit that changes no output stops there. A line a room: its files, and the least, mean and most stages of them.
"""

from __future__ import annotations

import argparse
import itertools
from collections import defaultdict
from pathlib import Path

from dvc.repo import Repo
from dvc.stage import PipelineStage

ROOT = Path(__file__).parents[1]


def stages_of(project: Path) -> dict[str, set[str]]:
    """Every stage of a project, with the code that it depends on."""
    with Repo(project) as repo:
        found = [stage for stage in repo.index.stages if isinstance(stage, PipelineStage)]
    return {
        stage.addressing: {dep.def_path for dep in stage.deps if dep.def_path.startswith(("pipeline/", "stages/"))}
        for stage in found
    }


def code_of(project: Path) -> list[Path]:
    """The files of the code, but for those that hold no more than a docstring."""
    paths = [path for name in ("pipeline", "stages") for path in sorted((project / name).rglob("*"))]
    wanted = [path for path in paths if path.is_file() and "__pycache__" not in path.parts]
    return [path.relative_to(project) for path in wanted if path.name != "__init__.py"]


def room_of(path: Path) -> str:
    """The folder below pipeline/ that a file stands in, or the folder of the stages."""
    return "/".join(path.parts[:2]) if len(path.parts) > 2 else path.parts[0]


def show(project: Path) -> None:
    """The table of one project."""
    stages = stages_of(project)
    rooms: dict[str, list[int]] = defaultdict(list)
    for path in code_of(project):
        places = {path.as_posix(), *(parent.as_posix() for parent in path.parents)}
        rooms[room_of(path)].append(sum(bool(deps & places) for deps in stages.values()))
    print(f"{len(stages)} stages, {sum(map(len, stages.values()))} code dependencies in all")
    print(f"{'room':24} {'files':>5} {'least':>6} {'mean':>6} {'most':>5}")
    for room, counts in (*sorted(rooms.items()), ("all", list(itertools.chain(*rooms.values())))):
        print(f"{room:24} {len(counts):5d} {min(counts):6d} {sum(counts) / len(counts):6.1f} {max(counts):5d}")


def main() -> None:
    """A table for each project."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("projects", nargs="*", type=Path, default=[ROOT], metavar="PROJECT")
    for project in parser.parse_args().projects:
        show(project)


if __name__ == "__main__":
    main()
