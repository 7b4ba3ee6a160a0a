"""One folder with everything that detection needs: weights, centroids, threshold, calibration, a model card."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from pipeline.core.arguments import parser_of
from pipeline.core.errors import importing, run_command
from pipeline.core.files import readable_size

EXAMPLES = """\
FOLDER works on any machine where bonafide is installed, without the project:
  package.json    parameters, digests of receipts and files, metrics of the sets, threshold, calibration, versions
  model_card.md   the same for people; add what only you know, such as the licence and whom to ask
  runs/           backend weights (safetensors), FAISS index of the centroids
  encoder/        the weights of an encoder that was fine-tuned here, or that comes from a local folder or checkpoint.
                  Other encoders are not copied: `detect` loads them from the hub, or makes random weights from the
                  seed, and refuses weights with another sha256 than in training
  embeddings/     embeddings of the training set, with labels and attacks in trials/; only for an analysed run;
                  --explain needs them
  members/        of a fusion: a card of each of its runs, which share the folders above

The command loads the encoder once, to compare its weights with those of the training. An older package in FOLDER is
replaced. A folder of other things gives an error and is not changed.

example:
  bonafide package linear-qamo-all-clean-1 --out package
  bonafide detect recordings/ --run package
  bonafide package linear-qamo-all-clean-1 --out package --push you/name
  bonafide detect recordings/ --run hub:you/name
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command. Raises InputError for a run that is missing or incomplete."""
    given = _arguments(argv)
    with importing():
        from pipeline.detect import hub, package  # here, because torch imports slowly and --help does not need it

    if given.push:
        hub.check_name(given.push)  # before the work
    record = package.write(given.run, given.out, calibration=given.calibration)
    size = sum(path.stat().st_size for path in given.out.rglob("*") if path.is_file())
    print(f"{record['name']} -> {given.out}, {len(record['files'])} files, {readable_size(size)}")
    if not record["training_embeddings"]:
        print(
            "without embeddings of the training set, so there are neither explanations nor distances: name the run in "
            "the section `analyse` of params.yaml and run `dvc repro flow/analyse/dvc.yaml` first"
        )
    if given.push:
        print(f"{hub.PREFIX}{given.push}@{hub.push(given.out, given.push)}")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = parser_of("bonafide package", "Writes a trained system as one portable folder.", EXAMPLES)
    parser.add_argument("run", metavar="RUN", help="name of a run or a fusion of the project in the current folder")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder to write")
    parser.add_argument("--calibration", type=Path, metavar="FILE", help="of `bonafide calibrate`, to keep")
    parser.add_argument("--push", metavar="OWNER/NAME", help="also upload it to the hub; a new repository is private")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_command(main)
