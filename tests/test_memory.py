"""The memory that fine-tuning says it takes, and what it says where there is too little."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pipeline.core.encoder_sections import LoraParams
from pipeline.core.errors import InputError
from pipeline.finetuning import memory
from tests.test_finetune import FINETUNE

GPU = torch.device("cuda")
LORA = LoraParams(rank=2, alpha=4.0, targets=("q_proj",))


def system() -> nn.Module:
    """A frozen map of 12 numbers, one of 25,000,000 that learns, and 3 numbers that are counted."""
    both = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(5_000, 5_000, bias=False))
    both[0].requires_grad_(False)
    both.register_buffer("seen", torch.zeros(3, dtype=torch.int64))
    return both


def a_gpu(monkeypatch: pytest.MonkeyPatch, *, total: int, peak: int = 0) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=total))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: peak)


def test_weights_gradients_and_moments_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        found = system()
    assert memory.state_bytes(found) == 4 * 12 + 8 * 3 + 4 * 4 * 25_000_000
    known = "memory: 400.0 MB for weights, gradients and Adam's moments"
    assert memory.plan(found, FINETUNE, torch.device("cpu")) == f"{known}; activations come on top"
    a_gpu(monkeypatch, total=80_000_000_000, peak=31_240_000_000)
    assert memory.plan(found, FINETUNE, GPU).startswith(
        f"{known}, of 80.0 GB that the GPU has; activations come on top."
    )
    assert memory.peak(GPU) == "memory: at most 31.2 GB of 80.0 GB so far"
    assert memory.peak(torch.device("cpu")) is None
    a_gpu(monkeypatch, total=399_000_000)
    with pytest.raises(InputError, match=r"400\.0 MB .*, on a GPU of 399\.0 MB; set encoder\.finetune\.lora"):
        memory.plan(found, FINETUNE, GPU)


@pytest.mark.parametrize(
    ("changes", "said", "not_said"),
    [
        ({}, ("batch_size", "gradient_checkpointing", "bfloat16", "lora"), ()),
        ({"batch_size": 2, "lora": LORA}, ("gradient_checkpointing", "bfloat16"), ("batch_size", "lora")),
        (
            {"batch_size": 2, "lora": LORA, "gradient_checkpointing": True, "precision": "bfloat16"},
            ("take fewer layers",),
            ("batch_size", "gradient_checkpointing", "bfloat16", "lora"),
        ),
    ],
)
def test_too_little_memory_is_told_with_what_would_help(
    changes: dict[str, object], said: tuple[str, ...], not_said: tuple[str, ...]
) -> None:
    with pytest.raises(InputError) as found, memory.enough(FINETUNE.model_copy(update=changes)):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore lines")
    message = str(found.value)
    assert message.endswith("(CUDA out of memory. Tried to allocate 2 GiB.)")
    assert all(word in message for word in said)
    assert not any(word in message.partition("(CUDA")[0] for word in not_said)
