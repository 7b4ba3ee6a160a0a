"""Random batches from the feature store against other ways to read them, on a warm page cache.

    python bench/read.py [--small] [--repeats 5]

Generated frames in the shape of XLSR-300M (201 of 1024, float16) in a real store. Batches of 64 random utterances are
read by the reader of the project (memory maps), gathered from one tensor in memory (`torch.index_select`, into
memory that is used again, as the reader does), read by zarr-python an utterance at a time and a batch at a time, and by
h5py an utterance at a time from the file that `bonafide cache export` writes. All take turns, repetition by repetition,
and must give the same bytes. Ratios are medians over the repetitions; the aim is 0.8 of the speed of memory. A row that
a reader has not given before is held against its checksum: that is measured with a fresh reader, every row once.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from torch import Tensor
from train import Case, cached, table

from pipeline.core.contracts import CLEAN
from pipeline.extraction import hdf5

BATCH = 64
Rows = NDArray[np.int64]


FIRST = "the store, each row once"


def ways(folder: Path, utterances: int) -> dict[str, Callable[[Rows], Tensor]]:
    """What reads a batch (64, 1, 201, 1024) float16, by name; `FIRST` begins anew with every batch of no rows."""
    opened = cached(Case("asp", utterances, 1, BATCH), folder)
    disk, memory = opened("disk").source, opened("ram").source.tensor  # type: ignore[attr-defined]
    hdf5.export(folder / "bench.json", folder / "bench.h5", root=folder, trials=table(utterances))
    store = next(folder.glob("*/*.zarr"))
    by_zarr = zarr.open_group(store, mode="r")[f"{CLEAN}/layer_01"]
    by_h5py = h5py.File(folder / "bench.h5")[f"{CLEAN}/layer_01"]
    out = torch.empty((BATCH, *memory.shape[1:]), dtype=memory.dtype)

    def from_store(rows: Rows) -> Tensor:
        disk.gather(rows, out)
        return out

    fresh = [disk]

    def first(rows: Rows) -> Tensor:
        if not len(rows):
            fresh[0] = opened("disk").source
        fresh[0].gather(rows, out[: len(rows)])
        return out

    def items(array: object) -> Callable[[Rows], Tensor]:
        def read(rows: Rows) -> Tensor:
            found = [np.asarray(array[row]) for row in rows.tolist()]  # type: ignore[index]
            return torch.from_numpy(np.stack(found)[:, None])

        return read

    return {
        "the store": from_store,
        FIRST: first,
        "a tensor in memory": lambda rows: torch.index_select(memory, 0, torch.from_numpy(rows), out=out),
        "zarr-python, one by one": items(by_zarr),
        "zarr-python, a batch": lambda rows: torch.from_numpy(np.asarray(by_zarr.oindex[rows])[:, None]),
        "h5py, one by one": items(by_h5py),
    }


def main() -> None:
    """Measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="few utterances: whether it runs, not how fast it is")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    utterances, fast, slow = (200, 4, 1) if args.small else (4_000, 50, 4)
    print(f"{os.cpu_count()} cores, {platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        readers = ways(Path(folder), utterances)
        rng = np.random.default_rng(0)
        batches = [rng.integers(utterances, size=BATCH) for _ in range(fast)]
        expected = [read(batches[0]).clone() for read in readers.values()]
        if any(not torch.equal(other, expected[0]) for other in expected[1:]):
            raise SystemExit("expected the same features from every reader, got others")
        for read in readers.values():  # everything is warm
            for rows in batches[:slow]:
                read(rows)
        taken: dict[str, list[float]] = {name: [] for name in readers}
        for repeat in range(args.repeats):
            for name in (list(readers), list(reversed(readers)))[repeat % 2]:
                chosen = batches if name in ("the store", "a tensor in memory") else batches[:slow]
                if name == FIRST:
                    chosen = np.array_split(rng.permutation(utterances), -(-utterances // BATCH))
                    readers[FIRST](chosen[0][:0])
                start = time.perf_counter()
                for rows in chosen:
                    readers[name](rows)
                taken[name].append((time.perf_counter() - start) / len(chosen))
    size = BATCH * 201 * 1024 * 2
    print(f"{utterances:,} utterances, batches of {BATCH}, {size / 1e6:.0f} MB each, {args.repeats} repetitions")
    for name, seconds in taken.items():
        ratio = statistics.median(m / s for m, s in zip(taken["a tensor in memory"], seconds, strict=True))
        rate = size / statistics.median(seconds) / 1e9
        print(f"{name:25} {1e3 * statistics.median(seconds):8.1f} ms a batch  {rate:6.2f} GB/s  {ratio:6.3f} of memory")


if __name__ == "__main__":
    main()
