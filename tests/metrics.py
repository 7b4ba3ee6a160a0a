"""What the tests of the metrics share: the golden sets, drawn scores, and what is no list of scores."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st

SETS = ("plain", "ties", "separated", "inverted", "tiny", "imbalance", "cosine", "cross_ties")  # in golden/metrics.npz

# Few distinct values, so that ties within and between the classes are common.
SCORES = st.lists(st.integers(-6, 6).map(float), min_size=1, max_size=20)
FLOATS = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20)

NO_SCORES = pytest.mark.parametrize(
    ("bonafide", "spoof", "message"),
    [
        ([], [1.0], "at least one bona fide score"),
        ([1.0], [], "at least one spoof score"),
        ([1.0], [float("nan")], "got 1 nan of 1"),
        ([1.0, float("nan")], [1.0], "got 1 nan of 2"),
        ([[1.0]], [1.0], r"got shape \(1, 1\)"),
    ],
)
