"""Load the encoder, fine-tune it where the parameters ask for that, and write its identity card.

The card holds source, architecture and sha256 over the weights. A fine-tuned encoder is written as transformers does,
with the backend and centroids that it was trained with in its folder `run`. Killed, fine-tuning goes on after the last
epoch that it finished. For a frozen encoder the folder holds a note alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from tqdm import tqdm

from pipeline.core import params_file, trial_table
from pipeline.core.devices import device_of
from pipeline.core.errors import InputError, run_command
from pipeline.core.files import folder_beside, replace_folder, write_text
from pipeline.core.params import FinetuneParams, Params
from pipeline.encoder import cards, models
from pipeline.encoder.cards import Card
from pipeline.features import sampling


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
        _finetune(settings, settings.encoder.finetune, args)


def _freeze(settings: Params, weights: Path, place: Path) -> None:
    _, card = models.load(settings.encoder)
    beside = folder_beside(weights)
    models.write_note(beside, f"The encoder is frozen and comes from {card.source}; encoder.finetune would train it.")
    replace_folder(beside, weights, mark=models.NOTE_FILE)
    _write_card(place, card)


def _finetune(settings: Params, wanted: FinetuneParams, args: argparse.Namespace) -> None:
    from pipeline.finetuning import finetune  # takes a second to import, which a frozen encoder need not wait for

    model, source = models.load(settings.encoder)
    cell = finetune.chosen(settings, source)
    train, dev = (
        finetune.Speech(trial_table.read(args.trials / f"{name}.csv"), settings.sets[name].folder)
        for name in (wanted.set, "dev")
    )
    cuts = sampling.thresholds(train.trials, levels=cell.split.levels, given=cell.split.thresholds)
    job = finetune.Job(
        params=wanted,
        extract=settings.extract,
        train=train,
        dev=dev,
        labels=sampling.labels(train.trials, cuts),
        device=str(device_of(settings.extract.device, key="extract.device")),
    )
    checkpoint = finetune.Checkpoint.of(args.weights, source, cell=cell, job=job)
    tuned = finetune.finetune(model, source, cell=cell, job=job, place=checkpoint, say=tqdm.write)
    card = cards.card_of(tuned.model, source=str(args.weights), normalize=source.normalize)
    run = finetune.run_card(tuned, card=card, source=source, cell=cell, job=job, cuts=cuts)
    finetune.save(args.weights, tuned, run=run, source=source.source)
    _, found = models.load_deployed(settings.encoder, weights=args.weights)
    if found != card:
        raise InputError(f"{args.weights}: read back, the weights are not those written; run `dvc repro -f encoder`")
    _write_card(args.card, card)
    checkpoint.remove()
    print(f"{len(tuned.curves)} epochs, mean of {', '.join(map(str, tuned.kept))}: dev EER {tuned.dev_eer:.2f} %")
    if checkpoint.folder.parent.is_dir():
        print(f"{checkpoint.folder.parent}: holds unfinished trainings with other parameters; remove what you need not")


def _write_card(path: Path, card: Card) -> None:
    write_text(path, json.dumps(dataclasses.asdict(card), indent=2) + "\n")
    print(f"{card.source}: {card.layers} layers of {card.channels}, weights sha256 {card.weights_sha256[:16]}...")


if __name__ == "__main__":
    run_command(main)
