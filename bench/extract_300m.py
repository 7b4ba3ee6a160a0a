"""Extraction with the full XLSR-300M architecture (24 layers of 1024, random weights), layers 5 and 7 tapped.

    python bench/extract_300m.py --manifest TRIALS.csv --root FOLDER [--split dev] [--utterances 64]

Runs `prepare`'s checks and `extract` as the flow does, into a temporary folder, and prints seconds an utterance, bytes
on disk and peak memory. Loading the encoder is told apart from extracting.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import tempfile
import time
from pathlib import Path

import torch

from pipeline import extract, prepare, trials, xlsr
from pipeline.contracts import Tap
from pipeline.corpora import manifest
from pipeline.params import EncoderParams, ExtractParams, RandomEncoder, WindowParams

XLSR_300M = RandomEncoder(layers=24, width=1024, heads=16, feedforward=4096, conv_channels=512, seed=0)


def first(table: trials.Trials, count: int) -> trials.Trials:
    """The first trials of a table."""
    return trials.Trials(**{name: column[:count] for name, column in vars(table).items()})


def main() -> None:
    """Parse, extract, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, required=True, help="trials as the manifest adapter reads them")
    parser.add_argument("--root", type=Path, required=True, help="folder that its paths are relative to")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--utterances", type=int, default=64)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    args = parser.parse_args()
    table = first(
        prepare.with_contents(manifest.trials(args.root, args.manifest, args.split), args.root), args.utterances
    )
    window = WindowParams(samples=64_600, pad="repeat")
    params = ExtractParams(layers=(5, 7), window=window, shard=16, batch_size=8, device=args.device)
    start = time.perf_counter()
    model, card = xlsr.load(EncoderParams(source="random", random=XLSR_300M, normalize="utterance"))
    loaded = time.perf_counter() - start
    device = "cuda" if args.device != "cpu" and torch.cuda.is_available() else "cpu"

    def make(taps: tuple[Tap, ...]) -> xlsr.Encoder:
        return xlsr.Encoder(model, taps=taps, normalize=card.normalize).to(device)

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        receipt = extract.extract(
            table,
            set_name="bench",
            audio_root=args.root,
            root=Path(folder),
            card=card,
            encoder=make,
            params=params,
            say=print,
        )
        seconds = time.perf_counter() - start
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    where = torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} cores, {platform.machine()}"
    print(f"device                     {where}, torch {torch.__version__}, float32")
    print(f"encoder made and hashed    {loaded:.1f} s")
    count = len(table)
    print(f"extraction                 {count} utterances in {seconds:.1f} s, {seconds / count:.3f} s an utterance")
    print(f"on disk                    {size:,} bytes, {size // count:,} an utterance; estimate {receipt['bytes']:,}")
    print(f"peak memory of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
