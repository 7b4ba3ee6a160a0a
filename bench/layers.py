"""What the layer probe costs on the sets of ASVspoof 2019 LA: 25 layers of XLSR-300M, 25,380 utterances to train on.

    python bench/layers.py [--layers 25] [--compare 0 6 24]

The aims are 120 s on two cores and 4 GB. Features are generated while the clock stands still: correlated channels whose
scales and means differ, overlapping classes, latent traits that the layers share, attacks that come back on dev, and
eval with others. Reading is timed apart, on a store of one layer. Then the fit that the probe uses is held
against a converged one, in float64 by Newton's method, on some layers; that is slow. Each part runs in a process of its
own, whose peak memory it tells.
"""

from __future__ import annotations

import argparse
import functools
import math
import multiprocessing
import os
import platform
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import sklearn
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from pipeline.analysis import layer_probe
from pipeline.core.contracts import CLEAN, Tap
from pipeline.core.trial_table import Row, from_rows
from pipeline.features.receipt_files import OpenSet
from pipeline.features.specs import Spec
from pipeline.features.store import Store
from stages.layers import ProbedSet

T = TypeVar("T")

AIM_SECONDS, AIM_GB = 120, 4
SIZES = {"train": (2_580, 22_800), "dev": (2_548, 22_296), "eval": (2_548, 22_296)}  # bona fide, spoof
ATTACKS = {"train": (0, 6), "dev": (0, 6), "eval": (4, 12)}
CHANNELS, TRAITS = 1_024, 256
SHARD = 100
GENERATE = 2_048  # utterances at a time


def rng(*key: int) -> np.random.Generator:
    """A generator for one purpose."""
    return np.random.default_rng((7, *key))


def classes(name: str) -> NDArray[np.bool_]:
    """The classes of a set, shuffled."""
    bonafide, spoof = SIZES[name]
    return rng(0, list(SIZES).index(name)).permutation(np.arange(bonafide + spoof) < bonafide)


@functools.lru_cache
def traits(name: str) -> NDArray[np.float32]:
    """What all layers see of the utterances of a set, (N, TRAITS)."""
    number = list(SIZES).index(name)
    return rng(1, number).standard_normal((sum(SIZES[name]), TRAITS), dtype=np.float32)


def features(name: str, layer: Tap) -> NDArray[np.float32]:
    """Pooled features (N, 2, CHANNELS) of a generated layer; those about the sixth tell the classes apart best."""
    assert isinstance(layer, int)  # noqa: S101
    number, of_layer, of_both = list(SIZES).index(name), rng(2, layer), rng(3, list(SIZES).index(name), layer)
    width = 2 * CHANNELS
    loadings = of_layer.standard_normal((TRAITS, width)) / np.sqrt(np.arange(1, TRAITS + 1))[:, None]
    scale = np.exp(of_layer.standard_normal(width))
    mean = 3 * of_layer.standard_normal(width) * scale
    apart = 3.5 + 3.5 * math.exp(-(((layer - 6) / 5) ** 2))
    directions = rng(4).standard_normal((ATTACKS["eval"][1] + 1, TRAITS))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    shift = apart * (0.6 * directions[-1] + 0.8 * directions[:-1])  # (attacks, TRAITS)
    shift *= of_layer.random(TRAITS) < 0.7  # a layer does not show everything
    attack = rng(5, number).integers(*ATTACKS[name], sum(SIZES[name]))
    spoof = ~classes(name)
    loadings, scale, mean = (2 * loadings).astype(np.float32), scale.astype(np.float32), mean.astype(np.float32)
    out = np.empty((len(spoof), width), np.float32)
    for start in range(0, len(spoof), GENERATE):
        rows = slice(start, start + GENERATE)
        own = of_both.standard_normal((len(spoof[rows]), TRAITS), dtype=np.float32)
        latent = (traits(name)[rows] + own) / np.float32(math.sqrt(2))
        latent += (spoof[rows, None] * shift[attack[rows]]).astype(np.float32)
        noise = of_both.standard_normal((len(latent), width), dtype=np.float32)
        out[rows] = (latent @ loadings + 0.5 * noise) * scale + mean
    return out.reshape(-1, 2, CHANNELS)


def peak() -> float:
    """Peak memory of this process, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def measure(layers: int) -> tuple[float, float, float, layer_probe.Findings]:
    """Probe generated layers: seconds of the clock and of the processor without generating, peak GB, findings."""
    generating = [0.0, 0.0]

    def read(name: str, layer: Tap) -> NDArray[np.float32]:
        start = time.perf_counter(), time.process_time()
        made = features(name, layer)
        generating[0] += time.perf_counter() - start[0]
        generating[1] += time.process_time() - start[1]
        return made

    labels = {name: classes(name) for name in SIZES}
    start = time.perf_counter(), time.process_time()
    findings = layer_probe.probe(read, labels, layers=range(layers), evaluation=["eval"])
    clock, processor = time.perf_counter() - start[0], time.process_time() - start[1]
    return clock - generating[0], processor - generating[1], peak(), findings


def reading() -> tuple[float, float]:
    """Read one layer of the training set from a store in the page cache, the better of two: seconds, of processor."""
    pooled = features("train", 0)
    rows = [Row("here", f"u{i}", f"u{i}.flac", "spoof" if i else "bonafide") for i in range(len(pooled))]
    spec = Spec({"weights_sha256": "ab"}, "t", utterances=len(pooled), frames=1, channels=CHANNELS, shard=SHARD)
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(Path(folder), "train", spec)
        store.add_arrays(CLEAN, [0])
        for shard in range(spec.shards):
            block = pooled[spec.rows(shard).start : spec.rows(shard).stop]
            store.write(CLEAN, shard, {0: block[:, :1].astype(np.float16)}, {0: block}, np.ones(len(block), np.int32))
        trials = from_rows(rows, source="here")
        source = ProbedSet(trials, Path(folder), (OpenSet("train", trials, store, {}),))
        seconds = []
        for _ in range(2):
            start = time.perf_counter(), time.process_time()
            again = source.pooled(0)
            seconds.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    if not np.array_equal(again, pooled):
        raise SystemExit("error: the store gave other features than were written")
    return min(seconds)


def compare(layer: int) -> str:
    """EERs of the probe's fit, and of a converged one with the same loss, on one layer."""
    labels = {name: classes(name) for name in SIZES}
    start = time.perf_counter()
    fast = layer_probe.fit(features("train", layer), labels["train"])
    middle = time.perf_counter()
    _, z = layer_probe.standardized(layer_probe.flat(features("train", layer)), labels["train"])
    converged = LogisticRegression(
        C=1 / (layer_probe.RIDGE * len(z)), class_weight="balanced", solver="newton-cholesky", tol=1e-8, max_iter=100
    ).fit(z.astype(np.float64), labels["train"])
    end = time.perf_counter()
    parts = []
    for name in ("dev", "eval"):
        pooled = features(name, layer)
        slow = layer_probe.flat(pooled)
        exact = np.concatenate(
            [
                fast.standard(slow[i : i + GENERATE]).astype(np.float64) @ converged.coef_[0]
                for i in range(0, len(slow), GENERATE)
            ]
        )
        ours, theirs = (layer_probe.eer(s, labels[name]) for s in (fast.scores(pooled)[layer_probe.LOGISTIC], exact))
        noise = 100 * math.sqrt(theirs / 100 * (1 - theirs / 100) / SIZES[name][0])
        parts.append(f"{name} {ours:.3f} % against {theirs:.3f} % converged, standard error {noise:.2f}")
    took = f"{middle - start:.1f} s against {end - middle:.1f} s, generation included"
    return f"layer {layer:2}: {'; '.join(parts)}; {took}"


def apart(work: Callable[..., T], *args: int) -> T:
    """Do the work in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *args).result()


def main() -> None:
    """Measure, print beside the aims."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=25)
    parser.add_argument("--compare", type=int, nargs="*", default=[0, 6, 24], metavar="LAYER")
    args = parser.parse_args()
    rows = {name: sum(size) for name, size in SIZES.items()}
    reads = args.layers * sum(rows.values()) / rows["train"]
    read_all, read_processor = (reads * seconds for seconds in apart(reading))
    seconds, processor, memory, findings = apart(measure, args.layers)
    print(f"{args.layers} layers of {' + '.join(f'{n:,}' for n in rows.values())} utterances x {2 * CHANNELS}")
    print(f"{'fitting, scoring, choosing':34} {seconds:7.1f} s, {processor:.1f} s of processor")
    print(f"{'reading, from one layer':34} {read_all:7.1f} s, {read_processor:.1f} s of processor")
    print(f"{'together':34} {seconds + read_all:7.1f} s    aim {AIM_SECONDS} s on two cores")
    print(f"{'peak memory':34} {memory:7.2f} GB   aim {AIM_GB} GB")
    for layer, methods in findings.layers.items():
        print(f"layer {layer:2}", *(f"{m} {e['dev']:6.2f} {e['eval']:6.2f}  " for m, e in methods.items()))
    for step in findings.steps:
        print(f"+ layer {step.layer}: dev {step.eer['dev']:.2f} %, eval {step.eer['eval']:.2f} %")
    for layer in args.compare:
        print(apart(compare, layer), flush=True)
    print(f"{os.cpu_count()} cores, {platform.machine()}, numpy {np.__version__}, scikit-learn {sklearn.__version__}")


if __name__ == "__main__":
    main()
