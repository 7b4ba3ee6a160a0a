"""What ablations cost besides their training, by `bonafide sweep` and by `dvc repro`.

    python -m bench.ablation [--only cells nothing speech many changes] [--quick]

Prints Markdown tables with the aim of each line. Everything is made in copies of the project in a temporary folder. The
parts:

cells     The demo's grid of 6 cells grows to 36, then by a loss of 6 cells, by `bonafide sweep`; by another loss, by
          `dvc repro`; then nothing changes. What a cell costs is the time of the whole command, from the change to the
          leaderboard, less the training of the new cells, divided by their number. A sweep trains on all processors, so
          there the training counts divided by their number. Aims: 0.6 s a cell in a sweep, 6 s by
          `dvc repro`, 3 s where nothing changed since a sweep.
nothing   The 36 cells of a project without outputs. Aim: 1.3 times the training, divided by the processors, and 20 s.
speech    `recipes/ablation_speech.yaml`, 108 cells with the fine-tuning of the encoder, from nothing. Aim: a quarter of
          the time by `dvc repro`, which would take half an hour. So this is extrapolated: preparing, fine-tuning and
          extracting as measured, all training one after the other, and 108 times what three more cells cost in this
          grid by `dvc repro`, besides their training and above the same command where nothing changed. Analysis, layer
          probe and report are left out there, but not in the sweep.
many      A grid of 300 cells, all up to date; the outputs are stand-ins of a line each. Aims: 10 s for
          `dvc status`, 3 s for `bonafide sweep` after another one. Takes about two minutes, half of them to make it.
changes   Which stages `dvc repro` runs after a change.

--quick takes few cells and one epoch, to see that all parts run; its times say nothing.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from bench import flow

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
RECIPE = ROOT / "recipes" / "ablation_speech.yaml"
BACKENDS = ("linear", "asp", "mlp", "mhfa", "sls", "per_layer")
LOSSES = ("aoc", "qamo", "cross_entropy", "oc_softmax", "am_softmax", "multi_centre")
SAMPLED = ("linear", "asp", "conformer_tcm")  # backends of the cells that stand for 108


@dataclass(frozen=True)
class Place:
    """Where a part works, and whether it is cut short."""

    folder: Path
    quick: bool

    def project(self, name: str) -> Path:
        """A copy of this project without outputs."""
        folder = self.folder / name
        folder.mkdir()
        edit(flow.copy(ROOT, folder), self.shorten)
        return folder

    def demo(self, name: str) -> Path:
        """A copy of this project with the outputs of the demo, which are made once."""
        made = self.folder / "demo"
        if not made.is_dir():
            sweep(self.project("demo"))
        return Path(shutil.copytree(made, self.folder / name, symlinks=True))

    def many(self, name: str) -> Path:
        """A copy of this project without outputs, with a grid of 300 cells, with --quick of 9."""
        project = self.project(name)
        edit(project, self.grow)
        if not self.quick:  # 6 x 5 x 10 cells
            edit(project, lambda params: params["grid"].update(loss=list(LOSSES[:5]), seed=list(range(1, 11))))
        return project

    def shorten(self, params: dict[str, Any]) -> None:
        """With --quick, train for one epoch."""
        if self.quick:
            params["train"]["epochs"] = params["encoder"]["finetune"]["epochs"] = 1

    def grow(self, params: dict[str, Any]) -> None:
        """Make the grid one of 36 cells, with --quick of 9."""
        size = 3 if self.quick else len(BACKENDS)
        params["grid"] |= {"backend": list(BACKENDS[:size]), "loss": list(LOSSES[:size])}


@dataclass(frozen=True)
class Ran:
    """A command: its seconds, those of the training of each new cell, and the stages that it said it ran."""

    seconds: float
    training: tuple[float, ...]
    stages: tuple[str, ...]

    @property
    def one_by_one(self) -> float:
        """Seconds a new cell besides its training, where one cell is trained after the other."""
        return (self.seconds - sum(self.training)) / max(1, len(self.training))

    @property
    def side_by_side(self) -> float:
        """Seconds a new cell besides its training, where all processors train."""
        return (self.seconds - sum(self.training) / processors()) / max(1, len(self.training))


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))


def run(project: Path, *command: str) -> Ran:
    """Run a command in a project. An error of it ends this process."""
    before = {path: path.stat().st_mtime_ns for path in (project / "data/seconds").glob("*.json")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(project)}
    start = time.perf_counter()
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"error: {' '.join(command)}\n{done.stdout}{done.stderr}")
    new = [path for path in (project / "data/seconds").glob("*.json") if path.stat().st_mtime_ns != before.get(path)]
    training = tuple(json.loads(path.read_text())["seconds"] for path in new)
    return Ran(seconds, training, tuple(re.findall(r"Running stage '(?:[^':]+:)?([^']+)'", done.stdout)))


def sweep(project: Path, *targets: str) -> Ran:
    """`bonafide sweep`, of the code of this project."""
    return run(project, sys.executable, "-m", "pipeline.commands", "sweep", *targets)


def repro(project: Path, *targets: str) -> Ran:
    """`dvc repro`."""
    return run(project, "dvc", "repro", *targets)


def edit(project: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the parameters of a project."""
    path, yaml = project / "params.yaml", YAML(typ="safe")
    params = yaml.load(path)
    change(params)
    yaml.dump(params, path)


def add_loss(project: Path, name: str) -> None:
    """A loss of one's own: one file, its section, its name in the grid."""
    losses = project / "pipeline/losses"
    shutil.copy(losses / "cross_entropy.py", losses / f"{name}.py")

    def change(params: dict[str, Any]) -> None:
        params["losses"][name] = {}
        params["grid"]["loss"].append(name)

    edit(project, change)


def show(*cells: str) -> None:
    """A line of a table."""
    print(f"| {' | '.join(cells)} |", flush=True)


def head(*names: str) -> None:
    """The head of a table."""
    print()
    show(*names)
    show(*["---"] * len(names))


def met(value: float, aim: float) -> str:
    """An aim in seconds, and whether it is met."""
    return f"{aim:.1f} s: {'met' if value <= aim else '**missed**'}"


def cells(place: Place) -> None:
    """What a cell costs from the change to the leaderboard."""
    project = place.demo("cells")
    edit(project, place.grow)
    for what, ran in (
        ("the grid of the demo grows", sweep(project)),
        ("a loss more", _with_loss(project, sweep, "mine")),
    ):
        told = f"{ran.side_by_side:.2f} s; {len(ran.training)} cells in {ran.seconds:.1f} s"
        show(f"a cell besides its training, sweep: {what}", told, met(ran.side_by_side, 0.6))
    old = _with_loss(project, repro, "yours")
    told = f"{old.one_by_one:.2f} s; {len(old.training)} cells in {old.seconds:.1f} s"
    show("a cell besides its training, `dvc repro`: a loss more", told, met(old.one_by_one, 6))
    looked, again = sweep(project).seconds, sweep(project).seconds
    show("nothing changed, sweep after `dvc repro`, where DVC has to look", f"{looked:.1f} s", "")
    show("nothing changed, sweep after a sweep", f"{again:.1f} s", met(again, 3))


def _with_loss(project: Path, command: Callable[[Path], Ran], name: str) -> Ran:
    add_loss(project, name)
    return command(project)


def nothing(place: Place) -> None:
    """A grid from nothing."""
    project = place.project("nothing")
    edit(project, place.grow)
    ran = sweep(project)
    training = sum(ran.training)
    told = f"{ran.seconds:.1f} s; training {training:.1f} s on {processors()} processors"
    show(f"{len(ran.training)} cells from nothing, sweep", told, met(ran.seconds, 1.3 * training / processors() + 20))


def speech(place: Place) -> None:
    """The recipe on real speech, and what it would take by `dvc repro`."""
    if not SHARED.is_dir():
        show("`recipes/ablation_speech.yaml`", f"not measured: its corpus, {SHARED.name}/speech, is not here", "")
        return
    project = place.project("speech")
    (project / "params.yaml").write_text(RECIPE.read_text().replace("../shared", str(SHARED)))
    edit(project, place.shorten)
    if place.quick:
        edit(project, lambda params: params["grid"].update(backend=list(SAMPLED), loss=["aoc"], seed=[1]))
        edit(project, lambda params: params["analyse"].update(loss=["aoc"]))
    first, ran = sweep(project, "select"), sweep(project)
    add_loss(project, "mine")
    targets = [f"flow/evaluate/dvc.yaml:evaluate@{backend}-mine-all-clean-1" for backend in SAMPLED]
    more, again = repro(project, *targets), repro(project, *targets)
    each = (more.seconds - again.seconds - sum(more.training)) / len(more.training)
    count, now = len(ran.training), first.seconds + ran.seconds
    old = first.seconds + sum(ran.training) + count * each
    what = f"`recipes/ablation_speech.yaml`, {count} cells from nothing"
    told = f"{now:.0f} s, of which {first.seconds:.0f} s until its features; training {sum(ran.training):.0f} s"
    show(f"{what}, sweep", told, met(now, old / 4))
    show(f"{what}, `dvc repro`, extrapolated", f"{old:.0f} s; a cell {each:.1f} s besides its training", "")
    show("the ratio of both; without what comes before the cells", _ratios(old, now, first.seconds), "")


def _ratios(old: float, now: float, before: float) -> str:
    return f"{old / now:.1f}; {(old - before) / (now - before):.1f}"


def many(place: Place) -> None:
    """A large grid in which all is up to date."""
    project = place.many("many")
    logging.getLogger("dvc").setLevel(logging.ERROR)  # it names each lock that it writes
    flow.run_all(project)
    looked = run(project, "dvc", "status")
    swept, again = sweep(project), sweep(project)
    table = run(project, sys.executable, "-m", "pipeline.commands", "status")
    count = len(list((project / "data/runs").iterdir()))
    show(f"{count} cells up to date: `dvc status`", f"{looked.seconds:.1f} s", met(looked.seconds, 10))
    show(f"{count} cells up to date: sweep, where DVC has to look", f"{swept.seconds:.1f} s", "")
    show(f"{count} cells up to date: sweep, after a sweep", f"{again.seconds:.1f} s", met(again.seconds, 3))
    show(f"{count} cells up to date: `bonafide status`", f"{table.seconds:.1f} s", "")


def changes(place: Place) -> None:
    """One change after the other, and what `dvc repro` ran because of it."""
    project = place.demo("changes")
    aoc = project / "pipeline/losses/aoc.py"
    head("change", "stages that ran", "seconds")
    _change("nothing", repro(project))
    edit(project, lambda params: params["losses"]["qamo"].update(quality_weight=0.2))
    _change("`losses.qamo.quality_weight`", repro(project))
    aoc.write_text(aoc.read_text().replace('"""', '"""Edited: ', 1))
    _change("an edit of `losses/aoc.py` that changes no number", repro(project))
    edit(project, lambda params: params["grid"].update(seed=[1, 2]))
    _change("a seed more, six cells", repro(project))


def _change(what: str, ran: Ran) -> None:
    counts: dict[str, int] = {}
    for stage in ran.stages:
        kind = stage.partition("@")[0]
        counts[kind] = counts.get(kind, 0) + 1
    told = ", ".join(f"{kind} {count}" if count > 1 else kind for kind, count in counts.items())
    show(what, told or "none", f"{ran.seconds:.1f}")


PARTS: dict[str, Callable[[Place], None]] = {
    "cells": cells, "nothing": nothing, "speech": speech, "many": many, "changes": changes,
}  # fmt: skip


def yardstick() -> None:
    """How fast this machine is just now: machines are noisy, and importing torch is much of what a cell costs."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    show("yardstick: `python -c 'import torch'`", f"{time.perf_counter() - start:.1f} s", "")


def measure(names: Iterable[str], place: Place) -> None:
    """The parts in their order."""
    head("what", "measured", "aim")
    yardstick()
    for name in names:
        PARTS[name](place)


def main() -> None:
    """Choose, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=" ".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="few cells, one epoch")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure([name for name in PARTS if name in args.only], Place(Path(folder), args.quick))


if __name__ == "__main__":
    main()
