"""Losses under DistributedDataParallel: what makes W ranks train as one process with their joint batch.

DDP averages gradients over the ranks. That is the gradient of the joint batch only where every rank divides by the same
count: a mean over 3 bona fide here and 5 there weighs the three too much. So each rank divides its sum by the count of
all ranks and multiplies by W, which DDP's average takes out again. Gradients are of one process then, and the mean over
ranks of the losses that they report is the joint loss; the loss of a single rank is only its part in it.

In a single process nothing here changes a bit.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def total(x: Tensor) -> Tensor:
    """Sum of x over all ranks, outside of the graph; x itself in a single process.

    Every rank must call it, the ones with nothing to add too, with x of one shape and dtype.
    """
    if _world_size() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x


def joint_part(mean: Tensor, weight: Tensor | float) -> Tensor:
    """This rank's part in the mean over all ranks: its sum times W, divided by the weight of all ranks.

    Where gradients are not recorded there are none to set right: the mean stays this rank's own, and no rank waits for
    another, so that one rank alone may evaluate. Otherwise every rank must call it, the ones without a member too.

    Args:
        mean: scalar, the mean over members on this rank; of no members anything, NaN too.
        weight: ≥ 0, the number of members on this rank, or the sum of their weights.

    Returns:
        Scalar, 0 on a rank without members; `mean` itself in a single process.
    """
    if _world_size() == 1 or not torch.is_grad_enabled():
        return mean
    own = torch.as_tensor(weight, dtype=mean.dtype, device=mean.device)
    joint = total(own)
    share = own * _world_size() / torch.where(joint > 0, joint, 1)
    return torch.where(own > 0, mean, 0) * share
