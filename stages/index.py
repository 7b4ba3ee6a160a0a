"""Put a run's centroids into a FAISS inner-product index with its JSON card."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.core.errors import run_command
from pipeline.scoring import centroids, runs


def main() -> None:
    """Parse, build, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of the trained run")
    parser.add_argument("--index", type=Path, required=True, help="folder of the index to write")
    args = parser.parse_args()
    index = centroids.build(runs.centroids(args.run))
    centroids.write(index, args.index)
    print(f"{args.run.name}: {index.index.ntotal} centroids of width {index.index.d} -> {args.index}")


if __name__ == "__main__":
    run_command(main)
