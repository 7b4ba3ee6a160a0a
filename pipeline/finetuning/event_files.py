"""The curves of a fine-tuning for TensorBoard, an epoch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.core.errors import InputError
from pipeline.training.history import COLUMNS, Epoch


class EventFiles:
    """A folder of event files. Raises InputError where the extra `tensorboard` is not installed."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter  # an extra
        except ImportError:
            raise InputError(
                "encoder.finetune.tensorboard needs TensorBoard, which is not installed: "
                'pip install "bonafide[tensorboard]"'
            ) from None
        self._open = partial(SummaryWriter, str(folder))
        self._writer: Any = None

    def add(self, curves: Sequence[Epoch]) -> None:
        """Write the last epoch. The first time, later epochs of a training that was killed are taken back."""
        line = curves[-1]
        if self._writer is None:
            self._writer = self._open(purge_step=line.epoch)
        for name in COLUMNS[1:]:
            self._writer.add_scalar(name, getattr(line, name), line.epoch)
        self._writer.flush()
