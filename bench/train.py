"""An epoch of training from the feature store, against the same epoch from memory and with the encoder in the loop.

    python bench/train.py [--small] [--only asp] [--repeats 5]

Generated features in the shapes of XLSR-300M (201 frames of 1024 float16 a layer; pooled 2 of 1024 float32) go into a
real store in a temporary folder and are trained on with `loop.train_epoch`, held on disk (warm page cache, gathered
ahead) and in memory. The baseline has all features in one tensor and indexes it in a plain loop:
`tensor[rows].float()`; same batches, same steps, no store. A second baseline gathers and converts into memory that it
uses again, which is the least that reading can cost. All take turns, repetition by repetition; all must come to the
same loss, bit by bit. Ratios are medians over the repetitions. `processor` is the ratio of processor time, that of the
gathering thread included: the steadier number where others use the machine, and an upper bound of what reading costs.

The encoder in the loop is XLSR-300M's structure, all 24 layers, random weights, float32, as public training code runs
it before every step: a few batches are measured and extrapolated to the epoch.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.core import members, trial_table
from pipeline.core.contracts import CLEAN, Facts, Labels
from pipeline.core.devices import CPU, Precision
from pipeline.core.encoder_sections import EncoderParams, RandomEncoder
from pipeline.core.sections import LearningRates, TrainParams
from pipeline.encoder import models, xlsr
from pipeline.features import dataset, sampling, streaming, zarr_metadata
from pipeline.features.dataset import Dataset
from pipeline.features.specs import Spec
from pipeline.features.store import Store
from pipeline.training import loop, together
from pipeline.training.adam import Adam
from pipeline.training.heads import Head, HeadLearner

XLSR_300M = RandomEncoder(layers=24, width=1024, heads=16, feedforward=4096, conv_channels=512, seed=0)
SAMPLES = 64_600
FRAMES, CHANNELS = 201, 1024


@dataclass(frozen=True)
class Case:
    """A backend and what it is trained on."""

    backend: str
    utterances: int
    layers: int
    batch_size: int


CASES = (
    Case("linear", 25_380, 2, 64),
    Case("asp", 1_280, 1, 64),
    Case("asp", 1_280, 2, 64),
    Case("conformer_tcm", 1_000, 1, 20),
)
SMALL = (Case("linear", 2_000, 2, 64), Case("asp", 200, 2, 20), Case("conformer_tcm", 60, 1, 20))


def table(count: int) -> trial_table.Trials:
    """Trials of which a tenth is bona fide, as in the training set of ASVspoof 2019 LA."""
    rows = (
        trial_table.Row("bench", f"u{i:05d}", f"{i}.wav", "spoof" if i % 10 else "bonafide", content=f"{i}")
        for i in range(count)
    )
    return trial_table.from_rows(rows, source="bench")


def cached(case: Case, folder: Path, *, device: str = "cpu") -> Callable[[dataset.Hold], Dataset]:
    """A store of generated features and its receipt; what opens them. All shards hold the same numbers, turned."""
    reads = members.member("backends", case.backend).Backend.reads
    frames = FRAMES if reads == "frames" else 1  # what is not read need not be large
    known = table(case.utterances)
    spec = Spec({"bench": 1}, trial_table.fingerprint(known), case.utterances, frames, CHANNELS, shard=64)
    target = Store.create(folder, "bench", spec)
    layers = tuple(range(1, case.layers + 1))
    target.add_arrays(CLEAN, layers)
    rng = np.random.default_rng(0)
    features = {k: rng.standard_normal((64, frames, CHANNELS), np.float32).astype(np.float16) for k in layers}
    pooled = {k: rng.standard_normal((64, 2, CHANNELS), np.float32) for k in layers}
    for shard in range(spec.shards):
        n = len(spec.rows(shard))
        some = [{k: np.roll(array, shard, axis=-1)[:n] for k, array in kind.items()} for kind in (features, pooled)]
        target.write(CLEAN, shard, *some, np.full(n, frames, np.int32))
    facts = {name: value for name, value in dataclasses.asdict(spec).items() if name != "shard"}
    facts |= {"format": zarr_metadata.FORMAT, "store": spec.folder("bench"), "layers": layers, "views": [CLEAN]}
    receipt = folder / "bench.json"
    receipt.write_text(json.dumps(facts | {"digest": target.digest([CLEAN], layers)}))

    def opened(hold: dataset.Hold) -> Dataset:
        return dataset.open_set(receipt, known, root=folder, reads=reads, hold=hold, device=device)

    return opened


def make_learner(
    case: Case, data: Dataset, *, device: torch.device = CPU, precision: Precision = "float32"
) -> tuple[HeadLearner, Adam]:
    """A training at its start; the same weights every time."""
    torch.manual_seed(0)
    backend = members.member("backends", case.backend).Backend(layers=case.layers, channels=CHANNELS)
    loss = members.member("losses", "aoc").Loss(Facts(backend.embedding_dim, 1, 0))
    rates = LearningRates(backend=1e-4, centroids=1e-4, layers=1e-3)
    params = TrainParams(
        set="train", device=device.type, precision=precision, epochs=1, batch_size=case.batch_size,
        learning_rate=rates, weight_decay=1e-4, patience=1, average_best=1,
    )  # fmt: skip
    learner = HeadLearner(
        system=Head(backend, loss).to(device),
        train=data.trials,
        dev=data.trials,
        features=data,
        dev_features=data,
        labels=Labels(**{name: t.to(device) for name, t in vars(sampling.labels(data.trials, ())).items()}),
        params=params,
        seed=0,
        augment=sampling.NO_AUGMENT,
        device=device,
    )
    return learner, Adam(learner.groups(), weight_decay=1e-4)


def epoch(case: Case, data: Dataset) -> float:
    """An epoch of training as it is; the mean loss."""
    return together.alone(loop.train_epoch(*make_learner(case, data), 1))


def plain_epoch(case: Case, data: Dataset, tensor: Tensor, *, reuse: bool) -> float:
    """What `loop.train_epoch` does, from one tensor (N, L, ...) in a plain loop. reuse: of a batch's memory."""
    learner, optimizer = make_learner(case, data)
    torch.manual_seed((learner.seed << 20) + 1)
    order = sampling.batches(data.trials.is_bonafide, size=learner.params.batch_size, seed=learner.seed, epoch=1)
    stored = torch.empty((learner.params.batch_size + 1, *tensor.shape[1:]), dtype=tensor.dtype)
    features = torch.empty(stored.shape)
    learner.system.train()
    losses = []
    for rows in order:
        if reuse:
            picked = torch.index_select(tensor, 0, torch.from_numpy(rows), out=stored[: len(rows)])
            batch = picked if picked.dtype == torch.float32 else features[: len(rows)].copy_(picked)
        else:
            batch = tensor[torch.from_numpy(rows)].float()
        n_frames = streaming.valid_frames(data.source, rows)
        losses.append(learner.loss((batch, n_frames), sampling.take(learner.labels, rows)))
        optimizer.step()
    values = torch.stack(losses).tolist()
    return float(sum(values) / len(values))


Seconds = dict[str, list[float]]


def epochs(case: Case, repeats: int) -> tuple[Seconds, Seconds]:
    """Seconds an epoch by the clock, and of processor, by where features come from, the repetitions taking turns."""
    with tempfile.TemporaryDirectory() as folder:
        opened = cached(case, Path(folder))
        disk, ram = opened("disk"), opened("ram")
        tensor = ram.source.tensor  # type: ignore[attr-defined]
        ways: dict[str, Callable[[], float]] = {
            "plain": lambda: plain_epoch(case, disk, tensor, reuse=False),
            "reused": lambda: plain_epoch(case, disk, tensor, reuse=True),
            "disk": lambda: epoch(case, disk),
            "ram": lambda: epoch(case, ram),
        }
        clock: Seconds = {name: [] for name in ways}
        processor: Seconds = {name: [] for name in ways}
        losses = {way() for way in ways.values()}  # and everything is warm
        if len(losses) != 1:
            raise SystemExit(f"expected the same loss from everywhere, got {losses}")
        for repeat in range(repeats):
            for name in (list(ways), list(reversed(ways)))[repeat % 2]:
                start, spent = time.perf_counter(), time.process_time()
                ways[name]()
                clock[name].append(time.perf_counter() - start)
                processor[name].append(time.process_time() - spent)
    return clock, processor


def encoder_seconds(batches: int, size: int) -> float:
    """Seconds an utterance of the encoder's forward pass, 24 layers, float32, in no-grad mode."""
    model, card = models.load(EncoderParams(source="random", random=XLSR_300M, normalize="utterance"))
    encode = xlsr.Encoder(model, taps=("final",), normalize=card.normalize)
    windows = torch.randn(size, SAMPLES)
    encode(windows[:1], torch.tensor([SAMPLES]))
    taken = []
    for _ in range(batches):
        start = time.perf_counter()
        encode(windows, torch.full((size,), SAMPLES))
        taken.append((time.perf_counter() - start) / size)
    return statistics.median(taken)


def ratio(some: list[float], others: list[float]) -> float:
    """Median over the repetitions."""
    return statistics.median(a / b for a, b in zip(some, others, strict=True))


def main() -> None:
    """Measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="few utterances: whether it runs, not how fast it is")
    parser.add_argument("--only", metavar="BACKEND", help="one backend alone")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--encoder-batches", type=int, default=2, help="measured with the encoder; 0 leaves it out")
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores, {platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    encoder = 0.0
    if args.encoder_batches:
        size = 2 if args.small else 8
        encoder = encoder_seconds(args.encoder_batches, size)
        print(
            f"encoder, 24 layers, {SAMPLES} samples, float32: {encoder:.2f} s an utterance, median of "
            f"{args.encoder_batches} batches of {size}; 'encoder in the loop' is this times the utterances plus the "
            "epoch from memory, extrapolated"
        )
    print(f"{'':43}| {'seconds an epoch':31} | {'by the clock':34} | processor  | encoder in")
    print(
        "backend        layers  utterances   batch  |   plain  reused    disk     ram | disk/plain  ram/plain  "
        "disk/reused | disk/plain | the loop/disk"
    )
    for case in SMALL if args.small else CASES:
        if args.only in (None, case.backend):
            clock, processor = epochs(case, args.repeats)
            middle = {name: statistics.median(taken) for name, taken in clock.items()}
            in_the_loop = (encoder * case.utterances + middle["plain"]) / middle["disk"] if encoder else float("nan")
            print(
                f"{case.backend:14} {case.layers:6}  {case.utterances:10,}  {case.batch_size:6}  | "
                + " ".join(f"{middle[name]:7.2f}" for name in ("plain", "reused", "disk", "ram"))
                + f" | {ratio(clock['disk'], clock['plain']):10.3f} {ratio(clock['ram'], clock['plain']):10.3f} "
                f"{ratio(clock['disk'], clock['reused']):12.3f} | {ratio(processor['disk'], processor['plain']):10.3f} "
                f"| {in_the_loop:,.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
