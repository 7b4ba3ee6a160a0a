"""The files of a submission to the Speech Anti-Spoofing Arena, from a run or a package. Nothing is uploaded."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline.core import params_file, trial_table
from pipeline.core.arguments import parser_of
from pipeline.core.errors import InputError, importing, listing, run_command
from pipeline.core.trial_table import Trials
from pipeline.metrics import join, submission
from pipeline.metrics.eer import eer_of

DATA, PARAMS = Path("data"), Path("params.yaml")
PACKAGE_CARD, ON_HUB = "package.json", "hub:"  # as in pipeline.detect, which imports torch
EXAMPLES = """\
SYSTEM is a run of the project in the current folder: the flow has scored the set. Or it is a package, a folder of
`bonafide package` or hub:owner/name, and scores the audio of the set now. The set is one of params.yaml here, and
`prepare` has written its trials. ABOUT is a YAML file about system, dataset and submitter (docs/arena.md shows one).
The command needs two steps:

1. Without artifact.scores_url in ABOUT it writes .eval_results/<dataset>/scores.txt. Upload this to your model
   repository on the hub.
2. Write its address there, pinned to the commit, as artifact.scores_url, and run the command again. It writes
   submissions/<slug>.yaml, for a pull request on the dataset; and result.yaml beside the scores, where ABOUT has a
   paper and the section `arena`. A package does not score again: the scores are those of step 1 in FOLDER.

examples:
  bonafide submit linear-qamo-all-clean-1 --set arena_itw --about about.yaml --out submission
  bonafide submit package/ --set arena_itw --about about.yaml --out submission
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command. Raises InputError for a system without scores, or an ABOUT that the Arena would refuse."""
    given = _arguments(argv)
    about = submission.read_about(given.about)
    table = DATA / "trials" / f"{given.set}.csv"
    is_package = given.system.startswith(ON_HUB) or (Path(given.system) / PACKAGE_CARD).is_file()
    if is_package:
        trials = trial_table.read(table)
        before = submission.place_of_scores(given.out, about)
        again = about.artifact.scores_url is not None and before.is_file()
        scores = join.read(before, trials) if again else _scored(given.system, given.set, trials)
    else:
        place = _place_of(given.system, given.set, table)
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


def _place_of(run: str, name: str, table: Path) -> Path:
    """The scores that the flow made of a run on a set. Raises InputError where there are none."""
    place = DATA / "scores" / run / f"{name}.txt"
    if not place.is_file() or not table.is_file():
        there = sorted(path.relative_to(DATA / "scores").with_suffix("") for path in DATA.glob("scores/*/*.txt"))
        known = f"there are those of {', '.join(map(str, there[:10]))}" if there else "there are none in this folder"
        raise InputError(f"{place}: no scores of this run on this set; {known}; add the set to evaluate.sets and run "
                         "`dvc repro`, or give the folder of a package")  # fmt: skip
    return place


def _scored(package: str, name: str, trials: Trials) -> NDArray[np.float64]:
    """The scores (N,) that a package gives the audio of a set. Raises InputError where a file has none."""
    sets = params_file.load(PARAMS).sets
    if name not in sets:
        raise InputError(f"{PARAMS}: sets: expected one of {', '.join(sets)}, got {name!r}")
    with importing():
        from pipeline import detect  # here, because torch imports slowly and --help does not need it

    system = detect.load(package, channel=sets[name].channel, windows="run")
    paths = (sets[name].folder / path for path in trials.path.tolist())
    scores, unread = np.full(len(trials), np.nan), []
    found = tqdm(system.detect(paths), total=len(trials), unit="file", disable=None, leave=False)
    for row, one in enumerate(found):
        if isinstance(one, detect.Unreadable):
            unread.append(f"utterance {trials.utterance[row]}: {one.why}")
        else:
            scores[row] = one.score
    if unread:
        raise InputError(
            f"{len(unread)} of {len(trials)} trials have no score; the Arena wants all:\n{listing(unread)}"
        )
    return scores


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = parser_of("bonafide submit", "Writes what a submission to the Arena needs.", EXAMPLES)
    add = parser.add_argument
    add("system", metavar="SYSTEM", help="name of a run of the project in the current folder, or a package")
    add("--set", required=True, metavar="NAME", help="the set of the project: of a run one of evaluate.sets")
    add("--about", type=Path, required=True, metavar="ABOUT", help="YAML file: system, dataset, artifact, submitter")
    add("--out", type=Path, required=True, metavar="FOLDER", help="folder to write into")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_command(main)
