"""What augmented views cost beside the encoder: speed of augmenting, and how far it holds the encoder up.

    python bench/views.py [--view rawboost4_0] [--seconds 4] [--utterances 64] [--layers 8] [--device auto]

1. Utterances augmented a second by one thread, by threads, and by processes, which is what extraction uses; each the
   best of five rounds taken in turn.
2. A loop of small torch operations, as an encoder on a GPU is fed, alone and with threads or processes behind it.
3. Extraction of `clean` and the view, against the bare forward passes of the same encoder on the same windows: the
   first layers of XLSR-300M with random weights.

Utterances are generated noise. Quote the ratios; the processors are shared by everything that runs.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
import torch

from pipeline.audio import inspection, loader, views, windowing
from pipeline.core import trial_table
from pipeline.core.contracts import Tap
from pipeline.core.encoder_sections import EncoderParams, RandomEncoder
from pipeline.core.sections import ExtractParams, WindowParams
from pipeline.encoder import models, xlsr
from pipeline.extraction import planning

WINDOW = WindowParams(samples=64_600, pad="repeat")
ROUNDS = 5
LOOP_S = 3.0


def make_corpus(root: Path, *, count: int, seconds: float) -> trial_table.Trials:
    """Files of noise and their table."""
    rows = []
    for i in range(count):
        noise = np.random.default_rng(i).normal(0, 0.1, int(seconds * windowing.SAMPLE_RATE)).astype(np.float32)
        soundfile.write(root / f"u{i}.flac", noise.clip(-1, 1), windowing.SAMPLE_RATE)
        rows.append(trial_table.Row(f"bench:{i}", f"u{i}", f"u{i}.flac", "spoof" if i % 2 else "bonafide"))
    return inspection.with_contents(trial_table.from_rows(rows, source="bench"), root)


def clips_of(table: trial_table.Trials, root: Path) -> list[loader.Clip]:
    """All of its utterances."""
    return [loader.clip_of(table, row, audio_root=root) for row in range(len(table))]


def submit(pool: Executor, clips: Sequence[loader.Clip], view: str) -> list[Future[tuple[windowing.Samples, int]]]:
    """Load them all."""
    return [pool.submit(loader.load_window, clip, view=view, window=WINDOW) for clip in clips]


def rate(pool: Executor, clips: Sequence[loader.Clip], view: str) -> float:
    """Utterances a second, decoded, augmented, windowed and handed over."""
    start = time.perf_counter()
    for future in submit(pool, clips, view):
        future.result()
    return len(clips) / (time.perf_counter() - start)


def rates(clips: Sequence[loader.Clip], view: str) -> dict[str, float]:
    """The best rate of every kind of pool."""
    pools = {
        "1 thread": ThreadPoolExecutor(1),
        f"{loader.workers()} threads": ThreadPoolExecutor(loader.workers()),
        f"{loader.workers()} processes": loader.processes(),
    }
    best = dict.fromkeys(pools, 0.0)
    for _ in range(1 + ROUNDS):  # the first starts the workers
        for name, pool in pools.items():
            best[name] = max(best[name], rate(pool, clips, view))
    for pool in pools.values():
        pool.shutdown()
    return best


def loop() -> float:
    """Small operations of torch a second, from one thread."""
    x, done, start = torch.zeros(64), 0, time.perf_counter()
    while time.perf_counter() - start < LOOP_S:
        for _ in range(100):
            x = x + 1
        done += 100
    return done / (time.perf_counter() - start)


def held_up(clips: Sequence[loader.Clip], view: str) -> dict[str, float]:
    """The speed of the loop as a share of what it is alone, with threads and with processes behind it."""
    kinds: dict[str, Callable[[], Executor]] = {
        f"{loader.workers()} threads": lambda: ThreadPoolExecutor(loader.workers()),
        f"{loader.workers()} processes": loader.processes,
    }
    found = {}
    for name, make in kinds.items():
        alone = loop()
        pool = make()
        futures = submit(pool, clips, view)
        futures[0].result()  # the workers have started
        futures += [future for _ in range(60) for future in submit(pool, clips, view)]
        found[name] = loop() / alone
        pool.shutdown(cancel_futures=True)
    return found


def forward(model: xlsr.Encoder, clips: Sequence[loader.Clip], names: Sequence[str], params: ExtractParams) -> float:
    """Seconds of the bare forward passes over all windows of the views."""
    loaded = [loader.load_window(clip, view=name, window=WINDOW) for name in names for clip in clips]
    device = next(model.parameters()).device
    start = time.perf_counter()
    for i in range(0, len(loaded), params.first_batch):
        batch = loaded[i : i + params.first_batch]
        model(
            torch.from_numpy(np.stack([samples for samples, _ in batch])).to(device),
            torch.tensor([valid for _, valid in batch]).to(device),
        )
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--view", default="rawboost4_0")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of an utterance")
    parser.add_argument("--utterances", type=int, default=64)
    parser.add_argument("--layers", type=int, default=8, help="of XLSR-300M, the last one tapped; 0: without part 3")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    args = parser.parse_args()
    views.parse(args.view)
    processors, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    print(f"{processors} processors, load {load:.1f}; {args.view}, {args.seconds:g} s each")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        table = make_corpus(root, count=args.utterances, seconds=args.seconds)
        clips = clips_of(table, root)
        found = rates(clips, args.view)
        for name, value in found.items():
            print(f"augmenting, {name:12} {value:6.0f} utterances/s, {value / found['1 thread']:.2f} of one thread")
        for name, share in held_up(clips, args.view).items():
            print(f"small operations with {name:12} behind them: {share:.2f} of their speed alone")
        if args.layers:
            extraction(table, root, args.view, layers=args.layers, device=args.device)


def extraction(table: trial_table.Trials, root: Path, view: str, *, layers: int, device: str) -> None:
    """Part 3."""
    sizes = RandomEncoder(layers=layers, width=1024, heads=16, feedforward=4096, conv_channels=512, seed=0)
    loaded, card = models.load(EncoderParams(source="random", random=sizes, normalize="utterance"))
    where = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"

    def make(taps: tuple[Tap, ...]) -> xlsr.Encoder:
        return xlsr.Encoder(loaded, taps=taps, normalize=card.normalize).to(where)

    params = ExtractParams(
        layers=(layers,), views=(view,), window=WINDOW, shard=16, batch_size=8, device=where, precision="float32"
    )
    names = planning.views_of(params)
    model = make(params.layers)
    clips = clips_of(table, root)
    forward(model, clips[:8], names, params)  # warm
    bare = forward(model, clips, names, params)
    start = time.perf_counter()
    planning.extract(
        table,
        set_name="train",
        audio_root=root,
        root=root / "cache",
        card=card,
        encoder=make,
        params=params,
        say=print,
    )
    whole = time.perf_counter() - start
    count = len(names) * len(table)
    print(f"bare forward, {where:4}       {count / bare:6.1f} utterances/s, {layers} layers")
    print(
        f"extraction with {view:11}{count / whole:6.1f} utterances/s, {whole / bare:.2f} × the time of the bare forward"
    )


if __name__ == "__main__":
    main()
