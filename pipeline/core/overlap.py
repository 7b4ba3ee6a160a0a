"""Find the audio of one set in another, byte by byte: a system knows what it was trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from pipeline.core.errors import InputError, listing
from pipeline.core.trial_table import LABELS, Trials


def digests(trials: Trials) -> list[str]:
    """The digest of every file's bytes, without the channel that is heard; empty where no file was read."""
    return [content.partition(":")[0] for content in trials.content.tolist()]


def leaks(name: str, trained_on: Trials, others: Mapping[str, Trials]) -> Iterator[str]:
    """Yield a warning about each other set that has audio of the training set `name`, with counts and examples."""
    known = {digest: row for row, digest in enumerate(digests(trained_on)) if digest}
    for other, trials in others.items():
        pairs = [(row, known[digest]) for row, digest in enumerate(digests(trials)) if digest in known]
        if not pairs:
            continue
        rows, learnt = np.array(pairs).T
        against = int((trials.is_bonafide[rows] != trained_on.is_bonafide[learnt]).sum())
        contrary = f", {against} of them under the other label" if against else ""
        told = [f"{trials.utterance[row]} is {trained_on.utterance[known_row]} of {name}" for row, known_row in pairs]
        yield (
            f"warning: {len(pairs)} of {len(trials)} trials of {other} have audio that is in {name}, which is trained "
            f"on, byte by byte{contrary}; their scores tell nothing about new audio: remove them from one of the sets\n"
            f"{listing(told)}"
        )


def check_labels(tables: Mapping[str, Trials]) -> None:
    """Raise InputError where one file is bona fide in one of several sets and spoof in another."""
    first: dict[str, tuple[str, bool, str]] = {}
    against = []
    for name, trials in tables.items():
        for digest, bonafide, utterance in zip(
            digests(trials), trials.is_bonafide.tolist(), trials.utterance.tolist(), strict=True
        ):
            one = first.setdefault(digest, (name, bonafide, utterance))
            if digest and one[1] != bonafide:
                labels = [LABELS[0] if label else LABELS[1] for label in (one[1], bonafide)]
                against.append(f"{one[2]} of {one[0]}, {labels[0]}, and {utterance} of {name}, {labels[1]}")
    if against:
        raise InputError(
            f"{len(against)} trials of sets that are trained on together have the same audio under contradicting "
            f"labels:\n{listing(against)}\ncorrect the labels, or remove one of each pair"
        )
