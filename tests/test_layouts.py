"""Score files of others: every layout gives the numbers worked out by hand, and what is ambiguous is refused."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.commands import metrics, plot
from pipeline.core.errors import InputError
from pipeline.metrics import layouts, scorefile
from pipeline.metrics.layouts import Chosen
from tests.beside import CASES, needs

# In order of score: spoof, spoof, spoof, bona fide, spoof, three bona fide. With the four lowest rejected, a quarter of
# each class is wrong: EER 25 %. With three rejected a quarter of the spoof is accepted: min DCF 0.5 * 0.25 / 0.5, which
# is 0.25; with five rejected it is 0.95 * 0.25 / 0.5 = 0.475.
BONAFIDE, SPOOF = {"n1": 4.0, "n4": 0.5, "n5": 2.0, "n8": 3.0}, {"n2": 1.0, "n3": -2.0, "n6": 0.0, "n7": -1.0}
EER, MIN_DCF = 25.0, 0.25
SCORES = dict(sorted((BONAFIDE | SPOOF).items()))
CLASSES = {name: "bonafide" if name in BONAFIDE else "spoof" for name in SCORES}
KEY = "".join(f"S1 {name} A1 {CLASSES[name]}\n" for name in SCORES)  # four columns
DEEPFENSE = "ID_audio,label,score_spoof,score_bonafide\n"


def lines(shape: str, first: str = "", **words: tuple[str, str]) -> str:
    """A line for each trial; words: what stands for a bona fide and for a spoof."""
    text = first
    for name, score in SCORES.items():
        chosen = {word: pair[name in SPOOF] for word, pair in words.items()}
        text += shape.format(n=name, s=score, m=-score, c=CLASSES[name], **chosen) + "\n"
    return text


# The layout, whether the file has the classes, and the file.
READ: dict[str, tuple[str, bool, str]] = {
    "2019": ("2019", True, lines("{n} {a} {c} {s}", a=("-", "A1"))),
    "spoof_SUPERB": ("2019", True, lines("{n} - {c} {s}")),
    "spoof_SUPERB, by tabs": ("2019", True, lines("{n}\t-\t{c}\t{s}")),
    "Arena": ("2021", False, lines("{n} {s}")),
    "label": ("label", True, lines("{n} {c} {s}")),
    "label, other words": ("label", True, lines("{n} {w} {s}", w=("real", "Fake"))),
    "Codecfake": ("label_last", True, lines("{n} {s} {w}", w=("real", "fake"))),
    "AASIST of ASVspoof 5": ("speaker_label_last", True, lines("S1 {n} {s} {c}")),
    "AntiDeepfake": ("csv", True, lines('{n},"[{m}, {s}]",{w}', "ID,Score,Label\n", w=("1", "0"))),
    "ASVspoof 5, track 2": ("asvspoof5", False, lines("S1\t{n}\t{s}\t-\t-", "spk\tfilename\tcm-score\tasv-score\tx\n")),
    "speaker": ("speaker", True, lines("S1 {n} - {a} {c} {s}", a=("-", "A1"))),
    "ASVspoof 5": ("asvspoof5", False, lines("{n}\t{s}", "filename\tcm-score\n")),
    "CSV": ("csv", False, lines("{s},x,{n}", "Score,other,Utterance\n")),
    "CSV without a first line": ("csv", False, lines("{n},{s}")),
    "CSV of lines": ("csv", True, lines("{n}, {c}, {s}")),
    "CSV with classes": ("csv", True, lines("{n},{w},{s}", "file_name,label,score\n", w=("bona-fide", "spoof"))),
    "CSV with classes as numbers": ("csv", False, lines("{n},{w},{s}", "utt,label,score\n", w=("0", "1"))),
    "CSV with a path": ("csv", False, lines("{n},{s}", "path,scores\n")),
    "CSV with a name and a path": ("csv", False, lines("a/{n}.wav,{n},{s}", "path,ID,score\n")),
    "DeepFense": ("csv", True, lines("{n},{w},{m},{s}", DEEPFENSE, w=("1", "0"))),
    "TSV": ("tsv", False, lines("{n}\t{s}\t{w}", "flac_file\tscore\ty_task\n", w=("0", "1"))),
    "TSV with classes": ("tsv", True, lines("{n}\t{c}\tA1\t{s}", "file\tlabel\tattack\tcm-score\n")),
    "blanks": ("tsv", False, lines("{n} {s}", "utterance score\n")),
}

# The file, the layout that is nearest to its first line, what is in the way, and the columns that read it.
REFUSED: dict[str, tuple[str, str, str]] = {
    "class as a number": (
        lines("{n} {w} {s}", w=("1", "0")),
        "`utterance label score` (label), but '1' is no label",
        "utterance=1,score=3",
    ),
    "two scores": (lines("{n} {m} {s}"), "(label), but '-4.0' is no label", "utterance=1,score=3"),
    "word first": (
        lines("Output, {n}, {w}, {s}", w=("1", "0")),
        "`utterance attack label score` (2019), but '1' is no label",
        "utterance=2,score=4",
    ),
    "place of the class": (lines("{n} {c} A1 {s}"), "(2019), but 'A1' is no label", "utterance=1,score=4"),
    "place of the score": (lines("{s} {n}"), "(2021), but 'n1' is no score", "utterance=2,score=1"),
    "no dash": (lines("S1 {n} F A1 {c} {s}"), "(speaker), but 'F' is no dash", "utterance=2,score=6"),
    "many cells": (lines("S {n} x y z A1 {c} {s}"), "(speaker), but it has 8 cells", "utterance=2,score=8"),
    "two scores by name": (
        lines("{n},{m},{s}", "utterance,score_class0,score_class1\n"),
        "this one has utterance and none",
        "utterance=1,score=3",
    ),
    "a name for both": (
        lines("{n},{n},{s}", "utterance,file,score\n"),
        "utterance, file and score",
        "utterance=1,score=3",
    ),
    "score of spoof": (lines("{n}\t{s}", "utt\tscore_spoof\n"), "this one has utt and none", "utterance=1,score=2"),
}


@pytest.fixture
def report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Run the command on the text of a score file, with the four-column key or without one."""

    def run(text: str, *words: str, key: str | None = KEY) -> dict[str, Any]:
        (tmp_path / "scores.txt").write_text(text)
        (tmp_path / "key.txt").write_text(key or "")
        given = ["--key", str(tmp_path / "key.txt")] if key else []
        metrics.main([str(tmp_path / "scores.txt"), *given, "--folds", "0", "--json", *words])
        (system,) = json.loads(capsys.readouterr().out)["systems"]
        return dict(system)

    return run


@pytest.mark.parametrize("name", READ)
def test_every_layout_gives_the_numbers_worked_out_by_hand(report: Callable[..., dict[str, Any]], name: str) -> None:
    layout, has_classes, text = READ[name]
    for words in ((), ("--format", layout)):
        found = report(text, *words)
        assert (found["layout"], found["eer"], found["min_dcf"]) == (layout, EER, MIN_DCF)
        assert (found["bonafide"], found["spoof"]) == (4, 4)
    if has_classes:
        found = report(text, key=None)
        assert (found["eer"], found["min_dcf"]) == (EER, MIN_DCF)
    else:
        with pytest.raises(InputError, match="does not say what is bona fide; give the key"):
            report(text, key=None)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_ambiguous_is_refused_with_the_columns_that_read_it(
    report: Callable[..., dict[str, Any]], name: str
) -> None:
    text, nearest, columns = REFUSED[name]
    with pytest.raises(InputError) as raised:
        report(text)
    message = str(raised.value)
    assert f"\ngot {text.splitlines()[0]!r}; " in message
    assert nearest in message
    assert f"`--columns {columns}`" in message
    found = report(text, "--columns", columns)
    assert (found["layout"], found["eer"], found["min_dcf"]) == (None, EER, MIN_DCF)


def test_no_class_is_proposed_for_the_name_of_an_utterance(report: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(InputError, match=r"but 'bonafide' is no score; write it in one of these layouts$"):
        report(lines("{s} {c}"))


def test_pairs_are_those_of_antideepfake_alone(report: Callable[..., dict[str, Any]]) -> None:
    """The class of `ID,Score,Label` says nothing where scores are single, and one that is no pair is named."""
    single = report(lines("{n},{s},{w}", "ID,Score,Label\n", w=("0", "1")))
    assert single["eer"] == EER
    text = READ["AntiDeepfake"][2].replace("[2.0, -2.0]", "[2.0, x]")
    with pytest.raises(InputError, match=r":4: utterance n3: expected a finite score, got '\[2.0, x\]'"):
        report(text)


def test_of_two_scores_the_user_says_which_is_the_one(report: Callable[..., dict[str, Any]]) -> None:
    text = lines("{n} {m} {s}")
    with pytest.raises(
        InputError, match=r"`--columns utterance=1,score=2` or `--columns utterance=1,score=3` reads it"
    ):
        report(text)
    assert report(text, "--columns", "utterance=1,score=2")["eer"] == 75.0  # no sign is flipped


def test_a_class_of_the_file_is_held_against_the_key(report: Callable[..., dict[str, Any]]) -> None:
    for name in ("label", "DeepFense", "AntiDeepfake", "Codecfake", "TSV with classes", "speaker"):
        text = READ[name][2]
        wrong = KEY.replace("n3 A1 spoof", "n3 A1 bonafide").replace("n4 A1 bonafide", "n4 A1 spoof")
        with pytest.raises(InputError, match=r"(?s)2 scores contradict the key.*utterance n3: the file says \S+ spoof"):
            report(text, key=wrong)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (READ["label"][2] + "n9 2\n", "expected `utterance label score`, got 'n9 2'"),
        (READ["label"][2] + "n9 1 2\n", "utterance n9: expected the key bonafide or spoof, got '1'"),
        (READ["DeepFense"][2] + "n9,2,1,1\n", "utterance n9: expected the key bonafide or spoof, got '2'"),
        (READ["CSV without a first line"][2] + "n9,1,2\n", "expected 2 cells as in the first line, got 'n9 1 2'"),
        (READ["TSV"][2] + "n9\t\t0\n", "utterance n9: expected a finite score, got ''"),
    ],
)
def test_a_line_that_does_not_fit_is_named(report: Callable[..., dict[str, Any]], text: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"scores.txt:{len(text.splitlines())}: {message}")):
        report(text)


def test_columns_read_lines_of_one_width(report: Callable[..., dict[str, Any]]) -> None:
    text = lines("{n} 1 {s}")
    with pytest.raises(InputError, match=r"scores\.txt:9: expected 3 cells as in the first line, got 'my n9 1 0.5'"):
        report(text + "my n9 1 0.5\n", "--columns", "utterance=1,score=3")
    with pytest.raises(
        InputError, match=r"scores\.txt:1: expected a score in cell 4, as `--columns utterance=1,score=4`"
    ):
        report(text, "--columns", "utterance=1,score=4")
    for first, line in (
        ("a,b,c\n", "{n},1,{s}"),
        ("a\tb\tc\n", "{n}\t1\t{s}"),
        ("a b c\n", "{n} 1 {s}"),
        ("", "x,{n},{s}"),
    ):
        place = "2" if line.startswith("x") else "1"
        assert report(lines(line, first), "--columns", f"utterance={place},score=3")["eer"] == EER


def test_columns_of_several_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "key.txt").write_text(KEY)
    (tmp_path / "a.txt").write_text(READ["Arena"][2])
    (tmp_path / "b.txt").write_text(REFUSED["class as a number"][0])
    words = [str(tmp_path / name) for name in ("a.txt", "b.txt")] + ["--key", str(tmp_path / "key.txt")]
    columns = ["--columns", "auto", "--columns", "utterance=1,score=3"]
    metrics.main([*words, *columns, "--folds", "0", "--json"])
    assert [system["eer"] for system in json.loads(capsys.readouterr().out)["systems"]] == [EER, EER]
    plot.main([*words, *columns, "--out", str(tmp_path / "plots")])
    assert (tmp_path / "plots" / "det.csv").is_file()
    for wrong, message in (
        (["--columns", "auto"] * 3, "expected --columns once, or once for each of 2 score files"),
        (["--columns", "score=1"], "expected utterance=N,score=M with two numbers from 1 up, or auto, got 'score=1'"),
        (["--columns", "utterance=1,score=1"], "two numbers"),
        (["--columns", "utterance=0,score=1"], "two numbers"),
        (["--columns", "utterance=1,score=2", "--format", "2021"], "not allowed with argument"),
    ):
        with pytest.raises(SystemExit, match="2"):
            metrics.main([*words, *wrong])
        assert message in capsys.readouterr().err


def test_a_folder_and_a_comma_get_a_hint(report: Callable[..., dict[str, Any]]) -> None:
    for line, hint in (
        ("wav/{n} {s}", "wav/n1 of the scores and n1 of the trials have another folder; write them alike"),
        ("x\\{n}.wav {s}", r"x\n1.wav of the scores and n1 of the trials have another folder"),
        ("{n}, {s}", "the names of the scores end in a comma; give --columns utterance=1,score=2"),
    ):
        with pytest.raises(InputError, match=re.escape(hint)):
            report(lines(line))
    with pytest.raises(InputError, match=r"n1 of the scores and /data/wav/n1\.wav of the trials have another folder"):
        report(lines("{n} {s}"), key=KEY.replace(" n", " /data/wav/n").replace(" A1", ".wav A1"))
    with pytest.raises(InputError, match=r"^(?!.*another folder)"):
        report(lines("x{n} {s}"))
    assert report(lines("{n}, {s}"), "--columns", "utterance=1,score=2")["eer"] == EER


def test_long_and_odd_first_lines_are_refused_shortly(report: Callable[..., dict[str, Any]]) -> None:
    for text in (
        'file,score,"x\na,1,"b"\nb,2,"c"\n',
        "a " * 70_000,
        '"' + "x" * 150_000,
        "a,b\n" * 3,
        '"open\n1,2\n',
        "\x00\n",
        "1\n2\n",
        ",\n,\n",
    ):
        with pytest.raises(InputError) as raised:
            report(text)
        assert len(str(raised.value)) < 3_000


def test_the_page_lists_every_layout_and_header_name() -> None:
    page = (Path(__file__).parents[1] / "docs" / "scores.md").read_text()
    for name, shape in layouts.LAYOUTS.items():
        assert f"| `{name}` | `{shape}`" in page
    for word in (*layouts.UTTERANCE_COLUMNS, *layouts.PATH_COLUMNS, *layouts.SCORE_COLUMNS, *layouts.CLASS_OF):
        assert f"`{word}`" in page


@needs(CASES)
def test_files_as_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Forty scores, ten of them bona fide; worked out by counting: with the threshold at the second lowest bona fide one
    # of 10 bona fide and 3 of 30 spoof are wrong.
    for name, columns, layout in (
        ("nohead.csv", None, "csv"),
        ("rawnet_3col.txt", "utterance=1,score=3", None),
        ("lfcc_output.txt", "utterance=2,score=4", None),
    ):
        words = [str(CASES / name), "--key", str(CASES / "la19_key.txt"), "--folds", "0", "--json"]
        if columns:
            with pytest.raises(InputError, match=re.escape(f"`--columns {columns}` reads it")):
                metrics.main(words)
            words += ["--columns", columns]
        metrics.main(words)
        (found,) = json.loads(capsys.readouterr().out)["systems"]
        assert (found["layout"], found["bonafide"], found["spoof"], found["eer"]) == (layout, 10, 30, 10.0)
    found = scorefile.parse(CASES / "real_head_oct_b01.txt")
    assert (found.layout, found.utterance[1], found.score[1]) == ("speaker", "LA_E_8877452", 1.043307)
    assert (found.attack[1], found.label[1]) == ("A14", "spoof")
    found = scorefile.parse(CASES / "real_head_jmq_wavlm.tsv")
    assert (found.layout, found.utterance[1], found.score[1]) == ("tsv", "E_0000273937", 0.8228698968887329)
    assert not found.label


def test_the_text_of_a_choice_is_what_the_command_takes() -> None:
    assert str(Chosen(2, 5)) == "--columns utterance=2,score=5"


@given(st.text('ab1,\t"\n -.=e', max_size=60), st.permutations([1, 2, 3, 4]))
def test_columns_read_any_text_or_refuse_it(text: str, places: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scores.txt"
        path.write_text(text)
        chosen = Chosen(*places[:2])
        try:
            found = scorefile.parse(path, chosen=chosen)
        except InputError:
            return
    lines = [line for line in text.split("\n") if line.strip()]
    for name, score in zip(found.utterance, found.score.tolist(), strict=True):
        assert '"' in text or name in text  # blanks at its ends are kept, as a key would have to have them
        cells = [re.split(mark, line) if mark else line.split() for mark in (",", "\t", "") for line in lines]
        cells = [[cell.strip(' \t"') for cell in row] for row in cells]
        assert any(
            row[places[0] - 1 : places[0]] == [name.strip(' \t"')] and str(score) in map(shown, row) for row in cells
        )


def shown(cell: str) -> str:
    """The number in a cell as Python writes it."""
    return str(float(cell)) if layouts.is_number(cell) else cell


@pytest.mark.parametrize("mark", [" ", "\t"])
def test_names_with_blanks_of_spoof_superb(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "scores.txt"
    names = ["MLAAD/fake/de/Cartesia.ai (Sonic-3)/a b.wav", "MLAAD/plain.wav", "MLAAD/a - b  c.wav"]
    for order in (names, names[::-1], [names[1], names[0], names[2]]):
        cells = [(name, "-", "spoof" if i % 2 else "bonafide", str(i)) for i, name in enumerate(order)]
        path.write_text("".join(mark.join(row) + "\n" for row in cells))
        found = scorefile.parse(path)
        assert (found.layout, found.utterance, found.score.tolist()) == ("2019", order, [0.0, 1.0, 2.0])
        assert (found.label, found.attack) == (["bonafide", "spoof", "bonafide"], ["-"] * 3)
    for line in ("a b.wav A1 spoof 2", "a b.wav - nothing 2", "a b.wav - spoof x"):  # nothing is guessed
        path.write_text(f"u1 - bonafide 1\n{line}\n")
        with pytest.raises(InputError, match=r"scores.txt:2: expected `utterance attack label score`, got 'a b.wav"):
            scorefile.parse(path)
