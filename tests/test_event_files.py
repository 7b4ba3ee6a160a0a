"""Curves of fine-tuning for TensorBoard."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.core.errors import InputError
from pipeline.finetuning.event_files import EventFiles
from pipeline.training.history import Epoch
from tests.test_finetune import FINETUNE

LINES = [Epoch(epoch, 1.0 / epoch, 10.0 * epoch, 5.0, 2.0, 3.0) for epoch in (1, 2, 3)]


def test_each_epoch_is_written_once_and_what_a_killed_training_wrote_later_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[Any] = []

    def writer(folder: str, *, purge_step: int) -> Any:
        done.append((folder, purge_step))
        return SimpleNamespace(add_scalar=lambda *given: done.append(given), flush=lambda: done.append("flush"))

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=writer))
    events = EventFiles(tmp_path)
    assert done == []
    events.add(LINES[:2])  # goes on after epoch 1
    events.add(LINES)
    second = [("loss", 0.5, 2), ("dev_loss", 2.0, 2), ("train_eer", 3.0, 2), ("dev_eer", 20.0, 2), "flush"]
    third = [("loss", 1 / 3, 3), ("dev_loss", 2.0, 3), ("train_eer", 3.0, 3), ("dev_eer", 30.0, 3), "flush"]
    assert done == [(str(tmp_path), 2), *second, *third]


def test_the_extra_is_named_and_the_identity_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r'not installed: pip install "bonafide\[tensorboard\]"'):
        EventFiles(tmp_path)
    assert FINETUNE.model_copy(update={"tensorboard": True}).facts == FINETUNE.facts
