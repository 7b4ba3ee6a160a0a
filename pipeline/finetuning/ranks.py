"""What the processes of a fine-tuning share out and bring together, so that they train as one with the joint batch.

A process is a rank, numbered from 0. Of each part of a step every rank computes some utterances. Gradients are averaged
over the ranks by DistributedDataParallel, and the losses make that average the gradient of the whole part (see
`losses._ranks`). Batch normalization takes the statistics of the whole part, too. The first rank alone keeps the
history and decides.

In a single process nothing here changes a bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

T = TypeVar("T")
Rows = NDArray[np.int64]


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def count() -> int:
    """The number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def share(rows: Rows) -> Rows:
    """The rows that this rank computes. Where bona fide come first, all ranks have as many, give or take one."""
    return rows[rank() :: count()]


def gathered(own: Tensor, size: int) -> Tensor:
    """The rows (N, E) of all ranks, in order, outside of the graph. own: those of the `share` of N = `size` rows."""
    if count() == 1:
        return own
    padded = own.new_zeros(-(-size // count()), own.shape[1])
    padded[: len(own)] = own
    found = [torch.empty_like(padded) for _ in range(count())]
    dist.all_gather(found, padded)
    return torch.stack(found, dim=1).flatten(0, 1)[:size]  # row i is of rank i % W


def mean(x: Tensor) -> Tensor:
    """The mean of x over the ranks, outside of the graph."""
    if count() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x / count()


def agreed(value: T) -> T:
    """What the first rank has, on all ranks."""
    if count() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def spread(tensors: Iterable[Tensor]) -> None:
    """Give tensors the values that they have on the first rank."""
    if count() == 1:
        return
    for tensor in tensors:
        plain = tensor.detach().contiguous()
        dist.broadcast(plain.view(torch.uint8) if plain.dtype == torch.bool else plain, src=0)
        tensor.detach().copy_(plain)


# ---------------------------------------------------------------- batch normalization


@contextlib.contextmanager
def joint_statistics() -> Iterator[None]:
    """Let batch normalization in training take the statistics of all ranks, also in torch's own modules.

    torch's SyncBatchNorm would do so on GPUs alone, and not in the classes that are derived from BatchNorm1d.
    """
    alone = functional.batch_norm
    if count() > 1:
        functional.batch_norm = _batch_norm  # type: ignore[assignment]  # the names of its arguments are not used
    try:
        yield
    finally:
        functional.batch_norm = alone


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Batch normalization (B, C, ...) as torch's, with the mean and variance of the rows of all ranks."""
    if not training:
        return torch.batch_norm(x, weight, bias, running_mean, running_var, False, momentum, eps, False)
    others = [dim for dim in range(x.dim()) if dim != 1]
    shape = [1, -1, *[1] * (x.dim() - 2)]
    wide = x if x.dtype.itemsize >= 4 else x.float()
    number = mean(torch.tensor(float(x.numel() // x.shape[1]), dtype=wide.dtype, device=x.device)) * count()
    centre = _total(wide.sum(others)) / number  # (C,)
    centred = wide - centre.view(shape)
    variance = _total(centred.square().sum(others)) / number  # (C,)
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(centre.to(running_mean), momentum)
            running_var.lerp_((variance * number / (number - 1)).to(running_var), momentum)
    found = centred * (variance + eps).rsqrt().view(shape)
    if weight is not None and bias is not None:
        found = found * weight.view(shape) + bias.view(shape)
    return found.to(x.dtype)


def _total(x: Tensor) -> Tensor:
    total: Tensor = _Total.apply(x)  # type: ignore[no-untyped-call]
    return total


class _Total(torch.autograd.Function):
    """Sum over all ranks, within the graph: what a rank gives is in the loss of each."""

    @staticmethod
    def forward(_context: Any, x: Tensor) -> Tensor:
        total = x.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total
