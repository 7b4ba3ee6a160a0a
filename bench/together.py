"""Cells of the grid that read the same features, trained together against one after the other.

    python -m bench.together [--pooled 6000] [--frames 240] [--batch 20]

Generated features in the shapes of XLSR-300M, two layers, in a real store (see `bench/train.py`), read from the disk
with a warm page cache: `linear` and `mlp` read pooled features, `mhfa` frames of 201 x 1024. Eight cells of a backend,
of four losses with two weight decays each, one epoch. Train and dev are the same set. The utterances are fewer than the
25,380 of ASVspoof 2019 LA, as all costs grow with them alike; --pooled and --frames say how many. Both ways must come
to the same curves. Printed are the seconds of both and the ratio, one after the other / together, by the clock and by
processor time, which is steadier where others use the machine; and which share of the processor time
of one after the other is the reading of the batches of train and dev, which is the most that can be saved.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench import train as train_bench
from pipeline.core import members
from pipeline.core.contracts import Facts
from pipeline.core.sections import LearningRates, TrainParams
from pipeline.features import sampling, streaming
from pipeline.features.dataset import Dataset
from pipeline.training import heads, together

BACKENDS = ("linear", "mlp", "mhfa")
LOSSES = ("aoc", "cross_entropy", "oc_softmax", "am_softmax")
DECAYS = (1e-4, 1e-3)


def steps(seat: together.Seat, *, backend: str, loss: str, decay: float, batch: int, data: Dataset) -> Any:
    """One cell."""
    rates = LearningRates(backend=1e-4, centroids=1e-4, layers=1e-3)
    params = TrainParams(
        set="train", device="cpu", precision="float32", epochs=1, batch_size=batch,
        learning_rate=rates, weight_decay=decay, patience=1, average_best=1,
    )  # fmt: skip
    return heads.fit_steps(
        partial(members.member("backends", backend).Backend, layers=2, channels=train_bench.CHANNELS),
        lambda embedding_dim: members.member("losses", loss).Loss(Facts(embedding_dim, 1, 0)),
        train=data,
        dev=data,
        labels=sampling.labels(data.trials, ()),
        params=params,
        seed=0,
        seat=seat,
    )


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """What some work gives, its seconds by the clock, and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    found = work()
    return found, time.perf_counter() - clock, time.process_time() - processor


def side_by_side(cells: list[Any]) -> list[Any]:
    """The curves of cells that take turns."""
    found: list[Any] = [None] * len(cells)

    def kept(number: int, seat: together.Seat) -> Any:
        found[number] = (yield from cells[number](seat)).curves

    for _, error in together.take_turns([partial(kept, number) for number in range(len(cells))]):
        if error:
            raise error
    return found


def compare(backend: str, *, utterances: int, batch: int, folder: Path) -> None:
    """Eight cells of a backend both ways."""
    data = train_bench.cached(train_bench.Case(backend, utterances, 2, batch), folder)("disk")
    each = [(loss, decay) for loss in LOSSES for decay in DECAYS]
    cells = [partial(steps, backend=backend, loss=loss, decay=decay, batch=batch, data=data) for loss, decay in each]
    order = list(sampling.batches(data.trials.is_bonafide, size=batch, seed=0, epoch=1))

    def read() -> None:
        for _ in streaming.stream(data.source, order):
            pass

    read()
    together.alone(cells[0](together.ALONE))
    ours, clock, processor = timed(lambda: side_by_side(cells))
    theirs, clock_alone, processor_alone = timed(
        lambda: [together.alone(cell(together.ALONE)).curves for cell in cells]
    )
    _, _, reading = timed(read)
    if ours != theirs:
        raise SystemExit(f"error: {backend}: together is not the same as alone")
    print(
        f"| {backend} | {utterances:,} | {batch} | {clock_alone:.1f} | {clock:.1f} | {clock_alone / clock:.2f} "
        f"| {processor_alone:.1f} | {processor:.1f} | {processor_alone / processor:.2f} "
        f"| {8 * 2 * reading / processor_alone:.1%} |",
        flush=True,
    )


def main() -> None:
    """Each backend in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pooled", type=int, default=6_000)
    parser.add_argument("--frames", type=int, default=240)
    parser.add_argument("--batch", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| backend | N | batch | alone, s | together, s | ratio | processor: alone | together | ratio | reading |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for backend in BACKENDS:
        count = args.frames if members.member("backends", backend).Backend.reads == "frames" else args.pooled
        with tempfile.TemporaryDirectory() as folder:
            compare(backend, utterances=count, batch=args.batch, folder=Path(folder))


if __name__ == "__main__":
    main()
