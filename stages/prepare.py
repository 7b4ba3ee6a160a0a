"""Read the trials of one set from its corpus, check and decode every audio file, and write the trial table."""

from __future__ import annotations

import argparse
import functools
import inspect
import sys
from pathlib import Path

from pipeline.audio import inspection, mos
from pipeline.core import members, params_file, trial_table
from pipeline.core.errors import InputError, run_command
from pipeline.core.files import in_project, write_text


def main() -> None:
    """Parse, read, check, write."""
    parser = argparse.ArgumentParser(prog="python -m stages.prepare", description=__doc__)
    add = parser.add_argument
    add("--set", required=True, metavar="NAME", help="the set, a key of `sets` in the parameters")
    add("--params", type=Path, default=Path("params.yaml"), metavar="FILE", help="parameters; default: params.yaml")
    add("--trials", type=Path, required=True, metavar="FILE", help="trial table to write (CSV)")
    add(
        "--quality-cache",
        type=Path,
        default=Path("data/quality"),
        metavar="FOLDER",
        help="cache of quality estimates, with a CSV file for each set; default: data/quality",
    )
    args = parser.parse_args()
    params = params_file.load(args.params)
    sets = params.sets
    if args.set not in sets:
        raise InputError(f"{args.params}: sets: expected one of {', '.join(sets)}, got {args.set!r}")
    source = sets[args.set]
    corpus, estimator = members.member("corpora", source.corpus), members.member("quality", source.quality)
    root = source.folder
    told = {name: value for name in ("columns", "labels") if (value := getattr(source, name)) is not None}
    for name in told:
        if name not in inspect.signature(corpus.trials).parameters:
            raise InputError(f"{args.params}: sets.{args.set}.{name}: the corpus {source.corpus} takes none; remove it")
    found = corpus.trials(root, Path(source.protocol), source.split, **told)
    say = functools.partial(print, file=sys.stderr)
    table = inspection.with_contents(
        found,
        root,
        on_bad_audio=source.on_bad_audio,
        channel=source.channel,
        normalized=params.encoder.normalize != "none",
        protocol=Path(source.protocol),
        say=say,
    )
    cache = in_project(args.quality_cache) / f"{args.set}.csv"
    table = mos.with_quality(table, root, estimator=estimator, cache=cache)
    write_text(args.trials, trial_table.to_csv(table))
    bonafide, dropped = int(table.is_bonafide.sum()), len(found) - len(table)
    counts = f"{len(table)} trials, {bonafide} bona fide, {len(table) - bonafide} spoof"
    print(f"{args.set}: {counts}{f', {dropped} dropped' * (dropped > 0)} -> {args.trials}")


if __name__ == "__main__":
    run_command(main)
