"""Read every shard that a receipt stands for and compare its checksum; name the files that are damaged or missing.

Not a step of the flow: run it when you doubt a disk, or after copying stores to another one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline import params, store
from pipeline.errors import run_command


def main() -> None:
    """Parse, verify, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("receipts", type=Path, nargs="+", help="such as data/features/train.json")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="names the root of the stores")
    args = parser.parse_args()
    root = params.load(args.params).features.folder
    for path in args.receipts:
        opened = store.open_receipts(path, root=root).values()
        files = sum(target.verify(receipt["views"], receipt["layers"]) for target, receipt in opened)
        print(f"{path}: {files} shard files, all as they were written")


if __name__ == "__main__":
    run_command(main)
