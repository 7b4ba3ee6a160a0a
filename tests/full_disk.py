"""A full disk in every command that writes: one message, exit code 2, and nothing that is half written.

The commands run one after the other in a tiny project, each in a fork of this process. Before it runs with room, the
disk is full for it at several points: no file may get as large as one of those that the command writes. What must come
of that: each file is as before, or whole as with room; and the same command, with room, then ends as ever.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import resource
import shlex
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path

import torch
from ruamel.yaml import YAML

from pipeline import commands
from pipeline.core.errors import run_command
from pipeline.training import loop
from tests import systems
from tests.faults import Ended
from tests.systems import POOLED, SIZES
from tests.test_stage_encoder import FINETUNE
from tests.test_store import tree

ABOUT = """\
system: {name: x, slug: x, description: x, code: "https://a.b/c", checkpoint: "https://a.b/d"}
dataset: {id: a/b, revision: 0123456789abcdef0123456789abcdef01234567}
artifact: {bench_version: "1.0"}
submitter: {hf_username: x, contact: x}
submitted_at: 2026-11-26
"""
TABLES = "--trials data/trials"
RUN = f"--run data/runs/{POOLED}"
EVALUATE = (
    "stages.evaluate --scores data/scores/{} --dev-scores data/dev_scores/{}.txt --trials data/trials "
    "--training data/metrics/{}.json --metrics data/metrics/{} --plots data/plots/{}"
)
EMBEDDED = f"--embeddings data/embeddings/{POOLED}"
AXES = " ".join(
    f"--{axis} {name}"
    for axis, name in zip(("backend", "loss", "layers", "views", "seed"), POOLED.split("-"), strict=True)
)
RESCORED = f"{POOLED}-knn"
TUNED = "--params tuned.yaml --trials data/trials"
TUNED_FEATURES = (
    "stages.extract --params tuned.yaml --set {} --trials data/trials/{}.csv --card tuned/encoder.json "
    "--receipt tuned/features/{}.json"
)
PER_SET = (
    "stages.prepare --set {} --trials data/trials/{}.csv",
    "stages.extract --set {} --trials data/trials/{}.csv --card data/encoder.json --receipt data/features/{}.json "
    "--extracted data/extracted/{}.json",
    "stages.select --features data/features/{}.json --selected data/selected/{} --analysed data/analysed/{}",
)
STEPS = (
    *(PER_SET[0].replace("{}", name) for name in SIZES),
    f"stages.encoder {TABLES} --card data/encoder.json",
    *(PER_SET[1].replace("{}", name) for name in SIZES),
    f"stages.pool --pool both {TABLES} --features data/features --extracted data/extracted",
    *(PER_SET[2].replace("{}", name) for name in SIZES),
    f"stages.layers {TABLES} --features data/features --csv data/layers/layers.csv --plot data/layers/layers.png "
    "--chosen data/layers/chosen.json --atlas data/layers/atlas.csv",
    f"stages.train {AXES} {TABLES} --features data/features {RUN} --metrics data/metrics/{POOLED}.json "
    f"--curves data/curves/{POOLED}.csv --dev-scores data/dev_scores/{POOLED}.txt --seconds data/seconds/{POOLED}.json",
    f"stages.score --set eval --trials data/trials/eval.csv --features data/features/eval.json {RUN} "
    f"--scores data/scores/{POOLED}/eval.txt --views data/scores/{POOLED}/eval",
    EVALUATE.replace("{}", POOLED),
    f"stages.embed {RUN} {TABLES} --features data/features {EMBEDDED}",
    f"stages.rescore --scoring knn {RUN} --training data/metrics/{POOLED}.json {TABLES} {EMBEDDED} "
    f"--scores data/scores/{RESCORED} --dev-scores data/dev_scores/{RESCORED}.txt "
    f"--metrics data/metrics/{RESCORED}.json",
    EVALUATE.replace("{}", RESCORED),
    f"stages.analyse {RUN} {TABLES} {EMBEDDED} --analysis data/analysis/{POOLED}",
    "stages.report --metrics data/metrics --plots data/plots --curves data/curves --seconds data/seconds "
    "--layers data/layers --analysis data/analysis --out data/report --summary data/summary.json",
    "stages.prepare --params rated.yaml --set eval --trials rated/eval.csv --quality-cache rated/quality",
    f"stages.encoder {TUNED} --card tuned/encoder.json --seconds tuned/seconds",
    *(TUNED_FEATURES.replace("{}", name) for name in ("dev", "eval")),
    f"stages.finetuned {TUNED} --card tuned/encoder.json --features tuned/features --run tuned/runs/finetuned "
    "--metrics tuned/metrics.json --curves tuned/curves.csv --dev-scores tuned/dev_scores.txt --scores tuned/scores "
    "--seconds tuned/seconds.json --encoder-seconds tuned/seconds",
    "bonafide cache export eval out/eval.h5",
    "bonafide cache --params other.yaml import out/eval.h5",
    "bonafide cache push eval pushed",
    "bonafide cache --params pulled.yaml pull eval pushed",
    f"bonafide detect audio/eval/0.flac --run {POOLED} --timeline out/timeline",
    f"bonafide embed {POOLED} eval --out out/eval.npz",
    f"bonafide embed {POOLED} eval --out out/eval.parquet",
    f"bonafide embed {POOLED} eval --projector out/projector",
    f"bonafide package {POOLED} --out out/package",
    f"bonafide plot data/scores/{POOLED}/eval.txt --key data/trials/eval.csv --out out/plots",
    f"bonafide submit {POOLED} --set eval --about about.yaml --out out/submission",
)
BESIDE = re.compile(r"\.(part|lock)$|\.part/|\.checkpoint/")  # what the next run writes over
GROWING = re.compile(r"^rated/quality/")  # where each line is written at once, and the next run goes on
TIMED = re.compile(r"^(data/seconds|tuned/seconds|data/curves|data/report|data/summary|data/plots/timeline)")


def make(folder: Path) -> Path:
    """A project in a folder before any of the commands, with its audio and parameters."""
    folder.mkdir()
    systems._corpus(folder)
    settings = systems._params({})
    settings["grid"] |= {"backend": ["linear"], "loss": ["qamo"]}
    settings["pools"] = {"both": ["train", "eval"]}
    settings["train"]["epochs"], settings["analyse"]["points"] = 2, 100
    settings["analyse"] |= {"projections": ["pca"], "scorings": ["knn"]}
    tuned = YAML(typ="safe").load(FINETUNE)["encoder"]
    for name, changes in {
        "params": {},
        "tuned": {"encoder": tuned, "extract": settings["extract"] | {"layers": [1, 2, 3]}},
        "rated": {"sets": settings["sets"] | {"eval": settings["sets"]["eval"] | {"quality": "dnsmos"}}},
        "other": {"features": {"root": "other"}},
        "pulled": {"features": {"root": "pulled"}},
    }.items():
        YAML(typ="safe").dump(settings | changes, folder / f"{name}.yaml")
    (folder / "about.yaml").write_text(ABOUT)
    return folder


def run(folder: Path, words: str, most: int | None = None) -> Ended:
    """Run a command in a fork. most: bytes of a file; what is written beyond them fails, as on a full disk."""
    out, into = os.pipe()
    child = multiprocessing.get_context("fork").Process(target=_work, args=(folder, words, most, into))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
        child.start()
    os.close(into)
    with os.fdopen(out, encoding="utf-8") as said:
        text = said.read()
    child.join()
    return Ended(child.exitcode or 0, text)


def _work(folder: Path, words: str, most: int | None, into: int) -> None:
    for stream in (1, 2):
        os.dup2(into, stream)
    os.close(into)
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w")  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", buffering=1)  # type: ignore[misc]
    os.environ["TQDM_DISABLE"] = "1"
    os.chdir(folder)
    torch.set_num_threads(1)
    loop.CHECKPOINT_SECONDS = 0.0
    name, *arguments = shlex.split(words)
    sys.argv = [name, *arguments]
    stage = None if name == "bonafide" else import_module(name).main
    if most is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    run_command(stage or (lambda: commands.dispatch(arguments)))


def points(before: Mapping[str, bytes], good: Mapping[str, bytes], most: int) -> list[int]:
    """Sizes at which one of the files that a command writes does not fit, at most so many, the smallest among them."""
    written = {len(data) for name, data in good.items() if data and data != before.get(name)}
    sizes = sorted(written)
    return [size - 1 for size in sizes[:: -(-len(sizes) // most)]]


def flaws(before: Mapping[str, bytes], good: Mapping[str, bytes], folder: Path, words: str, most: int) -> list[str]:
    """What is wrong with how a command ends, in a copy of the project before it, where no file gets larger."""
    ended, found = run(folder, words, most), tree(folder)
    whole = not _others(found, good)
    wrong = [] if whole and ended.code == 0 else _flaws_of_message(ended)
    for name in _others(found, good):
        if name not in found and name in before:
            wrong.append(f"{name} is lost")
        elif GROWING.match(name) and good[name].startswith(found.get(name, b"")):
            continue
        elif name in found and found[name] != before.get(name):
            wrong.append(f"{name} is neither that of before nor whole")
    again = run(folder, words)
    if again.code:
        wrong.append(f"with room, it does not go on: {again.said}")
    elif others := _others(tree(folder), good) | _beside(tree(folder)) - _beside(good):
        wrong.append(f"with room, it does not come to the same files: {', '.join(sorted(others))}")
    return wrong


def _flaws_of_message(ended: Ended) -> list[str]:
    said = ended.said.strip()
    wrong = [] if ended.code == 2 else [f"exit code {ended.code}: {said}"]
    if len(re.findall("^error: ", said, re.MULTILINE)) != 1 or "Traceback" in said or "make room" not in said:
        wrong.append(f"expected one message that says to make room, got: {said}")
    return wrong


def _others(some: Mapping[str, bytes], good: Mapping[str, bytes]) -> set[str]:
    """The files that differ, but for those that differ from run to run."""
    names = {name for name in {*some, *good} if not (BESIDE.search(name) or TIMED.search(name))}
    return {name for name in names if some.get(name) != good.get(name)}


def _beside(files: Mapping[str, bytes]) -> set[str]:
    return {name for name in files if BESIDE.search(name)}


def tried(folder: Path, steps: Sequence[str] = STEPS, *, most: int) -> Iterator[tuple[str, int, list[str]]]:
    """Make a project, and fill the disk of each of its commands at `most` points; yield what was wrong with it."""
    project = make(folder / "project")
    for words in STEPS[: 1 + max(map(STEPS.index, steps))]:
        before, copy = tree(project), folder / "copy"
        shutil.copytree(project, copy)
        ended = run(project, words)
        if ended.code:
            raise RuntimeError(f"{words}: {ended.said}")
        good = tree(project)
        wrong: list[str] = []
        at = points(before, good, most) if words in steps else []
        for size in at:
            shutil.copytree(copy, folder / "full")
            wrong += [f"at {size} bytes: {flaw}" for flaw in flaws(before, good, folder / "full", words, size)]
            shutil.rmtree(folder / "full")
        shutil.rmtree(copy)
        if words in steps:
            yield words, len(at), wrong
