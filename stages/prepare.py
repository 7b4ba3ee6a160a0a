"""Read one set of trials from its corpus, check it, decode every audio file, write the trial table."""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path

from pipeline.audio import inspection, mos
from pipeline.core import members, params_file, trial_table
from pipeline.core.errors import InputError, run_command
from pipeline.core.files import in_project, write_text


def main() -> None:
    """Parse, read, check, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", required=True, help="name of the set, a key of `sets` in the parameters")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--trials", type=Path, required=True, help="the trial table to write (CSV)")
    parser.add_argument(
        "--quality-cache", type=Path, default=Path("data/quality"), help="folder of estimates of quality, a CSV a set"
    )
    args = parser.parse_args()
    sets = params_file.load(args.params).sets
    if args.set not in sets:
        raise InputError(f"{args.params}: sets: expected one of {', '.join(sets)}, got {args.set!r}")
    source = sets[args.set]
    corpus, estimator = members.member("corpora", source.corpus), members.member("quality", source.quality)
    root = source.folder
    found = corpus.trials(root, Path(source.protocol), source.split)
    say = functools.partial(print, file=sys.stderr)
    table = inspection.with_contents(found, root, on_bad_audio=source.on_bad_audio, say=say)
    cache = in_project(args.quality_cache) / f"{args.set}.csv"
    table = mos.with_quality(table, root, estimator=estimator, cache=cache)
    write_text(args.trials, trial_table.to_csv(table))
    bonafide, dropped = int(table.is_bonafide.sum()), len(found) - len(table)
    counts = f"{len(table)} trials, {bonafide} bona fide, {len(table) - bonafide} spoof"
    print(f"{args.set}: {counts}{f', {dropped} dropped' * (dropped > 0)} -> {args.trials}")


if __name__ == "__main__":
    run_command(main)
