# %% [markdown]
# A walk through the embedding space of one run: what a score is made of, and where trials lie.
#
# Run `make demo` first, then `python docs/walkthrough.py` in the project's folder, or cell by cell in an editor that
# knows `# %%` (VS Code, Spyder, Jupytext). The demo's encoder has random weights: what is seen here is how to look, not
# what there is to see.
"""A walk through the embedding space of one run, cell by cell."""

# ruff: noqa: T201

# %% Which run, and what there is of it
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from pipeline import detect
from pipeline.analysis import embeddings, exact_search, geometry
from pipeline.core import params_file, trial_table
from pipeline.metrics import join
from pipeline.scoring import runs, scorer

DATA = Path("data")
ANALYSED = sorted(path.parent.parent.name for path in DATA.glob(f"embeddings/*/*/{embeddings.CARD_FILE}"))
if not ANALYSED:
    raise SystemExit(
        "error: data/embeddings: expected the embeddings of a run, got none; name one in the section `analyse` of "
        "params.yaml, and run `dvc repro flow/analyse/dvc.yaml`"
    )
RUN = ANALYSED[0]  # or another of them
SETTINGS = params_file.load(Path("params.yaml"))
TRAIN, EVAL = SETTINGS.train.set, SETTINGS.evaluate.sets[0]


def held(name: str) -> tuple[embeddings.Embeddings, trial_table.Trials]:
    """The embeddings of a set, and its trials in the same order."""
    table = trial_table.read(DATA / "trials" / f"{name}.csv")
    return embeddings.of_run(DATA / "embeddings" / RUN / name, DATA / "runs" / RUN, name, table), table


train, train_trials = held(TRAIN)
found, table = held(EVAL)
print(f"{RUN}: {len(train)} embeddings of {TRAIN}, {len(found)} of {EVAL}, {found.vectors.shape[1]} numbers each")

# %% A score is what the centroids say of an embedding: the score file again, from the embeddings alone
index = runs.index(DATA / "runs" / RUN)
scores = scorer.score(found.vectors, index, names=table.utterance.tolist())
written = join.read(DATA / "scores" / RUN / f"{EVAL}.txt", table)
print(f"largest difference to the score file: {np.abs(scores - written).max():.1e}")

# %% Which centroid is nearest: with QAMO, centroids are levels of quality, 0 the worst
# A loss that does not normalise has a direction in place of centroids; distances are then to the mean of the training
# set's bona fide embeddings.
unknown = np.full(len(train), "")
trained = geometry.Space(
    train_trials, train.vectors, np.zeros(len(train), np.float32), np.full(len(train), -1), unknown, unknown
)
places = geometry.places(index.centroids(), trained)
nearest, away = places.nearest(found.vectors)  # (N,) each; distances are 1 - cosine, or Euclidean
for k in range(len(places.vectors)):
    mine = nearest == k
    if not mine.any():
        print(f"centroid {k}: no trials")
        continue
    quality = f"mean MOS {np.nanmean(table.quality[mine]):.2f}" if np.isfinite(table.quality[mine]).any() else "no MOS"
    print(f"centroid {k}: {mine.sum():4} trials, {table.is_bonafide[mine].mean():4.0%} bona fide, {quality}")

# %% How far each kind of trial is from the nearest centroid
kinds = np.where(table.is_bonafide, "bonafide", table.attack)
for kind in sorted(set(kinds)):
    low, middle, high = np.quantile(away[kinds == kind], [0.25, 0.5, 0.75])
    print(f"{kind:10} {low:.3f} {middle:.3f} {high:.3f}  (quartiles)")

# %% The bona fide trial that scores lowest, and the training utterances beside it
hardest = int(np.flatnonzero(table.is_bonafide)[scores[table.is_bonafide].argmin()])
print(f"{table.utterance[hardest]} scores {scores[hardest]:.3f}")
distances, ids = train.search(found.vectors[[hardest]], 5)  # (1, 5) each, nearest first
for distance, i in zip(distances[0], ids[0], strict=True):
    label = "bonafide" if train_trials.is_bonafide[i] else f"spoof by {train_trials.attack[i]}"
    print(f"  {distance:.3f}  {train_trials.utterance[i]}, {label}")

# %% The two directions in which the trials differ most (PCA), with the centroids
queries = exact_search.compared(found.vectors, normalize=places.normalize)  # (N, E)
mean = queries.mean(axis=0)
_, spread, axes = np.linalg.svd(queries - mean, full_matrices=False)
shares = spread**2 / (spread**2).sum()
points, centres = (queries - mean) @ axes[:2].T, (places.vectors - mean) @ axes[:2].T  # (N, 2), (K, 2)
figure = Figure(figsize=(5, 5), layout="constrained")
plot = figure.add_subplot()
for kind in sorted(set(kinds)):
    plot.scatter(*points[kinds == kind].T, s=8, label=kind)
plot.scatter(*centres.T, s=90, marker="*", color="black", label="centroids")
plot.set(xlabel=f"{shares[0]:.0%} of the variance", ylabel=f"{shares[1]:.0%}")
plot.legend(frameon=False)
picture = Path(tempfile.gettempdir()) / f"{RUN}-pca.png"
figure.savefig(picture)
print(f"{shares[:2].sum():.0%} of the variance in two directions: {picture}")

# %% The whole chain at once: a file, its score, and the training utterances that it resembles
system = detect.load(RUN)
(told,) = system.detect([SETTINGS.sets[EVAL].folder / str(table.path[hardest])], explain=True)
assert isinstance(told, detect.Detection)  # noqa: S101
likely = "no probability" if told.probability is None else f"{told.probability:.0%} bona fide"
print(f"{told.path.name}: {told.score:.3f}, {likely}, centroid {told.centroid}")
print(f"nearest: {', '.join(near.utterance for near in told.neighbours)}")
