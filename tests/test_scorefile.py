"""Score files: exact round trips in every layout, and every way in which a file can be wrong."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import InputError
from pipeline.core.trial_table import Row, Trials, from_rows
from pipeline.metrics import join, scorefile
from pipeline.metrics.layouts import LAYOUTS, Layout

NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("Z", "C")), min_size=1, max_size=12)
WRITTEN: list[Layout] = ["2019", "2021", "asvspoof5"]


def table(*utterances: str) -> Trials:
    """Trials of these names, the first one bona fide and the others spoof by A1, A2 in turn."""
    rows = [
        Row("here", name, f"{i}.flac", "spoof" if i else "bonafide", attack=f"A{(i - 1) % 2 + 1}" if i else "-")
        for i, name in enumerate(utterances)
    ]
    return from_rows(rows, source="a test")


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "scores.txt"
        path.write_text(text, encoding="utf-8", newline="")
        return path

    return write


@given(
    st.dictionaries(NAMES, st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=20),
    st.randoms(use_true_random=False),
    st.sampled_from(WRITTEN),
)
def test_float32_scores_come_back_exactly_in_the_order_of_the_trials(
    scores: dict[str, float], random: object, layout: Layout
) -> None:
    trials = table(*scores)
    order = list(range(len(scores)))
    random.shuffle(order)  # type: ignore[attr-defined]
    values = np.array(list(scores.values()), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scores.txt"
        scorefile.write(path, trials.take(np.array(order)), values[order], layout=layout)
        assert scorefile.parse(path).layout == layout
        found = join.read(path, trials)
    assert found.dtype == np.float64
    assert found.astype(np.float32).tobytes() == values.tobytes()


@given(
    st.lists(st.floats(-1e100, 1e100), min_size=2, max_size=20),
    st.sampled_from([*WRITTEN, "csv"]),
)
def test_float64_scores_come_back_exactly(scores: list[float], layout: Layout) -> None:
    trials = table(*[f"u{i}" for i in range(len(scores))])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scores.txt"
        if layout == "csv":
            write_csv(path, ["utterance", "score"], zip(trials.utterance.tolist(), scores, strict=True))
        else:
            scorefile.write(path, trials, np.array(scores), layout=layout)
        assert join.read(path, trials).tolist() == scores
        assert scorefile.parse(path, layout).score.tolist() == scores


def write_csv(path: Path, header: list[str], rows: object) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])  # type: ignore[misc]


@pytest.mark.parametrize(
    ("layout", "text"),
    [
        ("2021", b"a 0.1\nb -1e-07\nc 2.0\n"),
        ("2019", b"a - bonafide 0.1\nb A1 spoof -1e-07\nc A2 spoof 2.0\n"),
        ("asvspoof5", b"filename\tcm-score\na\t0.1\nb\t-1e-07\nc\t2.0\n"),
    ],
)
def test_what_is_written_is_what_the_official_packages_read(tmp_path: Path, layout: Layout, text: bytes) -> None:
    path = tmp_path / "new" / "scores.txt"
    scorefile.write(path, table("a", "b", "c"), np.array([0.1, -1e-7, 2], dtype=np.float32), layout=layout)
    assert path.read_bytes() == text
    assert list(path.parent.iterdir()) == [path]


def test_a_corpus_has_the_layout_of_its_evaluation_package() -> None:
    found = [scorefile.layout_of(corpus) for corpus in ("asvspoof2019_la", "asvspoof2021_df", "asvspoof5", "demo")]
    assert found == ["2019", "2021", "asvspoof5", "2021"]


@pytest.mark.parametrize(
    ("text", "layout"),
    [
        ("a 1\r\nb 2\r\n", "2021"),
        ("\ufeffa 1\nb 2", "2021"),
        ("\n a\t1 \n\n  b  2\n\n", "2021"),
        ("b spoofed spoof 2\na x bonafide 1\n", "2019"),
        ("filename\tcm-score\r\nb\t2\r\na\t1\r\n", "asvspoof5"),
        ("spk\tcm-score\tfilename\r\nx y\t2\tb\r\n\t1\ta\r\n", "asvspoof5"),
        ('Score,"File",note\n"2",b,"one, two"\n 1 , a ,\n', "csv"),
        ("utterance,cm_score\na,1\n\nb,2\n", "csv"),
    ],
)
def test_a_layout_is_known_by_its_first_line(file: Callable[[str], Path], text: str, layout: Layout) -> None:
    path = file(text)
    for found in (scorefile.parse(path), scorefile.parse(path, layout)):
        assert found.layout == layout
        assert dict(zip(found.utterance, found.score.tolist(), strict=True)) == {"a": 1.0, "b": 2.0}
        assert (found.label != []) == (layout == "2019")


@pytest.mark.parametrize(
    "line", ["a", "a high", "a,x,1", "a 1 2", "a A1 x spoof", "a spoof A1 1", "utterance points", "speaker\tscore"]
)
def test_an_unknown_layout_is_shown_beside_the_known_ones(file: Callable[[str], Path], line: str) -> None:
    path = file(f"\n{line}\n")
    with pytest.raises(InputError) as raised:
        scorefile.parse(path)
    message = str(raised.value)
    assert message.startswith(f"{path}:2: expected the first line of a score file in one of the layouts\n  2019 ")
    assert f"\ngot {line!r}; " in message
    assert all(shape in message for shape in LAYOUTS.values())


@pytest.mark.parametrize(
    ("layout", "text", "message"),
    [
        ("csv", "utterance,file,score\na,b,1\n", "this one has utterance, file and score"),
        ("csv", "a,x\n", "got 'a,x'"),
        ("asvspoof5", "filename cm-score\na 1\n", "  filename<TAB>cm-score\ngot 'filename cm-score'"),
        ("asvspoof5", "file\tscore\na\t1\n", "got 'file\\tscore'"),
        ("tsv", "file,score\na,1\n", "got 'file,score'"),
        (None, "utterance,points\na,1\n", "this one has utterance and none"),
    ],
)
def test_a_first_line_that_does_not_name_its_columns(
    file: Callable[[str], Path], layout: Layout | None, text: str, message: str
) -> None:
    with pytest.raises(InputError, match=r"scores\.txt:1: expected the first line of a score file") as raised:
        scorefile.parse(file(text), layout)
    assert message in str(raised.value)


@pytest.mark.parametrize("layout", WRITTEN)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_not_finite_is_not_written(tmp_path: Path, bad: float, layout: Layout) -> None:
    path = tmp_path / "scores.txt"
    with pytest.raises(InputError, match=rf"(?s)1 of 2 scores are not finite.*learning rate.*utterance b: {bad}"):
        scorefile.write(path, table("a", "b"), np.array([0.0, bad]), layout=layout)
    assert not path.exists()


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"one score for each of 2 utterances, got shape \(3,\)"):
        scorefile.write(tmp_path / "scores.txt", table("a", "b"), np.zeros(3), layout="2021")
    with pytest.raises(ValueError, match="one of 2019, 2021, asvspoof5, csv, got 'tsv'"):
        scorefile.write(tmp_path / "scores.txt", table("a", "b"), np.zeros(2), layout="tsv")
    assert not list(tmp_path.iterdir())


def test_names_with_blanks_go_into_a_csv_file(tmp_path: Path) -> None:
    trials = table("a", "b c", "=d", "'=e", 'f, "g"', "h\u3000i", "\u00e9\u4e2d")
    assert [scorefile.holding(layout, trials) for layout in WRITTEN] == ["csv", "csv", "asvspoof5"]
    assert scorefile.holding("2019", table("a", "=d")) == "2019"
    for layout in ("2019", "2021"):
        with pytest.raises(InputError) as caught:
            scorefile.write(tmp_path / "scores.txt", trials, np.arange(7.0), layout=layout)
        assert str(caught.value) == (
            f"{tmp_path}/scores.txt: expected names of utterances without blanks, as blanks part the cells of lines "
            f'`{LAYOUTS[layout]}` and nothing quotes them, got 3; write the layout csv:\n  b c\n  f, "g"\n  h\u3000i'
        )
    scorefile.write(tmp_path / "scores.txt", trials, np.arange(7.0), layout="csv")
    assert (tmp_path / "scores.txt").read_text().splitlines()[:4] == [
        "utterance,attack,label,score", "a,-,bonafide,0.0", "b c,A1,spoof,1.0", "'=d,A2,spoof,2.0",
    ]  # fmt: skip
    assert join.read(tmp_path / "scores.txt", trials).tolist() == list(range(7))
    own = scorefile.own_key(scorefile.parse(tmp_path / "scores.txt"))
    for name in ("utterance", "attack", "is_bonafide"):
        np.testing.assert_array_equal(getattr(own, name), getattr(trials, name))
    scorefile.write(tmp_path / "scores.txt", trials, np.arange(7.0), layout="asvspoof5")
    assert join.read(tmp_path / "scores.txt", trials).tolist() == list(range(7))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("b", "expected `utterance score`, got 'b'"),
        ("b A07 spoof 2", "expected `utterance score`, got 'b A07 spoof 2'"),
        ("b high", "utterance b: expected a finite score, got 'high'"),
        ("b nan", "utterance b: expected a finite score, got 'nan'"),
        ("b -inf", "utterance b: expected a finite score, got '-inf'"),
        ("b 1e999", "utterance b: expected a finite score, got '1e999'"),
        ("b 1_0", "utterance b: expected a finite score, got '1_0'"),
        ("b 1,000.5", "utterance b: expected a finite score, got '1,000.5'; write it with a point and without commas"),
        ("b 0,5", "utterance b: expected a finite score, got '0,5'; write it with a point and without commas"),
        ("a 1", "utterance a is scored twice, first in line 1"),
    ],
)
def test_a_faulty_line_is_named(file: Callable[[str], Path], line: str, message: str) -> None:
    path = file(f"a 1\n\n{line}\nc 3\n")
    with pytest.raises(InputError) as raised:
        join.read(path, table("a", "b", "c"))
    assert str(raised.value) == f"1 lines cannot be used; mend or remove them:\n  {path}:3: {message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a - bonafide 1\nb A1 spoof\n", "expected `utterance attack label score`, got 'b A1 spoof'"),
        ("a - bonafide 1\nb A1 replay 2\n", "utterance b: expected the key bonafide or spoof, got 'replay'"),
        ("filename\tcm-score\nb 2\n", "expected 2 cells as in the first line, got 'b 2'"),
        ("filename\tcm-score\nb\tnan\n", "utterance b: expected a finite score, got 'nan'"),
        (
            "filename\tcm-score\n\t2\n",
            "expected the name of an utterance, without control characters and without white space at its ends, got ''",
        ),
        (
            "filename\tcm-score\nb \t2\n",
            "expected the name of an utterance, without control characters and "
            "without white space at its ends, got 'b '",
        ),
        ("utterance,score\nb,2,3\n", "expected 2 cells as in the first line, got 'b 2 3'"),
        ("utterance,score\nb,\n", "utterance b: expected a finite score, got ''"),
    ],
)
def test_a_faulty_line_of_the_other_layouts_is_named(file: Callable[[str], Path], text: str, message: str) -> None:
    path = file(text)
    with pytest.raises(InputError) as raised:
        scorefile.parse(path)
    assert str(raised.value) == f"1 lines cannot be used; mend or remove them:\n  {path}:2: {message}"


def test_faults_of_all_kinds_are_told_in_the_order_of_their_lines(file: Callable[[str], Path]) -> None:
    path = file("a 1\nb nan\na 2\nc\nd x\n")
    with pytest.raises(InputError) as raised:
        scorefile.parse(path)
    lines = str(raised.value).splitlines()
    assert lines[0].startswith("4 lines cannot be used")
    assert [line.split(":")[1] for line in lines[1:]] == ["2", "3", "4", "5"]


def test_the_end_of_a_line_in_a_quoted_name_does_not_vanish(file: Callable[[str], Path]) -> None:
    # "u\\n1" was read as u1
    with pytest.raises(InputError, match=r"scores\.txt:2: expected the name of an utterance, .*, got 'u\\n1'"):
        scorefile.parse(file('file,score\n"u\n1",0.5\nu2,1\n'))
    found = scorefile.parse(file('file,other,score\nu1,"a\nb",0.5\nu2,c,1\n'))
    assert (found.utterance, found.score.tolist(), found.line) == (["u1", "u2"], [0.5, 1.0], [2, 4])


def test_an_open_quote_in_csv(file: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match=r"scores\.txt:2: not valid CSV: .*is a quote left open"):
        scorefile.parse(file('utterance,score\n"b,2\nc,3\n'))


def test_missing_and_surplus_utterances_are_counted_and_named(file: Callable[[str], Path]) -> None:
    path = file("a 1\nx 2\ny 3\n")
    with pytest.raises(InputError) as raised:
        join.read(path, table("a", "b", "c", "d"))
    assert str(raised.value) == (
        f"{path}: 3 of 4 trials have no score:\n  b\n  c\n  d\n2 scores belong to no trial:\n  x\n  y\n"
        "the file was made for another set or an older trial table; run `dvc repro flow/score/dvc.yaml` to make it anew"
    )


def test_surplus_scores_are_an_error_of_read_and_told_by_join(file: Callable[[str], Path]) -> None:
    path = file("c 3\na 1\nx 4\nb 2\n")
    with pytest.raises(InputError, match=r"(?s)^(?!.*have no score).*2 scores belong to no trial:\n  c\n  x\n"):
        join.read(path, table("a", "b"))
    joined = join.join(scorefile.parse(path), table("a", "b"), remedy="")
    assert (joined.scores.tolist(), joined.surplus) == ([1.0, 2.0], ["c", "x"])


def test_join_advises_what_its_caller_says(file: Callable[[str], Path]) -> None:
    found = scorefile.parse(file("a 1\nx 2\n"))
    with pytest.raises(InputError, match=r"(?s)1 of 2 trials have no score:\n  b\n.*\n  x\ndo this$"):
        join.join(found, table("a", "b"), remedy="do this")


def test_many_missing_are_cut_short(file: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match=r"(?s)29 of 30 trials.*\.\.\. and 19 more"):
        join.read(file("u0 1\n"), table(*[f"u{i}" for i in range(30)]))


@pytest.mark.parametrize("suffix", [".flac", ".wav"])
def test_names_that_differ_by_a_suffix_alone_are_no_match_but_a_hint(file: Callable[[str], Path], suffix: str) -> None:
    with pytest.raises(InputError, match=rf"names of the scores end in {suffix}, those of the trials do not"):
        join.read(file(f"a{suffix} 1\nb{suffix} 2\n"), table("a", "b"))
    with pytest.raises(InputError, match=rf"names of the trials end in {suffix}, those of the scores do not"):
        join.read(file("a 1\nb 2\n"), table(f"a{suffix}", f"b{suffix}"))
    with pytest.raises(InputError, match=r"^(?!.* end in )"):
        join.read(file("a 1\nx 2\n"), table("a", "b"))


def test_a_2019_file_that_contradicts_the_key_is_refused_by_line(file: Callable[[str], Path]) -> None:
    path = file("c A2 bonafide 3\nb A3 spoof 2\nx A1 spoof 0\na - bonafide 1\nd - spoof 4\n")
    found = scorefile.parse(path)
    with pytest.raises(InputError) as raised:
        join.join(found, table("a", "b", "c", "d"), remedy="")
    assert str(raised.value) == (
        "2 scores contradict the key; is it the key of this set?\n"
        f"  {path}:2: utterance b: the file says A3 spoof, the key A1 spoof\n"
        f"  {path}:1: utterance c: the file says A2 bonafide, the key A2 spoof"
    )


def test_a_2019_file_carries_its_own_key(file: Callable[[str], Path]) -> None:
    own = scorefile.own_key(scorefile.parse(file("b A1 spoof 2\na - bonafide 1\n")))
    assert own.utterance.tolist() == ["b", "a"]
    assert own.is_bonafide.tolist() == [False, True]
    assert own.attack.tolist() == ["A1", "-"]
    with pytest.raises(InputError, match=r"`utterance score` does not say what is bona fide; give the key"):
        scorefile.own_key(scorefile.parse(file("b 2\na 1\n")))
    with pytest.raises(InputError, match=r"scores\.txt: expected bona fide and spoof trials, got only spoof"):
        scorefile.own_key(scorefile.parse(file("b A1 spoof 2\n")))


def test_no_file_and_no_text(tmp_path: Path, file: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match=r"no score file there; run `dvc repro flow/score/dvc.yaml`"):
        join.read(tmp_path / "none.txt", table("a", "b"))
    with pytest.raises(InputError, match=r"none\.txt: no score file there$"):
        scorefile.parse(tmp_path / "none.txt")
    with pytest.raises(InputError, match=r"expected scores, got an empty file"):
        scorefile.parse(file("\n \n"))
    path = tmp_path / "scores.txt"
    path.write_bytes(b"a 1\n\xff 2\n")
    with pytest.raises(InputError, match=r"expected UTF-8 text"):
        join.read(path, table("a", "b"))


def test_white_space_in_an_attack_is_written_as_in_a_url(tmp_path: Path) -> None:
    rows = [Row("t:1", "a", "a", "bonafide"), Row("t:2", "b", "b", "spoof", attack="voice\u00a0clone 100%")]
    path, trials = tmp_path / "s.txt", from_rows(rows, source="t")
    scorefile.write(path, trials, np.array([1.0, 0.0]), layout="2019")
    assert path.read_bytes() == b"a - bonafide 1.0\nb voice%C2%A0clone%20100%25 spoof 0.0\n"
    assert scorefile.parse(path).attack == ["-", "voice\u00a0clone 100%"]


@pytest.mark.parametrize("word", ["100%", "%", "%2", "%zz", "%41", "%ff", "a%2520b", "%0a"])
def test_a_foreign_attack_that_only_looks_so_stays(file: Callable[[str], Path], word: str) -> None:
    expected = {"a%2520b": "a%20b"}.get(word, word)
    assert scorefile.parse(file(f"a - bonafide 1\nb {word} spoof 2\n")).attack == ["-", expected]


def test_lines_may_end_in_cr(file: Callable[[str], Path]) -> None:
    for text in ("a 1\rb 2\r", "a 1\r\nb 2\r", "utterance,score\ra,1\rb,2\r", "filename\tcm-score\ra\t1\rb\t2"):
        assert join.read(file(text), table("a", "b")).tolist() == [1.0, 2.0]
    with pytest.raises(InputError, match=r"scores\.txt:3: utterance c: expected a finite score, got 'x'"):
        scorefile.parse(file("a 1\rb 2\rc x\r"))


def test_an_utterance_may_look_like_a_header_of_csv(file: Callable[[str], Path]) -> None:
    found = scorefile.parse(file("file,1 0.5\nb 2\n"))
    assert (found.layout, found.utterance) == ("2021", ["file,1", "b"])


def test_an_endless_first_line_is_no_layout(file: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match=r"scores\.txt:1: expected the first line of a score file"):
        scorefile.parse(file("a," * 70_000))


@given(st.binary(max_size=200) | st.text('a,1\t"\r\n -.=filenmcorsut%', max_size=60).map(str.encode))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scores.txt"
        path.write_bytes(data)
        try:
            found = scorefile.parse(path)
        except InputError as error:
            refusal = str(error)
        else:
            refusal = ""
        if refusal:
            assert str(path) in refusal
            return
        assert len(found.utterance) == len(found.score) == len(set(found.utterance))
