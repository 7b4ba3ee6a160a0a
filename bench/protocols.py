"""What reading a large key costs: seconds and peak memory, from the file to the trial table.

    python bench/protocols.py

It generates keys with as many lines as the official ones have, and reads each in a process of its own, as the stages
run: with `stages` imported, which makes garbage collection rare. The processor's seconds are steadier than the clock's
on a machine that others use too.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
READ = """
import resource, sys, time
import stages
from pathlib import Path
from pipeline.core import members
corpus, path, split = sys.argv[1:]
adapter = members.member("corpora", corpus)
start = time.perf_counter(), time.process_time()
trials = adapter.trials(Path(), Path(path), split)
spent = time.perf_counter() - start[0], time.process_time() - start[1]
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
print(f"{len(trials):9,} trials  {spent[0]:5.2f} s  processor {spent[1]:5.2f} s  peak {peak:.2f} GB")
"""
CODECS = ("nocodec", "low_mp3", "high_mp3", "low_m4a", "high_m4a", "low_ogg", "high_ogg", "mp3m4a", "oggm4a")
VOCODERS = ("neural_vocoder_autoregressive", "neural_vocoder_nonautoregressive", "traditional_vocoder", "unknown")


def asvspoof2021_df(rng: random.Random) -> Iterator[str]:
    """611,829 lines, 533,928 of them of phase eval."""
    for i in range(611_829):
        phase = "eval" if i < 533_928 else "progress"
        speaker, codec = f"LA_{rng.randrange(90):04d}", rng.choice(CODECS)
        made = ("-", "bonafide", "bonafide") if i % 27 == 0 else (f"Task1-team{i % 33:02d}", "spoof", VOCODERS[i % 4])
        yield "{} DF_E_{} {} vcc2020 {} {} notrim {} {} Task1 team20 FF E\n".format(
            speaker, 2_000_000 + i, codec, *made[:2], phase, made[2]
        )


def asvspoof5(rng: random.Random) -> Iterator[str]:
    """680,774 lines."""
    for i in range(680_774):
        made = "- bonafide bonafide" if i % 5 == 0 else f"AC1 A{17 + i % 16} spoof"
        yield f"E_{rng.randrange(737):04d} E_{i:010d} F C{1 + i % 11:02d} 2 E_{i + 1:010d} {made} -\n"


def manifest(rng: random.Random) -> Iterator[str]:
    """600,000 lines and the header."""
    yield "utterance,path,label,split,speaker,attack,codec,vocoder,quality\n"
    for i in range(600_000):
        label, attack = ("spoof", f"A{i % 20:02d}") if i % 9 else ("bonafide", "-")
        yield f"u{i:07d},audio/u{i:07d}.flac,{label},eval,s{rng.randrange(99)},{attack},opus,,{1 + i % 400 / 100}\n"


def measure(corpus: str, lines: Callable[[random.Random], Iterator[str]], *splits: str) -> None:
    """Generate one key, read it, print what it cost."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "key.txt"
        with path.open("w") as file:
            file.writelines(lines(random.Random(1)))  # noqa: S311
        for split in splits:
            done = subprocess.run(
                [sys.executable, "-c", READ, corpus, str(path), split],
                cwd=ROOT,
                check=True,
                capture_output=True,
                text=True,
            )
            print(f"{corpus:16} {split:5} {done.stdout.strip()}", flush=True)


def main() -> None:
    """Generate, read, print."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    measure("asvspoof2021_df", asvspoof2021_df, "eval", "all")
    measure("asvspoof5", asvspoof5, "eval")
    measure("manifest", manifest, "eval")


if __name__ == "__main__":
    main()
