"""The device that computes, and its precision."""

from __future__ import annotations

from typing import Literal

import threadpoolctl
import torch

from pipeline.core.errors import InputError

Precision = Literal["float32", "bfloat16"]
CPU = torch.device("cpu")


def device_of(wanted: Literal["auto", "cpu", "cuda"], *, key: str) -> torch.device:
    """The device that a parameter asks for. key: the parameter's name, for the message.

    Raises InputError where it asks for a GPU and there is none.
    """
    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise InputError(f"{key}: expected a GPU that torch can use, got none; set it to auto or cpu")
    return torch.device("cuda", torch.cuda.current_device()) if there and wanted != "cpu" else CPU


def use_threads(count: int) -> None:
    """Let PyTorch, and NumPy and FAISS as far as they are imported, compute with so many threads.

    Their pools are not all PyTorch's. Each process that trains beside others would have threads for all processors.
    """
    torch.set_num_threads(count)
    threadpoolctl.threadpool_limits(count)


def precision_on(device: torch.device) -> Precision:
    """bfloat16 where the hardware computes in it, which takes half the time or less; float32 elsewhere.

    CPUs with AMX or with bfloat16 in AVX-512 do (2.9 times as fast in bench/RESULTS.md). Emulated bfloat16 is slower.
    """
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    able: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # an older torch does not tell
    return "bfloat16" if able.get("amx_bf16") or able.get("avx512_bf16") else "float32"


def exact_convolutions() -> None:
    """Let a GPU compute convolutions of float32 in float32. By default it takes TF32, which is less precise."""
    if hasattr(torch.backends.cudnn, "conv"):
        torch.backends.cudnn.conv.fp32_precision = "ieee"
    else:  # before torch 2.9
        torch.backends.cudnn.allow_tf32 = False
