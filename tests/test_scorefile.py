"""Score files: exact round trips, and every way in which a file can be wrong."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import scorefile
from pipeline.errors import InputError
from pipeline.trials import Row, Trials, from_rows

NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("Z", "C")), min_size=1, max_size=12)


def table(*utterances: str) -> Trials:
    """Trials of these names, the first one bona fide and the others spoof."""
    rows = [
        Row(where="here", utterance=name, path=f"{i}.flac", label="spoof" if i else "bonafide")
        for i, name in enumerate(utterances)
    ]
    return from_rows(rows, source="a test")


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "scores.txt"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@given(
    st.dictionaries(NAMES, st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=20),
    st.randoms(use_true_random=False),
)
def test_float32_scores_come_back_exactly_in_the_order_of_the_trials(scores: dict[str, float], random: object) -> None:
    names = list(scores)
    shuffled = names.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scores.txt"
        scorefile.write(path, shuffled, np.array([scores[name] for name in shuffled], dtype=np.float32))
        found = scorefile.read(path, table(*names))
    assert found.dtype == np.float64
    assert found.astype(np.float32).tobytes() == np.array(list(scores.values()), dtype=np.float32).tobytes()


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=20))
def test_float64_scores_come_back_exactly(scores: list[float]) -> None:
    names = [f"u{i}" for i in range(len(scores))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scores.txt"
        scorefile.write(path, names, np.array(scores))
        assert scorefile.read(path, table(*names)).tolist() == scores


def test_the_format_is_one_utterance_and_one_score_a_line(tmp_path: Path) -> None:
    path = tmp_path / "new" / "scores.txt"
    scorefile.write(path, ["a", "b"], np.array([0.1, -1e-7], dtype=np.float32))
    assert path.read_bytes() == b"a 0.1\nb -1e-07\n"
    assert list(path.parent.iterdir()) == [path]


def test_lines_may_end_as_on_windows(file: Callable[[str], Path]) -> None:
    assert scorefile.read(file("a 1\r\nb 2\r\n"), table("b", "a")).tolist() == [2.0, 1.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_not_finite_is_not_written(tmp_path: Path, bad: float) -> None:
    path = tmp_path / "scores.txt"
    with pytest.raises(InputError, match=rf"(?s)1 of 2 scores are not finite.*learning rate.*utterance b: {bad}"):
        scorefile.write(path, ["a", "b"], np.array([0.0, bad]))
    assert not path.exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [(["a"], "one score for each of 1"), (["a", "b c"], "'b c'"), (["a", ""], "''"), (["a", "b\n"], "b")],
)
def test_what_the_format_cannot_hold_is_not_written(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scorefile.write(tmp_path / "scores.txt", names, np.zeros(2))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("b", "expected `utterance score` parted by one space, got 'b'"),
        ("", "expected `utterance score` parted by one space, got ''"),
        ("b  2", "expected `utterance score` parted by one space, got 'b  2'"),
        ("b\t2", "expected `utterance score` parted by one space"),
        (" 2", "expected `utterance score` parted by one space"),
        ("b A07 spoof 2", "expected `utterance score` parted by one space, got 'b A07 spoof 2'"),
        ("b high", "utterance b: expected a finite score, got 'high'"),
        ("b nan", "utterance b: expected a finite score, got 'nan'"),
        ("b -inf", "utterance b: expected a finite score, got '-inf'"),
        ("b 1_0", "utterance b: expected a finite score, got '1_0'"),
        ("a 1", "utterance a is scored twice, first in line 1"),
    ],
)
def test_a_faulty_line_is_named(file: Callable[[str], Path], line: str, message: str) -> None:
    path = file(f"a 1\n{line}\nc 3\n")
    with pytest.raises(InputError) as raised:
        scorefile.read(path, table("a", "b", "c"))
    assert f"{path}:2: {message}" in str(raised.value)
    assert "1 lines cannot be used" in str(raised.value)


def test_missing_and_surplus_utterances_are_counted_and_named(file: Callable[[str], Path]) -> None:
    path = file("a 1\nx 2\ny 3\n")
    with pytest.raises(InputError) as raised:
        scorefile.read(path, table("a", "b", "c", "d"))
    assert str(raised.value) == (
        f"{path}: 3 of 4 trials have no score:\n  b\n  c\n  d\n2 scores belong to no trial:\n  x\n  y\n"
        "the file was made for another set or an older trial table; run `dvc repro score` to make it anew"
    )


def test_surplus_alone_is_an_error_too(file: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match=r"(?s)^(?!.*have no score).*1 scores belong to no trial:\n  c\n"):
        scorefile.read(file("a 1\nb 2\nc 3\n"), table("a", "b"))


def test_many_missing_are_cut_short(file: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match=r"(?s)30 of 30 trials.*\.\.\. and 20 more"):
        scorefile.read(file(""), table(*[f"u{i}" for i in range(30)]))


def test_no_file_and_no_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no score file there; run `dvc repro score`"):
        scorefile.read(tmp_path / "none.txt", table("a", "b"))
    path = tmp_path / "scores.txt"
    path.write_bytes(b"a 1\n\xff 2\n")
    with pytest.raises(InputError, match=r"expected UTF-8 text"):
        scorefile.read(path, table("a", "b"))
