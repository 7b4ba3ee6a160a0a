"""Audio files to scores, the whole chain: decode, window, encode, embed, compare with the centroids.

    from pipeline import detect
    system = detect.load("linear-qamo-all-clean-1")    # a run of this project, or the folder of a package
    print(system.score("some.wav"))                    # higher means more bona fide
    print(system.score_samples(samples, 44_100))       # of (n,) or (n, channels) float32 in memory

Every step is the one that extraction and scoring take, and features of frames are rounded to float16 as the store
rounds them. So with `windows="run"` the scores are those of the flow: the same numbers where batches have the same
shape, else within rounding. Of a run on features kept in int8, which are rounded shard by shard, they are those of
features that are not. Other windows are other scores of files that are longer than one.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.analysis import embedding_scores, exact_search, familiarity
from pipeline.analysis.embedding_scores import Scoring
from pipeline.analysis.embeddings import Embeddings
from pipeline.analysis.gaussians import Gaussians
from pipeline.audio import decode, loader, windowing
from pipeline.audio.decode import Audio
from pipeline.audio.loader import Windows
from pipeline.audio.windowing import SAMPLE_RATE, Samples
from pipeline.core import ahead
from pipeline.core.contracts import Tap
from pipeline.core.errors import InputError
from pipeline.core.sections import MEAN, ONE_WINDOW, Channel, WindowsParams
from pipeline.core.trial_table import Trials
from pipeline.detect import hearing
from pipeline.detect.assembly import Parts
from pipeline.detect.detection import Detection, Surroundings, Timeline, Unreadable, neighbours_of
from pipeline.detect.hearing import Heard
from pipeline.encoder import xlsr
from pipeline.extraction.forward import BatchSize, Blocks, compute
from pipeline.features.dataset import Reads
from pipeline.scoring import scorer
from pipeline.scoring.centroids import CentroidIndex

IN_MEMORY = Path("samples in memory")  # the name of what has no file


class _Head(NamedTuple):
    """The first window of a file: (S,) samples, how many of them are valid, and warnings about the file."""

    path: Path
    samples: Samples
    valid: int
    warnings: tuple[str, ...]


class _Longer(NamedTuple):
    """A file that is longer than a window, of which more is heard."""

    path: Path


class _Decided(NamedTuple):
    """The score (1,) of a file, the embedding (1, E) that explains it, and which of its windows decides."""

    score: NDArray[np.float32]
    embedding: NDArray[np.float32]
    window: int


@dataclass(frozen=True, eq=False)
class System:
    """A trained system, ready to score files.

    threshold: scores above it are accepted as bona fide. channel: of files with several; the mean, left, right, or a
    number from 0. windows: which of a file are heard, see `hearing.starts`: the `first`; all that are not silent, of
    which the score of a file is the `mean` or the `min`; or `own`, those of the `run`, as the flow scores.
    """

    parts: Parts
    encoder: xlsr.Encoder
    backend: nn.Module
    index: CentroidIndex
    layers: tuple[Tap, ...]
    reads: Reads
    threshold: float
    channel: Channel = MEAN
    windows: Heard = "first"
    own: WindowsParams = ONE_WINDOW

    @property
    def window(self) -> int:
        """Samples at 16 kHz that the encoder sees at once."""
        return int(self.parts.features["window"]["samples"])

    @property
    def width(self) -> int:
        """The width E of an embedding."""
        return int(self.index.index.d)

    @property
    def attends(self) -> bool:
        """Whether one embedding of all heard windows gives the score of a file, by attention."""
        return self.windows == "run" and self.own.attended

    @cached_property
    def training(self) -> tuple[Embeddings, Trials]:
        """Embeddings of the training set, and its trials. Raises InputError where the run was not analysed."""
        return self.parts.training()

    @cached_property
    def known(self) -> Surroundings | InputError:
        """What the distance to the training set needs; or why its embeddings, if they are there, cannot be used."""
        try:
            embeddings, trials = self.training
            own = familiarity.own_distances(embeddings.vectors, embeddings.search)
        except InputError as error:
            return error
        gaussians: Gaussians | None = None
        with contextlib.suppress(InputError):  # embeddings that are alike have nearest ones all the same
            gaussians = Gaussians.of(embeddings.vectors, trials.is_bonafide, normalize=embeddings.normalize)
        return Surroundings(embeddings, trials, own, gaussians)

    def score(self, path: str | Path) -> float:
        """The score of a file. Raises InputError for a file that cannot be scored."""
        (found,) = self.scores([path])
        if isinstance(found, Unreadable):
            raise InputError(found.why)
        return found

    def scores(self, paths: Iterable[str | Path]) -> Iterator[float | Unreadable]:
        """The score of every file, in order, as `detect` goes through them."""
        return (found if isinstance(found, Unreadable) else found.score for found in self._found(paths, None))

    def embeddings(self, paths: Iterable[str | Path]) -> Iterator[NDArray[np.float32] | Unreadable]:
        """The embedding (E,) of every file, in order, as the flow has it.

        It is of the first window, or of all windows of the run where attention makes one embedding of them.
        """
        system = replace(self, windows="run" if self.own.attended else "first")
        for path in map(Path, paths):
            head = system._head(path)
            if isinstance(head, Unreadable):
                yield head
                continue
            try:
                yield system._embedding(head)
            except InputError as error:
                yield Unreadable(path, str(error))

    def _embedding(self, head: _Head | _Longer) -> NDArray[np.float32]:
        """The embedding (E,) of a file. Raises InputError as `embed`, and where all windows are silent."""
        if isinstance(head, _Head):
            (embedding,) = self.embed((head.samples[None], np.array([head.valid])), names=[str(head.path)])
        else:
            _, windows = self._sounding(head.path, self._decoded(head.path).samples)
            ((embedding,), _) = self.attended(windows)
        return np.asarray(embedding)

    def detect(self, paths: Iterable[str | Path], *, explain: bool = False) -> Iterator[Detection | Unreadable]:
        """What the system says of every file, in order: a batch of files at a time, or one of which more is heard.

        The next batches are decoded while this one is computed on; memory does not grow with the number of files.
        Raises InputError, before any file is read, where explanations are asked for and there are none.
        """
        if explain:
            self.parts.training()
        for found in self._found(paths, self.known if isinstance(self.known, Surroundings) else None):
            yield found if explain or isinstance(found, Unreadable) else replace(found, neighbours=())

    def _found(self, paths: Iterable[str | Path], known: Surroundings | None) -> Iterator[Detection | Unreadable]:
        """What the system says of every file; with what is known of the training set, also its neighbours there."""
        files, size = (Path(path) for path in paths), self.parts.batch_size
        with contextlib.closing(ahead.in_order(self._head, files, threads=loader.workers(), ahead=2 * size)) as heads:
            while batch := list(itertools.islice(heads, size)):
                found = iter(self._tried([head for head in batch if isinstance(head, _Head)], known))
                for head in batch:
                    if isinstance(head, Unreadable):
                        yield head
                    else:
                        yield self._file(head.path, known) if isinstance(head, _Longer) else next(found)

    def score_samples(self, samples: NDArray[np.float32], rate: int) -> float:
        """The score of samples in memory: that of a file which holds them.

        samples: (n,), or (n, channels), float32, at `rate` Hz. Raises InputError for samples that cannot be scored.
        """
        heard, warnings = decode.of_samples(samples, rate, name=str(IN_MEMORY), channel=self.channel)
        self._check_scale(IN_MEMORY, warnings)
        if self.windows != "first" and len(heard) > self.window:
            return self._whole(IN_MEMORY, heard, warnings, None).score
        head = self._first(IN_MEMORY, heard, warnings)
        (found,) = self._detections([head], None)
        return found.score

    def _file(self, path: Path, known: Surroundings | None) -> Detection | Unreadable:
        """The detection of all windows of a file."""
        try:
            audio = self._decoded(path)
            return self._whole(path, audio.samples, audio.warnings, known)
        except InputError as error:
            return Unreadable(path, str(error))

    def _whole(self, path: Path, samples: Samples, warnings: tuple[str, ...], known: Surroundings | None) -> Detection:
        """The detection of several windows of some samples. Raises InputError where all are silent."""
        starts, embedded = self._sounding(path, samples)
        whole = self._decided(embedded, names=_places(path, starts))
        start = int(starts[whole.window])
        part = start / SAMPLE_RATE, min(start + self.window, len(samples)) / SAMPLE_RATE
        (found,) = self._judged([path], [warnings], whole.score, whole.embedding, known)
        return replace(found, part=part)

    def _sounding(self, path: Path, samples: Samples) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Where the heard windows start that are not silent, (W,), and their embeddings (W, E). Raises InputError."""
        starts = hearing.starts(samples, self.windows, self.own, window=self.window)
        heard, embedded = self._embedded(path, samples, starts)
        if not len(heard):
            raise InputError(f"{path}: all {len(samples)} samples at 16 kHz are silent; leave the file out")
        return starts[heard], embedded

    def _decided(self, embedded: NDArray[np.float32], *, names: Sequence[str]) -> _Decided:
        """What is said of a file from the embeddings (W, E) of its windows.

        The window with the lowest score decides; with attention, of those with the largest weight.
        """
        scores = self.judge(embedded, names=names)
        if self.attends:
            embedding, weights = self.attended(embedded)
            return _Decided(self.judge(embedding, names=names[:1]), embedding, int(np.lexsort((scores, -weights))[0]))
        lowest = int(scores.argmin())
        return _Decided(np.array([self.reduced(embedded, scores)]), embedded[lowest : lowest + 1], lowest)

    def attended(self, embedded: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The one embedding (1, E) that attention makes of those of W windows, (W, E), and their weights (W,)."""
        backend: Any = self.backend
        windows = torch.from_numpy(embedded)[None]
        with torch.inference_mode():
            return backend.pooled(windows).numpy(), backend.weights(windows)[0].numpy()

    def reduced(self, embedded: NDArray[np.float32], scores: NDArray[np.float32]) -> np.float32:
        """The score of a file from the embeddings (W, E) and scores (W,) of its windows."""
        del embedded
        return hearing.reduced(scores, self.windows, self.own)

    def _embedded(
        self, path: Path, samples: Samples, starts: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Which of W windows that start at `starts` (W,) are not silent, (H,), and their embeddings (H, E)."""
        heard, embedded = [np.empty(0, np.int64)], [np.empty((0, self.width), np.float32)]
        for rows in np.array_split(np.arange(len(starts)), -(-len(starts) // self.parts.batch_size)):
            cuts = [self._cut(samples[start : start + self.window]) for start in starts[rows]]
            sounding = [i for i, (cut, valid) in enumerate(cuts) if np.ptp(cut[:valid]) > 0]
            if sounding:
                windows = np.stack([cuts[i][0] for i in sounding]), np.array([cuts[i][1] for i in sounding])
                heard.append(rows[sounding])
                embedded.append(self.embed(windows, names=_places(path, starts[rows[sounding]])))
        return np.concatenate(heard), np.concatenate(embedded)

    def _head(self, path: Path) -> _Head | _Longer | Unreadable:
        more = self.windows != "first"
        try:
            audio = self._decoded(path, keep=self.window + more)
            if more and len(audio.samples) > self.window:
                return _Longer(path)
            return self._first(path, audio.samples, audio.warnings)
        except InputError as error:
            return Unreadable(path, str(error))

    def _decoded(self, path: Path, *, keep: int | None = None) -> Audio:
        """A file of which the first samples are kept, or all. Raises InputError for whatever is wrong with it."""
        audio = _decoded(path, channel=self.channel, keep=keep)
        self._check_scale(path, audio.warnings)
        return audio

    def _check_scale(self, path: Path, warnings: Sequence[str]) -> None:
        """Raise InputError where samples are doubtful and the encoder does not normalize them."""
        if warnings and self.parts.features.get("normalize") == "none":
            raise InputError(f"{path}: {'; '.join(warnings)} (the encoder of this run does not normalize)")

    def _first(self, path: Path, decoded: Samples, warnings: tuple[str, ...] = ()) -> _Head:
        """The first window. Raises InputError where it is silent."""
        samples, valid = self._cut(decoded)
        if np.ptp(samples[:valid]) == 0:
            raise InputError(f"{path}: the first {valid} samples at 16 kHz are silent; cut them off")
        return _Head(path, samples.copy(), valid, warnings)  # a view would keep all of a long file

    def _cut(self, samples: Samples) -> tuple[Samples, int]:
        return windowing.window(samples, length=self.window, pad=self.parts.features["window"]["pad"])

    def _tried(self, heads: Sequence[_Head], known: Surroundings | None) -> Iterable[Detection | Unreadable]:
        """The detections of a batch; where one of it spoils the batch, each by itself."""
        try:
            return self._detections(heads, known)
        except InputError as error:
            if len(heads) == 1:
                return [Unreadable(heads[0].path, str(error))]
            return [found for head in heads for found in self._tried([head], known)]

    def _detections(self, heads: Sequence[_Head], known: Surroundings | None) -> list[Detection]:
        if not heads:
            return []
        names = [str(head.path) for head in heads]
        windows = np.stack([head.samples for head in heads]), np.array([head.valid for head in heads])
        embedded = self.embed(windows, names=names)
        scores = self.judge(embedded, names=names)
        return self._judged([head.path for head in heads], [head.warnings for head in heads], scores, embedded, known)

    def _judged(
        self,
        paths: Sequence[Path],
        warnings: Sequence[tuple[str, ...]],
        scores: NDArray[np.float32],
        embedded: NDArray[np.float32],
        known: Surroundings | None,
    ) -> list[Detection]:
        """The detections of n files with scores (n,), explained by embeddings (n, E)."""
        # float32 as a score file has it, whose digits the threshold has too
        digits = [float(str(score)) for score in scores]
        nearest = self._nearest_centroids(embedded)
        none = [None for _ in paths]
        neighbours, far, unlike = neighbours_of(embedded, known) if known else ([() for _ in paths], none, none)
        rule = self.parts.rule
        return [
            Detection(
                path, score, score > self.threshold, self.probability(score), centroid,
                verdict=rule.verdict(score) if rule else None, distance_percentile=percentile,
                mahalanobis_percentile=by_class, neighbours=near, warnings=doubts,
            )
            for path, doubts, score, centroid, near, percentile, by_class in zip(
                paths, warnings, digits, nearest, neighbours, far, unlike, strict=True
            )
        ]  # fmt: skip

    def judge(self, embedded: NDArray[np.float32], *, names: Sequence[str]) -> NDArray[np.float32]:
        """Scores (n,) of embeddings (n, E): by the centroids, or by the neighbours in a package of `bonafide teach`.

        Raises InputError naming an utterance whose embedding is not finite.
        """
        by_centroids = scorer.score(embedded, self.index, names=names)
        if self.by_neighbours is None or not len(embedded):
            return by_centroids
        compared = exact_search.compared(embedded, normalize=self.index.normalize_query)
        return np.asarray(self.by_neighbours.score(compared), dtype=np.float32)

    @cached_property
    def by_neighbours(self) -> Scoring | None:
        """The score by training neighbours of a package of `bonafide teach`; None where centroids give the score."""
        return embedding_scores.by_neighbours(*self.training, self.parts.neighbours) if self.parts.neighbours else None

    def embed(self, windows: Windows, *, names: Sequence[str]) -> NDArray[np.float32]:
        """Embeddings (n, E) of n windows: (n, S) samples at 16 kHz and (n,) valid counts.

        Raises InputError naming the window, one of `names`, whose features are not finite or beyond float16.
        """
        return self.embed_features(self.features(windows, names=names))

    def features(self, windows: Windows, *, names: Sequence[str]) -> Blocks:
        """The features of n windows, as the store holds them; arguments and errors are those of `embed`."""
        batch = BatchSize(self.parts.batch_size, grows=False)
        found = compute(
            self.encoder, lambda rows: (windows[0][rows], windows[1][rows]), self.layers, batch=batch, names=names
        )
        return found.blocks()

    def embed_features(self, blocks: Blocks) -> NDArray[np.float32]:
        """Embeddings (n, E) of the features of n windows, of `layers` or more."""
        frames, pooled, n_frames = blocks
        stored = pooled if self.reads == "pooled" else frames
        features = np.stack([stored[layer] for layer in self.layers], axis=1).astype(np.float32)  # (n, L, T or 2, D)
        if self.own.attended:
            features = features[:, None]  # each window by itself
        with torch.inference_mode():
            embedded = self.backend(torch.from_numpy(features), torch.from_numpy(n_frames.astype(np.int64)))
        return np.asarray(embedded.float().numpy(), dtype=np.float32)

    def _nearest_centroids(self, embedded: NDArray[np.float32]) -> list[int]:
        similarities = embedded @ self.index.centroids().vectors.T  # (n, K); lengths do not change which is largest
        nearest: list[int] = similarities.argmax(axis=1).tolist()
        return nearest

    def probability(self, score: float) -> float | None:
        """The calibrated probability of bona fide at a prior of one half; None without a calibration."""
        if self.parts.calibration is None:
            return None
        return 0.5 + 0.5 * math.tanh(float(self.parts.calibration.apply(score)) / 2)

    def timeline(self, path: str | Path) -> Timeline:
        """The scores of a whole file in overlapping windows. Raises InputError for a file that cannot be decoded."""
        samples = self._decoded(Path(path)).samples
        starts = hearing.overlapping(len(samples), window=self.window)
        scores = np.full(len(starts), np.nan, np.float32)
        heard, embedded = self._embedded(Path(path), samples, starts)
        if len(heard):
            scores[heard] = self.judge(embedded, names=_places(Path(path), starts[heard]))
        end = np.minimum(starts + self.window, len(samples))
        return Timeline(starts / SAMPLE_RATE, end / SAMPLE_RATE, scores)


def _places(path: Path, starts: NDArray[np.int64]) -> list[str]:
    """The names of windows of a file, for messages."""
    return [f"{path} at {start / SAMPLE_RATE:.2f} s" for start in starts]


def _decoded(path: Path, *, channel: Channel, keep: int | None) -> Audio:
    """See `System._decoded`."""
    try:
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        return decode.read(path, channel=channel, keep=keep)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
