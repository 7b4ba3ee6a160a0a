"""Read one set of trials from its corpus, check it, look at every audio file's header, write the trial table."""

from __future__ import annotations

import argparse
import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pipeline import audio, contracts, params, trials
from pipeline.errors import InputError, exit_on_input_error, listing
from pipeline.files import write_text
from pipeline.trials import Trials

THREADS = 8  # headers wait for the disk, not for the processor


def with_sizes(table: Trials, root: Path) -> Trials:
    """The table with the size of every audio file. Raises InputError listing all files that cannot be used."""
    problems: list[str] = []

    def size(row: int) -> int:
        try:
            return audio.probe(root / str(table.path[row]))
        except InputError as error:
            problems.append(f"utterance {table.utterance[row]}: {error}")
            return 0

    with ThreadPoolExecutor(THREADS) as pool:
        sizes = list(tqdm(pool.map(size, range(len(table))), total=len(table), unit="file", disable=None))
    if problems:
        raise InputError(f"{len(problems)} of {len(table)} audio files cannot be used:\n{listing(sorted(problems))}")
    return dataclasses.replace(table, bytes=np.array(sizes, dtype=np.int64))


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
    write_text(args.trials, trials.to_csv(with_sizes(table, Path(source.root))))
    bonafide = int(table.is_bonafide.sum())
    print(f"{args.set}: {len(table)} trials, {bonafide} bona fide, {len(table) - bonafide} spoof -> {args.trials}")


if __name__ == "__main__":
    exit_on_input_error(main)
