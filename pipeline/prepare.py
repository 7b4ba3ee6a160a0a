"""The last step before a trial table is written: every audio file is read, and its digest kept."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pipeline import audio
from pipeline.errors import InputError, listing
from pipeline.trials import Trials

THREADS = 8  # reading waits for the disk, not for the processor


def with_contents(table: Trials, root: Path) -> Trials:
    """The table with the digest of every audio file. Raises InputError listing all files that cannot be used."""
    problems: list[str] = []

    def content(row: int) -> str:
        try:
            return audio.probe(root / str(table.path[row]))
        except InputError as error:
            problems.append(f"utterance {table.utterance[row]}: {error}")
            return ""

    with ThreadPoolExecutor(THREADS) as pool:
        contents = list(tqdm(pool.map(content, range(len(table))), total=len(table), unit="file", disable=None))
    if problems:
        raise InputError(f"{len(problems)} of {len(table)} audio files cannot be used:\n{listing(sorted(problems))}")
    return dataclasses.replace(table, content=np.array(contents))
