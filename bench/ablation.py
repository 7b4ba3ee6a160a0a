"""What a change costs: reruns of single cells on the demo, which stages they touch and how long they take.

    python bench/ablation.py

Run it after `make demo`. It works in a copy of the project with the demo's outputs, runs `dvc repro` after each of
a list of changes, and prints the stages that ran, the seconds of the whole command, and, for a new cell, what it
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


def copy(folder: Path) -> Path:
    """A copy of the project with its outputs, in a git repository of its own."""
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".venv", ".git"), symlinks=True)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    return folder


def changes(project: Path) -> None:
    """One change after the other, and what ran because of it."""
    settings, losses = project / "params.yaml", project / "pipeline/losses"
    show("nothing changed", *repro(project)[:2])
    replace(settings, "quality_weight: 0.1", "quality_weight: 0.2")
    show("losses.qamo.quality_weight", *repro(project)[:2])
    replace(losses / "aoc.py", '"""', '"""Edited: ')
    show("an edit of losses/aoc.py", *repro(project)[:2])
    add_loss(project, "mine")
    show("a new loss, two cells", *repro(project)[:2])


def new_cells(project: Path) -> None:
    """New cells one by one, each as far as the leaderboard, and the cost of `train` alone."""
    replace(project / "params.yaml", "backend: [linear, asp]", "backend: [linear]")
    repro(project)
    for name in ("mine_a", "mine_b", "mine_c"):
        add_loss(project, name)
        ran, seconds, said = repro(project)
        show("a new cell, to the leaderboard", ran, seconds)
        print(f"{'  of which not training':34} {seconds - trained(said):6.1f} s", flush=True)
    for _ in range(3):
        ran, seconds, said = repro(project, "-s", "-f", "train@linear-aoc")
        show("train@linear-aoc alone", ran, seconds)
        print(f"{'  of which not training':34} {seconds - trained(said):6.1f} s", flush=True)


def trained(said: str) -> float:
    """Seconds of the training itself, as the train stage says."""
    found = re.search(r"epochs in ([0-9.]+) s", said)
    if found is None:
        raise SystemExit(f"error: the train stage did not say how long it trained:\n{said}")
    return float(found[1])


def yardstick() -> None:
    """How fast this machine is just now: machines are noisy, and importing torch is most of what a cell costs."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    print(f"{'yardstick: python -c import torch':34} {time.perf_counter() - start:6.1f} s", flush=True)


def main() -> None:
    """Copy, change, rerun, print."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        yardstick()
        new_cells(copy(Path(folder) / "cells"))
        yardstick()
        changes(copy(Path(folder) / "changes"))
        yardstick()


if __name__ == "__main__":
    main()
