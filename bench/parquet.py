"""What a large dataset in Parquet files costs: its trial table, every clip decoded in order, and clips in any order.

    python bench/parquet.py                      100,000 clips in files of 10,000, row groups of 100
    python bench/parquet.py --clips 10000        to see what grows with the number of clips

It makes a dataset with the Arena's columns, of WAV clips of 0.1 s, and reads it in a process of its own: with `arena`,
with what `prepare` does to audio, and as extraction loads windows, one by one. Seconds are of the clock and of the
processor; the peak is that of the process up to there.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import soundfile
from pyarrow import parquet

ROOT = Path(__file__).parents[1]
FILE, GROUP, SAMPLES = 10_000, 100, 1_600
ANY_ORDER = 500
READ = """
import resource, sys, time
import stages
from pathlib import Path
import numpy as np
from pipeline.audio import loader
from pipeline.audio.inspection import with_contents
from pipeline.core.contracts import CLEAN
from pipeline.core.sections import WindowParams
from pipeline.corpora import arena

def say(what, number, start):
    wall, processor = time.perf_counter() - start[0], time.process_time() - start[1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{what:9} {number:9,} clips  {wall:6.1f} s  processor {processor:6.1f} s  peak {peak:.2f} GB", flush=True)

def now():
    return time.perf_counter(), time.process_time()

root, some = Path(sys.argv[1]), int(sys.argv[2])
start = now()
table = arena.trials(root, root / "README.md", "test")
say("table", len(table), start)
start = now()
table = with_contents(table, root)
say("prepare", len(table), start)
window = WindowParams(samples=1_600, pad="repeat")
orders = {"in order": range(len(table)), "any order": np.random.default_rng(0).permutation(len(table))[:some].tolist()}
for what, rows in orders.items():
    start = now()
    for row in rows:
        loader.load_window(loader.clip_of(table, row, audio_root=root), view=CLEAN, window=window)
    say(what, len(rows), start)
"""


def clip(rng: np.random.Generator) -> bytes:
    """A clip of noise as a WAV file."""
    file = io.BytesIO()
    soundfile.write(file, rng.normal(0, 0.1, SAMPLES), 16_000, format="WAV")
    return file.getvalue()


def make(folder: Path, clips: int) -> None:
    """A dataset of so many clips."""
    (folder / "data").mkdir()
    (folder / "README.md").write_text("a card")
    rng, files = np.random.default_rng(0), -(-clips // FILE)
    for number in range(files):
        rows = range(number * FILE, min((number + 1) * FILE, clips))
        notes: list[dict[str, Any]] = [{"utterance_id": f"u{i}", "speaker_id": f"s{i % 50}"} for i in rows]
        columns = {
            "path": [f"LA/{i}.wav" for i in rows],
            "audio": [{"bytes": clip(rng), "path": f"{i}.wav"} for i in rows],
            "label": [int(i % 9 != 0) for i in rows],
            "notes": [json.dumps(note) for note in notes],
        }
        path = folder / "data" / f"test-{number:05d}-of-{files:05d}.parquet"
        parquet.write_table(pyarrow.table(columns), path, row_group_size=GROUP)


def main() -> None:
    """Make a dataset, and read it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=100_000, help="number of clips; default: %(default)s")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), given.clips)
        subprocess.run([sys.executable, "-c", READ, folder, str(ANY_ORDER)], cwd=ROOT, check=True)  # ours


if __name__ == "__main__":
    main()
