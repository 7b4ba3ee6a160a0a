"""What a recipe costs before anything is downloaded: disk and GPU hours of its extraction, computed, not measured.

    python bench/cost.py recipes/frozen_2019la.yaml [--tflops 10]

Bytes follow from the store's layout, hours from the multiplications of XLSR-300M cut above the highest tapped layer, at
a sustained rate that you give (10 TFLOP/s is half of what an A100 can do in float32). Decoding hides behind it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.core import params_file

# Utterances of the official keys, by corpus and split
UTTERANCES = {
    ("asvspoof2019_la", "train"): 25_380,
    ("asvspoof2019_la", "dev"): 24_844,
    ("asvspoof2019_la", "eval"): 71_237,
    ("asvspoof2021_la", "eval"): 148_176,
    ("asvspoof2021_df", "eval"): 533_928,
    ("asvspoof5", "train"): 182_357,
    ("asvspoof5", "dev"): 140_950,
    ("asvspoof5", "eval"): 680_774,
    ("in_the_wild", "eval"): 31_779,
    ("for_norm", "eval"): 4_634,
}

# XLSR-300M
KERNELS, STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)
CONV, WIDTH, FEEDFORWARD, LAYERS = 512, 1024, 4096, 24
POSITION_KERNEL, POSITION_GROUPS = 128, 16


def frames(samples: int) -> list[int]:
    """Frames after every convolution."""
    lengths = [samples]
    for kernel, stride in zip(KERNELS, STRIDES, strict=True):
        lengths.append((lengths[-1] - kernel) // stride + 1)
    return lengths[1:]


def multiplications(samples: int, *, layers: int) -> float:
    """Multiply-adds of one utterance through the convolutions and the first transformer layers."""
    lengths = frames(samples)
    t = lengths[-1]
    convolutions = sum(
        n * kernel * CONV * (CONV if i else 1) for i, (n, kernel) in enumerate(zip(lengths, KERNELS, strict=True))
    )
    entry = t * CONV * WIDTH + t * WIDTH * (WIDTH // POSITION_GROUPS) * POSITION_KERNEL
    layer = t * (4 * WIDTH**2 + 2 * WIDTH * FEEDFORWARD) + 2 * t**2 * WIDTH
    return convolutions + entry + layers * layer


def main() -> None:
    """Parse, compute, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--tflops", type=float, default=10.0, help="sustained rate of the GPU (default 10)")
    args = parser.parse_args()
    settings = params_file.load(args.recipe)
    taps, samples = settings.extract.layers, settings.extract.window.samples
    highest = max(LAYERS if tap == "final" else tap for tap in taps)
    t = frames(samples)[-1]
    size = len(taps) * (2 * t * WIDTH + 4 * 2 * WIDTH)  # frames in float16; mean and deviation in float32
    work = 2 * multiplications(samples, layers=highest)
    print(f"{len(taps)} layers up to {highest}, {t} frames: {size:,} bytes and {work / 1e9:.0f} GFLOP an utterance")
    total = 0
    for name, source in settings.sets.items():
        if (source.corpus, source.split) not in UTTERANCES:
            raise SystemExit(f"error: {name}: expected a public corpus, got {source.corpus}, split {source.split}")
        trained_on = name in settings.members(settings.train.set)
        count = UTTERANCES[source.corpus, source.split] * (1 + trained_on * len(settings.extract.views))
        total += count
        print(f"{name:8} {count:8,} windows {size * count / 1e9:8,.0f} GB {hours(count, work, args.tflops):6.2f} h")
    print(f"{'all':8} {total:8,} windows {size * total / 1e9:8,.0f} GB {hours(total, work, args.tflops):6.2f} h")


def hours(count: int, work: float, tflops: float) -> float:
    """Hours of a GPU for so many utterances of so much work each, FLOP."""
    return count * work / (tflops * 1e12) / 3600


if __name__ == "__main__":
    main()
