"""What DVC adds to a cell: processor time and lines of lock in a grid of 36 cells whose stages take no time.

    python bench/flow.py [PROJECT ...]

Each project, this one where none is named, is copied without its data. A stand-in for `python` writes the outputs of a
stage at once, so that what is left is DVC's own: resolving dvc.yaml, hashing, and writing dvc.lock after each stage.
Prints the code entries in the YAML files, the lines of lock of the grid, and the seconds of processor time of one more
cell, above those of the same `dvc repro` when it finds nothing to do.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import os
import re
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

from dvc.dvcfile import ProjectFile
from dvc.repo import Repo
from dvc.stage import PipelineStage
from ruamel.yaml import YAML

from pipeline.sweep.remembered import Remembered

ROOT = Path(__file__).parents[1]
BACKENDS = ["linear", "asp", "mlp", "mhfa", "sls", "per_layer"]
LOSSES = ["aoc", "qamo", "cross_entropy", "oc_softmax", "am_softmax", "multi_centre"]
INSIDE = "eval.txt"  # the file of an output that is a folder; some stages depend on one of that name
STAND_IN = '#!/bin/sh\n. "{makers}/$(printf %s "$*" | md5sum | cut -c 1-32)"\n'


def copy(project: Path, folder: Path) -> Path:
    """Code and flow of a project, with a grid of 36 cells."""
    for name in ("pipeline", "stages", "flow"):
        if (project / name).is_dir():
            shutil.copytree(project / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "dvc.lock"))
    for name in (
        "dvc.yaml",
        "params.yaml",
        ".dvc/config",
        ".dvcignore",
        ".gitignore",
        "data/analysis/.gitkeep",
        "data/others/.gitkeep",
        "data/recordings/.gitkeep",
    ):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        shutil.copy(project / name, folder / name)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    return folder


def set_grid(folder: Path, losses: list[str]) -> None:
    """Give the grid its backends and losses."""
    settings = YAML(typ="safe").load(folder / "params.yaml")
    settings["grid"] |= {"backend": BACKENDS, "loss": losses}
    settings["losses"] |= {name: settings["losses"].get(name, {}) for name in losses}
    YAML(typ="safe").dump(settings, folder / "params.yaml")


def stages_of(repo: Repo) -> list[PipelineStage]:
    """All stages of a project."""
    return [stage for stage in repo.index.stages if isinstance(stage, PipelineStage)]


def make(folder: Path, out: str) -> None:
    """A stand-in for an output: a file, or a folder with one."""
    file = folder / out if Path(out).suffix else folder / out / INSIDE
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(out)


def inside(stages: list[PipelineStage]) -> dict[str, list[str]]:
    """Folder -> the files in it that stages depend on, of the folders that stages make."""
    folders = {item.def_path for stage in stages for item in stage.outs if not Path(item.def_path).suffix}
    paths = dict.fromkeys(dep.def_path for stage in stages for dep in stage.deps if Path(dep.def_path).suffix)
    found: dict[str, list[str]] = {}
    for path in paths:
        for folder in folders & {str(parent) for parent in Path(path).parents}:
            found.setdefault(folder, []).append(path)
    return found


def run_all(folder: Path) -> None:
    """Make the outputs of all stages and write the locks, each once."""
    with contextlib.chdir(folder), Repo(folder) as repo, repo.lock:
        stages, remembered = stages_of(repo), Remembered(folder)
        for stage in stages:
            for item in stage.outs:
                make(folder, item.def_path)
        for name in itertools.chain.from_iterable(inside(stages).values()):
            make(folder, name)
        for stage in stages:
            remembered.teach(stage)
            stage.save(run_cache=False)
            stage.commit()
        for path in {stage.path for stage in stages}:
            mine = [stage for stage in stages if stage.path == path]
            ProjectFile(repo, path).dump_stages(mine, update_pipeline=False)


def write_makers(folder: Path, makers: Path) -> None:
    """A shell script for every stage that makes its outputs, found by the arguments of its command."""
    makers.mkdir(exist_ok=True)
    with Repo(folder) as repo:
        stages = stages_of(repo)
    files = inside(stages)
    for stage in stages:
        lines = []
        for out in (item.def_path for item in stage.outs):
            file = Path(out) if Path(out).suffix else Path(out) / INSIDE
            lines.append(f"mkdir -p {file.parent} && echo {out} > {file}")
        lines += [f"echo {name} > {name}" for item in stage.outs for name in files.get(item.def_path, ())]
        words = " ".join(stage.cmd.split()).removeprefix("python ")
        (makers / hashlib.md5(words.encode(), usedforsecurity=False).hexdigest()).write_text("\n".join(lines))
    place = makers.parent / "bin" / "python"
    place.parent.mkdir(exist_ok=True)
    place.write_text(STAND_IN.format(makers=makers))
    place.chmod(place.stat().st_mode | stat.S_IXUSR)


def repro(folder: Path, stand_in: Path, *targets: str) -> tuple[float, list[str]]:
    """Seconds of processor time of a `dvc repro`, and the stages that ran."""
    scripts = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{stand_in}{os.pathsep}{scripts}{os.pathsep}{os.environ['PATH']}"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [scripts / "dvc", "repro", *targets], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return seconds, re.findall(r"Running stage '([^']+)'", done.stdout)


def measure(project: Path, work: Path) -> None:
    """What one more cell costs in a grid of 36, and what the files hold."""
    folder = copy(project, work / "project")
    files = [folder / "dvc.yaml", *sorted(folder.glob("flow/*/dvc.yaml"))]
    entries = sum(len(re.findall(r"(?m)^\s+- (?:pipeline|stages)/", path.read_text())) for path in files)
    print(f"{project}: {len(files)} YAML files, {entries} code entries", flush=True)
    set_grid(folder, LOSSES)
    run_all(folder)
    locks = {path.relative_to(folder): len(path.read_text().splitlines()) for path in folder.rglob("dvc.lock")}
    print(f"  lines of lock: {sum(locks.values())} ({', '.join(f'{path} {count}' for path, count in locks.items())})")
    shutil.copy(folder / "pipeline/losses/cross_entropy.py", folder / "pipeline/losses/mine.py")
    set_grid(folder, [*LOSSES, "mine"])
    write_makers(folder, work / "makers")
    with contextlib.chdir(folder), Repo(folder) as repo:
        last = next(stage.addressing for stage in stages_of(repo) if "evaluate@linear-mine-" in stage.addressing)
    seconds, ran = repro(folder, work / "bin", last)
    idle, _ = repro(folder, work / "bin", last)
    print(f"  one more cell, {len(ran)} stages: {' '.join(ran)}")
    print(f"  {seconds - idle:.2f} s of processor; and {idle:.1f} s to find nothing to do", flush=True)


def main() -> None:
    """Measure each project."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("projects", nargs="*", type=Path, default=[ROOT], metavar="PROJECT")
    for project in parser.parse_args().projects:
        with tempfile.TemporaryDirectory() as work:
            measure(project, Path(work))


if __name__ == "__main__":
    main()
