"""Teach a trained system clips of a new generator, without training."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.arguments import TAUGHT_NAME, parser_of
from pipeline.core.errors import InputError, importing, run_command
from pipeline.core.trial_table import LABELS

if TYPE_CHECKING:
    from pipeline.detect.teaching import Change

SHOWN = 10  # names of bona fide that are hurt, of a set
EXAMPLES = """\
RUN is an analysed run of this project, or a package that this command wrote. It stays as it is: OUT is a new package
that `bonafide detect --run OUT` takes, and deleting it undoes the teaching. In a DVC project OUT is tracked as by `dvc
add`: OUT.dvc is for git.

A taught package scores by the nearest training utterances of both classes, the clips among them, and not by the
centroids. For dev and each evaluation set of the run the command prints
  centroids      EER in %, of the run as it was trained
  before, after  EER in %, by the neighbours without and with the clips
  flips          decisions that change at the threshold of dev; all of them are in OUT/flips.csv
  hurt           bona fide that are rejected now and were not before

At least five clips, better 20. Trials with the bytes of a clip are left out.

example:
  bonafide teach linear-qamo-all-clean-1 new_fakes/ --label spoof --name acme-v3 --out taught
  bonafide teach taught --forget acme-v3 --out forgotten
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command. Raises InputError for arguments and files that cannot be used."""
    given = _arguments(argv)
    with importing():
        from pipeline.detect import assembly, teaching  # here, because torch imports slowly and --help does not need it

    teaching.check_free_place(given.out)
    parts = assembly.find(given.run)
    teaching.check_teachable(parts)
    if given.forget:
        known = teaching.without(parts, given.forget)
        teachings = [one for one in parts.taught if one.name != given.forget]
    else:
        known, new = teaching.taught(parts, _clips(given.clips), name=given.name, label=given.label)
        teachings = [*parts.taught, new]
    changes = teaching.changes(parts, known)
    teaching.write(parts, known, teachings, changes, given.out)
    print("\n".join(_lines(changes)))
    print(f"-> {given.out}{_tracked(given.out)}; to undo, delete it")


def _tracked(folder: Path) -> str:
    """Let DVC track a package in a DVC project. Returns what to tell of it. Raises InputError where DVC refuses."""
    from dvc.exceptions import DvcException, NotDvcRepoError
    from dvc.repo import Repo

    place = folder.resolve()
    try:
        with Repo(Repo.find_root(str(place.parent))) as project:
            (stage,) = project.add([str(place)])
    except NotDvcRepoError:
        return ""
    except DvcException as error:
        raise InputError(f"{folder}: the package is whole, but DVC does not track it: {error}") from None
    return f", which DVC tracks by {stage.relpath}"


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = parser_of("bonafide teach", "Teaches a trained system clips of a new generator.", EXAMPLES)
    add = parser.add_argument
    add("run", metavar="RUN", help="name of a run of this project, or folder of a taught package")
    add("clips", type=Path, nargs="*", metavar="CLIP", help="audio files, or folders of audio files")
    add("--label", choices=LABELS, help="the class of the clips")
    add("--name", type=_name, help="of the generator; becomes the attack of the clips")
    add("--forget", metavar="NAME", help="remove a teaching in place of adding one")
    add("--out", type=Path, required=True, metavar="OUT", help="folder of the new package")
    given = parser.parse_args(argv)
    if given.forget and (given.clips or given.label or given.name):
        parser.error("expected --forget NAME alone, or clips with --label and --name")
    if not given.forget and not (given.clips and given.label and given.name):
        parser.error("expected clips with --label and --name, or --forget NAME")
    return given


def _name(text: str) -> str:
    """The name of a teaching, for argparse."""
    if not re.fullmatch(TAUGHT_NAME, text):
        raise argparse.ArgumentTypeError(f"expected letters, digits, '.', '_' and '-', at most 60, got {text!r}")
    return text


def _clips(given: Sequence[Path]) -> list[Path]:
    """The audio files given and below the folders given. Raises InputError for a folder without audio."""
    from pipeline.audio import decode

    found: list[Path] = []
    for path in given:
        own = (
            sorted(one for one in path.rglob("*") if one.suffix.lower() in decode.SUFFIXES) if path.is_dir() else [path]
        )
        if not own:
            raise InputError(f"{path}: expected a folder of audio, got none there")
        found += own
    return found


def _lines(changes: Sequence[Change]) -> list[str]:
    """What changes, for people."""
    lines = [f"{'EER, %':20} {'centroids':>9} {'before':>7} {'after':>7} {'flips':>6} {'hurt':>5}"]
    for one in changes:
        by_centroids, before, after = one.eers()
        numbers = f"{by_centroids:9.2f} {before:7.2f} {after:7.2f} {len(one.flipped()):6} {len(one.hurt()):5}"
        lines.append(f"{one.name:20} {numbers}")
    for one in changes:
        counts = Counter(one.trials.attack[one.flipped()].tolist())
        if counts:
            told = ", ".join(f"{'bona fide' if attack == '-' else attack} {n}" for attack, n in counts.most_common())
            lines.append(f"flips on {one.name}: {told}")
        if hurt := one.hurt():
            more = f" and {len(hurt) - SHOWN} more" if len(hurt) > SHOWN else ""
            lines.append(f"bona fide hurt on {one.name}, {len(hurt)}: {', '.join(hurt[:SHOWN])}{more}")
    return lines


if __name__ == "__main__":
    run_command(main)
