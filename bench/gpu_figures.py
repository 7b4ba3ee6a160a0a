"""The figures of `bench/gpu.py`: the machine, extraction, with views, decoding and augmenting, training."""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import transformers

from bench import train as train_bench
from bench.train import Case
from pipeline.audio import decode, loader, views
from pipeline.core import trial_table
from pipeline.core.contracts import CLEAN
from pipeline.core.encoder_sections import EncoderParams, RandomEncoder
from pipeline.core.errors import InputError
from pipeline.core.sections import ExtractParams, WindowParams
from pipeline.corpora import demo
from pipeline.encoder import models, xlsr
from pipeline.encoder.cards import Card
from pipeline.extraction import planning
from pipeline.training import loop, together

SAMPLES, FRAMES, CHANNELS = 64_600, 201, 1024
WINDOW = WindowParams(samples=SAMPLES, pad="repeat")
XLSR_300M = RandomEncoder(layers=24, width=CHANNELS, heads=16, feedforward=4096, conv_channels=512, seed=0)
TINY = RandomEncoder(layers=24, width=64, heads=2, feedforward=64, conv_channels=16, seed=0)
GPU = torch.device("cuda", 0)
ALL = tuple(range(25))
# Utterances of the published protocols: 2019 LA, all three sets; 2021 DF, evaluation; ASVspoof 5, all three sets.
CORPORA = {"19LA": 121_461, "21DF": 611_829, "ASVspoof 5": 1_004_081}
WARM = 4  # steps
# Views that are extracted beside the clean one: how many, and kinds by what they cost a processor.
ROUNDS: tuple[tuple[str, ...], ...] = (
    (),
    ("rawboost4_0",),
    ("rawboost4_0", "rawboost4_1", "rawboost4_2", "rawboost4_3"),
    ("mp3_32",),
    ("noise_0",),
    ("reverb600_0",),
)
CASES = (Case("linear", 25_380, 2, 64), Case("asp", 25_380, 1, 64), Case("conformer_tcm", 25_380, 1, 20))
SMALL = (Case("linear", 500, 2, 64), Case("asp", 100, 1, 64), Case("conformer_tcm", 40, 1, 20))


def seconds(do: Callable[[], object]) -> float:
    """How long it takes, until the GPU is done."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    do()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def machine(_folder: Path, small: bool, say: Callable[..., None]) -> None:
    """The card, the versions, and the peak of its matrix products."""
    size = 512 if small else 8192
    say(f"{torch.cuda.get_device_name()}, {len(os.sched_getaffinity(0))} cores; Python {platform.python_version()},")
    say(f"torch {torch.__version__}, transformers {transformers.__version__}, numpy {np.__version__}.\n")
    for dtype in (torch.bfloat16, torch.float32):
        one = torch.randn(size, size, device=GPU, dtype=dtype)
        peak = 2 * size**3 / min(seconds(lambda one=one: one @ one) for _ in range(8))
        say(f"Matrix product of {size}, {str(dtype).removeprefix('torch.')}: {peak / 1e12:.0f} TFLOP/s.")
    say()


# ---------------------------------------------------------------- extraction


def corpus(folder: Path, count: int) -> trial_table.Trials:
    """FLAC files of generated speech, each a little longer than a window: 64 recordings, rotated and scaled."""
    folder.mkdir()
    spoken = [np.concatenate([demo.render(demo.plan("dev", 8 * i + k)) for k in range(8)]) for i in range(64)]

    def write(i: int) -> trial_table.Row:
        samples = np.resize(np.roll(spoken[i % 64], 997 * (i // 64)), SAMPLES + 400)
        path = folder / f"{i}.flac"
        soundfile.write(path, (samples * (0.5 + 0.5 * (i % 7) / 7)).astype(np.int16), 16_000)
        label = "spoof" if i % 10 else "bonafide"
        return trial_table.Row("bench", f"u{i:06d}", path.name, label, content=decode.digest(path.read_bytes()))

    with ThreadPoolExecutor(16) as threads:
        return trial_table.from_rows(threads.map(write, range(count)), source="bench")


def loaded(layers: tuple[Any, ...], precision: Any, *, small: bool) -> tuple[xlsr.Encoder, Card]:
    """The encoder on the GPU, and its card."""
    given = EncoderParams(source="random", random=TINY if small else XLSR_300M, normalize="utterance")
    model, card = models.load(given)
    return xlsr.Encoder(model, taps=layers, normalize="utterance", precision=precision).to(GPU), card


def flops(layers: tuple[Any, ...]) -> float:
    """Floating-point operations of an utterance: linear maps, attention and convolutions, 2 for multiply and add."""
    highest, length, total = max(layers), SAMPLES, 0.0
    for kernel, stride, before in zip((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2), (1, *(512,) * 6), strict=True):
        length = (length - kernel) // stride + 1
        total += 2.0 * length * kernel * before * 512
    total += 2.0 * length * (512 * CHANNELS + 128 * CHANNELS // 16 * CHANNELS)
    maps = 4 * CHANNELS**2 + 2 * CHANNELS * 4096
    return total + highest * (2.0 * length * maps + 4.0 * length**2 * CHANNELS)


def bare(encode: xlsr.Encoder, batch: int, *, small: bool) -> float:
    """Utterances a second of forward passes alone, windows on the GPU."""
    windows, valid = 0.1 * torch.randn(batch, SAMPLES, device=GPU), torch.full((batch,), SAMPLES)
    for _ in range(3):
        encode(windows, valid)
    rounds = 2 if small else max(4, 1024 // batch)
    return rounds * batch / seconds(lambda: [encode(windows, valid) for _ in range(rounds)])


def extraction(folder: Path, small: bool, say: Callable[..., None]) -> None:
    """The forward pass and the whole way from files to a store."""
    counts = (64, 64) if small else (12_288, 1_536)
    table = corpus(folder / "audio", max(counts))
    say(f"## Extraction, XLSR-300M's architecture, windows of {SAMPLES:,} samples, {FRAMES} frames\n")
    say(
        "| precision | layers | bare forward, utterances/s by batch | TFLOP/s | files to store on a disk, utterances/s "
        "| in memory | forward / in memory | GPU memory | MB an utterance |"
    )
    say("|---|---|---|---|---|---|---|---|---|")
    rates: dict[str, float] = {}
    for precision, layers, count in (
        ("bfloat16", (5, 7), counts[0]),
        ("bfloat16", ALL, counts[1]),
        ("float32", (5, 7), counts[1]),
        ("float32", ALL, counts[1] // 2),
    ):
        encode, card = loaded(layers, precision, small=small)
        alone = {batch: bare(encode, batch, small=small) for batch in ((4,) if small else (32, 128, 256))}
        torch.cuda.reset_peak_memory_stats()
        on_disk, written = whole_way(folder, folder / "cache", table, encode, card, count)
        with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
            rate, _ = whole_way(folder, Path(memory) / "cache", table, encode, card, count)
        best = max(alone.values())
        named = "all 25" if layers == ALL else ", ".join(map(str, layers))
        rates[f"{precision}, layers {named}, to a disk"] = on_disk
        rates[f"{precision}, layers {named}, in memory"] = rate
        say(
            f"| {precision} | {named} | {'; '.join(f'{batch}: {value:,.0f}' for batch, value in alone.items())} "
            f"| {best * flops(layers) / 1e12:.0f} | {on_disk:,.0f} | {rate:,.0f} | {best / rate:.2f} "
            f"| {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB | {written / count / 1e6:.2f} |"
        )
        del encode
        torch.cuda.empty_cache()
    say("\nHours of a pass over a corpus at these rates:\n")
    say("| | " + " | ".join(CORPORA) + " |\n|---|" + "---|" * len(CORPORA))
    for name, rate in rates.items():
        say(f"| {name} | " + " | ".join(f"{n / rate / 3600:.2f}" for n in CORPORA.values()) + " |")
    say()


def with_views(folder: Path, small: bool, say: Callable[..., None]) -> None:
    """Files to a store in memory, in the clean view and others, beside the forward pass."""
    total, first = (64, 8) if small else (6_144, 256)
    place = folder / "with_views"
    place.mkdir()
    table = corpus(place / "audio", total)
    encode, card = loaded((5, 7), "bfloat16", small=small)
    forward = bare(encode, 4 if small else 128, small=small)

    def taken(count: int, names: tuple[str, ...] = ()) -> float:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
            return count / whole_way(place, Path(memory) / "cache", table, encode, card, count, names=names)[0]

    taken(first)
    start_s = taken(first)
    say(f"## Extraction with views, {len(os.sched_getaffinity(0))} cores, bfloat16, layers 5, 7, store in memory\n")
    say(f"Bare forward: {forward:,.0f} windows/s. A window is an utterance in a view; about {total:,} in each row.")
    say(
        f"The first {first} clean windows take {start_s:.1f} s, with the start of the processes. All but the first rate"
    )
    say("leave these windows and seconds out.\n")
    say("| beside clean | windows/s, all | windows/s | utterances/s | forward / windows | processor ms a window |")
    say("|---|---|---|---|---|---|")
    for names in ROUNDS:
        if lacking := missing(names):
            say(f"| {', '.join(names)} | skipped: {lacking} | | | | |")
            continue
        count, before = total // (1 + len(names)), sum(os.times()[:4])
        windows, whole = count * (1 + len(names)), taken(count, names)
        used = sum(os.times()[:4]) - before
        rate = (windows - first) / (whole - start_s)
        say(
            f"| {', '.join(names) or 'nothing'} | {windows / whole:,.0f} | {rate:,.0f} "
            f"| {rate / (1 + len(names)):,.0f} | {forward / rate:.2f} | {1000 * used / windows:.1f} |"
        )
    say()


def missing(names: tuple[str, ...]) -> str:
    """Why one of the views cannot be computed here; nothing where all can."""
    try:
        for name in names:
            views.computable(name)
    except InputError as error:
        return str(error)
    return ""


def whole_way(
    folder: Path,
    root: Path,
    table: trial_table.Trials,
    encode: xlsr.Encoder,
    card: Card,
    count: int,
    *,
    names: tuple[str, ...] = (),
) -> tuple[float, int]:
    """Utterances a second from files to a complete store below `root`, and the bytes that were written.

    names: of the views beside the clean one.
    """
    some = trial_table.Trials(**{name: column[:count] for name, column in vars(table).items()})
    params = ExtractParams(
        layers=encode.taps, views=names, window=WINDOW, shard=256, device=GPU.type, precision=encode.precision
    )
    receipt: list[dict[str, Any]] = []

    def run() -> None:
        receipt.append(
            planning.extract(
                some, set_name="bench", audio_root=folder / "audio", root=root, card=card,
                encoder=lambda _taps: encode, params=params, say=lambda _text: None,
            )
        )  # fmt: skip

    taken = seconds(run)
    shutil.rmtree(root)
    return count / taken, receipt[0]["bytes"]


def loading(folder: Path, small: bool, say: Callable[..., None]) -> None:
    """What must keep up with the encoder: decoding and RawBoost in processes."""
    count = 32 if small else 4_096
    if not (folder / "audio").is_dir():
        corpus(folder / "audio", count)
    say("## Decoding and augmenting\n")
    paths = sorted((folder / "audio").glob("*.flac"))
    clips = [loader.Clip(p.stem, p, decode.digest(p.read_bytes())) for p in paths[:count]]
    for view in (CLEAN, "rawboost4_0", "rawboost5_0"):
        some = clips if view == CLEAN else clips[: len(clips) // 2]
        with loader.open_executor(heavy=True) as executor:
            for timed in (False, True):  # first until all processes are there
                start = time.perf_counter()
                for at in range(0, len(some) if timed else 512, 256):
                    loading = loader.load(executor, some[at : at + 256], view=view, window=WINDOW)
                    with contextlib.closing(loading):
                        loader.loaded(loading, slice(0, 256))
            say(f"- {view}: {len(some) / (time.perf_counter() - start):,.0f} utterances/s")
    say()


# ---------------------------------------------------------------- training


def training(folder: Path, small: bool, say: Callable[..., None]) -> None:
    """A first epoch of each backend, from the disk (warm page cache, rows are checked) and from the GPU's memory."""
    say("## An epoch of training, AOC, shapes of XLSR\n")
    say("| backend | layers | utterances | batch | precision | s an epoch, disk | s an epoch, device | GPU memory |")
    say("|---|---|---|---|---|---|---|---|")
    stores: dict[tuple[str, int, int], Any] = {}
    for case in SMALL if small else CASES:
        shape = "pooled" if case.backend == "linear" else "frames", case.layers, case.utterances
        if shape not in stores:
            place = folder / "-".join(map(str, shape))
            place.mkdir()
            stores[shape] = train_bench.cached(case, place, device="cuda")
        for precision in ("float32", "bfloat16"):
            disk = f"{epoch(case, stores[shape]('disk'), precision)[0]:.2f}" if precision == "float32" else ""
            device, memory = epoch(case, stores[shape]("device"), precision)
            say(
                f"| {case.backend} | {case.layers} | {case.utterances:,} | {case.batch_size} | {precision} "
                f"| {disk} | {device:.2f} | {memory:.1f} GiB |"
            )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    say(f"\nMost memory of the process on the host: {peak:.1f} GiB.\n")


def epoch(case: Case, data: Any, precision: Any) -> tuple[float, float]:
    """Seconds of an epoch after some steps, and GiB of the GPU that were used."""
    learner, optimizer = train_bench.make_learner(case, data, device=GPU, precision=precision)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    with contextlib.closing(learner.losses(1)) as steps:
        for _ in itertools.islice(steps, WARM):
            optimizer.step()
    taken = seconds(lambda: together.alone(loop.train_epoch(learner, optimizer, 2)))
    return taken, torch.cuda.max_memory_allocated() / 2**30


PARTS: dict[str, Callable[[Path, bool, Callable[..., None]], None]] = {
    "machine": machine,
    "extraction": extraction,
    "views": with_views,
    "loading": loading,
    "training": training,
}
