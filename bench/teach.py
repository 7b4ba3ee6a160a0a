"""What a few clips of an attack that training lacks change, by neighbours: EER on its other clips and on all else.

    python bench/teach.py PROJECT SET ATTACK [--draws 10] [--retrained FOLDER ...]

PROJECT has the embeddings of analysed runs, trained and selected without ATTACK; SET is an evaluation set that
has it. For each number of clips and of neighbours it prints means over the runs and over draws of clips, in percent:

    EER ATTACK   of the bona fide of SET against the clips of ATTACK that were not drawn; [] lowest and highest
    EER others   of the bona fide of SET against its other attacks
    EER dev      on dev
    rejected     bona fide of SET at the threshold of dev; accepted: the clips of ATTACK that were not drawn

No clips are the neighbours alone, and `centroids` is the score that the runs were trained with. With --retrained the
score files of backends that were trained with clips are read: FOLDER/clips.txt names the clips, a line each, and
FOLDER/<run>.txt scores SET.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.analysis import embedding_scores, embeddings
from pipeline.analysis.embeddings import Embeddings
from pipeline.core import trial_table
from pipeline.core.trial_table import Trials
from pipeline.metrics import join
from pipeline.metrics.eer import eer_of
from pipeline.scoring import runs, scorer

CLIPS, NEIGHBOURS = (0, 5, 10, 20), (1, 3, 5)

Scores = NDArray[np.float64]


class Run(NamedTuple):
    """A run with its embeddings and trials by set."""

    folder: Path
    sets: dict[str, tuple[Embeddings, Trials]]


def opened(project: Path, name: str) -> Iterator[Run]:
    """All runs of a project that have embeddings."""
    for folder in sorted((project / "data/embeddings").iterdir()):
        run = project / "data/runs" / folder.name
        tables = {one: trial_table.read(project / f"data/trials/{one}.csv") for one in ("train", "dev", name)}
        yield Run(
            run, {one: (embeddings.of_run(folder / one, run, one, table), table) for one, table in tables.items()}
        )


def figures(scores: Scores, trials: Trials, attack: str, drawn: Sequence[int], threshold: float) -> list[float]:
    """EER on the attack's other clips, EER on other attacks, bona fide rejected, clips accepted, in percent."""
    left = np.ones(len(trials), np.bool_)
    left[list(drawn)] = False
    own, kept = trials.attack == attack, trials.is_bonafide
    eers = [eer_of(scores[rows & left], kept[rows & left]).eer for rows in (kept | own, ~own)]
    shares = [float((scores[kept] <= threshold).mean()), float((scores[own & left] > threshold).mean())]
    return [100 * value for value in (*eers, *shares)]


def by_neighbours(run: Run, name: str, attack: str, drawn: Sequence[int], k: int) -> list[float]:
    """The figures, with the EER on dev at the end, of a run that was taught the drawn clips."""
    (train, known), (dev, labels), (found, trials) = run.sets["train"], run.sets["dev"], run.sets[name]
    vectors = np.concatenate([train.vectors, found.vectors[list(drawn)]])
    bonafide = np.append(known.is_bonafide, np.zeros(len(drawn), np.bool_))
    more = dataclasses.replace(train, vectors=vectors)
    scoring = embedding_scores.fit("knn_difference", more, bonafide, centroids=None, neighbours=k)
    on_dev = eer_of(embedding_scores.scores(scoring, dev), labels.is_bonafide)
    scores = embedding_scores.scores(scoring, found).astype(float)
    return [*figures(scores, trials, attack, drawn, on_dev.threshold), 100 * on_dev.eer]


def by_centroids(run: Run, name: str, attack: str) -> list[float]:
    """The figures of a run as it was trained."""
    index = runs.index(run.folder)
    scores = {
        one: scorer.score(np.asarray(run.sets[one][0].vectors), index, names=run.sets[one][1].utterance.tolist())
        for one in ("dev", name)
    }
    on_dev = eer_of(scores["dev"], run.sets["dev"][1].is_bonafide)
    found = figures(scores[name].astype(float), run.sets[name][1], attack, (), on_dev.threshold)
    return [*found, 100 * on_dev.eer]


def show(what: str, found: Sequence[Sequence[float]]) -> None:
    """Print the means of some draws."""
    values = np.array(found)
    own, others, rejected, accepted, dev = values.mean(axis=0)
    span = f"[{values[:, 0].min():.1f}, {values[:, 0].max():.1f}]"
    print(f"{what:32} {own:6.1f} {span:14} {others:6.1f} {dev:6.1f} {rejected:8.1f} {accepted:8.1f}", flush=True)


def show_retrained(folders: Sequence[Path], trials: Trials, attack: str) -> None:
    """Print the figures of backends that were trained with clips, by the number of clips."""
    found: dict[int, list[list[float]]] = {}
    for folder in folders:
        drawn = np.flatnonzero(np.isin(trials.utterance, (folder / "clips.txt").read_text().split())).tolist()
        for path in sorted(folder.glob("*-*.txt")):
            told = figures(join.read(path, trials), trials, attack, drawn, np.nan)
            found.setdefault(len(drawn), []).append([*told[:2], np.nan, np.nan, np.nan])
    for count in sorted(found):
        show(f"retrained with {count} clips", found[count])


def main() -> None:
    """Parse, compute, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path)
    parser.add_argument("set")
    parser.add_argument("attack")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--retrained", type=Path, nargs="*", default=[])
    given = parser.parse_args()
    every = list(opened(given.project, given.set))
    trials = every[0].sets[given.set][1]
    clips = np.flatnonzero(trials.attack == given.attack)
    print(f"{'':32} {'EER ' + given.attack:>21} {'others':>6} {'dev':>6} {'rejected':>8} {'accepted':>8}")
    show("centroids", [by_centroids(run, given.set, given.attack) for run in every])
    for k in NEIGHBOURS:
        for count in CLIPS:
            draws = [np.random.default_rng(seed).permutation(clips)[:count].tolist() for seed in range(given.draws)]
            found = [by_neighbours(run, given.set, given.attack, drawn, k) for run in every for drawn in draws]
            show(f"{k} neighbours, {count} clips", found)
    show_retrained(given.retrained, trials, given.attack)


if __name__ == "__main__":
    main()
