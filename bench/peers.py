"""One ablation in this project and in DeepFense, which runs the encoder for every batch of every cell: wall times.

    python bench/peers.py FOLDER [--deepfense PYTHON] [--quick] [--write]

PYTHON is the interpreter of a virtual environment with DeepFense 0.2.2, which must not be the project's: its torch and
transformers are older. Make it so:

    python -m venv VENV && VENV/bin/pip install deepfense==0.2.2

Without it only this project is measured. Both get the same frozen encoder (a folder that transformers wrote), the same
files of the demo corpus, the same heads as far as both have them, losses, epochs, batches and learning rate, and both
look at dev once an epoch and at the evaluation set once a cell. A single cell has all processors to itself. Of several
cells as many run at once as there are processors, with one thread each.

First a few batches go through both, and encoder outputs and losses are compared. Then, from one cell to 36, each number
of cells is measured in both, one after the other. All that was measured is kept in FOLDER: stopped anywhere, the same
command goes on with the first measurement that is missing. --quick tries the same with two epochs, a smaller encoder
and fewer cells: it shows that both run, and its times say nothing. --write puts the table into bench/peers.md, which
also says what is not equal.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML

from pipeline.core import files, members
from pipeline.core.encoder_sections import EncoderParams, RandomEncoder

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "bench" / "peers.md"
CHECK = ROOT / "bench" / "peers_check.py"
BEGIN, END = "<!-- begin: python bench/peers.py --write -->", "<!-- end -->"
VERSION = "0.2.2"
MISSING = (
    f"DeepFense {VERSION} is not measured: give --deepfense the Python of an environment that has it.\n"
    f"Make one with: python -m venv VENV && VENV/bin/pip install deepfense=={VERSION}"
)
CODE = ("pipeline", "stages", "flow", "dvc.yaml", ".dvc/config", ".dvcignore", ".gitignore", "data/analysis/.gitkeep")
CODE += ("data/others/.gitkeep", "data/recordings/.gitkeep")
SETS = ("train", "dev", "eval")
EMBEDDING, RATE, DECAY, BATCH = 64, 0.001, 0.0001, 20
SAMPLES = 32_000  # of a window, at 16 kHz
CHECKED = 20  # utterances that go through both encoders

# A head here, with its parameters, and its nearest kin there.
HEADS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "linear": (
        {"embedding_dim": EMBEDDING},
        {"type": "MLP", "args": {"projection": [], "pooling_type": "stats", "output_dim": EMBEDDING}},
    ),
    "mlp": (
        {"embedding_dim": EMBEDDING, "hidden_dim": 128, "hidden_layers": 1, "dropout": 0.0},
        {"type": "MLP", "args": {"projection": [128], "pooling_type": "stats", "output_dim": EMBEDDING}},
    ),
    "asp": (
        {"embedding_dim": EMBEDDING, "attention_dim": 64},
        {"type": "MLP", "args": {"projection": [], "pooling_type": "asp", "output_dim": EMBEDDING}},
    ),
    "nes2net": (
        {"groups": 8, "scale": 8, "dilation": 2, "squeeze": 1, "pooling": "mean"},
        {"type": "Nes2Net", "args": {"nes_ratio": [8, 8], "dilation": 2, "se_ratio": 1, "pooling_type": "mean"}},
    ),
    "aasist": (
        {"attention_dropout": 0.2, "pooling_dropout": 0.3, "branch_dropout": 0.2, "embedding_dropout": 0.5},
        {"type": "AASIST", "args": {}},
    ),
    "conformer_tcm": (
        {"embedding_dim": EMBEDDING, "heads": 4, "blocks": 2, "kernel_size": 31},
        {"type": "TCM", "args": {"emb_size": EMBEDDING, "heads": 4, "num_encoders": 2, "kernel_size": 31}},
    ),
}
LOSSES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "cross_entropy": ({"bonafide_weight": None}, {"type": "CrossEntropy", "n_classes": 2}),
    "oc_softmax": (
        {"margin_bonafide": 0.9, "margin_spoof": 0.2, "alpha": 20.0},
        {"type": "OCSoftmax", "w_posi": 0.9, "w_nega": 0.2, "alpha": 20.0},
    ),
    "am_softmax": ({"scale": 20.0, "margin": 0.9}, {"type": "AMSoftmax", "n_classes": 2, "s": 20.0, "m": 0.9}),
}


@dataclass(frozen=True)
class Grid:
    """Cells that are measured together: every combination."""

    name: str
    heads: tuple[str, ...]
    losses: tuple[str, ...] = ("cross_entropy",)
    seeds: tuple[int, ...] = (1,)

    @property
    def cells(self) -> list[tuple[str, str, int]]:
        """Head, loss and seed of each cell."""
        return list(itertools.product(self.heads, self.losses, self.seeds))


@dataclass(frozen=True)
class Case:
    """What both projects are given. The encoder has XLSR's structure and random weights."""

    encoder: RandomEncoder
    epochs: int
    grids: tuple[Grid, ...]


def shape(layers: int, width: int, conv_channels: int) -> RandomEncoder:
    """The sizes of an encoder."""
    return RandomEncoder(
        layers=layers, width=width, heads=4, feedforward=2 * width, conv_channels=conv_channels, seed=1
    )


FULL = Case(
    shape(4, 128, 32),
    5,
    (
        Grid("one cell", ("linear",)),
        Grid("six heads", tuple(HEADS)),
        Grid("36 cells", tuple(HEADS), tuple(LOSSES), (1, 2)),
    ),
)
QUICK = Case(
    shape(1, 64, 8),
    2,
    (Grid("one cell", ("linear",)), Grid("six heads", tuple(HEADS)), Grid("three losses", ("linear",), tuple(LOSSES))),
)


def params(case: Case, place: Path, grid: Grid) -> dict[str, Any]:
    """The parameters of this project for some cells."""
    found: dict[str, Any] = YAML(typ="safe").load(ROOT / "params.yaml")
    corpus = {"corpus": "manifest", "protocol": str(place / "corpus/trials.csv"), "root": str(place / "corpus")}
    found["sets"] = {name: corpus | {"split": name, "quality": "column"} for name in SETS}
    found["encoder"] |= {"source": str(place / "encoder"), "normalize": "none"}
    found["encoder"]["finetune"]["layers"] = ["final"]
    del found["encoder"]["random"]
    found["extract"] |= {"layers": ["final"], "window": {"samples": SAMPLES, "pad": "repeat"}}
    found["train"] |= {
        "threads": threads(grid), "epochs": case.epochs, "patience": case.epochs, "average_best": 1,
        "batch_size": BATCH, "weight_decay": DECAY,
        "learning_rate": dict.fromkeys(("backend", "centroids", "layers"), RATE),
    }  # fmt: skip
    found["backends"] |= {head: ours for head, (ours, _) in HEADS.items()}
    found["losses"] |= {loss: ours for loss, (ours, _) in LOSSES.items()}
    found["layers"] = {"last": ["final"]}
    found["grid"] = {
        "backend": list(grid.heads), "loss": list(grid.losses), "layers": ["last"], "views": ["clean"],
        "seed": list(grid.seeds),
    }  # fmt: skip
    found["analyse"] |= {"backend": [], "loss": [], "layers": [], "views": [], "seed": []}
    return found


def config(case: Case, place: Path, cell: tuple[str, str, int], out: Path) -> dict[str, Any]:
    """The configuration of DeepFense for one cell."""
    head, loss, seed = cell
    backend, own_loss = HEADS[head][1], LOSSES[loss][1]
    width = case.encoder.width
    embedding = {"nes2net": width, "aasist": 160}.get(head, EMBEDDING)
    pad = {"type": "pad", "max_len": SAMPLES, "random_pad": False, "pad_type": "repeat"}
    data = {
        name: {
            "dataset_type": "StandardDataset", "dataset_names": ["demo"], "batch_size": BATCH,
            "parquet_files": [str(place / f"corpus/{name}.parquet")], "shuffle": name == "train",
            "base_transform": [pad],
        }
        for name in SETS
    }  # fmt: skip
    return {
        "exp_name": "-".join(map(str, cell)),
        "output_dir": str(out),
        "seed": seed,
        "data": {
            "sampling_rate": 16_000, "label_map": {"bonafide": 1, "spoof": 0},
            "train": data["train"], "val": data["dev"], "test": data["eval"],
        },
        "model": {
            "type": "StandardDetector",
            "frontend": {
                "type": "wav2vec2",
                "args": {"source": "huggingface", "ckpt_path": str(place / "encoder"), "freeze": True},
            },
            "backend": {"type": backend["type"], "args": backend["args"] | {"input_dim": width}},
            "loss": [own_loss | {"weight": 1.0, "embedding_dim": embedding}],
        },
        "training": {
            "trainer": "StandardTrainer", "epochs": case.epochs, "device": "cpu", "eval_every_epochs": 1,
            "monitor_metric": "EER", "monitor_mode": "min", "metrics": {"EER": {}},
            "optimizer": {"type": "adam", "lr": RATE, "weight_decay": DECAY},
        },
    }  # fmt: skip


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))


def threads(grid: Grid) -> int:
    """Threads of a cell: all processors for one, one for each of several."""
    return processors() if len(grid.cells) == 1 else 1


def make_inputs(case: Case, place: Path) -> dict[str, float]:
    """The folder of the encoder, and the corpus as files, as a manifest and as Parquet tables."""
    from pyarrow import Table, parquet  # slow to import, and not needed where no input is made

    from pipeline.corpora import demo
    from pipeline.encoder import models

    model, _ = models.load(EncoderParams(source="random", random=case.encoder, normalize="none"))
    models.save(model, place / "encoder")
    corpus = place / "corpus"
    rows = []
    for name in SETS:
        trials = demo.trials(corpus, Path(), name)
        for i, utterance in enumerate(trials.utterance.tolist()):
            label = "bonafide" if trials.is_bonafide[i] else "spoof"
            rows.append({"utterance": utterance, "path": str(trials.path[i]), "label": label, "split": name})
        table = [
            {"ID": row["utterance"], "path": str(corpus / row["path"]), "label": row["label"]}
            for row in rows
            if row["split"] == name
        ]
        parquet.write_table(Table.from_pylist(table), corpus / f"{name}.parquet")
    with (corpus / "trials.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return {"utterances": len(rows)}


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    """Write a YAML file."""
    with path.open("w") as file:
        YAML(typ="safe").dump(dict(content), file)


def timed(command: list[str | Path], folder: Path, **variables: str) -> float:
    """The seconds of a command, which runs without a GPU and without the network. An error ends this process."""
    offline = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "MPLBACKEND": "agg"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "OMP_NUM_THREADS")}
    start = time.perf_counter()
    done = subprocess.run(
        command,
        cwd=folder,
        env=kept | offline | {"PATH": path} | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"error: {' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return time.perf_counter() - start


def sweep(project: Path, *targets: str) -> float:
    """The seconds of `bonafide sweep` in a copy of this project."""
    return timed([sys.executable, "-m", "pipeline.commands", "sweep", *targets], project, PYTHONPATH=str(project))


def copy(folder: Path) -> Path:
    """The code and the flow of this project, in a git repository of its own and without outputs."""
    ignore = shutil.ignore_patterns("__pycache__", "dvc.lock")
    for name in CODE:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, folder / name)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    return folder


def our_features(case: Case, place: Path) -> dict[str, float]:
    """From audio files to the features of all sets, by this project."""
    project = place / "ours" / "features"
    shutil.rmtree(project, ignore_errors=True)
    write_yaml(copy(project) / "params.yaml", params(case, place, case.grids[0]))
    return {"seconds": sweep(project, "select")}


def our_cells(case: Case, place: Path, grid: Grid) -> dict[str, float]:
    """From features to the report, by this project."""
    project = place / "ours" / grid.name.replace(" ", "-")
    shutil.rmtree(project, ignore_errors=True)
    shutil.copytree(place / "ours" / "features", project)
    write_yaml(project / "params.yaml", params(case, place, grid))
    seconds = sweep(project)
    found = [
        json.loads((project / f"data/metrics/{head}-{loss}-last-clean-{seed}/eval.json").read_text())["eer"]
        for head, loss, seed in grid.cells
    ]
    return {"seconds": seconds, "eer": statistics.fmean(found)}


def their_cells(case: Case, place: Path, grid: Grid, python: Path) -> dict[str, float]:
    """From audio files to the EER on the evaluation set, by DeepFense's two commands for each cell."""
    out = place / "deepfense" / grid.name.replace(" ", "-")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    command = python.parent / "deepfense"

    def run(cell: tuple[str, str, int]) -> float:
        name = "-".join(map(str, cell))
        own = out / f"{name}.yaml"
        write_yaml(own, config(case, place, cell, out))
        limit = {"OMP_NUM_THREADS": str(threads(grid))}
        timed([command, "train", "--config", own], out, **limit)
        (best,) = out.glob(f"{name}_*/best_model.pth")
        timed([command, "test", "--config", own, "--checkpoint", best], out, **limit)
        results = best.parent / "results.json"
        if not results.is_file():  # the command ends with 0 all the same
            raise SystemExit(f"error: {command} test wrote no {results}; see test.log beside it")
        return 100 * float(json.loads(results.read_text())["EER"])

    start = time.perf_counter()
    with ThreadPoolExecutor(min(processors(), len(grid.cells))) as pool:
        found = list(pool.map(run, grid.cells))
    return {"seconds": time.perf_counter() - start, "eer": statistics.fmean(found)}


def their_start(place: Path, python: Path) -> dict[str, float]:
    """What DeepFense's command takes to do nothing. A cell starts it twice."""
    return {"seconds": timed([python.parent / "deepfense", "--help"], place)}


def has_deepfense(python: Path | None) -> bool:
    """Whether this Python has the version of DeepFense that is measured."""
    if python is None or not python.is_file():
        return False
    code = "import importlib.metadata; print(importlib.metadata.version('deepfense'))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False, cwd="/")
    return done.stdout.strip() == VERSION


def our_losses() -> tuple[dict[str, Any], dict[str, float]]:
    """Embeddings, labels and the weights of each loss as arrays; and the value of each loss."""
    import torch

    from pipeline.core.contracts import Facts, Labels

    embeddings = torch.randn(CHECKED, EMBEDDING, generator=torch.Generator().manual_seed(1))
    is_bonafide, unknown = torch.arange(CHECKED) % 3 == 0, torch.full((CHECKED,), -1)
    given: dict[str, Any] = {"embeddings": embeddings.numpy(), "label": is_bonafide.numpy()}
    values: dict[str, float] = {}
    for name, (own, _) in LOSSES.items():
        torch.manual_seed(1)
        loss = members.member("losses", name).Loss(Facts(EMBEDDING, 1, 0), **own)
        values[name] = float(loss(embeddings, Labels(is_bonafide, unknown, unknown)).detach())
        given |= {f"{name}.{key}": value.numpy() for key, value in loss.state_dict().items()}
    return given, values


def compare(case: Case, place: Path, python: Path) -> dict[str, float]:
    """How far both are apart: encoder outputs of some utterances, and each loss of the same embeddings and weights.

    The first is the root mean square of the differences relative to that of the values, which a store in float16
    rounds. The others are relative, too.
    """
    from pipeline import api

    given, ours = our_losses()
    np.savez(place / "check-given.npz", **given)
    cells = {loss: config(case, place, ("linear", loss, 1), place / "check") for loss in LOSSES}
    write_yaml(place / "check.yaml", {"cells": cells, "count": CHECKED})
    paths = [place / name for name in ("check.yaml", "check-given.npz", "check-found.npz")]
    timed([python, CHECK, *paths], place)
    theirs = np.load(paths[2])
    with contextlib.chdir(place / "ours" / "features"):
        features, _ = api.features("train").tensors(range(CHECKED))
    wanted = features[:, 0].numpy()  # (N, T, D)
    apart = float(np.sqrt(np.mean((wanted - theirs["features"]) ** 2) / np.mean(wanted**2)))
    return {"encoder output": apart} | {
        name: abs(float(theirs[name]) - value) / abs(value) for name, value in ours.items()
    }


def steps(case: Case, place: Path, python: Path | None) -> Iterator[tuple[str, Callable[[], dict[str, float]]]]:
    """All measurements in their order, by name."""
    yield "inputs", partial(make_inputs, case, place)
    yield "ours: features", partial(our_features, case, place)
    if python:
        yield "differences", partial(compare, case, place, python)
        yield "DeepFense: start", partial(their_start, place, python)
    for grid in case.grids:
        yield f"ours: {grid.name}", partial(our_cells, case, place, grid)
        if python:
            yield f"DeepFense: {grid.name}", partial(their_cells, case, place, grid, python)


def measure(case: Case, place: Path, python: Path | None) -> dict[str, dict[str, float]]:
    """Measure what is missing. Each measurement is written down when it ends."""
    book, conditions = place / "measured.json", {"case": repr(case), "processors": processors()}
    found = json.loads(book.read_text()) if book.is_file() else conditions
    if {name: found.get(name) for name in conditions} != conditions:
        raise SystemExit(f"error: {book} was measured under other conditions; give another folder, or delete it")
    for name, work in steps(case, place, python):
        if name not in found:
            found[name] = work()
            files.write_text(book, json.dumps(found, indent=2) + "\n")
            print(name, *(f"{key} {value:.3g}" for key, value in found[name].items()), flush=True)
    return found


def table(case: Case, found: Mapping[str, Mapping[str, float]]) -> str:
    """The table in Markdown; a dash for what was not measured."""
    features = found["ours: features"]["seconds"]
    lines = [
        f"| | DeepFense {VERSION} | here, with the features | ratio | here, features there | ratio | EER there, here |",
        "|---|---|---|---|---|---|---|",
    ]
    for grid in case.grids:
        cells, theirs = found[f"ours: {grid.name}"], found.get(f"DeepFense: {grid.name}")
        both, alone = features + cells["seconds"], cells["seconds"]
        row = [grid.name]
        if theirs:
            row += [f"{theirs['seconds']:.0f} s", f"{both:.0f} s", f"{theirs['seconds'] / both:.1f}"]
            row += [
                f"{alone:.0f} s",
                f"{theirs['seconds'] / alone:.1f}",
                f"{theirs['eer']:.1f} %, {cells['eer']:.1f} %",
            ]
        else:
            row += ["-", f"{both:.0f} s", "-", f"{alone:.0f} s", "-", f"-, {cells['eer']:.1f} %"]
        lines.append(f"| {' | '.join(row)} |")
    size = case.encoder
    said = (
        f"{processors()} processors; an encoder of {size.layers} layers of {size.width}; {case.epochs} epochs. The "
        f"features, made once, took {features:.0f} s."
    )
    if start := found.get("DeepFense: start"):
        said += f" DeepFense's command takes {start['seconds']:.0f} s to start, and a cell starts it twice."
    if apart := found.get("differences"):
        said += " Relative differences: " + ", ".join(f"{name} {value:.0e}" for name, value in apart.items()) + "."
    return "\n".join([*lines, "", said])


def into(page: str, text: str) -> str:
    """A page with the text between its two markers."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END, 1)[1]}"


def main() -> None:
    """Make, measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where all is made and kept")
    parser.add_argument("--deepfense", type=Path, metavar="PYTHON", help=f"Python of an environment with it, {VERSION}")
    parser.add_argument("--quick", action="store_true", help="smaller in all respects; the times say nothing")
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.relative_to(ROOT)}")
    args = parser.parse_args()
    if args.quick and args.write:
        parser.error("--write with --quick: the times of --quick say nothing; leave one of them out")
    case, python = QUICK if args.quick else FULL, args.deepfense and args.deepfense.absolute()
    if not has_deepfense(python):
        print(MISSING)
        python = None
    place = args.folder.absolute()
    place.mkdir(parents=True, exist_ok=True)
    text = table(case, measure(case, place, python))
    print(f"\n{text}")
    if args.write:
        files.write_text(PAGE, into(PAGE.read_text(), text))


if __name__ == "__main__":
    main()
