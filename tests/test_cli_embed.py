"""`bonafide embed`: the same embeddings and trials, whatever they are written as."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from pipeline import commands
from pipeline.analysis import embeddings
from pipeline.analysis.embeddings import Embeddings
from pipeline.core import trial_table
from pipeline.core.errors import InputError
from pipeline.core.trial_table import Trials
from tests.systems import FRAMES, POOLED, ROOT

COLUMNS = ["utterance", "path", "speaker", "label", "attack", "codec", "vocoder", "quality"]


@pytest.fixture
def stored(project: Path) -> tuple[Embeddings, Trials]:
    """What is to be written of eval."""
    data = project / "data"
    return embeddings.read(data / f"embeddings/{POOLED}/eval"), trial_table.read(data / "trials/eval.csv")


def cells(table: Trials) -> dict[str, list]:
    known = {name: getattr(table, name).tolist() for name in COLUMNS if name != "label"}
    return known | {"label": ["bonafide" if one else "spoof" for one in table.is_bonafide]}


def embed(*arguments: str | Path) -> None:
    commands.dispatch(["embed", *map(str, arguments)])


def test_npz_holds_all_without_pickle(
    here: Path, tmp_path: Path, stored: tuple[Embeddings, Trials], capsys: pytest.CaptureFixture[str]
) -> None:
    embed(POOLED, "eval", "--out", tmp_path / "deep/eval.npz")
    assert capsys.readouterr().out == f"12 embeddings of 64 -> {tmp_path}/deep/eval.npz\n"
    with np.load(tmp_path / "deep/eval.npz", allow_pickle=False) as found:
        assert set(found) == {"embedding", *COLUMNS}
        assert found["embedding"].dtype == np.float32
        np.testing.assert_array_equal(found["embedding"], stored[0].vectors)
        assert {name: found[name].tolist() for name in COLUMNS} == cells(stored[1])


def test_parquet_holds_all(here: Path, tmp_path: Path, stored: tuple[Embeddings, Trials]) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    embed(POOLED, "eval", "--out", tmp_path / "eval.parquet")
    table = parquet.read_table(tmp_path / "eval.parquet")
    assert table.column_names == [*COLUMNS, "embedding"]
    found = table.to_pydict()
    np.testing.assert_array_equal(np.array(found.pop("embedding"), np.float32), stored[0].vectors)
    assert found == cells(stored[1])


def test_parquet_without_its_package_is_told(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r'Parquet needs pyarrow: pip install "bonafide\[parquet\]", or write \.npz'):
        embed(POOLED, "eval", "--out", tmp_path / "eval.parquet")
    assert not list(tmp_path.iterdir())


def test_the_projectors_files(here: Path, tmp_path: Path, stored: tuple[Embeddings, Trials]) -> None:
    embed(POOLED, "eval", "--projector", tmp_path / "projector")
    vectors = np.loadtxt(tmp_path / "projector/vectors.tsv", delimiter="\t", dtype=np.float32)
    np.testing.assert_array_equal(vectors, stored[0].vectors)  # every digit that float32 has
    with (tmp_path / "projector/metadata.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert list(rows[0]) == COLUMNS
    assert [row["utterance"] for row in rows] == stored[1].utterance.tolist()
    assert [row["label"] for row in rows] == cells(stored[1])["label"]
    assert [float(row["quality"]) for row in rows] == stored[1].quality.tolist()
    assert (tmp_path / "projector/projector_config.pbtxt").read_text() == (
        f'embeddings {{\n  tensor_name: "{POOLED} eval"\n  tensor_path: "vectors.tsv"\n'
        '  metadata_path: "metadata.tsv"\n}\n'
    )


def test_tabs_and_lines_in_a_trial_do_not_break_the_projectors_table(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.commands import embed as command

    columns = {"utterance": np.array(["a", "b"]), "path": np.array(['x\t"y".wav', "z\n.wav"])}
    vectors = np.ones((2, 3), np.float32)
    found = Embeddings(columns["utterance"], vectors, False, None, {})
    command._write_projector(tmp_path, columns, found, name="a b")
    assert (tmp_path / "metadata.tsv").read_text() == 'utterance\tpath\na\tx "y".wav\nb\tz .wav\n'


@pytest.mark.parametrize(("kind", "rows"), [("npz", 500_000), ("tsv", 5_000)])
def test_memory_does_not_grow_with_the_set(tmp_path: Path, kind: str, rows: int) -> None:
    """A set may be larger than memory: its embeddings are mapped, and go out in blocks."""
    from pipeline.commands import embed as command

    found = Embeddings(np.empty(0, str), np.full((rows, 48), 0.123456789, np.float32), False, None, {})
    columns = {"utterance": np.full(rows, "a name of thirty characters 123")}
    tracemalloc.start()
    if kind == "npz":
        command._write_npz(tmp_path / "x.npz", columns, found)
    else:
        command._write_projector(tmp_path, columns, found, name="x")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    written = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert not list(tmp_path.glob("*.part"))
    assert most < (0.2 if kind == "npz" else 0.9) * written


def test_an_older_file_stays_where_writing_fails(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embed(POOLED, "eval", "--out", tmp_path / "eval.npz")
    before = (tmp_path / "eval.npz").read_bytes()

    def full(file: object, **_arrays: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        embed(POOLED, "eval", "--out", tmp_path / "eval.npz")
    assert (tmp_path / "eval.npz").read_bytes() == before


def test_rows_of_several_blocks_stay_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.commands import embed as command

    monkeypatch.setattr(command, "BLOCK", 3)
    found = Embeddings(np.empty(0, str), np.arange(14, dtype=np.float32).reshape(7, 2), False, None, {})
    command._write_projector(tmp_path, {"utterance": np.array(list("abcdefg"))}, found, name="x")
    assert (tmp_path / "metadata.tsv").read_text().split() == ["utterance", *"abcdefg"]


def test_no_file_takes_the_place_of_a_pipe(here: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(InputError, match=r"pipe\.npz: expected a free place or a file, got a device or a pipe"):
        embed(POOLED, "eval", "--out", tmp_path / "pipe.npz")


def test_a_set_that_is_not_there_is_told_with_those_that_are(here: Path, tmp_path: Path) -> None:
    message = f"data/embeddings/{POOLED}/later: no embeddings there; there are {FRAMES} dev, .*{POOLED} train; name"
    with pytest.raises(InputError, match=message):
        embed(POOLED, "later", "--out", tmp_path / "x.npz")
    with contextlib.chdir(tmp_path), pytest.raises(InputError, match=r"there are none; name the run in .*`analyse`"):
        embed(POOLED, "eval", "--out", "x.npz")


def test_embeddings_of_other_trials_are_refused(project: Path, tmp_path: Path) -> None:
    shutil.copytree(project / "data", tmp_path / "data", ignore=shutil.ignore_patterns("cache"))
    with contextlib.chdir(tmp_path):
        table = trial_table.read(Path("data/trials/eval.csv"))
        Path("data/trials/eval.csv").write_text(trial_table.to_csv(table.take(np.arange(11))))
        with pytest.raises(InputError, match=f"data/embeddings/{POOLED}/eval: expected the embeddings of"):
            embed(POOLED, "eval", "--out", "x.npz")


@pytest.mark.parametrize("arguments", [[], ["--out", "x.csv"], ["--out", "x"]])
def test_arguments_that_are_none(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        embed(POOLED, "eval", *arguments)
    assert ended.value.code == 2
    assert "expected" in capsys.readouterr().err


def test_help_teaches_without_torch() -> None:
    code = """
import sys
from pipeline import commands
try:
    commands.dispatch(["embed", "--help"])
finally:
    print("torch" in sys.modules, "pyarrow" in sys.modules)
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "False False"
    for word in ("analyse", "pd.read_parquet", "np.load", "examples:", json.dumps("label")):
        assert word in ended.stdout
