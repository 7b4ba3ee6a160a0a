"""Probe every cached layer with linear classifiers on its pooled features, and choose up to four layers on dev."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.analysis import layer_probe
from pipeline.analysis.layer_probe import DEV, TRAIN
from pipeline.core import params_file, trial_table
from pipeline.core.contracts import CLEAN, Tap
from pipeline.core.errors import InputError, run_command
from pipeline.core.trial_table import Trials
from pipeline.features.receipt_files import open_receipts
from pipeline.features.store import Store
from pipeline.report import layer_files as report

EXAMPLE = """\
what comes out:
  CSV   layer, method, set, eer        EER in percent; method is logistic or centroid
  PLOT  the same, drawn; numbered rings are the layers chosen, in their order
  JSON  {"chosen": [6, 9], "steps": [{"layer": 6, "eer": {"dev": ...}}, ...], "layers": {...}}

`steps` tells the EER of the first layer, of the first two together, and so on. Layers are chosen by the EER on dev
alone; the sets of evaluate.sets are told and decide nothing.

example:
  python -m stages.layers --trials data/trials --features data/features \\
      --csv data/layers/layers.csv --plot data/layers/layers.png --chosen data/layers/chosen.json
"""


@dataclass(frozen=True)
class ProbedSet:
    """One set, or several pooled: the trials of all, the receipts' file, and each store with its receipt."""

    trials: Trials
    path: Path
    parts: tuple[tuple[Store, dict[str, Any]], ...]

    @property
    def layers(self) -> tuple[Tap, ...]:
        """The layers that every part has, as the first one lists them."""
        (_, first), *others = self.parts
        return tuple(layer for layer in first["layers"] if all(layer in receipt["layers"] for _, receipt in others))

    def pooled(self, layer: Tap) -> NDArray[np.float32]:
        """Means and standard deviations (N, 2, D) of a layer."""
        import torch

        from pipeline.features.reader import Reader  # with torch, which takes a while: --help goes without

        out = torch.empty((len(self.trials), 1, 2, self.parts[0][0].spec.channels))
        start = 0
        for store, _ in self.parts:
            rows = np.arange(store.spec.utterances)
            part = out[start : start + len(rows)]
            Reader(store, views=(CLEAN,), layers=(layer,), pooled=True).gather(rows, part)
            start += len(rows)
        return out[:, 0].numpy()


def main(argv: Sequence[str] | None = None) -> None:
    """Open, probe, save."""
    given = _arguments(argv)
    settings = params_file.load(given.params)
    if TRAIN in settings.evaluate.sets:  # it would take the place of train.set
        where = settings.where("evaluate", "sets")
        raise InputError(f"{where}: expected no set named {TRAIN}, as train.set is another; rename it")
    files = {TRAIN: settings.train.set, DEV: DEV} | {name: name for name in settings.evaluate.sets}
    root = settings.features.folder
    sources = {
        name: _open(given.trials / f"{file}.csv", given.features / f"{file}.json", root=root)
        for name, file in files.items()
    }
    for source in sources.values():
        _check(source, sources[TRAIN])
    findings = layer_probe.probe(
        lambda name, layer: sources[name].pooled(layer),
        {name: source.trials.is_bonafide for name, source in sources.items()},
        layers=sources[TRAIN].layers,
        evaluation=settings.evaluate.sets,
    )
    report.write_csv(given.csv, findings)
    report.draw(given.plot, findings)
    report.write_json(given.chosen, findings)
    chosen = ", ".join(str(layer) for layer in findings.chosen)
    print(f"chosen of {len(findings.layers)} layers: {chosen}; dev EER {findings.steps[-1].eer[DEV]:.2f} %")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m stages.layers",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--params", type=Path, default=Path("params.yaml"), metavar="FILE", help="has the section `evaluate`")
    add("--trials", type=Path, required=True, metavar="FOLDER", help="has the tables of train.set, dev, evaluate.sets")
    add("--features", type=Path, required=True, metavar="FOLDER", help="has the receipts of the same sets")
    add("--csv", type=Path, required=True, metavar="FILE", help="EER by layer, method and set, to write")
    add("--plot", type=Path, required=True, metavar="FILE", help="the same as a drawing to write, .png or .svg")
    add("--chosen", type=Path, required=True, metavar="FILE", help="the layers chosen, to write (JSON)")
    return parser.parse_args(argv)


def _open(table: Path, path: Path, *, root: Path) -> ProbedSet:
    """A set's trials and features. Raises InputError where either is missing or they do not belong together."""
    source = ProbedSet(trial_table.read(table), path, tuple(open_receipts(path, root=root).values()))
    start = 0
    for _, receipt in source.parts:
        own = source.trials.take(np.arange(len(source.trials))[start : start + receipt["utterances"]])
        start += receipt["utterances"]
        if receipt["trials"] != trial_table.fingerprint(own):
            raise _other_trials(path)
    if start != len(source.trials):
        raise _other_trials(path)
    return source


def _other_trials(path: Path) -> InputError:
    return InputError(f"{path}: the trials changed since these features were extracted; run `dvc repro extract`")


def _check(source: ProbedSet, train: ProbedSet) -> None:
    """Raise InputError where a set has features of another encoder than train, or lacks a layer that train has."""
    encoder = train.parts[0][1]["encoder"]
    if any(receipt["encoder"] != encoder for _, receipt in source.parts):
        raise InputError(
            f"{source.path}: expected features of the encoder and window of {train.path}, got others; "
            "run `dvc repro extract`"
        )
    if missing := [str(layer) for layer in train.layers if layer not in source.layers]:
        have = ", ".join(str(layer) for layer in source.layers)
        raise InputError(
            f"{source.path}: expected the layers of {train.path}, got {have}, without {', '.join(missing)}; "
            "run `dvc repro extract`"
        )


if __name__ == "__main__":
    run_command(main)
