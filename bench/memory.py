"""Peak memory of extraction and of training at N utterances and at 10 N.

    python bench/memory.py [--utterances 250]

Each in a process of its own. Extraction: noise of 1.25 s through one layer of 1024 channels, layers 0 and 1 cached (254
kB an utterance, 25 of them a shard), its peak resident memory. Training: one epoch from the store's memory maps; there
only memory that is no page of a file counts, as pages of mapped files are the system's cache, which it takes back. Both
are told above what the process had before it began, too, as importing torch takes half a gigabyte. The aim is 10 N
within 10 % of N.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import soundfile

from pipeline.audio import inspection, windowing
from pipeline.core import trial_table
from pipeline.core.encoder_sections import EncoderParams, RandomEncoder
from pipeline.core.sections import ExtractParams, WindowParams
from pipeline.extraction import planning

SAMPLES = 20_000
ENCODER = EncoderParams(
    source="random",
    random=RandomEncoder(layers=1, width=1024, heads=16, feedforward=1024, conv_channels=32, seed=0),
    normalize="utterance",
)
PARAMS = ExtractParams(
    layers=(0, 1),
    window=WindowParams(samples=SAMPLES, pad="repeat"),
    shard=25,
    batch_size=8,
    device="cpu",
    precision="float32",
)


def corpus(root: Path, count: int) -> trial_table.Trials:
    """Files of noise and their table."""
    rows = []
    for i in range(count):
        noise = np.random.default_rng(i).normal(0, 0.1, SAMPLES).astype(np.float32)
        soundfile.write(root / f"u{i}.wav", noise, windowing.SAMPLE_RATE, subtype="PCM_16")
        rows.append(trial_table.Row(f"bench:{i}", f"u{i}", f"u{i}.wav", "spoof" if i % 2 else "bonafide"))
    return inspection.with_contents(trial_table.from_rows(rows, source="bench"), root)


def extraction(root: Path) -> dict[str, float]:
    """Extract all of a folder; megabytes before, and at the peak."""
    from pipeline.encoder import models, xlsr

    table = trial_table.read(root / "trials.csv")
    model, card = models.load(ENCODER)
    encoder = xlsr.Encoder(model, taps=(0, 1), normalize="utterance")
    before = _status("VmRSS")
    receipt = planning.extract(
        table,
        set_name="bench",
        audio_root=root,
        root=root / "cache",
        card=card,
        encoder=lambda _taps: encoder,
        params=PARAMS,
        say=lambda _text: None,
    )
    (root / "bench.json").write_text(json.dumps(receipt))
    return {"before": before, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def training(root: Path) -> dict[str, float]:
    """One epoch over a folder's features by a light backend; megabytes of memory that is no file's."""
    import torch

    from pipeline.backends import asp
    from pipeline.features import dataset, streaming

    table = trial_table.read(root / "trials.csv")
    opened = dataset.open_set(root / "bench.json", table, root=root / "cache", reads="frames")
    backend = asp.Backend(layers=2, channels=1024, embedding_dim=64, attention_dim=32)
    optimiser = torch.optim.Adam(backend.parameters())
    before = _status("RssAnon")
    peak, done = [before], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak.append(_status("RssAnon"))

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    rows = np.random.default_rng(0).permutation(len(table))
    for features, n_frames in streaming.stream(opened.source, np.array_split(rows, len(rows) // 20)):
        loss = backend(features, n_frames).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    done.set()
    watching.join()
    return {"before": before, "peak": max(peak)}


def _status(name: str) -> float:
    """A line of /proc/self/status in megabytes."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else float("nan")


def main() -> None:
    """Measure in processes of their own, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=250, help="N")
    parser.add_argument("--do", choices=("extraction", "training"), help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.do:
        print(json.dumps({"extraction": extraction, "training": training}[args.do](args.root)))
        return
    found: dict[tuple[str, int], dict[str, float]] = {}
    counts = (args.utterances, 10 * args.utterances)
    for count in counts:
        with tempfile.TemporaryDirectory() as name:
            root = Path(name)
            (root / "trials.csv").write_text(trial_table.to_csv(corpus(root, count)))
            for what in ("extraction", "training"):
                command = [sys.executable, __file__, "--do", what, "--root", str(root)]
                said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                found[what, count] = json.loads(said.splitlines()[-1])
    for what in ("extraction", "training"):
        small, large = (found[what, count] for count in counts)
        print(
            f"{what:10} {counts[0]:,}: {small['peak']:.0f} MB ({small['peak'] - small['before']:.0f} above the start); "
            f"{counts[1]:,}: {large['peak']:.0f} MB ({large['peak'] - large['before']:.0f}); "
            f"ratio {large['peak'] / small['peak']:.3f}"
        )


if __name__ == "__main__":
    main()
