"""Where the golden numbers lie: inputs and outputs of published implementations, see README.md beside this file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

GOLDEN = Path(__file__).parent
Arrays = Mapping[str, NDArray[Any]]


def read_golden(name: str) -> Arrays:
    """The arrays of a file, by the file's name without its suffix."""
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as arrays:
        return dict(arrays)
