"""The cost of each view: processor time of an utterance, windows a second, extraction on an encoder of the demo's size.

    python bench/degradations.py [--seconds 4] [--utterances 32] [--rounds 3]

One view of each kind, on generated noise in FLAC files. The views of recordings take sixteen WAV files of 60 s, and
responses of 1 s.

    ms           processor time of the view alone in one thread, the least of the rounds
    windows/s    of one processor: decoded, in the view, cut to 64,600 samples
    extraction   processor time of an utterance in `clean` alone, and in `clean` and all views, child processes included
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
from views import WINDOW, clips_of, make_corpus  # bench/views.py

from pipeline.audio import decode, loader, views
from pipeline.audio.recordings import Recordings
from pipeline.core.contracts import CLEAN
from pipeline.core.encoder_sections import EncoderParams, RandomEncoder
from pipeline.core.members import names
from pipeline.core.sections import ExtractParams
from pipeline.core.trial_table import Trials
from pipeline.encoder import models, xlsr
from pipeline.extraction import planning

EACH = ["rawboost4_0", "noise_0", "babble10_0", "music10_0", "reverb600_0", "packet_loss10_0", "mp3_32", "aac32"]
EACH += ["opus12", "amr7400", "alaw", "mulaw", "narrowband", "resample6", "clipping10", "quieter12", "trim"]
EACH += ["recorded_noise10_0", "recorded_music10_0", "recorded_babble10_0", "recorded_reverb_0"]
DEMO = RandomEncoder(layers=4, width=128, heads=4, feedforward=256, conv_channels=64, seed=1)


def make_recordings(root: Path) -> dict[str, Recordings]:
    """Files of noise, and the lists of them."""
    root.mkdir()
    rng = np.random.default_rng(0)
    for kind, count, seconds in (("noise", 16, 60), ("music", 16, 60), ("babble", 16, 60), ("reverb", 16, 1)):
        lines = []
        for i in range(count):
            samples = rng.normal(0, 0.1, seconds * 16_000) * (np.exp(-np.arange(16_000) / 4_000) if seconds == 1 else 1)
            path = root / f"{kind}{i}.wav"
            soundfile.write(path, samples.clip(-1, 1), 16_000)
            lines.append(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path}\n")
        (root / f"{kind}.txt").write_text("".join(lines))
    return views.all_recordings(EACH, root)


def processor_s(work: Callable[[], object], *, rounds: int) -> float:
    """Processor time, the least of the rounds."""
    found = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


def extraction_s(table: Trials, root: Path, asked: tuple[str, ...], recordings: dict[str, Recordings]) -> float:
    """Processor time of extraction in `clean` and in views, on an encoder of the demo's size."""
    loaded, card = models.load(EncoderParams(source="random", random=DEMO, normalize="utterance"))
    params = ExtractParams(
        layers=(1, 2, 3, 4), views=asked, window=WINDOW, shard=16, batch_size=8, device="cpu", precision="float32"
    )
    with tempfile.TemporaryDirectory() as cache:
        start = sum(os.times()[:4])
        planning.extract(
            table,
            set_name="train",
            audio_root=root,
            root=Path(cache),
            card=card,
            encoder=lambda taps: xlsr.Encoder(loaded, taps=taps, normalize=card.normalize),
            params=params,
            say=lambda _: None,
            recordings=recordings,
        )
        return sum(os.times()[:4]) - start


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of an utterance")
    parser.add_argument("--utterances", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    assert {views.parse(view).kind for view in EACH} == set(names("views"))  # noqa: S101
    print(f"{len(os.sched_getaffinity(0))} processors, load {os.getloadavg()[0]:.1f}; {args.seconds:g} s each")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        table = make_corpus(root, count=args.utterances, seconds=args.seconds)
        recordings = make_recordings(root / "recordings")
        clips = clips_of(table, root)
        heard = [decode.load(clip.path) for clip in clips]
        print("| view | ms | windows/s |\n|---|---|---|")
        for view in (CLEAN, *EACH):
            own = recordings.get(view)
            alone = processor_s(
                lambda view=view, own=own: [views.apply(view, x, utterance="u", recordings=own) for x in heard],
                rounds=args.rounds,
            )
            windows = processor_s(
                lambda view=view, own=own: [
                    loader.load_window(clip, view=view, window=WINDOW, recordings=own) for clip in clips
                ],
                rounds=args.rounds,
            )
            print(f"| `{view}` | {1000 * alone / len(clips):.1f} | {len(clips) / windows:.0f} |", flush=True)
        for asked in ((), tuple(EACH)):
            count = len(clips) * (1 + len(asked))
            spent = extraction_s(table, root, asked, recordings) / count
            print(
                f"extraction, {1 + len(asked):2} views: {1000 * spent:.0f} ms of processor time an utterance and view"
            )


if __name__ == "__main__":
    main()
