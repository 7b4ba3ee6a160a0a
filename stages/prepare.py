"""Read one set of trials from its corpus, check it, read every audio file, write the trial table."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline import contracts, params, prepare, trials
from pipeline.errors import InputError, run_command
from pipeline.files import write_text


def main() -> None:
    """Parse, read, check, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", required=True, help="name of the set, a key of `sets` in the parameters")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--trials", type=Path, required=True, help="the trial table to write (CSV)")
    args = parser.parse_args()
    sets = params.load(args.params).sets
    if args.set not in sets:
        raise InputError(f"{args.params}: sets: expected one of {', '.join(sets)}, got {args.set!r}")
    source = sets[args.set]
    corpus = contracts.member("corpora", source.corpus)
    table = corpus.trials(Path(source.root), Path(source.protocol), source.split)
    write_text(args.trials, trials.to_csv(prepare.with_contents(table, Path(source.root))))
    bonafide = int(table.is_bonafide.sum())
    print(f"{args.set}: {len(table)} trials, {bonafide} bona fide, {len(table) - bonafide} spoof -> {args.trials}")


if __name__ == "__main__":
    run_command(main)
