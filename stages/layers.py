"""Probe every cached layer by linear classifiers on means and standard deviations, and choose up to four on dev.

As it is the one stage that reads all sets, it also says where audio of the training set is in another.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.analysis import layer_atlas, layer_probe
from pipeline.analysis.layer_probe import DEV, TRAIN
from pipeline.core import overlap, params_file, trial_table
from pipeline.core.arguments import parser_of
from pipeline.core.contracts import CLEAN, Tap
from pipeline.core.errors import InputError, run_command
from pipeline.core.params import Params
from pipeline.core.trial_table import Trials
from pipeline.features import other_encoders
from pipeline.features.receipt_files import OpenSet, open_sets
from pipeline.features.specs import fingerprint
from pipeline.report import layer_files

EXAMPLE = """\
output:
  --csv     layer, method, set, eer        EER in percent; method is logistic or centroid
  --plot    a drawing of these EERs; numbered rings mark the chosen layers, in order
  --atlas   encoder, layer, method, trained, tested, view, eer    of the atlas; only a header without atlas.domains
  --chosen  {"chosen": [6, 9], "steps": [{"layer": 6, "eer": {"dev": ...}}, ...], "layers": {...}}

`steps` has the EER of the first chosen layer, then of the first two together, and so on. Layers are chosen by the EER
on dev. The sets of evaluate.sets are reported and have no part in the choice.

example:
  python -m stages.layers --trials data/trials --features data/features \\
      --csv data/layers/layers.csv --plot data/layers/layers.png --chosen data/layers/chosen.json \\
      --atlas data/layers/atlas.csv
"""


@dataclass(frozen=True)
class ProbedSet:
    """One set, or the sets of a pool: all trials, the file of the receipts, and the open stores."""

    trials: Trials
    path: Path
    parts: tuple[OpenSet, ...]

    @property
    def layers(self) -> tuple[Tap, ...]:
        """The layers that all parts have, in the order of the first part."""
        first, *others = self.parts
        layers = first.receipt["layers"]
        return tuple(layer for layer in layers if all(layer in part.receipt["layers"] for part in others))

    @property
    def views(self) -> tuple[str, ...]:
        """The augmented views that all parts have."""
        first, *others = self.parts
        views = first.receipt["views"]
        return tuple(view for view in views if view != CLEAN and all(view in part.receipt["views"] for part in others))

    def pooled(self, layer: Tap, view: str = CLEAN) -> NDArray[np.float32]:
        """The means and standard deviations (N, 2, D) of a layer."""
        import torch  # here, because it imports slowly and --help does not need it

        from pipeline.features.reader import Reader

        out = torch.empty((len(self.trials), 1, 2, self.parts[0].store.spec.channels))
        start = 0
        for part in self.parts:
            rows = np.arange(len(part.trials))
            block = out[start : start + len(rows)]
            Reader(part.store, views=(view,), layers=(layer,), pooled=True).gather(rows, block)
            start += len(rows)
        return out[:, 0].numpy()


def main(argv: Sequence[str] | None = None) -> None:
    """Open, probe, save."""
    given = _arguments(argv)
    settings = params_file.load(given.params)
    if TRAIN in settings.evaluate.sets:  # the results would have two sets of that name
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
    others = {name: source.trials for name, source in sources.items() if name != TRAIN}
    for warning in overlap.leaks(settings.train.set, sources[TRAIN].trials, others):
        print(warning, file=sys.stderr)
    findings = layer_probe.probe(
        lambda name, layer: sources[name].pooled(layer),
        {name: source.trials.is_bonafide for name, source in sources.items()},
        layers=sources[TRAIN].layers,
        evaluation=settings.evaluate.sets,
    )
    layer_files.write_csv(given.csv, findings)
    layer_files.draw(given.plot, findings)
    atlas = _atlas(settings, given)
    layer_files.write_atlas(given.atlas, atlas)
    layer_files.write_json(given.chosen, findings, atlas)
    chosen = ", ".join(str(layer) for layer in findings.chosen)
    print(f"chosen of {len(findings.layers)} layers: {chosen}; dev EER {findings.steps[-1].eer[DEV]:.2f} %")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = parser_of("python -m stages.layers", __doc__ or "", EXAMPLE)
    add = parser.add_argument
    add("--params", type=Path, default=Path("params.yaml"), metavar="FILE", help="parameters; default: params.yaml")
    add("--trials", type=Path, required=True, metavar="FOLDER", help="trial tables of train.set, dev, evaluate.sets")
    add("--features", type=Path, required=True, metavar="FOLDER", help="receipts of the same sets")
    add("--csv", type=Path, required=True, metavar="FILE", help="EERs to write, by layer, method and set")
    add("--plot", type=Path, required=True, metavar="FILE", help="drawing of these EERs to write, .png or .svg")
    add("--chosen", type=Path, required=True, metavar="FILE", help="chosen layers to write (JSON)")
    add("--atlas", type=Path, required=True, metavar="FILE", help="EERs of the atlas to write")
    return parser.parse_args(argv)


def _atlas(settings: Params, given: argparse.Namespace) -> dict[str, layer_atlas.Atlas]:
    """The atlas of each encoder, by fingerprint; empty where the parameters name no domains.

    Raises InputError where an encoder that the parameters name has no whole stores of all sets.
    """
    asked, root = settings.atlas, settings.features.folder
    if not asked.domains:
        return {}
    sources = {
        name: _open(given.trials / f"{name}.csv", given.features / f"{name}.json", root=root) for name in asked.sets
    }
    first = sources[asked.sets[0]]
    for source in sources.values():
        _check(source, first)
    stores = {fingerprint(first.parts[0].receipt["encoder"]): sources}
    parts = [part for source in sources.values() for part in source.parts]
    others = other_encoders.find(root, parts, wanted=asked.encoders, views=asked.views)
    for encoder, found in others.items():
        stores[encoder] = {
            name: ProbedSet(source.trials, source.path, (part,))
            for (name, source), part in zip(sources.items(), found, strict=True)
        }
    return {encoder: _survey(of_sets, settings) for encoder, of_sets in stores.items()}


def _survey(sources: Mapping[str, ProbedSet], settings: Params) -> layer_atlas.Atlas:
    """The atlas over the stores of one encoder, of the layers that all sets have."""
    first = next(iter(sources.values()))
    views = {name: [view for view in settings.atlas.views if view in one.views] for name, one in sources.items()}
    return layer_atlas.survey(
        lambda name, view, layer: sources[name].pooled(layer, view),
        {name: source.trials.is_bonafide for name, source in sources.items()},
        layers=[layer for layer in first.layers if all(layer in one.layers for one in sources.values())],
        domains=settings.atlas.domains,
        views=views,
    )


def _open(table: Path, path: Path, *, root: Path) -> ProbedSet:
    """Open a set's trials and features. Raises InputError where one is missing or they do not belong together."""
    trials = trial_table.read(table)
    return ProbedSet(trials, path, tuple(open_sets(path, trials, root=root)))


def _check(source: ProbedSet, train: ProbedSet) -> None:
    """Raise InputError where a set has features of another encoder than train, or lacks a layer of train."""
    encoder = train.parts[0].receipt["encoder"]
    if any(part.receipt["encoder"] != encoder for part in source.parts):
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
