"""The memory of a fine-tuning: the part that is known before it starts, and the most that a GPU needed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from pipeline.core.encoder_sections import FinetuneParams
from pipeline.core.errors import InputError

OF_TRAINING = 3  # numbers beside a weight that learns: its gradient and Adam's two moments
SECTION = "encoder.finetune"


def state_bytes(system: nn.Module) -> int:
    """Bytes of all weights and buffers, and of the gradients and Adam's moments of those that learn."""
    held = sum(tensor.numel() * tensor.element_size() for tensor in (*system.parameters(), *system.buffers()))
    learn = [p for p in system.parameters() if p.requires_grad]
    return held + OF_TRAINING * sum(p.numel() * p.element_size() for p in learn)


def plan(system: nn.Module, params: FinetuneParams, device: torch.device) -> str:
    """A line on the memory that is known to be needed; on a GPU beside what it has.

    Raises InputError where that alone does not fit.
    """
    needed = state_bytes(system)
    known = f"{_size(needed)} for weights, gradients and Adam's moments"
    if device.type != "cuda":
        return f"memory: {known}; activations come on top"
    there = torch.cuda.get_device_properties(device).total_memory
    if needed > there:
        raise InputError(f"memory: {known}, on a GPU of {_size(there)}; set {SECTION}.lora, or train fewer layers")
    return (
        f"memory: {known}, of {_size(there)} that the GPU has; activations come on top. If it does not fit: "
        f"{_remedies(params)}"
    )


def peak(device: torch.device) -> str | None:
    """How much memory of a GPU was taken at the most; None for a CPU."""
    if device.type != "cuda":
        return None
    there = torch.cuda.get_device_properties(device).total_memory
    return f"memory: at most {_size(torch.cuda.max_memory_allocated(device))} of {_size(there)} so far"


@contextlib.contextmanager
def enough(params: FinetuneParams) -> Iterator[None]:
    """Say what to lower where a GPU has not enough memory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        words = str(error).partition("\n")[0]
        raise InputError(f"the GPU has not enough memory: {_remedies(params)} ({words})") from None


def _remedies(params: FinetuneParams) -> str:
    """Changes of the parameters that take less memory."""
    found = []
    if params.batch_size > 2:
        found.append("lower batch_size and raise accumulate by as much, which keeps the utterances of a step")
    if not params.gradient_checkpointing:
        found.append("gradient_checkpointing: true")
    if params.precision == "float32":
        found.append("precision: bfloat16")
    if not params.lora:
        found.append("lora")
    return f"of {SECTION}, " + "; or ".join(found) if found else "take fewer layers, or a shorter extract.window"


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
