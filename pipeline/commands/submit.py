"""The files of a submission to the Speech Anti-Spoofing Arena, from the scores of a run. Nothing is uploaded."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.core import trial_table
from pipeline.core.arguments import parser_of
from pipeline.core.errors import InputError, run_command
from pipeline.metrics import join, submission
from pipeline.metrics.eer import eer_of

DATA = Path("data")
EXAMPLES = """\
ABOUT is a YAML file with what no score file says: system, dataset, submitter (docs/arena.md shows one). The command
takes the scores of the set that the flow has made, and it needs two steps:

1. Without artifact.scores_url in ABOUT it writes .eval_results/<dataset>/scores.txt. Upload this to your model
   repository on the hub.
2. Write its address there, pinned to the commit, as artifact.scores_url, and run the command again. It writes
   submissions/<slug>.yaml, for a pull request on the dataset; and result.yaml beside the scores, where ABOUT has a
   paper and the section `arena`.

example:
  bonafide submit linear-qamo-all-clean-1 --set arena_itw --about about.yaml --out submission
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command. Raises InputError for a run or set without scores, or an ABOUT that the Arena would refuse."""
    given = _arguments(argv)
    about = submission.read_about(given.about)
    place, table = DATA / "scores" / given.run / f"{given.set}.txt", DATA / "trials" / f"{given.set}.csv"
    if not place.is_file() or not table.is_file():
        there = sorted(path.relative_to(DATA / "scores").with_suffix("") for path in DATA.glob("scores/*/*.txt"))
        known = f"there are those of {', '.join(map(str, there[:10]))}" if there else "there are none in this folder"
        raise InputError(f"{place}: no scores of this run on this set; {known}; add the set to evaluate.sets and run "
                         "`dvc repro`")  # fmt: skip
    trials = trial_table.read(table)
    scores = join.read(place, trials)
    written, eer = submission.write(given.out, about, trials, scores)
    official = 100 * eer_of(scores, np.asarray(trials.is_bonafide)).eer
    print(
        f"{given.set}: {len(trials)} trials, none skipped; EER {eer:.4f} % as the Arena defines it (interpolated), "
        f"{official:.4f} % as the ASVspoof packages do\n"
        f"the Arena wants a score of every trial of {about.dataset.id}; of ASVspoof 2021 these are those of all phases"
    )
    for path in written:
        print(path)
    if about.artifact.scores_url is None:
        print(
            f"next: upload {written[0].relative_to(given.out)} to your model repository, write its address at that "
            f"commit into {given.about} as artifact.scores_url, and run this again"
        )


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = parser_of("bonafide submit", "Writes what a submission to the Arena needs, from a run's scores.", EXAMPLES)
    add = parser.add_argument
    add("run", metavar="RUN", help="name of a run of the project in the current folder")
    add("--set", required=True, metavar="NAME", help="the set that was scored, one of evaluate.sets")
    add("--about", type=Path, required=True, metavar="ABOUT", help="YAML file: system, dataset, artifact, submitter")
    add("--out", type=Path, required=True, metavar="FOLDER", help="folder to write into")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_command(main)
