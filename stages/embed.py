"""Embed every set of a run: the training sets, dev and the evaluation sets; and index each set's embeddings.

The training sets are train.set, and the set that the run itself was trained on, which fine-tuning may have of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline.analysis import embedding_index, embeddings
from pipeline.core import params_file, trial_table
from pipeline.core.errors import run_command
from pipeline.core.files import folder_beside, replace_folder
from pipeline.features import receipt_files
from pipeline.scoring import runs

DEV = "dev"
MARK = f"{DEV}/{embeddings.CARD_FILE}"


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, open, embed, save."""
    args = _arguments(argv)
    settings = params_file.load(args.params)
    beside = folder_beside(args.embeddings)
    own = runs.card(args.run)["train"]["set"]
    for name in dict.fromkeys((*settings.used_sets, own)):
        _embed(name, args, beside / name, root=settings.features.folder)
    replace_folder(beside, args.embeddings, mark=MARK)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stages.embed", description=__doc__)
    add = parser.add_argument
    add("--params", type=Path, default=Path("params.yaml"), metavar="FILE")
    add("--run", type=Path, required=True, metavar="FOLDER", help="the trained run")
    add("--trials", type=Path, required=True, metavar="FOLDER", help="with the tables of train.set, dev, evaluate.sets")
    add("--features", type=Path, required=True, metavar="FOLDER", help="with the receipts of the same sets")
    add("--choice", default="", metavar="NAME", help="receipts of <layers>-<views>; default: those of whole sets")
    add("--embeddings", type=Path, required=True, metavar="FOLDER", help="to write, with a folder for each set")
    return parser.parse_args(argv)


def _embed(name: str, args: argparse.Namespace, folder: Path, *, root: Path) -> None:
    """Write the embeddings of a set and their index."""
    from pipeline.scoring import scorer  # with torch, which takes a while: --help goes without

    table = trial_table.read(args.trials / f"{name}.csv")
    data = scorer.open_set(args.run, receipt_files.of_choice(args.features, name, args.choice), table, root=root)
    found = embedding_index.build(
        folder,
        _shown(scorer.embed(runs.backend(args.run), data), name, len(data)),
        table.utterance.tolist(),
        normalize=runs.index(args.run).normalize_query,
        facts=embeddings.identity(args.run, name, table) | {"features": data.digest},
    )
    kind, recall = found.record["kind"], found.record["recall"]
    print(f"{args.run.name}: {len(found)} embeddings of {name}, {kind} index, recall {recall:.3f}")


def _shown(batches: Iterator[NDArray[np.float32]], name: str, total: int) -> Iterator[NDArray[np.float32]]:
    """The batches, under a progress bar."""
    with tqdm(total=total, desc=name, unit="utterance", disable=None) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))


if __name__ == "__main__":
    run_command(main)
