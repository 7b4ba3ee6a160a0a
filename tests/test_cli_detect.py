"""`bonafide detect` and `bonafide package`: what they print, which files they take, and how they end."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline import commands, detect
from pipeline.core.errors import InputError
from tests import systems
from tests.long_flac import long_flac
from tests.systems import POOLED, ROOT, WINDOW

pytestmark = pytest.mark.usefixtures("one_thread")


def run(*arguments: str | Path, code: int = 0) -> None:
    """Run the command; it ends with an exit code."""
    if code == 0:
        return commands.dispatch([str(part) for part in arguments])
    with pytest.raises(SystemExit) as ended:
        commands.dispatch([str(part) for part in arguments])
    assert ended.value.code == code
    return None


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_table_by_hand(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("detect", "audio/eval/0.flac", "audio/eval/1.flac", "--run", POOLED, "--windows", "first")
    head, names, *rows = capsys.readouterr().out.splitlines()
    found = list(detect.load(POOLED, windows="first").detect(["audio/eval/0.flac", "audio/eval/1.flac"]))
    assert head == f"{POOLED}: bona fide above {detect.load(POOLED).threshold:.5g}"
    assert names == "    score  P(bona fide)  decision  verdict      far, %  mahal., %  centroid  file"
    assert [row.split() for row in rows] == [
        [f"{one.score:.4f}", f"{one.probability:.3f}", "bonafide" if one.is_bonafide else "spoof", one.verdict,
         f"{one.distance_percentile:.1f}", f"{one.mahalanobis_percentile:.1f}", str(one.centroid), str(one.path)]
        for one in found
    ]  # fmt: skip
    assert [row.split()[2] for row in rows] == ["bonafide", "spoof"]
    assert rows[0].index("audio/") == rows[1].index("audio/") == names.index("file")


def test_embeddings_that_cannot_be_used_are_a_warning(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = Path(f"data/embeddings/{POOLED}/train/embeddings.json")
    card.write_text(json.dumps(json.loads(card.read_text()) | {"weights": "0" * 16}))
    run("detect", "audio/eval/0.flac", "--run", POOLED)
    told = capsys.readouterr()
    assert f"warning: {POOLED}: no distances to the training set: " in told.err
    assert "expected the embeddings of" in told.err
    assert "; no distances to the training set\n" in told.out
    shutil.rmtree("data/embeddings")
    run("detect", "audio/eval/0.flac", "--run", POOLED)
    told = capsys.readouterr()
    assert "no distances" not in told.err  # the run was not analysed, which is no fault
    assert "; no distances to the training set\n" in told.out


def test_what_an_evaluation_doubted_is_a_warning_of_the_run_and_of_its_package(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path(f"data/metrics/{POOLED}/eval.json")
    said = "at the threshold of dev 52.0 % of the spoof is accepted, of dev's own 8.0 %: \x1b[31m"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"warnings": [said]}))
    run("package", POOLED, "--out", "package")
    capsys.readouterr()
    for system in (POOLED, "package"):
        run("detect", "audio/eval/0.flac", "--run", system, "--json")
        told = capsys.readouterr()
        assert told.err.startswith(
            f"warning: {POOLED}: on eval, at the threshold of dev 52.0 % of the spoof is accepted"
        )
        assert "\x1b" not in told.err
        assert len(told.out.splitlines()) == 1
    assert "**Warning** on eval, at the threshold of dev 52.0 %" in Path("package/model_card.md").read_text()


def test_one_json_object_a_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("detect", "audio/eval", "--run", POOLED, "--json", "--explain", "--windows", "first")
    told = lines(capsys)
    order = sorted(range(12), key=lambda i: f"{i}.flac")
    assert [one["file"] for one in told] == [f"audio/eval/{i}.flac" for i in order]
    scores = list(systems.scores(POOLED))
    np.testing.assert_allclose([one["score"] for one in told], [scores[i] for i in order], atol=1e-5)
    for one in told:
        assert list(one) == [
            *(
                "file",
                "score",
                "decision",
                "probability",
                "verdict",
                "distance_percentile",
                "mahalanobis_percentile",
                "centroid",
                "neighbours",
            )
        ]
        assert [list(near) for near in one["neighbours"]] == [["utterance", "label", "attack", "distance"]] * 5


def test_the_lowest_part_is_in_the_table_and_in_json(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "long.wav"
    soundfile.write(path, np.random.default_rng(1).normal(0, 0.1, 3 * WINDOW), 16_000, subtype="FLOAT")
    (wanted,) = detect.load(POOLED, windows="min").detect([path])
    run("detect", path, "--run", POOLED, "--windows", "min", "--json")
    (told,) = lines(capsys)
    assert (told["score"], tuple(told["part"].values())) == (wanted.score, wanted.part)
    run("detect", path, "--run", POOLED, "--windows", "min")
    start, end = wanted.part
    assert capsys.readouterr().out.splitlines()[-1].strip() == f"lowest window at {start:.1f} to {end:.1f} s"


def test_explanations_stand_below_their_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("detect", "audio/train/7.flac", "--run", POOLED, "--explain", "--windows", "first")
    _, heads, near_heads, *rows = capsys.readouterr().out.splitlines()
    assert (heads.split()[-1], near_heads.split()) == (
        "file", ["distance", "class", "attack", "nearest", "training", "utterances"],
    )  # fmt: skip
    assert near_heads.index("class") == rows[1].index("spoof")
    assert len(rows) == 1 + 5
    assert rows[1].split() == ["0.0000", "spoof", "A1", "train7"]


def test_the_threshold_decides(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for threshold, wanted in (("-100", "bonafide"), ("100", "spoof")):
        run("detect", "audio/eval", "--run", POOLED, "--json", f"--threshold={threshold}")
        assert {one["decision"] for one in lines(capsys)} == {wanted}


def test_bad_files_are_told_on_stderr_and_in_the_output(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.wav").write_text("no audio")
    bad, none = tmp_path / "bad.wav", tmp_path / "none.wav"
    for mode in ([], ["--json"]):
        files = ("audio/eval/0.flac", bad, none, "audio/eval/1.flac")
        run("detect", *files, "--run", POOLED, "--windows", "first", *mode, code=1)
        said = capsys.readouterr()
        first, second, last = said.err.splitlines()
        assert first.startswith(f"error: {bad}: expected an audio file")
        assert second == f"error: {none}: no such file"
        assert last == "error: 2 of 4 files could not be scored"
        rows = said.out.splitlines()[-4:]
        if mode:
            told = [json.loads(row) for row in rows]
            assert [list(one)[1] for one in told] == ["score", "error", "error", "score"]
            assert told[1] == {"file": str(bad), "error": first.removeprefix("error: ")}
        else:
            assert rows[1].split() == ["-", "-", "error", "-", "-", "-", "-", str(bad)]
            assert rows[1].index(str(bad)) == rows[0].index("audio/")  # in the column of the others
            assert rows[3].endswith("audio/eval/1.flac")


def test_folders_are_searched_and_hidden_files_left_out(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = ["b/2.FLAC", "b/deep/er/3.flac", "1.flac"]
    for name in [*kept, ".hidden.flac", ".git/4.flac", "b/._2.flac", "b/notes.txt"]:
        (tmp_path / "a" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy("audio/eval/0.flac", tmp_path / "a" / name)
    for name in ("c.txt", "README", "d.ZIP"):
        (tmp_path / "a" / name).write_text("")
    run("detect", tmp_path / "a", "--run", POOLED, "--json")
    said = capsys.readouterr()
    assert {json.loads(one)["file"] for one in said.out.splitlines()} == {str(tmp_path / "a" / name) for name in kept}
    assert said.err == "left out: 4 files of other kinds (2 .txt, 1 without a suffix, 1 .zip)\n"
    run("detect", tmp_path / "a" / "b" / "notes.txt", "--run", POOLED, "--json")  # named, so it is tried
    assert "score" in lines(capsys)[0]


def test_doubtful_samples_are_a_warning_and_without_normalization_an_error(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "loud.wav"
    soundfile.write(path, np.random.default_rng(0).normal(0, 10, 2 * WINDOW), 16_000, subtype="FLOAT")
    run("detect", path, "--run", POOLED, "--json")
    said = capsys.readouterr()
    assert said.err.startswith(f"warning: {path}: the peak of the samples is ")
    assert "the peak of the samples is" in json.loads(said.out)["warnings"][0]
    system = detect.load(POOLED)
    monkeypatch.setitem(system.parts.features, "normalize", "none")
    with pytest.raises(InputError, match=r"full scale is 1.*the encoder of this run does not normalize"):
        system.score(path)
    with pytest.raises(InputError, match="the encoder of this run does not normalize"):
        system.timeline(path)
    with pytest.raises(InputError, match=r"full scale is 1.*the encoder of this run does not normalize"):
        system.score_samples(soundfile.read(path, dtype="float32")[0], 16_000)


def test_the_remedy_of_a_warning_about_channels(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.random.default_rng(0).normal(0, 0.1, 2 * WINDOW)
    for name, samples in (("x", x), ("both", np.stack([x, -0.95 * x], axis=1))):
        soundfile.write(tmp_path / f"{name}.wav", samples, 16_000, subtype="FLOAT")
    run("detect", tmp_path / "both.wav", "--run", POOLED, "--json")
    said = capsys.readouterr().err
    assert "the channels cancel when they are averaged" in said
    assert "`bonafide detect --channel left`" in said
    run("detect", tmp_path / "both.wav", tmp_path / "x.wav", "--run", POOLED, "--json", "--channel", "left")
    both, alone = lines(capsys)
    assert both["score"] == alone["score"]
    assert "warnings" not in both
    run("detect", tmp_path / "x.wav", "--run", POOLED, "--json", "--channel", "1", code=1)
    assert "expected a file with the channel 1 (counted from 0), got 1 channel;" in lines(capsys)[0]["error"]
    run("detect", tmp_path / "x.wav", "--run", POOLED, "--channel", "Left", code=2)
    assert "expected a channel (mean, left, right, or a number from 0), got 'Left'" in capsys.readouterr().err


def test_long_and_absurd_files_do_not_end_the_others(here: Path, tmp_path: Path, warm_env: dict[str, str]) -> None:
    """In a child with 8 GB of addresses."""
    (tmp_path / "20h.flac").write_bytes(long_flac(hours=20))
    soundfile.write(tmp_path / "slow.wav", np.random.default_rng(0).normal(0, 0.1, 60_000), 16_000)
    data = bytearray((tmp_path / "slow.wav").read_bytes())
    data[24:28] = (1).to_bytes(4, "little")
    (tmp_path / "slow.wav").write_bytes(data)
    shutil.copy("audio/eval/0.flac", tmp_path / "z.flac")
    code = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30))
from pipeline import commands
commands.main()
"""
    command = ["python", "-c", code, "detect", str(tmp_path), "--run", POOLED, "--json"]
    environment = warm_env | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ended.returncode == 1, ended.stderr
    long, slow, good = map(json.loads, ended.stdout.splitlines())
    assert "the sound is longer than the 9.3 hours at 16000 Hz that are decoded at most" in long["error"]
    assert "expected a sample rate from 1000 to 1000000 Hz, got 1 Hz" in slow["error"]
    assert "score" in good


def test_a_folder_without_audio_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a folder of audio \(\.3gp .* \.wma\), got none there"):
        run("detect", tmp_path, "--run", "nope")


def test_names_that_are_no_utf_8_are_told(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.flac")
    try:
        shutil.copy("audio/eval/0.flac", path)
    except OSError:
        pytest.skip("the file system wants UTF-8")
    gone = tmp_path / os.fsdecode(b"gone\xe9.flac")
    run("detect", path, gone, "--run", POOLED, "--timeline", tmp_path / "out", code=1)
    said = capsys.readouterr()
    assert f"{tmp_path}/caf\\udce9.flac\n" in said.out
    assert f"error: {tmp_path}/gone\\udce9.flac: no such file\n" in said.err
    run("detect", path, "--run", POOLED, "--json")
    printed = capsys.readouterr().out
    assert printed.isascii()
    assert json.loads(printed)["file"] == str(path)


def test_a_name_with_a_line_end_makes_no_line_of_its_own(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["a.flac\n   9.9999         1.000  bonafide         1  b.flac", "gone\nerror: no.wav", "t\tb.flac"]
    for name in (names[0], names[2]):
        shutil.copy("audio/eval/0.flac", tmp_path / name)
    run("detect", *(tmp_path / name for name in names), "--run", POOLED, code=1)
    said = capsys.readouterr()
    assert [line.split("  ")[-1] for line in said.out.splitlines()[2:]] == [
        *("b.flac", f"{tmp_path}/gone\\nerror: no.wav", f"{tmp_path}/t\\tb.flac")
    ]
    assert f"error: {tmp_path}/gone\\nerror: no.wav: no such file" in said.err.splitlines()[0]


def test_folders_that_cannot_be_read_are_told(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    closed = tmp_path / "a" / "closed"
    closed.mkdir(parents=True)
    shutil.copy("audio/eval/0.flac", tmp_path / "a")
    scan = os.scandir

    def refuse(folder: Path | str) -> object:
        if Path(folder) == closed:
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    run("detect", tmp_path / "a", "--run", POOLED, "--json", code=1)
    said = capsys.readouterr()
    assert said.err == f"error: {closed}: Permission denied\nerror: 1 folders could not be read\n"
    first, second = map(json.loads, said.out.splitlines())
    assert first == {"file": str(closed), "error": f"{closed}: Permission denied"}
    assert "score" in second
    run("detect", closed, "--run", POOLED, code=1)  # not one without audio: nobody knows
    assert "Permission denied" in capsys.readouterr().err


# ---------------------------------------------------------------- timelines


def test_timelines_as_csv_and_png(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = np.random.default_rng(1).normal(0, 0.1, 3 * WINDOW)
    samples[WINDOW : 2 * WINDOW] = samples[WINDOW : 2 * WINDOW].cumsum() / 20  # spoof is brown
    samples[-WINDOW:] = 0
    (tmp_path / "in/deep").mkdir(parents=True)
    soundfile.write(tmp_path / "in/deep/part.wav", samples, 16_000)
    run("detect", tmp_path / "in", "--run", POOLED, "--windows", "first", "--timeline", tmp_path / "out", "--json")
    (told,) = lines(capsys)
    path = tmp_path / "out/in/deep/part.wav.csv"
    timeline = told["timeline"]
    assert timeline["csv"] == str(path)
    assert Path(timeline["png"]).read_bytes().startswith(b"\x89PNG")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    system = detect.load(POOLED)
    found = system.timeline(tmp_path / "in/deep/part.wav")
    assert [row["start"] for row in rows] == ["0.0000", "0.1000", "0.2000", "0.3000", "0.4000"]
    assert (rows[-1]["end"], rows[-1]["score"], rows[-1]["probability"]) == ("0.6000", "", "")
    assert math.isnan(found.score[-1])
    for row, score in zip(rows[:-1], found.score[:-1], strict=True):
        assert float(row["score"]) == pytest.approx(score, abs=1e-6)
        assert float(row["probability"]) == pytest.approx(system.probability(float(score)), abs=1e-4)
    assert float(rows[0]["score"]) == pytest.approx(told["score"], abs=1e-5)
    below = [float(row["score"]) <= system.threshold for row in rows[:-1]]
    assert below[0] is False
    assert below[2] is True  # the brown part
    assert (timeline["windows"], timeline["below"]) == (5, sum(below))
    lowest = min(rows[:-1], key=lambda row: float(row["score"]))
    assert timeline["lowest"] == {key: pytest.approx(float(lowest[key])) for key in ("score", "start", "end")}


def test_the_table_tells_of_timelines(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("detect", "audio/eval/1.flac", "--run", POOLED, "--timeline", tmp_path / "out")
    row = capsys.readouterr().out.splitlines()[-1].split()
    assert row[1:5] == ["of", row[2], "windows", "below,"]
    assert row[-1] == str(tmp_path / "out/1.flac.csv")
    assert (tmp_path / "out/1.flac.png").is_file()


def test_a_silent_head_has_a_timeline_yet(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = np.append(np.zeros(WINDOW), np.random.default_rng(0).normal(0, 0.1, WINDOW))
    soundfile.write(tmp_path / "late.wav", samples, 16_000)
    (tmp_path / "bad.wav").write_text("no audio")
    files = (tmp_path / "late.wav", tmp_path / "bad.wav")
    run("detect", *files, "--run", POOLED, "--windows", "first", "--timeline", tmp_path / "out", "--json", code=1)
    said = capsys.readouterr()
    late, bad = map(json.loads, said.out.splitlines())
    assert "silent" in late["error"]
    assert late["timeline"]["windows"] == 3
    assert late["timeline"]["lowest"]["end"] > 0.2
    assert bad["timeline"] == {"error": bad["error"]}
    assert len(said.err.splitlines()) == 3  # each once, and how many
    assert not (tmp_path / "out/bad.wav.csv").exists()


def test_timelines_of_one_name_are_refused(here: Path, tmp_path: Path) -> None:
    (tmp_path / "0.flac").write_bytes(b"")
    with pytest.raises(
        InputError, match=r"expected files that differ in their names.*\n.*0\.flac and audio/eval/0\.flac"
    ):
        run("detect", "audio/eval/0.flac", tmp_path / "0.flac", "--run", POOLED, "--timeline", tmp_path / "out")


# ---------------------------------------------------------------- the commands themselves


def test_package_and_then_detect(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("package", POOLED, "--out", tmp_path / "package")
    said = capsys.readouterr().out
    assert said.startswith(f"{POOLED} -> {tmp_path}/package, 7 files, ")
    assert " kB\n" in said
    assert "without embeddings" not in said
    run("detect", "audio/eval", "--run", tmp_path / "package", "--json")
    packed = lines(capsys)
    run("detect", "audio/eval", "--run", POOLED, "--json")
    assert packed == lines(capsys)


def test_help_teaches_without_torch() -> None:
    for command, words in (
        (
            "detect",
            (
                "higher means more bona fide",
                "--timeline",
                "exit code",
                "checked to its end",
                "not followed",
                "examples:",
            ),
        ),
        ("package", ("model_card.md", "sha256", "example:")),
    ):
        code = f"""
import sys
from pipeline import commands
try:
    commands.dispatch(["{command}", "--help"])
finally:
    print("torch" in sys.modules, "transformers" in sys.modules)
"""
        ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        assert ended.stdout.splitlines()[-1] == "False False"
        for word in words:
            assert word in ended.stdout


def test_a_package_in_the_current_folder_is_refused(here: Path) -> None:
    with pytest.raises(InputError, match="got a folder of other things"):
        run("package", POOLED, "--out", ".")


def test_a_missing_run_is_one_message_and_exit_code_2(tmp_path: Path, warm_env: dict[str, str]) -> None:
    command = ["bonafide", "detect", "some.wav", "--run", "nope"]
    ended = subprocess.run(command, cwd=tmp_path, env=warm_env, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: nope: expected the name of a run")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["some.wav"], ["--run", POOLED], ["x.wav", "--run", POOLED, "--threshold=nan"]])
def test_arguments_that_are_none(arguments: list[str]) -> None:
    run("detect", *arguments, code=2)
