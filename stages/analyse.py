"""Analyse the embeddings of a run: its centroids, what lies how far from them, the hardest trials, a map."""

from __future__ import annotations

import argparse
import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.analysis import embeddings
from pipeline.core import params_file, trial_table
from pipeline.core.errors import InputError, run_command
from pipeline.core.files import folder_beside, replace_folder
from pipeline.core.params import Params
from pipeline.scoring import runs

if TYPE_CHECKING:
    from pipeline.analysis.geometry import Space
    from pipeline.core.trial_table import Trials
    from pipeline.scoring.centroids import CentroidIndex

BLOCK = 16_384  # trials that are scored at a time
REMEDY = "run `dvc repro flow/analyse/dvc.yaml`"
EXAMPLE = """\
what comes out, in the folder --analysis:
  analysis.json   cosines between centroids, who is assigned to which, distances, the path over training, geometry,
                  shift between sets, the hardest trials and their neighbours in training
  *.csv           the same as tables: assignments, distances, path, geometry, shift, hardest
  *.png           pca, tsne, umap (what analyse.projections names; PCA always), distances, path, similarity
  map.json        the points of the projections, at most analyse.points, and what is known of each

The sets are train.set, dev and evaluate.sets.

example:
  python -m stages.analyse --run data/runs/linear-qamo-all-clean-1 --trials data/trials \\
      --embeddings data/embeddings/linear-qamo-all-clean-1 \\
      --analysis data/analysis/linear-qamo-all-clean-1
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Open, analyse, project, save."""
    given = _arguments(argv)
    from pipeline.analysis import geometry, projection  # their imports take a while: --help does without
    from pipeline.report import analysis_files

    settings, name = params_file.load(given.params), given.run.name
    index = runs.index(given.run)
    tables = {key: trial_table.read(given.trials / f"{key}.csv") for key in settings.used_sets}
    kept = {key: embeddings.of_run(given.embeddings / key, given.run, key, table) for key, table in tables.items()}
    cuts = runs.card(given.run).get("quality_thresholds", [])
    spaces = {
        key: _space(table, kept[key].vectors, index, cuts, *_origins(given.trials, key, table, settings))
        for key, table in tables.items()
    }
    report = geometry.analyse(
        name, spaces, index.centroids(), over_training=runs.path(given.run), search=kept[settings.train.set].search
    )
    chart = projection.build_map(
        name, spaces, index.centroids(), count=settings.analyse.points, wanted=settings.analyse.projections
    )
    beside = folder_beside(given.analysis)
    analysis_files.write(beside, report, chart)
    replace_folder(beside, given.analysis, mark=analysis_files.ANALYSIS_FILE)
    print(analysis_files.summary(report))
    print(f"-> {given.analysis}")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m stages.analyse",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--params", type=Path, default=Path("params.yaml"), metavar="FILE", help="has the section `analyse`")
    add("--run", type=Path, required=True, metavar="FOLDER", help="the trained run")
    add(
        "--trials", type=Path, required=True, metavar="FOLDER", help="has the tables of the sets, pools and their parts"
    )
    add("--embeddings", type=Path, required=True, metavar="FOLDER", help="has the run's embeddings of the sets")
    add("--analysis", type=Path, required=True, metavar="FOLDER", help="to write")
    return parser.parse_args(argv)


def _space(
    table: Trials,
    vectors: NDArray[np.float32],
    index: CentroidIndex,
    cuts: Sequence[float],
    corpus: NDArray[np.str_],
    audio: NDArray[np.str_],
) -> Space:
    """The trials of a set with their scores and quality levels; a run without thresholds knows no levels."""
    from pipeline.analysis.geometry import Space
    from pipeline.features import sampling
    from pipeline.scoring import scorer

    names = table.utterance
    scores = [
        scorer.score(np.asarray(vectors[rows]), index, names=names[rows].tolist())
        for rows in (slice(start, start + BLOCK) for start in range(0, len(table), BLOCK))
    ]
    level = sampling.labels(table, cuts).level.numpy() if cuts else np.full(len(table), -1)
    return Space(table, vectors, np.concatenate(scores), level, corpus, audio)


def _origins(tables: Path, name: str, table: Trials, settings: Params) -> tuple[NDArray[np.str_], NDArray[np.str_]]:
    """The corpus of each trial (N,), and its audio file from the project's root (N,).

    Parts of a pool that one adapter reads are told apart by the names of their sets.
    """
    members = settings.members(name)
    sizes = [len(table)] if len(members) == 1 else [len(trial_table.read(tables / f"{part}.csv")) for part in members]
    if sum(sizes) != len(table):
        raise InputError(f"{tables / name}.csv: expected the trials of {', '.join(members)}, got others; {REMEDY}")
    adapters = [settings.sets[part].corpus for part in members]
    corpora = adapters if len(set(adapters)) == len(members) else list(members)
    roots = np.repeat([settings.sets[part].root for part in members], sizes)
    audio = [posixpath.join(root, path) for root, path in zip(roots.tolist(), table.path.tolist(), strict=True)]
    return np.repeat(corpora, sizes), np.array(audio)


if __name__ == "__main__":
    run_command(main)
