"""Keys of others: every layout gives the same trials and the EER worked out by hand, and numbers are no classes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands import metrics
from pipeline.core.errors import InputError
from pipeline.core.trial_table import UNKNOWN
from pipeline.metrics import keys
from pipeline.metrics.keys import Key
from pipeline.metrics.scorefile import ScoreFile
from tests.beside import CASES, needs

# Of the trials 0 to 7, of which the even ones are bona fide.
SCORES = [9.0, 3.0, 2.5, 1.0, 8.0, 0.0, 7.0, -1.0]


def lines(shape: str, first: str = "", **words: tuple[str, str]) -> str:
    """A line for each trial, by its number."""
    classes = words.pop("c", ("bonafide", "spoof"))
    return first + "".join(
        shape.format(i=i, c=classes[i % 2], **{word: pair[i % 2] for word, pair in words.items()}) + "\n"
        for i in range(len(SCORES))
    )


ATTACKS = ("-", "A01")
PA21 = "PA_0010 PA_E_{i} R3 M3 d4 r1 m1 s4 c4 {c} notrim eval"
# The corpus, the shape of the names, the attack of a spoof, and the file.
READ: dict[str, tuple[str, str, str, str]] = {
    "names and classes": ("plain", "u{i}", UNKNOWN, lines("u{i} {c}")),
    "CSV without a first line": ("plain", "u{i}.wav", UNKNOWN, lines("u{i}.wav, {c}")),
    "other words": ("plain", "u{i}", UNKNOWN, lines("u{i} {c}", c=("Real", "Fake"))),
    "CSV": ("plain", "d/u{i}.wav", UNKNOWN, lines("d/u{i}.wav,{c}", "file_name,label\n")),
    "AntiDeepfake": (
        "plain",
        "u{i}",
        "A10",
        lines(
            "u{i},{c},2.2,$ROOT/u{i}.wav,{a},S1",
            "ID,Label,Duration,Path,Attack,Speaker\n",
            a=("-", "A10"),
            c=("real", "fake"),
        ),
    ),
    "TSV": ("plain", "u{i}", UNKNOWN, lines("{c}\tu{i}", "key\tutt\n")),
    "four columns": ("plain", "LA_E_{i}", "A01", lines("LA_1 LA_E_{i} {a} {c}", a=ATTACKS)),
    "five columns": ("plain", "u{i}", "A01", lines("S1 u{i} - {a} {c}", a=ATTACKS)),
    "PA": ("asvspoof2019_pa", "PA_T_{i}", "AA", lines("PA_1 PA_T_{i} aaa {a} {c}", a=("-", "AA"))),
    "PA of 2021": (
        "asvspoof2021_pa",
        "PA_E_{i}",
        UNKNOWN,
        lines(PA21) + PA21.format(i=99, c="spoof")[:-4] + "progress\n",
    ),
    "phase 1 of ASVspoof 5": ("asvspoof5", "T_{i}", "A18", lines("T_1 T_{i} F - {a} {c}", a=("bonafide", "A18"))),
    "package of ASVspoof 5": ("asvspoof5", "E_{i}", UNKNOWN, lines("E_{i}\t{c}", "filename\tcm-label\n")),
    "its layout for other names": ("plain", "u{i}", UNKNOWN, lines("u{i}\t{c}", "filename\tcm-label\n")),
}


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Key]:
    """Read the text of a key."""

    def read(text: str, split: str | None = None) -> Key:
        (tmp_path / "key.txt").write_text(text)
        none: Any = []
        return keys.read(tmp_path / "key.txt", split, ScoreFile(tmp_path, "2021", none, none, none, none, none))

    return read


@pytest.mark.parametrize("name", READ)
def test_every_layout(read: Callable[..., Key], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    corpus, shape, attack, text = READ[name]
    found = read(text)
    with_splits = name in ("PA of 2021", "package of ASVspoof 5")
    assert (found.corpus, found.split) == (corpus, "eval" if with_splits else None)
    assert found.trials.utterance.tolist() == [shape.format(i=i) for i in range(8)]
    assert found.trials.is_bonafide.tolist() == [i % 2 == 0 for i in range(8)]
    assert found.trials.attack.tolist() == [(UNKNOWN, attack)[i % 2] for i in range(8)]
    # In order: -1 s, 0 s, 1 s, 2.5 b, 3 s, 7 b, 8 b, 9 b. With four rejected, 1 of 4 is wrong in each class.
    (tmp_path / "scores.txt").write_text("".join(f"{shape.format(i=i)} {score}\n" for i, score in enumerate(SCORES)))
    metrics.main([str(tmp_path / "scores.txt"), "--key", str(tmp_path / "key.txt"), "--folds", "0", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert (report["key"]["corpus"], report["systems"][0]["eer"]) == (corpus, 25.0)
    assert (report["asv"] is not None) == (corpus == "asvspoof5")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            lines("u{i},{c}", "utterance,label\n", c=("1", "0")),
            "8 lines .*key.txt:2: expected a class in words .* got '1'",
        ),
        (lines("u{i} {c}") + "u9 replay\n", "key.txt:9: expected a class in words .* got 'replay'"),
        (lines("u{i} {c}") + "u9 a spoof\n", "key.txt:9: expected 2 cells as in the first line, got 'u9 a spoof'"),
        (lines("u{i} {c}") + "u1 spoof\n", "utterance u1 is listed twice"),
        (lines("u{i} S0 A1 {c}"), "utterance S0 is listed twice"),  # the columns the other way round
        (lines("u{i} spoof"), "got only spoof"),
        (lines("u{i} {c}", c=("1", "0")), "its first line is of none of them. Write it as a CSV file"),
        (lines("S u{i} {c}"), "its first line is of none of them"),
        (lines("u{i},u{i},{c}", "file,utterance,label\n"), "its first line is of none of them"),
        (lines('"u{i},{c}', "file,label\n"), "not valid CSV: .*is a quote left open"),
        (PA21.format(i=1, c="spoof") + "x\n", "expected the phase eval, progress, hidden, got 'evalx'"),
        ("", "its first line is of none of them"),
        (
            "S LA_E_1 bonafide target\nS LA_E_2 A07 spoof\n",
            "key.txt:1: expected the class bonafide or spoof, got 'target'",
        ),
        (
            "S LA_E_2 A07 spoof\nS LA_E_1 - nontarget\n",
            "key.txt:2: .*'nontarget': the file lists the ASV trials of ASV",
        ),
    ],
)
def test_what_is_no_key(read: Callable[..., Key], text: str, message: str) -> None:
    with pytest.raises(InputError, match="(?s)" + message):
        read(text)


def test_splits(read: Callable[..., Key]) -> None:
    with pytest.raises(InputError, match=re.escape("key.txt: this key has no splits, got --split eval; leave it out")):
        read(READ["CSV"][3], "eval")
    with pytest.raises(InputError, match="expected the phase eval, progress, hidden or all, got --split dev"):
        read(READ["PA of 2021"][3], "dev")
    assert len(read(READ["PA of 2021"][3], "all").trials) == 9


@needs(CASES)
def test_keys_as_published(tmp_path: Path, read: Callable[..., Key]) -> None:
    for name, corpus, total in (("a5_official_key.tsv", "asvspoof5", 40), ("a5_phase1_meta.txt", "asvspoof5", 40)):
        found = read((CASES / name).read_text())
        assert (found.corpus, len(found.trials), int(found.trials.is_bonafide.sum())) == (corpus, total, 10)
    found = read((CASES / "real_head_arena_in_the_wild.csv").read_text())
    assert found.trials.utterance[0] == "/data/data/AntiSpoofing-Datasets/In_Wild/0.wav"
    text = (CASES / "real_head_nii_toy_test.csv").read_text()
    with pytest.raises(InputError, match="got only spoof"):  # the first five lines of it
        read(text)
    found = read(text + "one,real,1,16000,$ROOT/one.wav,-,LA_0001,test,1,PCM_S,16,EN\n")
    assert (found.trials.utterance[0], found.trials.attack[0]) == ("ASV19LAdemo-LA_E_7583177", "A10")
    assert found.trials.is_bonafide.tolist() == [False] * 5 + [True]
