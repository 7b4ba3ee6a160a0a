"""A tiny project whose flow has run, stage by stage: two trained runs on noise, their scores and embeddings."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import soundfile
import torch
from ruamel.yaml import YAML

from pipeline.core import trial_table
from pipeline.core.files import write_text
from pipeline.metrics import evaluation
from pipeline.metrics.calibration import Calibration
from pipeline.metrics.verdicts import VerdictRule
from stages import embed, encoder, extract, prepare, score, train
from tests.places import SETTINGS

ROOT = Path(__file__).parents[1]
POOLED, FRAMES = "linear-qamo-all-clean-1", "asp-cross_entropy-all-clean-1"  # what their backends read
SIZES = {"train": 20, "dev": 12, "eval": 12}
WINDOW = 3_200  # samples
BATCH = 3  # divides shards and sets, so that detection makes the batches that extraction made


def _params(windows: Mapping[str, Any]) -> dict:
    settings = YAML(typ="safe").load(SETTINGS)
    corpus = {"corpus": "manifest", "protocol": "mine.csv", "root": "audio", "quality": "column"}
    settings["sets"] = {name: {**corpus, "split": name} for name in SIZES}
    settings["encoder"]["random"] = {
        "layers": 3, "width": 32, "heads": 4, "feedforward": 48, "conv_channels": 16, "seed": 5,
    }  # fmt: skip
    settings["extract"] |= {"layers": [1, 3], "window": {"samples": WINDOW, "pad": "repeat"}}
    settings["extract"] |= {"shard": 6, "batch_size": BATCH, "windows": dict(windows)}
    settings["train"] |= {"epochs": 12, "average_best": 1}
    settings["train"]["learning_rate"] = {"backend": 0.01, "centroids": 0.01, "layers": 0.01}
    settings["layers"] = {"all": [3, 1]}
    settings["grid"] |= {"backend": ["linear", "asp"], "loss": ["qamo", "cross_entropy"], "layers": ["all"]}
    settings["evaluate"] = {"sets": ["eval"], "views": [], "finetuned": [], "bootstrap": 50, "asv": {}}
    settings["evaluate"]["error_rate"] = 0.25  # of which the six trials of a class in dev can promise something
    settings["report"] = {"sort_by": "eval", "note": "Noise, not speech."}
    return settings


def _corpus(folder: Path) -> None:
    """White noise of 0.1 to 0.3 s is bona fide, brown noise is spoof."""
    lines = ["utterance,path,label,split,attack,quality,speaker"]
    for split, count in SIZES.items():
        (folder / "audio" / split).mkdir(parents=True)
        for i in range(count):
            rng = np.random.default_rng((i, len(split)))
            samples = rng.normal(size=rng.integers(1_600, 4_800))
            samples = samples.cumsum() if i % 2 else samples
            soundfile.write(folder / "audio" / split / f"{i}.flac", 0.5 * samples / np.abs(samples).max(), 16_000)
            label, attack = ("spoof", "A1") if i % 2 else ("bonafide", "-")
            lines.append(f"{split}{i},{split}/{i}.flac,{label},{split},{attack},{1.5 + i % 3},s{i % 4}")
    (folder / "mine.csv").write_text("\n".join(lines) + "\n")


def run_stage(stage: ModuleType, **options: str) -> None:
    """A stage in the current folder, with options as on the command line."""
    before = sys.argv
    sys.argv = ["stage", *(part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value))]
    try:
        stage.main()
    finally:
        sys.argv = before


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def project(folder: Path) -> Path:
    """The project, made in a folder once for all tests of a process; leave it as it is, or copy it."""
    return make(folder)


def make(folder: Path, **windows: Any) -> Path:
    """Make the project in a folder. windows: of `extract.windows`."""
    folder.mkdir()
    _corpus(folder)
    YAML(typ="safe").dump(_params(windows), folder / "params.yaml")
    with contextlib.chdir(folder), _one_thread():
        for name in SIZES:
            run_stage(prepare, set=name, trials=f"data/trials/{name}.csv")
        run_stage(encoder, trials="data/trials", card="data/encoder.json")
        for name in SIZES:
            run_stage(
                extract, set=name, trials=f"data/trials/{name}.csv", card="data/encoder.json",
                receipt=f"data/features/{name}.json",
            )  # fmt: skip
        for run in (POOLED, FRAMES):
            _train(run)
    return folder


def _train(run: str) -> None:
    backend, loss, layers, views, seed = run.split("-")
    training, dev_scores = f"data/metrics/{run}.json", f"data/dev_scores/{run}.txt"
    run_stage(
        train, backend=backend, loss=loss, layers=layers, views=views, seed=seed, trials="data/trials",
        features="data/features", run=f"data/runs/{run}", metrics=training, curves=f"data/curves/{run}.csv",
        dev_scores=dev_scores, seconds=f"data/seconds/{run}.json",
    )  # fmt: skip
    run_stage(
        score, set="eval", run=f"data/runs/{run}", trials="data/trials/eval.csv",
        features="data/features/eval.json", scores=f"data/scores/{run}/eval.txt", views=f"data/scores/{run}/eval",
    )  # fmt: skip
    _evaluate(run, threshold=json.loads(Path(training).read_text())["dev_threshold"])
    run_stage(
        embed, run=f"data/runs/{run}", trials="data/trials", features="data/features",
        embeddings=f"data/embeddings/{run}",
    )  # fmt: skip


def _evaluate(run: str, *, threshold: float) -> None:
    """What the stage `evaluate` writes, without its plots."""
    table = trial_table.read(Path("data/trials/eval.csv"))
    found = np.array(list(scores(run)))
    by_dev = {"threshold": threshold, "calibration": Calibration(1.0, 0.0), "rule": VerdictRule(0.25, 0.0, 0.0, 6, 6)}
    metrics = evaluation.evaluate(table, found, **by_dev, folds=50)
    write_text(Path(f"data/metrics/{run}/eval.json"), json.dumps(metrics))


def audio(name: str) -> list[Path]:
    """The files of a set in the order of its trials, relative to the project."""
    return [Path("audio", name, f"{i}.flac") for i in range(SIZES[name])]


def scores(run: str) -> Iterator[float]:
    """What the stage `score` wrote of eval, in the project in the current folder."""
    for line in Path(f"data/scores/{run}/eval.txt").read_text().splitlines():
        yield float(line.split()[1])
