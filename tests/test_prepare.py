"""From anyone's corpus to a trial table: what is valid goes through, everything else is named with file and line."""

import csv
import os
import re
import sys
import tempfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from pipeline.audio import decode
from pipeline.audio.inspection import with_contents
from pipeline.core import params_file, trial_table
from pipeline.core.errors import InputError, exit_on_input_error
from pipeline.core.trial_table import Row, from_rows
from pipeline.corpora import manifest
from pipeline.metrics import join, scorefile
from pipeline.quality import dnsmos
from stages import prepare
from tests.beside import SPEECH, needs
from tests.long_flac import long_flac
from tests.places import SETTINGS
from tests.test_audio import irregular_flac, write_bad

ROOT = Path(__file__).parents[1]
HEADER = "utterance,path,label,split"
GOOD = ["a,a.wav,bonafide,dev", "b,b.wav,spoof,dev", "c,c.wav,spoof,train"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with three audio files and params.yaml whose set `dev` is its manifest."""
    for i, name in enumerate("abc"):
        samples = np.random.default_rng(i).normal(0, 0.1, (2_000, 2 if name == "b" else 1))
        soundfile.write(tmp_path / f"{name}.wav", samples, (8_000, 48_000, 16_000)[i])
    text = SETTINGS.read_text()
    text = text.replace("corpus: demo", "corpus: manifest").replace("root: data/demo", f"root: {tmp_path}")
    text = text.replace("protocol: pipeline/corpora/demo.py", f"protocol: {tmp_path}/trials.csv")
    (tmp_path / "params.yaml").write_text(text)
    return tmp_path


def change_set(folder: Path, line: str) -> None:
    """Give the set `dev` this `key: value`."""
    text = (folder / "params.yaml").read_text()
    head, dev, tail = re.split(r"(?<=\n)(  dev:\n(?:    .*\n)+)", text, maxsplit=1)
    kept = [old for old in dev.splitlines() if not old.strip().startswith(line.split(":")[0] + ":")]
    (folder / "params.yaml").write_text("\n".join([head + kept[0], f"    {line}", *kept[1:], tail]))


def run(folder: Path, lines: list[str], capsys: pytest.CaptureFixture[str], *, header: str = HEADER) -> tuple[int, str]:
    """Exit code and stderr of `prepare` on a manifest of these lines."""
    (folder / "trials.csv").write_text("\n".join([header, *lines]) + "\n")
    sys.argv = ["prepare", "--set", "dev", "--params", str(folder / "params.yaml"), "--trials", str(folder / "out.csv")]
    sys.argv += ["--quality-cache", str(folder / "quality")]
    code = 0
    try:
        exit_on_input_error(prepare.main)
    except SystemExit as exit:
        code = int(exit.code or 0)
    return code, capsys.readouterr().err


def test_a_valid_manifest_becomes_a_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["b,sub/../b.wav,spoof,dev,A1,s1,x", "a,a.wav,bonafide,dev,,,2.5", "c,c.wav,spoof,train,A2,s2,"]
    lines[0] = lines[0].replace(",x", ",")
    assert run(folder, lines, capsys, header=HEADER + ",attack,speaker,quality")[0] == 0
    table = trial_table.read(folder / "out.csv")
    assert table.utterance.tolist() == ["b", "a"]  # the manifest's order, this split only
    assert table.path.tolist() == ["b.wav", "a.wav"]
    assert table.is_bonafide.tolist() == [False, True]
    assert (table.attack.tolist(), table.speaker.tolist()) == (["A1", "-"], ["s1", "-"])
    np.testing.assert_array_equal(table.quality, [np.nan, 2.5])
    assert table.content.tolist() == [decode.digest((folder / name).read_bytes()) for name in table.path]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("d,c.wav,bona fide,dev", "expected label bonafide or spoof, got 'bona fide'"),
        ("d,c.wav,1,dev", "expected label bonafide or spoof, got '1'"),
        ("a,c.wav,spoof,dev", "utterance a is listed twice, first at {file}:2"),
        ("d,../c.wav,spoof,dev", "expected a path below the corpus root, got '../c.wav'"),
        ("d,x/../../c.wav,spoof,dev", "expected a path below the corpus root"),
        (
            "d,/etc/passwd,spoof,dev",
            "expected a path below the corpus root, got '/etc/passwd'; absolute paths need `root: /`",
        ),
        ("d,C:\\x.wav,spoof,dev", "expected a path below the corpus root"),
        ("d,..\\x.wav,spoof,dev", "expected a path below the corpus root"),
        ("d,,spoof,dev", "expected a path below the corpus root, got ''"),
        ("d\te,c.wav,spoof,dev", "expected utterance without control characters, line breaks and marks of direction"),
        ("d ,c.wav,spoof,dev", "expected utterance without white space at its ends, got 'd '"),
        (",c.wav,spoof,dev", "expected the name of the utterance, got none"),
    ],
)
def test_bad_lines_are_named(folder: Path, capsys: pytest.CaptureFixture[str], line: str, message: str) -> None:
    code, said = run(folder, [*GOOD, line], capsys)
    assert code == 2
    assert f"{folder}/trials.csv:5: " in said
    assert message.format(file=f"{folder}/trials.csv") in said
    assert said.startswith("error: 1 of 3 trials cannot be used")
    assert not (folder / "out.csv").exists()


@pytest.mark.parametrize(
    ("lines", "header", "message"),
    [
        (
            ["a,a.wav,dev"],
            "utterance,path,split",
            ":1: expected the columns path, label; label not",
        ),
        (["a,a.wav"], HEADER, ":2: expected 4 cells, got fewer"),
        (["a,a.wav,bonafide,dev,more"], HEADER, ":2: expected 4 cells, got more"),
        (["a,a.wav,bonafide,dev,x"], HEADER + ",label", ":1: expected every column once"),
        ([f'a,"{"x" * 200_000},bonafide,dev'], HEADER, "not valid CSV"),
        (["a,a.wav,bonafide,dev,9"], HEADER + ",quality", "expected a quality (MOS) from 0 to 6 or nothing, got '9'"),
        (["a,a.wav,bonafide,dev,good"], HEADER + ",quality", "got 'good'"),
        (GOOD[:1], HEADER, "expected bona fide and spoof trials, got only bonafide"),
        (GOOD[1:], HEADER, "expected bona fide and spoof trials, got only spoof"),
        (GOOD[2:], HEADER, "expected trials of split 'dev', got only train"),
        ([], HEADER, "expected trials of split 'dev', got only none"),
    ],
)
def test_bad_manifests_are_named(
    folder: Path, capsys: pytest.CaptureFixture[str], lines: list[str], header: str, message: str
) -> None:
    code, said = run(folder, lines, capsys, header=header)
    assert code == 2
    assert message in said
    assert f"{folder}/trials.csv" in said


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("empty", "0 bytes"),
        ("not audio", "expected an audio file"),
        ("cut wav", "cut off"),
        ("cut flac", "breaks off"),
        ("cut ogg", "cut off"),
        ("short", "expected at least 25 ms"),
        ("silent", "silent"),
        ("nan", "1 samples are NaN"),
    ],
)
def test_unusable_audio_is_found_before_anything_is_computed(
    folder: Path, capsys: pytest.CaptureFixture[str], kind: str, message: str
) -> None:
    write_bad(kind, folder / "d.wav")
    code, said = run(folder, [*GOOD, "d,d.wav,spoof,dev"], capsys)
    assert code == 2
    assert f"error: 1 of 3 audio files cannot be used:\n  utterance d: {folder}/d.wav: " in said
    assert message in said
    assert said.endswith("mend or replace them; or drop these trials: on_bad_audio: skip\n")
    assert not (folder / "out.csv").exists()


def test_all_problems_are_told_at_once_but_not_more_than_ten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(13):
        (folder / f"m{i}.wav").write_bytes(b"")
    code, said = run(folder, [*GOOD, *(f"m{i:02d},m{i}.wav,spoof,dev" for i in range(13))], capsys)
    assert code == 2
    assert "13 of 15 audio files cannot be used:\n  utterance m00: " in said
    assert said.count("0 bytes") == 10
    assert "utterance m09: " in said
    assert "... and 3 more" in said


def test_missing_audio_is_listed_before_any_is_read(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(decode, "read")
    lines = [*GOOD, *(f"m{i:02d},m{i}.wav,spoof,dev" for i in range(12)), "n,elsewhere/n.wav,spoof,dev"]
    code, said = run(folder, lines, capsys)
    assert code == 2
    assert f"error: 13 of 15 audio files are missing:\n  utterance m00: {folder}/m0.wav\n" in said
    assert "utterance m09: " in said
    assert "utterance m10: " not in said
    assert "... and 3 more\ncheck `root` of the set, the paths in its protocol, and the copy; " in said
    assert said.endswith("or drop these trials: on_bad_audio: skip\n")


def test_links_that_lead_to_themselves_are_missing_files_and_hinder_no_others(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "l.wav").symlink_to("l.wav")
    (folder / "sub").symlink_to("sub")
    code, said = run(folder, GOOD, capsys)
    assert code == 0, said
    code, said = run(folder, [*GOOD, "l,l.wav,spoof,dev", "m,sub/m.wav,spoof,dev"], capsys)
    assert code == 2
    told = f"utterance l: {folder}/l.wav; it is a link to l.wav, which is not there\n  utterance m: {folder}/sub/m"
    assert f"2 of 4 audio files are missing:\n  {told}" in said


@pytest.mark.parametrize(
    ("asked", "there", "difference"),
    [
        ("d.flac", "d.wav", "another suffix"),
        ("d", "d.wav", "another suffix"),
        ("d.part.1", "d.part.1.wav", "another suffix"),
        ("d.wav", "D.WAV", "other capitals"),
        ("sub/d.wav", "Sub/d.wav", "other capitals"),
        ("caf\u00e9/d.wav", "cafe\u0301/d.wav", "another Unicode form of the name"),
        ("e\u0301.flac", "\u00c9.wav", "another suffix"),
    ],
)
def test_a_missing_file_with_nearly_the_name_of_another_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str], asked: str, there: str, difference: str
) -> None:
    (folder / there).parent.mkdir(exist_ok=True)
    (folder / "c.wav").rename(folder / there)
    code, said = run(folder, [*GOOD, f"d,{asked},spoof,dev", "e,e.txt,spoof,dev", "f,x/f.wav,spoof,dev"], capsys)
    assert code == 2
    assert f"\n  utterance d: {folder}/{asked}; there is {there!r}, with {difference}\n" in said
    assert f"\n  utterance e: {folder}/e.txt\n  utterance f: {folder}/x/f.wav\ncheck `root`" in said


@pytest.mark.parametrize(("root", "there"), [("", "LA"), ("LA/flac", "LA"), ("LA/flac/x", "LA")])
def test_the_root_below_which_missing_files_are_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str], root: str, there: str
) -> None:
    (folder / there / "flac/x").mkdir(parents=True)
    (folder / "c.wav").rename(folder / there / "flac/d.wav")
    change_set(folder, f"root: {folder / root}")
    code, said = run(folder, [*GOOD, "d,flac/d.wav,spoof,dev"], capsys)
    assert code == 2
    assert f"\n  utterance d: {folder / root}/flac/d.wav; with `root: {folder / there}` it is there\ncheck" in said


def test_a_set_with_blanks_in_its_names_says_where_they_stand(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "copy of b.wav").write_bytes((folder / "b.wav").read_bytes())
    code, said = run(folder, ["a 1,a.wav,bonafide", "b,b.wav,spoof", "b 2 \u4e2d,copy of b.wav,bonafide"], capsys,
                     header="utterance,path,label")  # fmt: skip
    assert (code, "set `split: all`" in said) == (2, True)
    change_set(folder, "split: all")
    code, said = run(folder, ["a 1,a.wav,bonafide", "b,b.wav,spoof", "b 2 \u4e2d,copy of b.wav,bonafide"], capsys,
                     header="utterance,path,label")  # fmt: skip
    assert code == 2
    assert (
        f"{folder}/trials.csv:3: utterance b, spoof, b.wav and {folder}/trials.csv:4: utterance b 2 \u4e2d, bon" in said
    )
    assert run(folder, ["a 1,a.wav,bonafide", "b 2 \u4e2d,b.wav,spoof"], capsys, header="utterance,path,label")[0] == 0
    assert trial_table.read(folder / "out.csv").utterance.tolist() == ["a 1", "b 2 \u4e2d"]


def test_bad_audio_is_dropped_where_that_is_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_bad("cut flac", folder / "d.flac")
    lines = ["m,m.wav,bonafide,dev", *GOOD, "d,d.flac,spoof,dev", "n,nowhere/n.wav,spoof,dev", "e,c.wav,spoof,dev"]
    change_set(folder, "on_bad_audio: skip")
    code, said = run(folder, lines, capsys)
    assert code == 0
    missing, unusable = said.split("these trials are dropped (on_bad_audio: skip)\n")[:2]
    assert f"2 of 6 audio files are missing:\n  utterance m: {folder}/m.wav\n  utterance n: " in missing
    assert f"1 of 4 audio files cannot be used:\n  utterance d: {folder}/d.flac: the audio breaks off" in unusable
    table = trial_table.read(folder / "out.csv")
    assert table.utterance.tolist() == ["a", "b", "e"]
    assert table.content.tolist() == [decode.digest((folder / name).read_bytes()) for name in table.path]


def test_dropping_a_whole_class_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_set(folder, "on_bad_audio: skip")
    lines = ["a,m.wav,bonafide,dev", "b,b.wav,spoof,dev", "c,c.wav,spoof,dev"]
    code, said = run(folder, lines, capsys)
    assert code == 2
    assert f"1 of 3 audio files are missing:\n  utterance a: {folder}/m.wav\n" in said
    assert "expected trials of both classes without these, got 0 bona fide and 2 spoof trials; check `root`" in said
    change_set(folder, f"root: {folder}/nowhere")
    code, said = run(folder, lines, capsys)
    assert code == 2
    assert "3 of 3 audio files are missing" in said
    assert "got 0 bona fide and 0 spoof trials" in said
    assert not (folder / "out.csv").exists()


def test_other_audio_is_ignored_and_counted(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("x.FLAC", "y.wav", "z.txt", "sub/b.wav", "sub/x.m4a", "other/x.wav"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes((folder / "b.wav").read_bytes())
    (folder / "folder.wav").mkdir()
    listed: list[Path] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scandir(path))
    code, said = run(folder, [*GOOD, "d,sub/b.wav,spoof,dev"], capsys)
    assert code == 0
    ignored, repeated = said.split("\n", 1)
    assert ignored == "audio files in the same folders that no trial names, ignored: 4"  # c.wav, x.FLAC, y.wav, x.m4a
    assert repeated == (
        "warning: 2 of 3 trials have the same audio as others, byte by byte; different files: 1\n  b and d\n"
    )
    assert [path for path in listed if Path(path).is_relative_to(folder)] == [folder, folder / "sub"]


def test_what_pyav_decodes_is_told_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "de":
        (folder / f"{name}.flac").write_bytes(irregular_flac(checksum=name == "d"))
    lines = [GOOD[0], GOOD[1], "c,c.wav,spoof,dev", "d,d.flac,spoof,dev", "e,e.flac,bonafide,dev"]
    assert run(folder, lines, capsys) == (
        0,
        "audio files that libsndfile cannot decode, decoded by PyAV: 2 of 5\n",
    )


@pytest.mark.parametrize("same", [True, False], ids=["one path", "two paths"])
def test_one_file_with_two_labels_is_refused_with_both_lines(
    folder: Path, capsys: pytest.CaptureFixture[str], same: bool
) -> None:
    (folder / "copy.wav").write_bytes((folder / "b.wav").read_bytes())
    path = "b.wav" if same else "copy.wav"
    code, said = run(folder, [*GOOD, f"d,{path},bonafide,dev", "e,c.wav,spoof,dev"], capsys)
    assert code == 2
    assert said.endswith(
        "error: 1 audio files are listed as bona fide and as spoof (the bytes are the same):\n"
        f"  {folder}/trials.csv:3: utterance b, spoof, b.wav and {folder}/trials.csv:5: utterance d, bonafide, {path}\n"
        "correct the labels, or remove one line of each pair\n"
    )
    assert not (folder / "out.csv").exists()


def test_doubtful_samples_are_a_warning_and_without_normalization_an_error(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = np.random.default_rng(3).normal(0, 0.1, 8_000)
    soundfile.write(folder / "d.wav", np.stack([x, -0.95 * x], axis=1), 16_000, subtype="FLOAT")
    soundfile.write(folder / "e.wav", 100 * x, 16_000, subtype="FLOAT")
    lines = [*GOOD, "d,d.wav,spoof,dev", "e,e.wav,bonafide,dev"]
    code, said = run(folder, lines, capsys)
    assert code == 0
    assert "warning: the samples of 2 of 4 audio files are doubtful:\n  utterance d: " in said
    assert f"{folder}/d.wav: the channels cancel when they are averaged" in said
    assert f"{folder}/e.wav: the peak of the samples is " in said
    text = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(text.replace("normalize: utterance", "normalize: none"))
    (folder / "out.csv").unlink()
    code, said = run(folder, lines, capsys)
    assert code == 2
    assert "2 of 4 audio files cannot be used:\n  utterance d: " in said
    assert said.count("(encoder.normalize is none)") == 2


def test_a_set_says_which_channel_is_heard(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digest = {name: decode.digest((folder / f"{name}.wav").read_bytes()) for name in "ab"}
    for key, ending in (("mean", ""), ("left", ":left"), ("0", ":left")):
        change_set(folder, f"channel: {key}")
        assert run(folder, GOOD, capsys)[0] == 0
        found = trial_table.read(folder / "out.csv").content.tolist()
        assert found == [digest["a"] + ending, digest["b"] + ending]
    change_set(folder, "channel: right")  # only b has two
    code, said = run(folder, GOOD, capsys)
    assert code == 2
    assert "utterance a: " in said
    assert "a.wav: expected a file with the channel right (counted from 0), got 1 channel;" in said
    for key in ("Left", "-1", "both", "1024", "true"):
        change_set(folder, f"channel: {key}")
        code, said = run(folder, GOOD, capsys)
        assert code == 2
        assert "sets.dev.channel: " in said


def test_a_file_of_many_hours_does_not_end_the_others(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "long.flac").write_bytes(long_flac(hours=20))
    change_set(folder, "on_bad_audio: skip")
    code, said = run(folder, [*GOOD, "d,long.flac,spoof,dev"], capsys)
    assert code == 0
    assert "utterance d: " in said
    assert "the sound is longer than the 9.3 hours at 16000 Hz that are decoded at most" in said
    assert trial_table.read(folder / "out.csv").utterance.tolist() == ["a", "b"]


def test_the_set_says_who_estimates_quality(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dnsmos, "estimate", lambda samples: 1 + len(samples) / 10_000)
    change_set(folder, "quality: dnsmos")
    lines = ["a,a.wav,bonafide,dev,2.5", "b,b.wav,spoof,dev,", "c,c.wav,spoof,dev,3"]
    code, _ = run(folder, lines, capsys, header=HEADER + ",quality")
    assert code == 0
    expected = [round(1 + len(decode.load(folder / f"{name}.wav")) / 10_000, 4) for name in "abc"]
    assert trial_table.read(folder / "out.csv").quality.tolist() == expected
    assert (folder / "quality" / "dev.csv").read_text().count(dnsmos.identity()) == 3
    change_set(folder, "quality: nobody")
    code, said = run(folder, lines, capsys)
    assert code == 2
    assert "expected quality to be one of column, dnsmos, scoreq, got 'nobody'" in said


@pytest.mark.parametrize(("name", "value"), [("columns", "{audio: sound}"), ("labels", "{0: bonafide, true: spoof}")])
def test_what_only_some_corpora_take(folder: Path, capsys: pytest.CaptureFixture[str], name: str, value: str) -> None:
    change_set(folder, f"{name}: {value}")
    code, said = run(folder, GOOD, capsys)
    assert code == 2
    assert said == f"error: {folder}/params.yaml: sets.dev.{name}: the corpus manifest takes none; remove it\n"


def test_a_missing_manifest_and_one_that_is_not_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such manifest"):
        manifest.trials(tmp_path, tmp_path / "none.csv", "dev")
    (tmp_path / "utf16.csv").write_bytes("utterance,path,label,split\n".encode("utf-16"))
    with pytest.raises(InputError, match="expected UTF-8 text, got byte 0xff"):
        manifest.trials(tmp_path, tmp_path / "utf16.csv", "dev")


def test_a_set_that_is_not_there(folder: Path) -> None:
    sys.argv = ["prepare", "--set", "test", "--params", str(folder / "params.yaml"), "--trials", "x.csv"]
    with pytest.raises(InputError, match="sets: expected one of train, dev, eval, got 'test'"):
        prepare.main()


def test_a_table_survives_writing_and_reading(tmp_path: Path) -> None:
    rows = [
        Row("t:2", "u1", "x/a b.flac", "bonafide", speaker="s,1", quality="4.1234567890123", content="7f"),
        Row("t:3", "u2", 'x/"q".flac', "spoof", attack="A1", content="08"),
    ]
    table = from_rows(rows, source="t")
    (tmp_path / "t.csv").write_text(trial_table.to_csv(table))
    back = trial_table.read(tmp_path / "t.csv")
    for field in fields(table):
        np.testing.assert_array_equal(getattr(back, field.name), getattr(table, field.name))
    assert trial_table.fingerprint(back) == trial_table.fingerprint(table)
    with pytest.raises(InputError, match="no trial table there; run `dvc repro prepare`"):
        trial_table.read(tmp_path / "none.csv")
    (tmp_path / "t.csv").write_text("utterance\nx\n")
    with pytest.raises(InputError, match=r"t\.csv:1: expected the columns utterance,path,"):
        trial_table.read(tmp_path / "t.csv")


def test_the_fingerprint_sees_order_names_and_contents_alone() -> None:
    rows = [Row("t:2", "u1", "a", "bonafide", content="1"), Row("t:3", "u2", "b", "spoof", content="2")]
    base = trial_table.fingerprint(from_rows(rows, source="t"))
    moved = [row._replace(path=f"new/{row.path}", quality="3", speaker="s") for row in rows]
    assert trial_table.fingerprint(from_rows(moved, source="t")) == base
    others = [
        rows[::-1],
        [rows[0], rows[1]._replace(content="3")],
        [rows[0], rows[1]._replace(utterance="v")],
    ]
    assert len({base, *(trial_table.fingerprint(from_rows(other, source="t")) for other in others)}) == 4


@needs(SPEECH)
@pytest.mark.parametrize(
    ("corpus", "split", "bonafide", "spoof"),
    [("digits", "train", 80, 160), ("digits", "dev", 27, 53), ("digits", "eval", 60, 180), ("wild", "eval", 10, 70)],
)
def test_real_corpora_are_read_as_they_are_counted(corpus: str, split: str, bonafide: int, spoof: int) -> None:
    table = manifest.trials(SPEECH / corpus, SPEECH / corpus / "trials.csv", split)
    assert (int(table.is_bonafide.sum()), int((~table.is_bonafide).sum())) == (bonafide, spoof)
    read = with_contents(table, SPEECH / corpus)
    assert len(set(read.content)) == len(read)
    assert not np.isnan(table.quality).any()


def test_the_shipped_demo_needs_nothing_from_outside() -> None:
    for source in params_file.load(SETTINGS).sets.values():
        assert (ROOT / source.protocol).is_file()
        assert not Path(source.root).is_absolute()


TEXT = ("utterance", "path", "speaker", "attack", "codec", "vocoder")
REFUSED = [
    "a\tb",
    "a\nb",
    "a\rb",
    "a\0b",
    "a\x1b[2Jb",
    "a\x7fb",
    "a\x85b",
    "a\u2028b",
    "a\u2029b",
    "a\u202eb",
    "a\u2066b",
    "a\u200fb",
]
HELD = [
    "a b",
    "a\u00a0b",
    'a"b',
    "a'b",
    "'=a",
    "a,b",
    "<script>alert(1)</script>",
    "=cmd()",
    "+1+2",
    "-x",
    "@x",
    "a%20b",
]
HELD += ["100%", "x" * 300, "#a", "é漢字\u200d", "a|b", "$a$", "`a`", "-"]


def named(name: str, text: str) -> list[Row]:
    """Two trials, the second, a spoof, with this text in this column."""
    return [Row("t:2", "u1", "u1.wav", "bonafide"), Row("t:3", "u2", "u2.wav", "spoof")._replace(**{name: text})]


@pytest.mark.parametrize("name", TEXT)
@pytest.mark.parametrize("text", REFUSED, ids=ascii)
def test_names_that_a_file_or_terminal_cannot_hold_are_refused(name: str, text: str) -> None:
    with pytest.raises(InputError, match=r"^1 of 2 trials cannot be used; mend or remove them:\n  t:3: ") as raised:
        from_rows(named(name, text), source="t")
    assert str(raised.value).count("\n") == 1
    assert str(raised.value).split("\n")[1].isprintable()


@pytest.mark.parametrize("name", TEXT[2:])
@pytest.mark.parametrize("text", [" a", "a ", "\u00a0a", "\u3000"])
def test_white_space_at_the_ends_of_a_name_is_refused(name: str, text: str) -> None:
    with pytest.raises(InputError, match=rf"t:3: utterance u2: expected {name} without white space at its ends, got "):
        from_rows(named(name, text), source="t")


@pytest.mark.parametrize("layout", ["2019", "2021", "asvspoof5"])
@pytest.mark.parametrize("name", TEXT)
@pytest.mark.parametrize("text", HELD, ids=ascii)
def test_a_name_that_is_taken_is_held_by_table_and_score_file(
    tmp_path: Path, name: str, text: str, layout: scorefile.Layout
) -> None:
    table = from_rows(named(name, text), source="t")
    assert getattr(table, name).tolist()[1] == text
    (tmp_path / "t.csv").write_text(trial_table.to_csv(table))
    back = trial_table.read(tmp_path / "t.csv")
    if name == "utterance" and text.split() != [text] and layout != "asvspoof5":
        with pytest.raises(InputError, match=r"nothing quotes them, got 1; write the layout csv:\n  a.b"):
            scorefile.write(tmp_path / "s.txt", back, np.array([0.5, -0.5]), layout=layout)
        layout = scorefile.holding(layout, back)
        assert layout == "csv"
    scorefile.write(tmp_path / "s.txt", back, np.array([0.5, -0.5]), layout=layout)
    assert join.read(tmp_path / "s.txt", back).tolist() == [0.5, -0.5]
    assert getattr(back, name).tolist() == getattr(table, name).tolist()
    if layout == "2019":
        own = scorefile.own_key(scorefile.parse(tmp_path / "s.txt"))
        assert own.attack.tolist() == table.attack.tolist()
        assert all(len(line.split()) == 4 for line in (tmp_path / "s.txt").read_text().splitlines())
    for cells in csv.reader((tmp_path / "t.csv").read_text().splitlines()):
        assert not any(cell[:1] in ("=", "+", "@") or (cell[:1] == "-" and cell != "-") for cell in cells)


@given(st.sampled_from(TEXT), st.text(st.characters(codec="utf-8"), min_size=1, max_size=20))
def test_any_text_is_refused_or_comes_back(name: str, text: str) -> None:
    try:
        table = from_rows(named(name, text), source="t")
    except InputError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert "t:3: " in refusal
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "t.csv").write_text(trial_table.to_csv(table), encoding="utf-8")
        back = trial_table.read(place / "t.csv")
        for column in fields(table):
            np.testing.assert_array_equal(getattr(back, column.name), getattr(table, column.name))
        scorefile.write(place / "s.txt", back, np.array([0.5, -0.5]), layout=scorefile.holding("2019", back))
        join.read(place / "s.txt", back)
        assert scorefile.own_key(scorefile.parse(place / "s.txt")).attack.tolist() == table.attack.tolist()


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("unknown", ["", "-", "NaN", "nan", "NA", "na"])
def test_line_ends_and_words_for_an_unknown_quality(folder: Path, end: str, unknown: str) -> None:
    lines = [HEADER + ",quality", f"a,a.wav,bonafide,dev,{unknown}", "b,b.wav,spoof,dev,3.5"]
    (folder / "trials.csv").write_bytes((end.join(lines) + end).encode())
    table = manifest.trials(folder, folder / "trials.csv", "dev")
    assert table.utterance.tolist() == ["a", "b"]
    np.testing.assert_array_equal(table.quality, [np.nan, 3.5])


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_problems_have_their_line_whatever_the_line_ends_are(folder: Path, end: str) -> None:
    lines = [HEADER, *GOOD, "d,d.wav,fake,dev"]
    (folder / "trials.csv").write_bytes((end.join(lines) + end).encode())
    with pytest.raises(InputError, match=r"trials\.csv:5: utterance d: expected label bonafide or spoof, got 'fake'"):
        manifest.trials(folder, folder / "trials.csv", "dev")


@pytest.mark.parametrize(
    ("cell", "message"),
    [('"c.wav', "unexpected end of data"), ('"c"x', "',' expected after '\"'"), ('"' + "x" * 140_000, "field larger")],
)
def test_an_open_quote_is_told_at_its_own_line(folder: Path, cell: str, message: str) -> None:
    rest = [f"e{i},e{i}.wav,spoof,dev" for i in range(50)]
    (folder / "trials.csv").write_text("\n".join([HEADER, *GOOD[:2], f"c,{cell},spoof,dev", *rest]) + "\n")
    with pytest.raises(InputError, match=r"trials\.csv:4: not valid CSV: .*; is a quote left open\?$") as raised:
        manifest.trials(folder, folder / "trials.csv", "dev")
    assert message in str(raised.value)


def test_rows_over_several_lines_have_the_number_of_their_first(folder: Path) -> None:
    lines = [HEADER + ",text", 'a,a.wav,bonafide,dev,"two\nlines"', "b,b.wav,spoof,dev,one", 'c,c.wav,"x\ny"']
    (folder / "trials.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=r"trials\.csv:5: expected 5 cells, got fewer; mend the line; is a quote left"):
        manifest.trials(folder, folder / "trials.csv", "dev")
    (folder / "trials.csv").write_text("\n".join(lines[:3]) + "\n")
    assert manifest.trials(folder, folder / "trials.csv", "dev").utterance.tolist() == ["a", "b"]


@pytest.mark.parametrize("quality", ["1_0", "0_1", "inf", "-1", "7"])
def test_a_quality_that_is_no_mos_is_refused(quality: str) -> None:
    with pytest.raises(InputError, match=r"t:3: utterance u2: expected a quality \(MOS\) from 0 to 6 or nothing, got "):
        from_rows(named("quality", quality), source="t")
