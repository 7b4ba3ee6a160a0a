"""What several losses share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """The precision that losses compute in: half precision becomes float32, float32 and float64 stay."""
    return x.float() if x.dtype.itemsize < 4 else x
