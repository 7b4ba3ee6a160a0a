"""A corpus with awkward names from `prepare` to the report: refused with file and line, or held by every file."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from ruamel.yaml import YAML

from pipeline.commands import metrics
from pipeline.core import trial_table
from pipeline.core.errors import UNPRINTABLE, InputError
from pipeline.core.files import write_text
from pipeline.corpora import manifest
from pipeline.metrics import scorefile
from pipeline.report import build
from stages import evaluate, prepare
from tests.places import SETTINGS
from tests.test_report import Page

COLUMNS = ("utterance", "path", "label", "split", "speaker", "attack", "codec", "vocoder", "quality")
NAMES = ("utterance", "path", "speaker", "attack", "codec", "vocoder")
REFUSED = [
    " x",
    "x ",
    "t\tx",
    "l\nx",
    "c\rx",
    "v\vx",
    "s\u2028x",
    "n\0x",
    "e\x1b[2Jx",
    "d\x9bx",
    "r\u202ex",
    "b\ufeffx",
]
HELD = [
    'q"x',
    "'x'",
    "<script>x</script>",
    "=cmd()",
    "+1",
    "@x",
    "a|b",
    "`x`",
    "[x](y:z)",
    "a,b",
    "{{x}}",
    "&lt;",
    "é",
    "1",
]
HELD += ["y" * 150 + "/" + "y" * 149, "nan", "__class__"]
BLANK = "voice conversion"  # of utterances, only some layouts of score files hold it


def written(path: Path, rows: list[dict[str, str]]) -> Path:
    """A manifest, in which cells stand as they are."""
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(file.getvalue(), encoding="utf-8", newline="")
    return path


def row(i: int, **cells: str) -> dict[str, str]:
    label = ("bonafide", "spoof")[i % 2]
    return (
        dict.fromkeys(COLUMNS, "-") | {"utterance": f"u{i}", "path": f"{i}.wav", "label": label, "split": "all"} | cells
    )


@pytest.mark.parametrize("column", NAMES)
def test_names_are_held_or_refused_with_file_and_line(tmp_path: Path, column: str) -> None:
    for text in REFUSED:
        path = written(tmp_path / "mine.csv", [row(0), row(1), row(2, **{column: text}), row(3)])
        with pytest.raises(InputError) as found:
            manifest.trials(tmp_path, path, "all")
        assert f"{path}:4" in str(found.value).splitlines()[-1], repr(text)
    held = [row(i, **{column: text}) for i, text in enumerate([*HELD, BLANK])]
    table = manifest.trials(tmp_path, written(tmp_path / "mine.csv", held), "all")
    assert getattr(table, column).tolist() == [one[column] for one in held]


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder after `prepare`, made-up scores, `evaluate` and the report, of names that are held in every column."""
    folder = tmp_path_factory.mktemp("flow")
    texts = [*HELD, BLANK]
    rows = [
        row(i, **{name: text for name in NAMES if name != "utterance"} | {"path": f"{i}/{text}.wav"})
        for i, text in enumerate(text for text in texts for _ in range(2))
    ]
    for one, text in zip(rows[::2], HELD, strict=False):
        one["utterance"] = text
    for i, one in enumerate(rows):
        (folder / one["path"]).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / one["path"], np.random.default_rng(i).normal(size=500) / 9, 16_000)
    settings = YAML(typ="safe").load(SETTINGS)
    corpus = {"corpus": "manifest", "protocol": str(written(folder / "mine.csv", rows)), "root": str(folder)}
    settings["sets"] = dict.fromkeys(("train", "dev", "eval"), corpus | {"split": "all", "quality": "column"})
    settings["evaluate"] |= {"bootstrap": 20}
    YAML(typ="safe").dump(settings, folder / "params.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["prepare", "--set", "eval", "--trials", "trials/eval.csv"])
        prepare.main()
        table = trial_table.read(Path("trials/eval.csv"))
        assert table.utterance.tolist() == [one["utterance"] for one in rows]
        scores = np.random.default_rng(0).normal(size=len(table)) + table.is_bonafide
        scorefile.write(Path("dev.txt"), table, scores, layout="2019")
        scorefile.write(Path("scores/r/eval.txt"), table, scores, layout="2021")
        write_text(Path("metrics/r.json"), '{"dev_eer": 1, "dev_threshold": 0.5, "parameters": 1, "weights": "w"}')
        given = "--scores scores/r --trials trials --dev-scores dev.txt --training metrics/r.json"
        evaluate.main([*given.split(), "--metrics", "metrics/r", "--plots", "plots/r"])
        write_text(Path("curves/r.csv"), "epoch,loss,dev_loss,train_eer,dev_eer\n1,0.9,0.9,20.5,20.5\n")
        inputs = build.Inputs(*(Path(name) for name in ("metrics", "plots", "curves", "seconds", "layers", "analysis")))
        build.build(
            Path("out"), Path("out.json"), inputs, runs={"r": "r"}, sets=("eval",), sort_by="eval", note=HELD[2]
        )
    return folder


def test_metrics_by_group_have_the_names(flow: Path) -> None:
    found = json.loads((flow / "metrics/r/eval.json").read_text())
    for groups in ("attacks", "codecs", "vocoders"):
        assert set(found[groups]) == {*HELD, BLANK}, groups


def test_both_layouts_of_score_files_are_read_again(flow: Path) -> None:
    table = trial_table.read(flow / "trials/eval.csv")
    for name in ("dev.txt", "scores/r/eval.txt"):
        assert scorefile.parse(flow / name).utterance == table.utterance.tolist()
    key = scorefile.own_key(scorefile.parse(flow / "dev.txt"))
    assert key.is_bonafide.tolist() == table.is_bonafide.tolist()


def test_no_cell_of_a_table_is_a_formula(flow: Path) -> None:
    names = set()
    for path in flow.rglob("*.csv"):
        if path.name == "mine.csv":
            continue
        with path.open(newline="", encoding="utf-8") as file:
            cells = {cell for line in csv.reader(file) for cell in line}
        assert not [cell for cell in cells if cell[:1] in "=@\t\r" and cell], path
        names |= {cell.removeprefix("'") for cell in cells}
    assert {*HELD, BLANK} - {"'x'"} <= names


def test_the_page_shows_the_names_and_runs_none(flow: Path) -> None:
    html = (flow / "out/index.html").read_text()
    page = Page(html)
    for text in (*HELD, BLANK):
        assert text in page.text, text
    assert "<script>x" not in html
    assert not UNPRINTABLE.search(html.replace("\n", "").replace("\t", ""))


def test_the_terminal_gets_no_control_characters(flow: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics.main([str(flow / "scores/r/eval.txt"), "--key", str(flow / "mine.csv")])
    said = capsys.readouterr().out + (flow / "out/leaderboard.txt").read_text()
    assert BLANK in said
    assert not UNPRINTABLE.search(said.replace("\n", ""))
