"""Bring all that DVC tracks up to date, several stages at once.

Does what `dvc repro` does and hands the result to DVC: afterwards `dvc status` is clean, and `dvc repro` has nothing to
do. It runs the commands of `dvc.yaml` in processes that start with everything imported, and stages of different cells
of the grid side by side. What is up to date is not touched. A stage that fails stops what depends on it, and nothing
else. Stopped or killed, the same command goes on.

examples:
  bonafide sweep                 all, with a stage a processor at once
  bonafide sweep -j 1            one after the other
  bonafide sweep report          the report and all that it needs
  bonafide sweep --downstream layers select
                                 these stages and all that needs them, as with features that were pulled
  bonafide sweep --halving       only systems that do well on dev are trained to the end
  bonafide sweep --engine dask --scheduler tcp://host:8786
                                 cells on the workers of a cluster (docs/cluster.md)
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

from pipeline.core import params_file
from pipeline.core.arguments import parser_of
from pipeline.core.errors import InputError, listing
from pipeline.extraction.dask_workers import Cluster
from pipeline.sweep import starting, unchanged
from pipeline.sweep.cluster import Workers
from pipeline.sweep.halving import Halving, HalvingPlan, RungSteps, SweepOver, lines
from pipeline.sweep.sweep import LOGS, Outcome, Steps, Sweep, is_cell
from pipeline.sweep.tracked import Flow

ALL_DONE = "All is up to date."
GPU_MIB = 16 * 1024  # for a process that trains; `asp` and `conformer_tcm` at XLSR's width take 10 GiB
FIRST_SHARE = 8  # of the epochs of a training, by default the first rung is one part in so many


def main(argv: Sequence[str]) -> None:
    """Parse, sweep, say what was done."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.scheduler and args.engine == "local":
        parser.error("argument --scheduler: expected --engine dask beside it")
    if args.downstream and not args.targets:
        parser.error("argument --downstream: expected stages beside it, such as `layers select`")
    root = unchanged.root_of(Path.cwd())
    if not args.targets and args.halving is None and root and unchanged.is_as_noted(root):
        print(ALL_DONE)
        return
    code = starting.code_of(root) if root else {}
    if root == Path.cwd() and not args.targets and unchanged.was_up_to_date(root):
        starting.prepare_for_cells(root)  # mostly they are what changes, and DVC's look at the flow takes as long
    flow = Flow(args.targets, downstream=args.downstream)
    os.chdir(flow.root)
    with contextlib.ExitStack() as stack:
        workers = stack.enter_context(Workers(_cluster(args), flow.root / LOGS)) if args.engine == "dask" else None
        jobs = args.jobs or (_jobs() if workers is None else sys.maxsize)

        def over(steps: Steps, leave: Collection[str]) -> Outcome:
            with tqdm(unit="stage", smoothing=0, dynamic_ncols=True, leave=False) as bar:
                tell = partial(_show, bar)
                return Sweep(
                    steps, jobs=jobs, tell=tell, together=_together(), workers=workers, leave=leave, code=code
                ).run()

        outcome = over(flow, ()) if args.halving is None else _halved(flow, args.halving, over)
    if args.halving is None and not outcome.failed:
        flow.note_that_all_is_done()
    _say(outcome)


def _cluster(args: argparse.Namespace) -> Cluster:
    """Where the workers are: by the option, or else where extraction has them. Raises InputError where neither says."""
    if args.scheduler:
        return Cluster(args.scheduler, "--scheduler")
    settings = Path("params.yaml")
    if settings.is_file() and (scheduler := params_file.load(settings).extract.scheduler):
        return Cluster(scheduler, "extract.scheduler")
    raise InputError(
        "--engine dask: expected --scheduler tcp://host:8786, or local:N for N workers on this machine, or "
        "extract.scheduler in params.yaml; got none"
    )


def _halved(flow: Flow, first: int, over: SweepOver) -> Outcome:
    """Search by successive halving, and say what was dropped. first: epochs of the first rung, 0 for the default."""
    settings = params_file.load(Path("params.yaml"))
    first = first or max(1, settings.train.epochs // FIRST_SHARE)
    if first >= settings.train.epochs:
        raise InputError(
            f"--halving: expected fewer epochs than the {settings.train.epochs} of train.epochs, got {first}"
        )
    spared = {*settings.analysed, *settings.fused_runs}
    plan = HalvingPlan(settings.grid.runs, spared, first, settings.train.epochs)
    search = Halving(flow, plan, over)
    outcome = search.run()
    for line in lines(search.rungs):
        print(line)
    return outcome


def _say(outcome: Outcome) -> None:
    """What was done. Raises InputError where a stage failed."""
    if not (outcome.ran or outcome.restored or outcome.failed):
        print(ALL_DONE)
        return
    print(
        f"{len(outcome.ran)} stages ran, {len(outcome.restored)} were restored from DVC's cache, "
        f"{len(outcome.current)} were up to date"
    )
    if outcome.failed:
        told = listing([f"{name}: {why}" for name, why in outcome.failed.items()])
        raise InputError(f"{len(outcome.failed)} stages failed, {len(outcome.left_out)} need what they make:\n{told}")


def _jobs() -> int:
    """A stage a processor; where a GPU trains at most one for each `GPU_MIB` of its memory, which all share."""
    processors, settings = len(os.sched_getaffinity(0)), Path("params.yaml")
    if settings.is_file() and params_file.load(settings).train.device == "cpu":
        return processors
    memory = _gpu_mib()
    return processors if memory is None else max(1, min(processors, memory // GPU_MIB))


def _gpu_mib() -> int | None:
    """The memory of the first GPU in MiB, 0 where it cannot be told; None where there is none, or none may be used."""
    if not Path("/dev/nvidia0").exists() or os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return None
    program = shutil.which("nvidia-smi")
    command = [str(program), "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout if program else ""  # noqa: S603
    first = said.split("\n")[0].strip()
    return int(first) if first.isdecimal() else 0


def _together() -> bool:
    """Whether trainings that read the same features run in one process."""
    settings = Path("params.yaml")
    return not settings.is_file() or params_file.load(settings).dataset.together


def _show(bar: tqdm, sweep: Sweep) -> None:
    """Move the bar: what is up to date counts no more, so that the time left is that of the rest."""
    found, flow = sweep.outcome, sweep.flow
    steps = [name for name in flow.steps if name not in sweep.leave]
    done = [*found.ran, *found.restored]
    cells = sum(map(is_cell, steps))
    ended = sum(map(is_cell, [*done, *found.current]))
    bar.total = len(steps) - len(found.current) - len(found.left_out)
    bar.n = len(done) + len(found.failed)
    bar.set_description_str(
        f"up to epoch {flow.epochs}" if isinstance(flow, RungSteps) else f"{ended} of {cells} cells"
    )
    at = ", ".join(name.rpartition(":")[2] for name in list(sweep.running)[:2])
    bar.set_postfix_str(f"{len(found.failed)} failed, {at}" if found.failed else at)


def positive(text: str) -> int:
    """A whole number above zero."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    purpose, _, details = (__doc__ or "").partition("\n\n")
    parser = parser_of("bonafide sweep", purpose, details)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="stages, as `dvc repro` takes them; default: all")
    parser.add_argument(
        "--downstream", action="store_true", help="the targets and what needs them, nothing before them"
    )
    halving = (
        "train all systems of the grid for N epochs, the half with the lower dev EER for twice as many, and so on; the "
        "others are left out (default: an eighth of train.epochs)"
    )
    parser.add_argument("--halving", nargs="?", type=positive, const=0, metavar="N", help=halving)
    jobs = (
        "stages at once (default: as many as processors; where a GPU trains, one for each 16 GiB of its memory; with "
        "dask as many as the workers have threads)"
    )
    parser.add_argument("-j", "--jobs", type=positive, metavar="N", help=jobs)
    engine = "what runs the stages of cells: this machine, or Dask's workers (default: local)"
    parser.add_argument("--engine", choices=("local", "dask"), default="local", help=engine)
    scheduler = (
        "of Dask: tcp://host:8786, or local:N for N workers on this machine (default: extract.scheduler of params.yaml)"
    )
    parser.add_argument("--scheduler", metavar="ADDRESS", help=scheduler)
    return parser
