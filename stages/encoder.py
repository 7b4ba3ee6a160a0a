"""Load the encoder, fine-tune it where the parameters ask for that, and write its identity card.

The card holds source, architecture and sha256 over the weights. A fine-tuned encoder is kept below the root of
features, with the backend and centroids that it was trained with, and found again by the identity of its training: the
same parameters, audio and starting weights are trained once. Killed, fine-tuning goes on after the last epoch that it
saved. The card is then the receipt of the encoder, which DVC tracks.

Fine-tuning on several GPUs: set encoder.finetune.processes, or start the stage on one machine or several by
torchrun --nproc-per-node N -m stages.encoder, whose number then counts.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from pipeline.audio.recordings import FOLDER
from pipeline.core import params_file
from pipeline.core.devices import device_of
from pipeline.core.encoder_sections import EncoderParams
from pipeline.core.errors import InputError, run_command
from pipeline.core.files import check_place, folder_beside, in_project, replace_folder, write_text
from pipeline.core.params import Params
from pipeline.encoder import cards, kept, models
from pipeline.finetuning import processes

CURVES_FILE = "curves.csv"  # beside the checkpoint of a training under way
EVENTS = "data/tensorboard"  # a folder for each identity

if TYPE_CHECKING:
    from pipeline.finetuning.plan import Asked
    from pipeline.training.loop import Fitted


def main() -> None:
    """Parse, load, find or fine-tune, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--trials", type=Path, required=True, help="folder of the sets' trial tables, for fine-tuning")
    parser.add_argument("--recordings", type=Path, default=FOLDER, help="folder of lists of recordings, for some views")
    parser.add_argument("--card", type=Path, required=True, help="the identity card to write (JSON)")
    parser.add_argument("--seconds", type=Path, help="folder for <identity>.json: how long fine-tuning took, if it did")
    args = parser.parse_args()
    if processes.started():
        processes.together(partial(_make, args))
    _make(args)


def _make(args: argparse.Namespace) -> None:
    settings = params_file.load(args.params)
    model, source = models.load(settings.encoder)
    if settings.encoder.finetune is None:
        card = dataclasses.asdict(source)
    else:
        found = _finetuned(settings, model, source, args)
        if found is None:
            return
        card = kept.receipt_of(found)
    if not processes.leads():
        return
    write_text(args.card, json.dumps(card, indent=2) + "\n")
    shape = card["architecture"]
    print(
        f"{card['source']}: {shape['num_hidden_layers']} layers of {shape['hidden_size']}, weights sha256 "
        f"{card['weights_sha256'][:16]}..."
    )


def _finetuned(settings: Params, model: Any, source: cards.Card, args: argparse.Namespace) -> kept.KeptEncoder | None:
    """The fine-tuned encoder of the parameters, trained now where it is not kept; None where other processes did all.

    Raises InputError where it is kept and damaged.
    """
    from pipeline.finetuning import plan, ranks  # takes a second to import, which a frozen encoder need not wait for

    asked = plan.asked_of(settings, source, trials=args.trials, recordings=args.recordings)
    folder = kept.folder_of(settings.features.folder) / asked.identity
    processes.join(settings.extract.device)
    found = ranks.agreed(kept.find(folder))
    if found is not None:
        if processes.leads():
            found.check()
            print(f"{folder}: fine-tuned before")
        return found
    device = device_of(settings.extract.device, key="extract.device")
    if asked.params.processes > 1 and not processes.started():
        if device.type == "cuda":
            processes.check_gpus(asked.params.processes)
        processes.start(["-m", "stages.encoder", *sys.argv[1:]], asked.params.processes)
        return None
    fitted = _finetune(model, asked, folder, device)
    if not processes.leads():
        return None
    found = kept.find(folder)
    assert found is not None  # noqa: S101  # just written
    if args.seconds:
        timed = {"seconds": round(fitted.curves[-1].seconds, 2), "weights": found.digest}
        write_text(args.seconds / f"{asked.identity}.json", json.dumps(timed) + "\n")
    return found


def _finetune(model: Any, asked: Asked, folder: Path, device: torch.device) -> Fitted:
    """Fine-tune the encoder and put it in its folder, which appears when it is whole."""
    from pipeline.finetuning import finetune, run_card
    from pipeline.finetuning.event_files import EventFiles

    if not processes.leads():
        return finetune.finetune(model, asked, device=device, checkpoint=None, say=tqdm.write)
    check_place(folder, mark=kept.MARK_FILE)
    unfinished = folder.with_name(folder.name + kept.UNFINISHED)
    write_text(unfinished / kept.ASKED_FILE, json.dumps(asked.facts, indent=2) + "\n")
    curves = unfinished / CURVES_FILE
    tqdm.write(f"while it runs: dvc plots show -x epoch -y dev_eer {curves}")
    events = EventFiles(in_project(EVENTS) / folder.name) if asked.params.tensorboard else None
    if events:
        tqdm.write(f"and: tensorboard --logdir {EVENTS}")
    fitted = finetune.finetune(
        model, asked, device=device, checkpoint=unfinished, say=tqdm.write, curves=curves, events=events
    )
    beside = folder_beside(folder)
    run = run_card.run_card(fitted, asked)
    run_card.save(beside, model, fitted, run=run, source=asked.card.source, card=asked.card)
    _, card = models.load(EncoderParams(source=str(beside), normalize=asked.card.normalize))
    if card.weights_sha256 != cards.weights_sha256(model):
        raise InputError(f"{beside}: read back, the weights are not those written; {kept.AGAIN}")
    kept.seal(beside, dataclasses.asdict(card) | {"source": f"{kept.ENCODERS}/{folder.name}"}, asked.facts)
    replace_folder(beside, folder, mark=kept.MARK_FILE)
    shutil.rmtree(unfinished)
    taken = ", ".join(map(str, fitted.selection.kept))
    how = "taken" if fitted.selection.takes_best else "mean of"
    print(f"{len(fitted.curves)} epochs, {how} {taken}: dev EER {fitted.dev_eer:.2f} %")
    for remark in fitted.remarks:
        print(f"! {remark}")
    return fitted


if __name__ == "__main__":
    run_command(main)
