"""What a change costs: reruns of single cells on the demo, which stages they touch and how long they take.

    python bench/ablation.py

Run it after `make demo`. It works in a copy of the project with the demo's outputs, runs `dvc repro` after each of
a list of changes, and prints the stages that ran, the seconds of the whole command, and, for a new cell, what `train`
costs besides its training.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def replace(path: Path, old: str, new: str) -> None:
    """Edit a file; the old text must be there."""
    text = path.read_text()
    if old not in text:
        raise SystemExit(f"error: {path}: expected {old!r} in it; run this on the project as it comes")
    path.write_text(text.replace(old, new, 1))


def add_loss(project: Path, name: str) -> None:
    """A loss of one's own: one file, its section, its name in the grid."""
    shutil.copy(project / "pipeline/losses/cross_entropy.py", project / f"pipeline/losses/{name}.py")
    replace(project / "params.yaml", "  cross_entropy: {}", f"  cross_entropy: {{}}\n  {name}: {{}}")
    replace(project / "params.yaml", "  loss: [", f"  loss: [{name}, ")


def repro(project: Path, *arguments: str) -> tuple[list[str], float, str]:
    """Stages that ran, seconds, and the output of `dvc repro`."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    start = time.perf_counter()
    done = subprocess.run(
        ["dvc", "repro", *arguments],
        cwd=project,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return re.findall(r"Running stage '([^']+)'", done.stdout), seconds, done.stdout


def show(what: str, ran: list[str], seconds: float) -> None:
    """One change: the seconds, and the stages that ran because of it."""
    print(f"{what:34} {seconds:6.1f} s  {len(ran):2d} stages  {' '.join(ran)}", flush=True)


def one_cell(project: Path, cell: str) -> None:
    """What a `train` cell costs besides its training."""
    ran, seconds, said = repro(project, "-s", "-f", f"train@{cell}")
    trained = re.search(r"epochs in ([0-9.]+) s", said)
    if trained is None:
        raise SystemExit(f"error: the train stage did not say how long it trained:\n{said}")
    show(f"train@{cell} alone", ran, seconds)
    print(f"{'  of which not training':34} {seconds - float(trained[1]):6.1f} s")


def main() -> None:
    """Copy, change, rerun, print."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "project"
        shutil.copytree(ROOT, project, ignore=shutil.ignore_patterns(".venv", ".git"), symlinks=True)
        subprocess.run(["git", "init", "-q"], cwd=project, check=True)
        settings, losses = project / "params.yaml", project / "pipeline/losses"
        show("nothing changed", *repro(project)[:2])
        replace(settings, "quality_weight: 0.1", "quality_weight: 0.2")
        show("losses.qamo.quality_weight", *repro(project)[:2])
        replace(losses / "aoc.py", '"""', '"""Edited: ')
        show("an edit of losses/aoc.py", *repro(project)[:2])
        add_loss(project, "mine")
        show("a new loss, two cells", *repro(project)[:2])
        for cell in ("linear-aoc", "asp-aoc"):
            one_cell(project, cell)
        replace(settings, "backend: [linear, asp]", "backend: [linear]")
        repro(project)
        add_loss(project, "mine2")
        show("a new cell, to the leaderboard", *repro(project)[:2])


if __name__ == "__main__":
    main()
