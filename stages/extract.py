"""Run the encoder over one set and cache the features of its layers; write the receipt that DVC tracks.

What is trained on, train.set, is cached in the augmented views of extract.views as well; all other sets are cached
clean, and clean alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from pipeline import contracts, extract, params, trials
from pipeline.errors import InputError, run_command
from pipeline.files import read_json, write_text
from pipeline.params import ExtractParams, Params
from pipeline.specs import precision_of
from pipeline.units import Recipe


def asked_of(settings: Params, name: str) -> ExtractParams:
    """The section `extract` as it goes for a set: without views where the set is not trained on.

    Raises InputError where it names what is no augmented view, saying in which line.
    """
    try:
        extract.views_of(settings.extract)
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
    parser.add_argument("--weights", type=Path, required=True, help="the fine-tuned encoder's folder, from encoder")
    parser.add_argument("--receipt", type=Path, required=True, help="the receipt to write (JSON)")
    args = parser.parse_args()
    settings = params.load(args.params)
    if args.set not in settings.sets:
        raise InputError(f"{args.params}: sets: expected one of {', '.join(settings.sets)}, got {args.set!r}")
    keys = [field.name for field in dataclasses.fields(contracts.Card)]
    found = read_json(args.card, what="card of an encoder", keys=keys, remedy="run `dvc repro encoder`")
    card = contracts.Card(**{key: found[key] for key in keys})
    card.check_taps(settings.extract.layers)
    asked = asked_of(settings, args.set)
    receipt = extract.extract(
        trials.read(args.trials),
        set_name=args.set,
        audio_root=settings.sets[args.set].folder,
        root=settings.features.folder,
        card=card,
        encoder=Recipe(settings.encoder, args.weights, card, asked.device, precision_of(asked)),
        params=asked,
        say=print,
    )
    write_text(args.receipt, json.dumps(receipt, indent=2) + "\n")


if __name__ == "__main__":
    run_command(main)
