"""One folder with all that detection needs of a run: weights, centroids, threshold, calibration, a model card."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

EXAMPLES = """\
writes FOLDER, which goes to any machine that has bonafide installed, without the project:
  package.json    card: parameters, digests of receipts and files, metrics of the sets, threshold, calibration, versions
  model_card.md   the card for people; add what only you know, such as the licence and whom to ask
  runs/, index/   backend and centroids (safetensors), centroid index (FAISS)
  encoder/        weights, if the encoder was fine-tuned here or comes from a local folder or checkpoint; else it is
                  named, loaded from the hub or drawn from its seed, and refused where its sha256 is not the one of
                  training
  embeddings/     of the training set, with labels and attacks in trials/, if the run was analysed: for --explain

The encoder is loaded once to hold its weights against those that the run was trained with. An older package in FOLDER
is replaced; a folder of other things is left alone, with an error.

example:
  bonafide package linear-qamo-all-clean-1 --out package
  bonafide detect recordings/ --run package
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command. Raises InputError for a run that is not there or not whole."""
    given = _arguments(argv)
    from pipeline.detect import package  # with torch, which takes seconds: --help goes without

    card = package.write(given.run, given.out)
    size = sum(path.stat().st_size for path in given.out.rglob("*") if path.is_file())
    print(f"{card['name']} -> {given.out}, {len(card['files'])} files, {size / 1e6:.1f} MB")
    if not card["training_embeddings"]:
        print(
            "without embeddings of the training set, so --explain will not work: name the run in the section `analyse` "
            "of params.yaml and run `dvc repro flow/analyse/dvc.yaml` first"
        )


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bonafide package",
        description="Writes a trained system as one portable folder.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="name of a run of the project in the current folder")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder to write")
    return parser.parse_args(argv)
