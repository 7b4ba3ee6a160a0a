"""Fine-tuning by two processes, or by one: a step with every loss, and whole trainings.

`python -m tests.two_tuned FOLDER` is one of the two, started by `processes.start`. It writes
FOLDER/<rank>.safetensors, and then ends with an error, as the other does. FOLDER has the corpus of the tests.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.core import trial_table
from pipeline.core.encoder_sections import LoraParams
from pipeline.core.errors import InputError
from pipeline.finetuning import finetune, processes, ranks
from pipeline.training import loop
from tests.test_finetune import CPU, StopError, gradients, learner, prepared, stop

State = dict[str, Tensor]
PLAIN = {"backend": "linear", "loss": "oc_softmax"}
STEPS: dict[str, dict[str, Any]] = {
    **{loss: {"backend": "linear", "loss": loss} for loss in ("aoc", "qamo", "am_softmax", "multi_centre", "samo")},
    "cross_entropy": {"backend": "asp", "loss": "cross_entropy"},
    "oc_softmax, lora": PLAIN
    | {"lora": LoraParams(rank=2, alpha=4.0, targets=("q_proj", "out_proj")), "freeze_front_end": True},
    "per_layer_oc": {"backend": "per_layer", "loss": "per_layer_oc", "gradient_checkpointing": True},
    "batch norm of images": {"backend": "sls", "loss": "oc_softmax"},
    "batch norm of frames": {"backend": "conformer_tcm", "loss": "oc_softmax"},
}
NOISY = {**PLAIN, "dropout": 0.2, "layer_drop": 0.5, "mask_frames": 0.3}  # another draw in each process
WHOLE = {"loss": "samo", "backend": "linear", "epochs": 2, "crop": "random"}


def step(corpus: Any, changes: dict[str, Any]) -> State:
    """Loss, gradients and buffers after a step of ten utterances in parts of 4, 3 and 3."""
    trained = learner(corpus, **changes)
    with ranks.joint_statistics():
        loss, found = gradients(trained)
    return {"loss": torch.tensor(loss), **found} | {name: tensor.clone() for name, tensor in buffers(trained)}


def buffers(trained: Any) -> list[tuple[str, Tensor]]:
    """Buffers that training changes, such as the centroids of some losses and the statistics of batch norms."""
    return [
        (f"{part} {name}", tensor)
        for part in ("backend", "loss")
        for name, tensor in getattr(trained.system, part).named_buffers()
    ]


def whole(corpus: Any, checkpoint: Path | None) -> State:
    """What a training comes to."""
    model, asked = prepared(corpus, **WHOLE)
    found = finetune.finetune(model, asked, device=CPU, checkpoint=checkpoint, say=lambda _: None)
    curves = [[line.loss, line.dev_eer, line.dev_loss, line.train_eer] for line in found.curves]
    return {
        "curves": torch.tensor(curves, dtype=torch.float64),
        "centroids": torch.from_numpy(found.centroids.vectors),
        "dev scores": torch.from_numpy(found.dev_scores),
        **{f"encoder.{name}": tensor.clone() for name, tensor in model.state_dict().items()},
    }


def main() -> None:
    folder = Path(sys.argv[1])
    corpus = folder / "audio", trial_table.read(folder / "trials.csv")
    processes.join("cpu")
    torch.set_num_threads(1)
    found = {
        f"{case}/{name}": tensor for case, changes in STEPS.items() for name, tensor in step(corpus, changes).items()
    }
    checkpoint = folder / "c" if processes.leads() else None
    with pytest.MonkeyPatch.context() as patch:
        stop(patch, loop, "scored", after=1)  # in the second epoch, with a checkpoint of the first
        with pytest.raises(StopError):
            whole(corpus, checkpoint)
    if checkpoint:
        checkpoint.rename(folder / "after the first")
        (folder / "c").mkdir()
        for path in (folder / "after the first").iterdir():
            (folder / "c" / path.name).write_bytes(path.read_bytes())
    found |= {f"whole/{name}": tensor for name, tensor in whole(corpus, checkpoint).items()}
    save_file(found, folder / f"{ranks.rank()}.safetensors")
    processes.GRACE = 0.2
    raise InputError("an error of all")


if __name__ == "__main__":
    processes.together(main)
