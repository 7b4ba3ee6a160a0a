"""Audio of one set in another, by the digest of its bytes."""

from __future__ import annotations

import pytest

from pipeline.core import overlap, trial_table
from pipeline.core.errors import InputError
from pipeline.core.trial_table import Row, Trials


def table(name: str, contents: str) -> Trials:
    """Trials whose contents are letters; capitals are bona fide, and `-` has no content."""
    rows = [
        Row(
            name,
            f"{name}{i}",
            f"{name}{i}.wav",
            "bonafide" if letter.isupper() else "spoof",
            content="" if letter == "-" else letter.lower(),
        )
        for i, letter in enumerate(contents)
    ]
    return trial_table.from_rows(rows, source=name)


def test_leaks_by_hand() -> None:
    found = list(overlap.leaks("t", table("t", "Abc-"), {"dev": table("d", "De-"), "eval": table("e", "XBaca")}))
    (said,) = found
    # e1 is t1 (b, bona fide here, spoof there), e2 and e4 are t0 (a, the other way round), e3 is t2
    assert said.startswith(
        "warning: 4 of 5 trials of eval have audio that is in t, which is trained on, byte by byte, 3 of them under "
        "the other label; "
    )
    assert said.splitlines()[1:] == ["  e1 is t1 of t", "  e2 is t0 of t", "  e3 is t2 of t", "  e4 is t0 of t"]
    (said,) = overlap.leaks("t", table("t", "Ab"), {"dev": table("d", "Acd")})
    assert "1 of 3 trials of dev" in said
    assert "label" not in said


def test_a_channel_makes_no_other_file() -> None:

    rows = [Row("e", "e0", "e0.wav", "bonafide", content="a:left"), Row("e", "e1", "e1.wav", "spoof", content="z")]
    assert len(list(overlap.leaks("t", table("t", "Ab"), {"e": trial_table.from_rows(rows, source="e")}))) == 1


def test_contradicting_labels_in_a_pool() -> None:
    overlap.check_labels({"one": table("o", "Ab-"), "two": table("w", "Abc-")})
    with pytest.raises(InputError, match=r"(?s)^1 trials .*\n  o0 of one, bonafide, and w1 of two, spoof\n"):
        overlap.check_labels({"one": table("o", "Ab-"), "two": table("w", "Ca-")})
