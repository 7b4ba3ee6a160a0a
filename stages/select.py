"""Write receipts of just the layers and views that runs read: one for each choice of layers and views in the grid.

So one more cached layer or view, which changes the receipt of the set, leaves all runs alone that do not read it.
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


def main() -> None:
    """Parse, open, select, write."""
    parser = argparse.ArgumentParser(prog="python -m stages.select", description=__doc__)
    add = parser.add_argument
    add("--params", type=Path, default=Path("params.yaml"), metavar="FILE", help="parameters; default: params.yaml")
    add("--features", type=Path, required=True, metavar="FILE", help="receipt of a set or pool, from extract or pool")
    add("--selected", type=Path, required=True, metavar="FOLDER", help="to write <layers>-<views>.json into")
    args = parser.parse_args()
    settings = params_file.load(args.params)
    opened = receipt_files.open_receipts(args.features, root=settings.features.folder)
    for name, layers, views in _choices(settings):
        found = {
            one: receipt_files.selected(store, receipt, layers=layers, views=views)
            for one, (store, receipt) in opened.items()
        }
        whole = found.get(args.features.stem) or {"pool": found}
        write_text(args.selected / f"{name}.json", json.dumps(whole, indent=2) + "\n")
    print(f"{args.features} -> {args.selected}")


def _choices(settings: Params) -> Iterator[tuple[str, tuple[Tap, ...], tuple[str, ...]]]:
    """The choices by name, each with its layers and augmented views."""
    for layers in settings.grid.layers:
        for views in settings.grid.views:
            yield f"{layers}-{views}", settings.layers[layers], settings.views[views].draw


if __name__ == "__main__":
    run_command(main)
