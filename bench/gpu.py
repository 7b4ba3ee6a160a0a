"""What a GPU makes of the flow: extraction with XLSR-300M's architecture, decoding, RawBoost, training.

    python bench/gpu.py [--small] [--out bench/RESULTS-gpu.md]

Extraction runs as the flow runs it, from FLAC files to a store, against the bare forward passes of the same encoder on
windows that lie on the GPU. The store is written to a disk, and to /dev/shm, where no disk can be the limit. Weights
are random and audio is generated; epochs of training read generated features in the shapes of XLSR. Hours for a corpus
are its utterances by the measured rate, no more. With views, each utterance is extracted in `clean` and in augmented
versions, which processes make while the GPU computes. Writes tables in Markdown, with the name of the card.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Measure, write the tables."""
    sys.path.insert(0, str(ROOT))
    from bench import gpu_figures  # here, because every process that decodes imports this file again

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny sizes: whether it runs, not how fast it is")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "RESULTS-gpu.md")
    parser.add_argument("--scratch", type=Path, help="folder on the disk that stores are written to")
    parser.add_argument("--parts", nargs="+", default=list(gpu_figures.PARTS), choices=list(gpu_figures.PARTS))
    args = parser.parse_args()
    if not gpu_figures.torch.cuda.is_available():
        raise SystemExit("expected a GPU that torch can use, got none")
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder, args.out.open("w") as file:

        def say(line: str = "") -> None:
            print(line, flush=True)
            print(line, file=file, flush=True)

        say("# Measured on a GPU\n")
        say("`make gpu` writes this file; `bench/gpu.py` says what each number is.\n")
        for name in args.parts:
            start = time.perf_counter()
            gpu_figures.PARTS[name](Path(folder), args.small, say)
            print(f"({name}: {time.perf_counter() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
