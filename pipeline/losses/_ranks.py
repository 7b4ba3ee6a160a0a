"""Losses under DistributedDataParallel: what makes W ranks train as one process with their joint batch.

DDP averages gradients over the ranks. The average is the gradient of the joint batch only if all ranks divide by the
same count: a mean over 3 bona fide on one rank and over 5 on another gives the three too much weight. So each rank
divides its sum by the count of all ranks and multiplies it by W; the average of DDP divides by W again. Then gradients
equal those of one process. The joint loss is the mean of the losses of all ranks; the loss of one rank is its part.

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

    Every rank must call it, also without anything to add, and all with the same shape and dtype.
    """
    if _world_size() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x


def joint_part(mean: Tensor, weight: Tensor | float) -> Tensor:
    """This rank's part in the mean over all ranks: its sum times W, divided by the weight of all ranks.

    Without recorded gradients the mean stays this rank's own and no rank waits for another, so that one rank alone can
    evaluate. Otherwise every rank must call it, also without utterances.

    Args:
        mean: scalar, the mean over the utterances on this rank; any value, NaN too, where there are none.
        weight: ≥ 0, the number of utterances on this rank, or the sum of their weights.

    Returns:
        Scalar, 0 on a rank without utterances; `mean` itself in a single process.
    """
    if _world_size() == 1 or not torch.is_grad_enabled():
        return mean
    own = torch.as_tensor(weight, dtype=mean.dtype, device=mean.device)
    joint = total(own)
    share = own * _world_size() / torch.where(joint > 0, joint, 1)
    return torch.where(own > 0, mean, 0) * share
