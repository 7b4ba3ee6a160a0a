"""Load the encoder and write its identity card: source, architecture, sha256 over its weights."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from pipeline import params, xlsr
from pipeline.errors import run_command
from pipeline.files import write_text


def main() -> None:
    """Parse, load, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--card", type=Path, required=True, help="the identity card to write (JSON)")
    args = parser.parse_args()
    _, card = xlsr.load(params.load(args.params).encoder)
    write_text(args.card, json.dumps(dataclasses.asdict(card), indent=2) + "\n")
    print(f"{card.source}: {card.layers} layers of {card.channels}, weights sha256 {card.weights_sha256[:16]}...")


if __name__ == "__main__":
    run_command(main)
