"""Faults through the real commands, and mutated files: a clear refusal, or the same bytes and the right numbers.

    python bench/faults.py [--kills 50] [--seed 0] [--mutations 20000] [--points 4] [--only mutations]

First, faults of extraction and of the feature store.

Everything of `tests/faults.py`, which says what must come of a fault, on a generated corpus with a tiny random encoder;
then what needs a file system of its own, which is made where the kernel lets users make one: a disk that is really
full, and folders that are really read-only; then extractions killed at random calls and at random moments. Every
command is a process, as in dvc.yaml. One line a fault: what came of it.

Second, files of each kind of `tests/fuzz_kinds.py`, mutated at random and read in worker processes with a limit of
10 s of processor time a file (`tests/fuzz.py`). One line a kind: how many were read right, and how many refused; and
one for each defect: a traceback, a hang, a crash, or a file that was misread.

Third, a full disk in every command that writes (`tests/full_disk.py`), at some points of each.

Ends with exit code 1 where anything was neither refused nor as if nothing had happened, or where there was a defect.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests import faults, full_disk, fuzz, fuzz_kinds
from tests.faults import CACHE, EXTRACT, VERIFY, Ended, Fault, Made, Project, Undisturbed

WIDTH = 250  # of what a line shows of an outcome


def run(folder: Path, words: str, hook: str = "") -> Ended:
    """Run a command line in a process of its own."""
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    if hook:
        place = folder.with_name("hook") / "sitecustomize.py"  # which Python imports before anything else
        place.parent.mkdir(exist_ok=True)
        place.write_text(hook)
        env["PYTHONPATH"] = str(place.parent)
    done = subprocess.run(shlex.split(words), cwd=folder, env=env, capture_output=True, text=True, check=False)
    return Ended(done.returncode, done.stdout + done.stderr)


# ---------------------------------------------------------------- with a file system of its own

FILL = """
        try:
            with open("data/cache/filler", "wb", 0) as filler:
                while filler.write(bytes(2**12)):
                    pass
        except OSError:
            pass"""
TMPFS = f"-t tmpfs -o size=80m none {CACHE}"  # extraction asks for 64 MiB to spare
READ_ONLY = f"--bind {CACHE} {CACHE} && mount -o remount,bind,ro {CACHE}"


def mounted(mount: str, words: str, *, then: str = "true") -> str:
    """A command line that runs another one where something is mounted that nobody else sees."""
    script = f"mkdir -p {CACHE} && mount {mount} && {words}; code=$?; {then}; exit $code"
    return f"unshare --user --map-root-user --mount sh -c {shlex.quote(script)}"


def may_mount() -> bool:
    """Whether this machine lets us."""
    with tempfile.TemporaryDirectory() as folder:
        return run(Path(folder), mounted(TMPFS, "true")).code == run(Path(folder), mounted(READ_ONLY, "true")).code == 0


def full(good: Undisturbed, project: Project, rng: np.random.Generator) -> Made:
    """A disk that somebody else fills while extraction writes."""
    project.blank()
    at = int(rng.choice(faults.calls_of(good, "/c/")[:-1]))
    kept = mounted(TMPFS, EXTRACT, then=f"rm {CACHE}/filler; cp -a {CACHE} kept")
    ended = project.run(kept, faults.hook(at, FILL))
    shutil.rmtree(project.folder / CACHE)
    (project.folder / "kept").rename(project.folder / CACHE)
    return Made(project.store, [ended])


def read_only(*, todo: bool) -> faults.Make:
    """A folder of stores that may not be written; todo: and should be."""

    def make(_good: Undisturbed, project: Project, _rng: np.random.Generator) -> Made:
        if todo:
            (project.folder / project.store / "done/clean/00001.json").unlink()
        elif (ended := project.run(mounted(READ_ONLY, VERIFY))).code:
            raise RuntimeError(ended.said)
        return Made(project.store, [project.run(mounted(READ_ONLY, EXTRACT))])

    return make


MOUNTED = (
    Fault("a disk that is full", full, heals=True),
    Fault("a read-only folder, a shard to extract", read_only(todo=True), heals=True),
    Fault("a read-only folder, all extracted", read_only(todo=False), heals=True),
)


def kills(count: int) -> list[Fault]:
    """Extractions killed at random calls and, every other one, at random moments."""
    return [
        Fault(f"kill {i + 1}, at some moment", faults.killed_by_the_clock, heals=True)
        if i % 2
        else Fault(f"kill {i + 1}, at a call", faults.killed(""), heals=True)
        for i in range(count)
    ]


STEP = 1_000  # mutated files between two signs of life


def mutations(count: int, *, seed: int) -> int:
    """Try mutated files of every kind, and print what came of them; returns the number of defects."""
    defects = 0
    for make in fuzz_kinds.KINDS:
        start, found = time.perf_counter(), fuzz.Tried()
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            kind = make(Path(folder))
            for first in range(0, count, STEP):
                some = fuzz.tried(kind, range(first, min(first + STEP, count)), seed=seed)
                found.outcomes.update(some.outcomes)
                found.defects += some.defects
                print(f"{kind.name}: {found}", end="\r", file=sys.stderr)
        defects += len(found.defects)
        print("\n".join([f"{kind.name:16} {found}, {time.perf_counter() - start:.0f} s", *found.defects]), flush=True)
    return defects


def store_faults(given: argparse.Namespace) -> int:
    """Make every fault of extraction and store, and print what came of it; returns how many went wrong."""
    start, neither = time.perf_counter(), 0
    every = [*faults.FAULTS, *(MOUNTED if may_mount() else ()), *kills(given.kills)]
    with tempfile.TemporaryDirectory() as folder:
        good = {kind: Undisturbed(Path(folder, kind, "project"), run, storage=kind) for kind in ("float16", "int8")}
        for fault in every:
            place = Path(folder, "fault")
            outcome = faults.judge(fault, good[fault.storage], place, seed=given.seed)
            neither += bool(outcome.wrong)
            said = str(outcome).replace(folder, "")
            print(f"{fault.name:52} {said if outcome.wrong else said[:WIDTH]}", flush=True)
            shutil.rmtree(place)
    if not set(MOUNTED) <= set(every):
        print("left out, as users may mount nothing here: " + "; ".join(fault.name for fault in MOUNTED))
    print(f"{len(every)} faults, {neither} neither refused nor without a trace, {time.perf_counter() - start:.0f} s")
    return neither


def full_disks(most: int) -> int:
    """Fill the disk of every command, and print what came of it; returns how many commands ended wrongly."""
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        for words, count, flaws in full_disk.tried(Path(folder), most=most):
            wrong += bool(flaws)
            said = "; ".join(flaws).replace(folder, "") or "one message, nothing half written"
            print(f"{words[:52]:52} {count} times a full disk: {said}", flush=True)
    return wrong


def main() -> None:
    """Parse, make every fault, mutate files, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="extractions to kill")
    parser.add_argument("--seed", type=int, default=0, help="of which bytes flip, and when what happens")
    parser.add_argument("--mutations", type=int, default=20_000, help="mutated files of each kind")
    parser.add_argument("--only", choices=["store", "mutations", "disk"], help="one of the three alone")
    parser.add_argument("--points", type=int, default=4, help="times that the disk of a command is full")
    given = parser.parse_args()
    wrong = store_faults(given) if given.only in (None, "store") else 0
    wrong += mutations(given.mutations, seed=given.seed) if given.only in (None, "mutations") else 0
    wrong += full_disks(given.points) if given.only in (None, "disk") else 0
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
