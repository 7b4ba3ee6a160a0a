"""Run the encoder over one set, store the features of its layers, and write the receipt that DVC tracks.

The set that train.set names is also stored in the augmented views of extract.views, and the sets of evaluate.sets in
the views of evaluate.views. All other sets are stored clean only.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from pipeline.audio import views
from pipeline.audio.recordings import FOLDER
from pipeline.core import params_file, trial_table
from pipeline.core.errors import InputError, run_command
from pipeline.core.files import write_text
from pipeline.core.params import Params
from pipeline.core.sections import ExtractParams
from pipeline.encoder import kept
from pipeline.extraction import identity, planning
from pipeline.extraction.identity import precision_of
from pipeline.extraction.units import Recipe
from pipeline.features import receipt_files


def asked_of(settings: Params, name: str) -> ExtractParams:
    """The section `extract` for a set, with the views that are cached of this set.

    Raises InputError, with the line, for a name that is no augmented view.
    """
    for section in ("extract", "evaluate"):
        try:
            planning.views_of(getattr(settings, section).views)
        except InputError as error:
            raise InputError(f"{settings.where(section, 'views')}: {error}") from None
    return settings.extract.model_copy(update={"views": settings.cached_views(name)})


def main() -> None:
    """Parse, extract, write."""
    parser = argparse.ArgumentParser(prog="python -m stages.extract", description=__doc__)
    add = parser.add_argument
    add("--set", required=True, metavar="NAME", help="the set, a key of `sets` in the parameters")
    add("--params", type=Path, default=Path("params.yaml"), metavar="FILE", help="parameters; default: params.yaml")
    add("--trials", type=Path, required=True, metavar="FILE", help="trial table of the set, from `prepare`")
    add("--card", type=Path, required=True, metavar="FILE", help="identity card of the encoder, from `encoder`")
    add("--recordings", type=Path, default=FOLDER, metavar="DIR", help="lists of recordings that views take sound from")
    add("--receipt", type=Path, required=True, metavar="FILE", help="receipt to write (JSON)")
    add("--extracted", type=Path, metavar="FILE", help="where pools find the digests of table and receipt (JSON)")
    args = parser.parse_args()
    settings = params_file.load(args.params)
    if args.set not in settings.sets:
        raise InputError(f"{args.params}: sets: expected one of {', '.join(settings.sets)}, got {args.set!r}")
    card = identity.read_card(args.card)
    card.check_taps(settings.extract.layers)
    asked = asked_of(settings, args.set)
    if asked.window.pad == "zero" and card.architecture.get("feat_extract_norm") == "group":
        print(
            f"! {card.source} normalizes over time (feat_extract_norm: group): padding of a short utterance changes "
            "all its features; set extract.window.pad: repeat, which pads none",
            file=sys.stderr,
        )
    try:
        sounds = views.all_recordings(asked.views, args.recordings)
    except InputError as error:
        raise InputError(f"{args.params}: {error}") from None
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
        recordings=sounds,
    )
    write_text(args.receipt, json.dumps(receipt, indent=2) + "\n")
    if args.extracted:
        noted = receipt_files.extracted(table=args.trials, receipt=args.receipt)
        write_text(args.extracted, json.dumps(noted, indent=2) + "\n")


if __name__ == "__main__":
    run_command(main)
