"""What a change costs: reruns on the demo, which stages they touch, and how long a cell takes in a large grid.

    python bench/ablation.py

Run it after `make demo`. It works in copies of the project with the demo's outputs. In one it grows the grid to 36
cells, and then by a loss, and prints what a cell costs besides its training: its `train` stage alone (aim: 3 s), and
all its stages to the leaderboard (aim: 8 s). In the next it does the same by `bonafide sweep` (aim: 0.6 s), in one
without outputs it makes the 36 cells from nothing (aim: 1.3 times their training on all processors, and 20 s), and in
a grid of 300 cells it times `dvc status` (aim: 10 s) and `bonafide status`. In the last it runs `dvc repro` after each
of a list of changes and prints the stages that ran.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


BACKENDS = ("linear", "asp", "mlp", "mhfa", "sls", "per_layer")
LOSSES = ("aoc", "qamo", "cross_entropy", "oc_softmax", "am_softmax", "multi_centre")


def replace(path: Path, old: str, new: str) -> None:
    """Edit a file; the old text must be there."""
    text = path.read_text()
    if old not in text:
        raise SystemExit(f"error: {path}: expected {old!r} in it; run this on the project as it comes")
    path.write_text(text.replace(old, new, 1))


def add_loss(project: Path, name: str) -> None:
    """A loss of one's own: one file, its section, its name in the grid."""
    shutil.copy(project / "pipeline/losses/cross_entropy.py", project / f"pipeline/losses/{name}.py")
    replace(project / "params.yaml", "\nlayers:", f"\n  {name}: {{}}\nlayers:")
    replace(project / "params.yaml", "  loss: [", f"  loss: [{name}, ")


@dataclass(frozen=True)
class Ran:
    """A `dvc repro`: the seconds of the whole command, and of every stage until the next one began."""

    seconds: float
    stages: dict[str, float]
    trained: dict[str, float]  # by stage, the seconds of the training itself, as it says


def repro(project: Path, *arguments: str) -> Ran:
    """Run `dvc repro` and look at the clock at each line that it prints."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    start = time.perf_counter()
    began: list[tuple[str, float]] = []
    trained: dict[str, float] = {}
    said: list[str] = []
    command = ["dvc", "repro", *arguments]
    with subprocess.Popen(
        command,
        cwd=project,
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        for line in process.stdout or ():
            said.append(line)
            if stage := re.search(r"Running stage '(?:[^':]+:)?([^']+)'", line):
                began.append((stage[1], time.perf_counter() - start))
            elif training := re.search(r"epochs in ([0-9.]+) s", line):
                trained[began[-1][0]] = float(training[1])
    if process.returncode:
        raise SystemExit("".join(said))
    seconds = time.perf_counter() - start
    ends = [at for _, at in began[1:]] + [seconds] * bool(began)
    return Ran(seconds, {stage: end - at for (stage, at), end in zip(began, ends, strict=True)}, trained)


def show(what: str, ran: Ran) -> None:
    """One change: the seconds, and the stages that ran because of it."""
    print(f"{what:34} {ran.seconds:6.1f} s  {len(ran.stages):2d} stages  {' '.join(ran.stages)}", flush=True)


def copy(folder: Path) -> Path:
    """A copy of the project with its outputs, in a git repository of its own."""
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".venv", ".git"), symlinks=True)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    return folder


def changes(project: Path) -> None:
    """One change after the other, and what ran because of it."""
    settings, losses = project / "params.yaml", project / "pipeline/losses"
    show("nothing changed", repro(project))
    replace(settings, "quality_weight: 0.1", "quality_weight: 0.2")
    show("losses.qamo.quality_weight", repro(project))
    replace(losses / "aoc.py", '"""', '"""Edited: ')
    show("an edit of losses/aoc.py", repro(project))
    replace(settings, "seed: [1]", "seed: [1, 2]")
    show("a seed more, six cells", repro(project))


def grow(project: Path) -> None:
    """Make a grid of 36 cells."""
    settings = project / "params.yaml"
    replace(settings, "backend: [linear, asp]", f"backend: [{', '.join(BACKENDS)}]")
    replace(settings, "loss: [aoc, qamo, cross_entropy]", f"loss: [{', '.join(LOSSES)}]")


def grid(project: Path) -> None:
    """36 cells at once, then a loss more, six cells: what each costs besides its training."""
    grow(project)
    costs("36 cells", repro(project))
    add_loss(project, "mine")
    costs("a loss more", repro(project))


def costs(what: str, ran: Ran) -> None:
    """What the cells of one `dvc repro` cost besides their training."""
    cells, training = len(ran.trained), sum(ran.trained.values())
    trains = [ran.stages[stage] - seconds for stage, seconds in ran.trained.items()]
    print(f"{what}: {cells} new cells, {ran.seconds:.0f} s, of which training {training:.0f} s; besides that, a cell:")
    print(f"  its train stage: median {statistics.median(trains):.1f} s, most {max(trains):.1f} s (aim 3 s)")
    print(f"  all of it to the leaderboard: {(ran.seconds - training) / cells:.1f} s (aim 8 s)", flush=True)


def swept(project: Path, what: str) -> None:
    """Run `bonafide sweep`: its seconds, and what a new cell costs besides the training on all processors."""
    before = set((project / "data/seconds").glob("*.json"))
    seconds = timed(project, "bonafide", "sweep")
    new = set((project / "data/seconds").glob("*.json")) - before
    training = sum(json.loads(path.read_text())["seconds"] for path in new)
    cores = len(os.sched_getaffinity(0))
    besides = seconds - training / cores
    print(
        f"sweep, {what}: {len(new)} new cells, {seconds:.1f} s; training {training:.0f} s on {cores} processors; "
        f"besides that {besides:.1f} s, a cell {besides / max(1, len(new)):.2f} s",
        flush=True,
    )


def sweeps(project: Path) -> None:
    """36 cells at once, then a loss more, then nothing."""
    grow(project)
    swept(project, "the grid grows to 36 cells")
    add_loss(project, "mine")
    swept(project, "a loss more")
    swept(project, "nothing changed")


def from_nothing(project: Path) -> None:
    """36 cells of a project that has no outputs."""
    for name in ("data", ".dvc/cache", ".dvc/tmp"):
        shutil.rmtree(project / name)
    for path in (project / "dvc.lock", *project.glob("flow/*/dvc.lock")):
        path.unlink()
    (project / "data/analysis").mkdir(parents=True)
    grow(project)
    swept(project, "36 cells from nothing")


def many(project: Path) -> None:
    """The look at a grid of 300 cells, of which the demo's are made: what DVC takes, and what a table of cells does."""
    grow(project)
    seeds = ", ".join(str(seed) for seed in range(1, 1 + -(-300 // (len(BACKENDS) * len(LOSSES)))))
    replace(project / "params.yaml", "seed: [1]", f"seed: [{seeds}]")
    for command in (("dvc", "status"), ("bonafide", "status")):
        print(f"300 cells: {' '.join(command)} takes {timed(project, *command):.1f} s", flush=True)


def timed(project: Path, *command: str) -> float:
    """The seconds of a command."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    start = time.perf_counter()
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return time.perf_counter() - start


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
        grid(copy(Path(folder) / "grid"))
        yardstick()
        sweeps(copy(Path(folder) / "sweeps"))
        from_nothing(copy(Path(folder) / "nothing"))
        yardstick()
        many(copy(Path(folder) / "many"))
        changes(copy(Path(folder) / "changes"))
        yardstick()


if __name__ == "__main__":
    main()
