"""Cells of the grid that read the same features, trained together against one after the other.

    python -m bench.together [--pooled 6000] [--frames 240] [--batch 20] [--backends linear mlp mhfa]
    python -m bench.together --device cuda --hold device --pooled 25380 --frames 8000 --backends linear mlp mhfa asp

Generated features in the shapes of XLSR-300M, two layers, in a real store (see `bench/train.py`), read from the disk
with a warm page cache: `linear` and `mlp` read pooled features, `mhfa` frames of 201 x 1024. Eight cells of a backend,
of four losses with two weight decays each, one epoch. Train and dev are the same set. The utterances are fewer than the
25,380 of ASVspoof 2019 LA, as all costs grow with them alike; --pooled and --frames say how many. --hold device reads
the features into the memory of the device once, before the clock starts.

On the CPU both ways must come to the same curves. On a GPU they may differ by TOLERANCE; the largest difference is the
last column. Printed are the seconds of both and the ratio, one after the other / together, by the clock and by
processor time, which is steadier where others use the machine; and which share of the processor time of one after the
other is the reading of the batches of train and dev, which is the most that can be saved.
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
from pipeline.features.dataset import Dataset, Hold
from pipeline.training import heads, together

BACKENDS = ("linear", "mlp", "mhfa")
LOSSES = ("aoc", "cross_entropy", "oc_softmax", "am_softmax")
DECAYS = (1e-4, 1e-3)
TOLERANCE = 0.5  # between curves on a GPU: of the mean loss, and of the dev EER in percentage points


def steps(seat: together.Seat, *, backend: str, loss: str, decay: float, batch: int, data: Dataset, device: str) -> Any:
    """One cell."""
    rates = LearningRates(backend=1e-4, centroids=1e-4, layers=1e-3)
    params = TrainParams(
        set="train", device=device, precision="float32", epochs=1, batch_size=batch,
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


def settle(device: str) -> None:
    """Wait until the device is done."""
    if device == "cuda":
        torch.cuda.synchronize()


def timed(work: Callable[[], Any], device: str) -> tuple[Any, float, float]:
    """What some work gives, its seconds by the clock, and of the processor."""
    settle(device)
    clock, processor = time.perf_counter(), time.process_time()
    found = work()
    settle(device)
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


def apart(ours: list[Any], theirs: list[Any]) -> float:
    """The largest difference between the curves of cells, of the mean loss or of the dev EER in percentage points."""
    pairs = [pair for one, other in zip(ours, theirs, strict=True) for pair in zip(one, other, strict=True)]
    return max(max(abs(a.loss - b.loss), abs(a.dev_eer - b.dev_eer)) for a, b in pairs)


def compare(
    backend: str, *, utterances: int, batch: int, folder: Path, device: str = "cpu", hold: Hold = "disk"
) -> None:
    """Eight cells of a backend both ways."""
    data = train_bench.cached(train_bench.Case(backend, utterances, 2, batch), folder, device=device)(hold)
    each = [(loss, decay) for loss in LOSSES for decay in DECAYS]
    shared = partial(steps, backend=backend, batch=batch, data=data, device=device)
    cells = [partial(shared, loss=loss, decay=decay) for loss, decay in each]
    order = list(sampling.batches(data.trials.is_bonafide, size=batch, seed=0, epoch=1))

    def read() -> None:
        for _ in streaming.stream(data.source, order, device=torch.device(device)):
            pass

    read()
    together.alone(cells[0](together.ALONE))
    ours, clock, processor = timed(lambda: side_by_side(cells), device)
    theirs, clock_alone, processor_alone = timed(
        lambda: [together.alone(cell(together.ALONE)).curves for cell in cells], device
    )
    _, _, reading = timed(read, device)
    difference = apart(ours, theirs)
    if not difference <= TOLERANCE or (device == "cpu" and ours != theirs):
        raise SystemExit(f"error: {backend}: together is not the same as alone, they differ by {difference:.2g}")
    print(
        f"| {backend} | {utterances:,} | {batch} | {clock_alone:.1f} | {clock:.1f} | {clock_alone / clock:.2f} "
        f"| {processor_alone:.1f} | {processor:.1f} | {processor_alone / processor:.2f} "
        f"| {8 * 2 * reading / processor_alone:.1%} | {difference:.1g} |",
        flush=True,
    )


def main() -> None:
    """Each backend in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pooled", type=int, default=6_000)
    parser.add_argument("--frames", type=int, default=240)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--backends", nargs="+", default=BACKENDS, choices=members.names("backends"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--hold", choices=("disk", "device"), default="disk")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("expected a GPU that torch can use, got none")
    torch.set_num_threads(1)
    print(
        "| backend | N | batch | alone, s | together, s | ratio | processor: alone | together | ratio | reading "
        "| difference |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for backend in args.backends:
        count = args.frames if members.member("backends", backend).Backend.reads == "frames" else args.pooled
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            compare(backend, utterances=count, batch=args.batch, folder=place, device=args.device, hold=args.hold)


if __name__ == "__main__":
    main()
