"""Write receipts of just the layers and views that runs read: one for each choice of layers and views in the grid.

So one more cached layer or view, which changes the receipt of the set, leaves all runs alone that do not read it.
Runs score an evaluation set in all views of evaluate.views, so its receipts have these, too.
The receipts of analysed runs, the fine-tuned one included, lie in a folder of their own, too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from pipeline.core import params_file
from pipeline.core.contracts import Tap
from pipeline.core.errors import run_command
from pipeline.core.files import write_text
from pipeline.core.params import Params
from pipeline.features import receipt_files

Choice = tuple[str, tuple[Tap, ...], tuple[str, ...]]  # its name, its layers, its augmented views


def main() -> None:
    """Parse, open, select, write."""
    parser = argparse.ArgumentParser(prog="python -m stages.select", description=__doc__)
    add = parser.add_argument
    add("--params", type=Path, default=Path("params.yaml"), metavar="FILE", help="parameters; default: params.yaml")
    add("--features", type=Path, required=True, metavar="FILE", help="receipt of a set or pool, from extract or pool")
    add("--selected", type=Path, required=True, metavar="FOLDER", help="to write <layers>-<views>.json into")
    add("--analysed", type=Path, required=True, metavar="FOLDER", help="to write those of the analysed runs into")
    args = parser.parse_args()
    settings = params_file.load(args.params)
    name = args.features.stem
    opened = receipt_files.open_receipts(args.features, root=settings.features.folder)
    for folder, choices in ((args.selected, _scored(settings, name)), (args.analysed, _analysed(settings, name))):
        folder.mkdir(parents=True, exist_ok=True)
        for choice, layers, views in choices:
            found = {
                one: receipt_files.selected(store, receipt, layers=layers, views=views)
                for one, (store, receipt) in opened.items()
            }
            whole = found.get(name) or {"pool": found}
            write_text(folder / f"{choice}.json", json.dumps(whole, indent=2) + "\n")
    print(f"{args.features} -> {args.selected}, {args.analysed}")


def _choices(settings: Params) -> Iterator[Choice]:
    """The choices of the grid by name, each with its layers and augmented views."""
    for layers in settings.grid.layers:
        for views in settings.grid.views:
            yield f"{layers}-{views}", settings.layers[layers], settings.views[views].draw


def _scored(settings: Params, name: str) -> Iterator[Choice]:
    """The choices of the grid for a set. Runs score an evaluation set in further views."""
    for choice, layers, views in _choices(settings):
        yield choice, layers, tuple(dict.fromkeys((*views, *settings.scored_views(name))))


def _analysed(settings: Params, name: str) -> Iterator[Choice]:
    """The choices of the grid that `analyse` names, without those views, and that of the fine-tuned run."""
    named = {f"{layers}-{views}" for layers in settings.analyse.layers for views in settings.analyse.views}
    yield from (choice for choice in _choices(settings) if choice[0] in named)
    if settings.evaluate.finetuned and settings.encoder.finetune:
        yield receipt_files.FINETUNED, settings.encoder.finetune.layers, settings.scored_views(name)


if __name__ == "__main__":
    run_command(main)
