"""Load the encoder, fine-tune it where the parameters ask for that, and write its identity card.

The card holds source, architecture and sha256 over the weights. A fine-tuned encoder is written as transformers does,
with the backend and centroids that it was trained with in its folder `run`. Killed, fine-tuning goes on after the last
epoch that it finished. For a frozen encoder the folder holds a note alone.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
from pathlib import Path

from tqdm import tqdm

from pipeline.core import params_file
from pipeline.core.devices import device_of
from pipeline.core.errors import InputError, run_command
from pipeline.core.files import folder_beside, replace_folder, write_text
from pipeline.core.params import Params
from pipeline.encoder import cards, models
from pipeline.encoder.cards import Card
from pipeline.training import checkpoints


def main() -> None:
    """Parse, load, fine-tune, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--trials", type=Path, required=True, help="folder of the sets' trial tables, for fine-tuning")
    parser.add_argument("--weights", type=Path, required=True, help="folder of the fine-tuned encoder to write")
    parser.add_argument("--card", type=Path, required=True, help="the identity card to write (JSON)")
    args = parser.parse_args()
    settings = params_file.load(args.params)
    if settings.encoder.finetune is None:
        _freeze(settings, args.weights, args.card)
    else:
        _finetune(settings, args)


def _freeze(settings: Params, weights: Path, place: Path) -> None:
    _, card = models.load(settings.encoder)
    beside = folder_beside(weights)
    models.write_note(beside, f"The encoder is frozen and comes from {card.source}; encoder.finetune would train it.")
    replace_folder(beside, weights, mark=models.NOTE_FILE)
    _write_card(place, card)


def _finetune(settings: Params, args: argparse.Namespace) -> None:
    from pipeline.finetuning import finetune, run_card  # they take a second to import, which a frozen encoder saves

    model, source = models.load(settings.encoder)
    device = device_of(settings.extract.device, key="extract.device")
    asked = finetune.asked_of(settings, source, trials=args.trials)
    unfinished = args.weights.with_name(f"{args.weights.name}.checkpoint") / asked.identity
    fitted = finetune.finetune(model, asked, device=device, checkpoint=unfinished, say=tqdm.write)
    card = cards.card_of(model, source=str(args.weights), normalize=source.normalize)
    beside = folder_beside(args.weights)
    run_card.save(beside, model, fitted, run=run_card.run_card(fitted, asked), source=source.source)
    replace_folder(beside, args.weights, mark=models.NOTE_FILE)
    _, found = models.load_deployed(settings.encoder, weights=args.weights)
    if found != card:
        raise InputError(f"{args.weights}: read back, the weights are not those written; run `dvc repro -f encoder`")
    _write_card(args.card, card)
    checkpoints.delete(unfinished)
    with contextlib.suppress(OSError):  # others are unfinished
        unfinished.parent.rmdir()
    print(f"{len(fitted.curves)} epochs, mean of {', '.join(map(str, fitted.kept))}: dev EER {fitted.dev_eer:.2f} %")
    if unfinished.parent.is_dir():
        print(f"{unfinished.parent}: holds unfinished trainings with other parameters; remove what you need not")


def _write_card(path: Path, card: Card) -> None:
    write_text(path, json.dumps(dataclasses.asdict(card), indent=2) + "\n")
    print(f"{card.source}: {card.layers} layers of {card.channels}, weights sha256 {card.weights_sha256[:16]}...")


if __name__ == "__main__":
    run_command(main)
