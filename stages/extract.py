"""Run the encoder over one set and cache the features of its layers; write the receipt that DVC tracks.

What is trained on, train.set, is cached in the augmented views of extract.views as well; all other sets are cached
clean, and clean alone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pipeline.core import params_file, trial_table
from pipeline.core.errors import InputError, run_command
from pipeline.core.files import write_text
from pipeline.core.params import ExtractParams, Params
from pipeline.encoder import kept
from pipeline.extraction import identity, planning
from pipeline.extraction.identity import precision_of
from pipeline.extraction.units import Recipe


def asked_of(settings: Params, name: str) -> ExtractParams:
    """The section `extract` as it goes for a set: without views where the set is not trained on.

    Raises InputError where it names what is no augmented view, saying in which line.
    """
    try:
        planning.views_of(settings.extract)
    except InputError as error:
        raise InputError(f"{settings.where('extract', 'views')}: {error}") from None
    trained_on = name in settings.members(settings.train.set)
    return settings.extract if trained_on else settings.extract.model_copy(update={"views": ()})


def main() -> None:
    """Parse, extract, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", required=True, help="name of the set, a key of `sets` in the parameters")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--trials", type=Path, required=True, help="its trial table, from prepare")
    parser.add_argument("--card", type=Path, required=True, help="the encoder's identity card, from encoder")
    parser.add_argument("--receipt", type=Path, required=True, help="the receipt to write (JSON)")
    args = parser.parse_args()
    settings = params_file.load(args.params)
    if args.set not in settings.sets:
        raise InputError(f"{args.params}: sets: expected one of {', '.join(settings.sets)}, got {args.set!r}")
    card = identity.read_card(args.card)
    card.check_taps(settings.extract.layers)
    asked = asked_of(settings, args.set)
    weights = kept.weights_of(settings.encoder, args.card, features=settings.features.folder)
    receipt = planning.extract(
        trial_table.read(args.trials),
        set_name=args.set,
        audio_root=settings.sets[args.set].folder,
        root=settings.features.folder,
        card=card,
        encoder=Recipe(settings.encoder, weights, card, asked.device, precision_of(asked)),
        params=asked,
        say=print,
    )
    write_text(args.receipt, json.dumps(receipt, indent=2) + "\n")


if __name__ == "__main__":
    run_command(main)
