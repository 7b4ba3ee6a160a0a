"""Extraction with the XLSR-300M architecture (24 layers of 1024, random weights) against its encoder and today's way.

    python bench/extract.py --manifest TRIALS.csv --root FOLDER [--layers 5 7] [--precision float32] [--utterances 32]

Three ways take turns on the same utterances, windows of 64,600 samples:

(a) the bare forward passes of the encoder, cut above the highest tapped layer, on windows that lie in memory;
(b) `extract` end to end, as the flow runs it: decoding, windows, the encoder, pooling, checks, checksums, the store;
(c) what is done without it: transformers in float32 with all hidden states, a file at a time, `np.save` of each.

Prints seconds an utterance, b / a (aim: at most 1.05) and c / b (aim: at least 4), medians over the repetitions, and
b / a in processor time, which other work on the machine disturbs less. Loading the encoder is left out of all three.
`--views` caches augmented views, too, as of a training set.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2Model

from pipeline.audio import inspection, loader
from pipeline.audio.loader import Windows
from pipeline.core import trial_table
from pipeline.core.contracts import Tap
from pipeline.core.devices import device_of
from pipeline.core.encoder_sections import EncoderParams, RandomEncoder
from pipeline.core.sections import ExtractParams, WindowParams
from pipeline.corpora import manifest
from pipeline.encoder import models, xlsr
from pipeline.encoder.cards import Card
from pipeline.extraction import identity, planning

WINDOW = WindowParams(samples=64_600, pad="repeat")
TODAY = 8  # utterances at most of the slow way


def first(table: trial_table.Trials, count: int) -> trial_table.Trials:
    """The first trials of a table."""
    return trial_table.Trials(**{name: column[:count] for name, column in vars(table).items()})


def encoder(layers: int) -> tuple[Wav2Vec2Model, Card]:
    """XLSR-300M's structure, or its first layers."""
    sizes = RandomEncoder(layers=layers, width=1024, heads=16, feedforward=4096, conv_channels=512, seed=0)
    return models.load(EncoderParams(source="random", random=sizes, normalize="utterance"))


def bare(model: xlsr.Encoder, loaded: Windows, batch: int) -> None:
    """(a)"""
    device = next(model.parameters()).device
    for start in range(0, len(loaded[0]), batch):
        model(*(torch.from_numpy(array[start : start + batch]).to(device) for array in loaded))
    if device.type == "cuda":
        torch.cuda.synchronize()


@torch.inference_mode()
def today(model: Wav2Vec2Model, clips: list[loader.Clip], folder: Path, device: torch.device) -> None:
    """(c)"""
    for clip in clips:
        samples, _ = loader.load_window(clip, view="clean", window=WINDOW)
        given = torch.from_numpy(samples)[None].to(device)
        normal = xlsr.normalized(given, torch.ones_like(given, dtype=torch.bool))
        states = model(normal, output_hidden_states=True).hidden_states
        np.save(folder / f"{clip.utterance}.npy", torch.stack(states)[:, 0].cpu().numpy())


def seconds(way: Callable[[], object]) -> tuple[float, float]:
    """How long it takes by the clock, and of all processors together."""
    start, spent = time.perf_counter(), time.process_time()
    way()
    return time.perf_counter() - start, time.process_time() - spent


def arguments() -> argparse.Namespace:
    """What to measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, required=True, help="trials as the manifest adapter reads them")
    parser.add_argument("--root", type=Path, required=True, help="folder that its paths are relative to")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--utterances", type=int, default=32)
    parser.add_argument("--layers", type=int, nargs="+", default=[5, 7], help="tapped layers")
    parser.add_argument("--views", nargs="*", default=[], help="augmented views beside the clean one")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--shard", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


def main() -> None:
    """Parse, measure, print."""
    args = arguments()
    table = manifest.trials(args.root, args.manifest, args.split)
    table = first(inspection.with_contents(table, args.root), args.utterances)
    params = ExtractParams(
        layers=tuple(args.layers),
        views=tuple(args.views),
        window=WINDOW,
        shard=args.shard,
        batch_size=args.batch_size,
        device=args.device,
        precision=args.precision,
    )
    device, precision = device_of(args.device, key="--device"), identity.precision_of(params)
    made, card = encoder(max(args.layers))  # what lies above is cut off by any of (a) and (b)

    def make(taps: tuple[Tap, ...]) -> xlsr.Encoder:
        return xlsr.Encoder(made, taps=taps, normalize=card.normalize, precision=precision).to(device)

    model = make(params.layers)
    whole = encoder(24)[0].to(device)
    clips = [loader.clip_of(table, row, audio_root=args.root) for row in range(len(table))]
    names = planning.views_of(params)
    loaded = [loader.load_window(clip, view=name, window=WINDOW) for name in names for clip in clips]
    arrays = np.stack([samples for samples, _ in loaded]), np.array([valid for _, valid in loaded])
    taken: dict[str, list[float]] = {"a": [], "b": [], "c": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def ours() -> None:
            planning.extract(
                table,
                set_name="bench",
                audio_root=args.root,
                root=folder / "cache",
                card=card,
                encoder=lambda _taps: model,
                params=params,
                say=lambda _text: None,
            )

        few = clips[: min(TODAY, len(clips))]
        bare(model, (arrays[0][:8], arrays[1][:8]), 8)  # warm
        today(whole, few[:1], folder, device)
        for _ in range(args.repeats):
            for way, do, count in (
                ("a", lambda: bare(model, arrays, args.batch_size), len(loaded)),
                ("b", ours, len(loaded)),
                ("c", lambda: today(whole, few, folder, device), len(few)),
            ):
                clock, processor = seconds(do)
                taken[way].append(clock / count)
                taken.setdefault(f"processor {way}", []).append(processor / count)
            shutil.rmtree(folder / "cache")
    show(args, taken, device=device, precision=precision, names=names, utterances=len(table))


def show(
    args: argparse.Namespace,
    taken: dict[str, list[float]],
    *,
    device: torch.device,
    precision: str,
    names: Sequence[str],
    utterances: int,
) -> None:
    """Print the medians and the ratios. taken: seconds an utterance of each way, a value a repetition."""
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{os.cpu_count()} cores, {platform.machine()}"
    print(f"{where}, torch {torch.__version__}, {precision}")
    print(f"layers {args.layers}, views {', '.join(names)}, {utterances} utterances")
    for way, what in (("a", "bare forward"), ("b", "extraction"), ("c", "today's way, all 25 states")):
        print(f"({way}) {what:28} {statistics.median(taken[way]):7.4f} s an utterance")
    print(f"b / a {_ratio(taken, 'b', 'a')}, in processor time {_ratio(taken, 'processor b', 'processor a')}")
    print(f"c / b {_ratio(taken, 'c', 'b')}")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB, two encoders in it")


def _ratio(taken: dict[str, list[float]], above: str, below: str) -> str:
    ratios = sorted(x / y for x, y in zip(taken[above], taken[below], strict=True))
    return f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"


if __name__ == "__main__":
    main()
