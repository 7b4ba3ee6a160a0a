"""The only definition of a score: embedding, similarities to the centroids, one number; higher is more bona fide.

Training selects by it, `score` writes it, and everything that scores later calls it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.core.contracts import CLEAN
from pipeline.core.devices import CPU
from pipeline.core.errors import InputError
from pipeline.core.sections import WindowsParams
from pipeline.core.trial_table import Trials
from pipeline.features import dataset, streaming
from pipeline.features.dataset import Dataset
from pipeline.features.streaming import Batch
from pipeline.scoring import runs
from pipeline.scoring.centroids import CentroidIndex, unit

BATCH = 64  # utterances a forward pass


@torch.inference_mode()
def embed(
    backend: nn.Module,
    data: Dataset,
    *,
    stream: Callable[..., Generator[Batch]] = streaming.stream,
    view: int = 0,
    views: int = 1,
) -> Iterator[NDArray[np.float32]]:
    """Embeddings of all utterances in order, (B, E) float32 at a time; the backend is left in eval mode.

    stream: gives the batches, as `streaming.stream` does. view: the first one, as `data.place` numbers windows and
    views. views: how many, one after the other.

    Computed in float32 wherever the backend is, whatever precision it was trained in: training selects by the same
    numbers that are deployed.
    """
    backend.eval()
    device = next((parameter.device for parameter in backend.parameters()), CPU)
    first, end = view * len(data), (view + views) * len(data)  # addresses, see `pipeline.features.sources`
    rows = (np.arange(start, min(start + BATCH, end)) for start in range(first, end, BATCH))
    with contextlib.closing(stream(data.source, rows, device=device)) as batches:
        for features, n_frames in batches:
            yield backend(features, n_frames).float().cpu().numpy().copy()  # a view of features would not last


def score(embeddings: NDArray[np.float32], index: CentroidIndex, *, names: Sequence[str]) -> NDArray[np.float32]:
    """Scores (N,) of embeddings (N, E) of the N utterances `names`: reduce over k of centroid_k · q, plus the bias.

    q is the embedding, or the embedding at unit length where the index says so. `softmax` weighs each similarity by
    the softmax over the similarities. Raises InputError naming an utterance whose embedding is not finite: FAISS would
    give it a finite score.
    """
    bad = ~np.isfinite(embeddings).all(axis=1)
    if bad.any():
        raise InputError(
            f"utterance {names[int(np.argmax(bad))]}: expected a finite embedding, got NaN or infinity; the training "
            "diverged (lower train.learning_rate) or the features are damaged (bonafide cache verify)"
        )
    queries = embeddings
    if index.normalize_query:
        queries = unit(embeddings)
    similarities = index.search(queries)  # (N, K), best first
    return np.asarray(_reduce(similarities, index.reduce) + np.float32(index.bias), dtype=np.float32)


def _reduce(similarities: NDArray[np.float32], how: str) -> Any:
    if how == "max":
        return similarities[:, 0]
    if how == "mean":
        return similarities.mean(1)
    weights = np.exp(similarities - similarities[:, :1])
    return (weights * similarities).sum(1) / weights.sum(1)


def score_each(
    batches: Iterable[NDArray[np.float32]], index: CentroidIndex, *, names: Sequence[str]
) -> NDArray[np.float32]:
    """Scores (N,) of embeddings that come (B, E) at a time, in the order of the N utterances `names`."""
    scores: list[NDArray[np.float32]] = []
    done = 0
    for embeddings in batches:
        scores.append(score(embeddings, index, names=names[done : done + len(embeddings)]))
        done += len(embeddings)
    return np.concatenate(scores)


def score_windows(
    batches: Iterable[NDArray[np.float32]], index: CentroidIndex, *, names: Sequence[str], windows: WindowsParams
) -> NDArray[np.float32]:
    """Scores (N,) of N utterances `names` from the embeddings of W windows: all first ones, all second ones, and on.

    Where attention made one embedding of the windows, that has the score.
    """
    found = score_each(batches, index, names=[*names] * windows.apart)
    return reduce_windows(found.reshape(windows.apart, len(names)), windows)


def reduce_windows(scores: NDArray[np.float32], windows: WindowsParams) -> NDArray[np.float32]:
    """The scores (N,) of utterances from those of their windows, (W, N): the mean or the lowest."""
    return np.asarray(scores.min(0) if windows.reduce == "min" else scores.mean(0, dtype=np.float32))


def score_all(backend: nn.Module, index: CentroidIndex, data: Dataset, *, view: str = CLEAN) -> NDArray[np.float32]:
    """Scores (N,) of a whole set in a view, of all windows of each utterance."""
    embeddings = embed(backend, data, view=data.place(view), views=data.windows.apart)
    return score_windows(embeddings, index, names=data.trials.utterance.tolist(), windows=data.windows)


def open_set(run: Path, receipt: Path, trials: Trials, *, root: Path, views: Sequence[str] = ()) -> Dataset:
    """The features of a set, as a run reads them, with some of its views. root: of the feature stores.

    Raises InputError as `dataset.open_set`, and where the run was trained on features of another kind.
    """
    card = runs.card(run)
    layers = card["kind"]["layers"]
    data = dataset.open_set(receipt, trials, root=root, reads=card["reads"], layers=layers, views=views)
    if data.kind != card["kind"]:
        raise InputError(f"{run}: trained on features of {card['kind']}, got {data.kind}; {dataset.SAME_KIND}")
    return data


def score_set(
    run: Path, receipt: Path, trials: Trials, *, root: Path, views: Sequence[str] = ()
) -> dict[str, NDArray[np.float32]]:
    """Scores (N,) of a set by a run, as its features are cached, by view: `clean`, and those that are asked for.

    Raises InputError as `open_set` and `score`.
    """
    data = open_set(run, receipt, trials, root=root, views=views)
    backend, index = runs.backend(run), runs.index(run)
    return {name: score_all(backend, index, data, view=name) for name in (CLEAN, *data.views)}
