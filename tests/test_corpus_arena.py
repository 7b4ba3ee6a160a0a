"""Datasets with their audio in Parquet files: read in place, row by row, as files are."""

import io
import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import soundfile
from pyarrow import parquet

from pipeline import commands
from pipeline.audio import decode, parquet_rows
from pipeline.audio.inspection import with_contents
from pipeline.core.errors import InputError
from pipeline.corpora import arena


def wav(seed: int) -> bytes:
    """A tenth of a second of noise as a WAV file."""
    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(seed).normal(0, 0.1, 1_600), 16_000, format="WAV")
    return file.getvalue()


def shard(path: Path, columns: dict[str, Any], *, names: list[str] | None = None) -> None:
    """A Parquet file in row groups of two, with the words of its labels where there are any."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table(columns)
    if names:
        told = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(told)})
    parquet.write_table(table, path, row_group_size=2)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Seven utterances in two shards."""
    (tmp_path / "README.md").write_text("a card")
    for number, rows in enumerate((range(5), range(5, 7))):
        notes = [{"utterance_id": f"u {i}", "speaker_id": f"s{i % 2}", "attack": "L1", "codec": None} for i in rows]
        shard(
            tmp_path / f"data/test-0000{number}-of-00002.parquet",
            {
                "path": [f"LA/{i}.wav" for i in rows],
                "audio": [{"bytes": wav(i), "path": f"{i}.wav"} for i in rows],
                "label": [int(i % 3 != 0) for i in rows],
                "notes": [json.dumps(note) for note in notes],
            },
        )
    return tmp_path


def test_a_small_file_that_is_large_in_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One value of 90 kB, named by all rows of a row group."""
    path = tmp_path / "x.parquet"
    values = pyarrow.DictionaryArray.from_arrays(
        pyarrow.array([0] * 99, pyarrow.int32()), pyarrow.array([bytes(90_000)])
    )
    parquet.write_table(pyarrow.table({"audio": values}), path, store_schema=False)
    assert path.stat().st_size < 9_000
    monkeypatch.setattr(parquet_rows, "MOST_BYTES", 8_000_000)
    with pytest.raises(InputError, match="row groups of at most 8,000,000 bytes of audio, got more in row group 0"):
        parquet_rows.read(path / "audio" / "0")
    monkeypatch.setattr(parquet_rows, "MOST_BYTES", 9_000_000)
    assert parquet_rows.read(path / "audio" / "98") == bytes(90_000)
    monkeypatch.setattr(parquet_rows, "MOST_ROWS", 98)
    with pytest.raises(InputError, match=r"x\.parquet: expected at most 98 rows, got 99"):
        parquet_rows.names(path / "audio")


def test_a_row_group_of_fewer_rows_than_its_header_says_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table({"audio": [{"bytes": bytes([i])} for i in range(4)]}), path)
    whole = parquet.ParquetFile.iter_batches
    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", lambda *a, **k: itertools.islice(whole(*a, **k), 3))
    with pytest.raises(InputError, match=r"x\.parquet: expected 4 rows in row group 0, got 3; copy or download"):
        parquet_rows.read(path / "audio" / "3")
    monkeypatch.undo()
    assert parquet_rows.read(path / "audio" / "3") == b"\3"


def test_the_trials_of_the_shards(dataset: Path) -> None:
    table = arena.trials(dataset, dataset / "README.md", "test")
    assert table.utterance.tolist() == [f"u {i}" for i in range(7)]
    assert table.path.tolist() == [
        *(f"data/test-00000-of-00002.parquet/audio/{i}" for i in range(5)),
        *(f"data/test-00001-of-00002.parquet/audio/{i}" for i in range(2)),
    ]
    assert table.is_bonafide.tolist() == [True, False, False, True, False, False, True]
    assert table.speaker.tolist() == ["s0", "s1", "s0", "s1", "s0", "s1", "s0"]
    assert table.attack.tolist() == ["-", "L1", "L1", "-", "L1", "L1", "-"]
    assert set(table.codec) == set(table.vocoder) == {"-"}


def test_a_dataset_is_the_key_of_its_scores(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = dataset / "scores.csv"
    # Bona fide are 0, 3 and 6. One of three lies below one of four spoofs: the rates cross between 1/4 and 1/3.
    values = [9, 1, 2, 3, 4, 0, 8]
    scores.write_text("utterance,score\n" + "".join(f"u {i},{value}\n" for i, value in enumerate(values)))
    commands.dispatch(["metrics", str(scores), "--key", str(dataset), "--json", "--folds", "0"])
    report = json.loads(capsys.readouterr().out)
    assert report["key"] == {"file": str(dataset), "corpus": "arena", "split": "test", "bonafide": 3, "spoof": 4}
    assert report["systems"][0]["eer"] == pytest.approx(100 * (1 / 3 + 1 / 4) / 2, abs=1e-4)
    assert list(report["systems"][0]["attacks"]) == ["L1"]
    with pytest.raises(InputError, match=r"expected files dev-\*.parquet, got those of test; check `root` and `split`"):
        commands.dispatch(["metrics", str(scores), "--key", str(dataset), "--split", "dev"])
    with pytest.raises(InputError, match=r"data: expected a file, or the folder of a dataset of the Arena with data/"):
        commands.dispatch(["metrics", str(scores), "--key", str(dataset / "data")])


def test_the_audio_is_that_of_the_rows(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = with_contents(arena.trials(dataset, dataset / "README.md", "test"), dataset)
    assert table.content.tolist() == [decode.digest(wav(i)) for i in range(7)]
    opened: list[Path] = []
    open_file = parquet_rows.open_file
    monkeypatch.setattr(parquet_rows, "open_file", lambda path: opened.append(path) or open_file(path))
    monkeypatch.setattr(parquet_rows, "GROUPS", parquet_rows.RowGroups())
    assert [decode.read(dataset / path).content for path in table.path] == table.content.tolist()
    assert len(opened) == 3 + 1  # once for each row group
    samples = decode.load(dataset / str(table.path[6]), content=str(table.content[6]))
    expected, _ = soundfile.read(io.BytesIO(wav(6)), dtype="float32")
    np.testing.assert_array_equal(samples, expected)
    for row in ("5", "x", "-1"):
        with pytest.raises(InputError, match=rf"parquet/audio/{row}: no such file"):
            decode.load(dataset / f"data/test-00000-of-00002.parquet/audio/{row}")
    with pytest.raises(InputError, match=r"expected a column notes with the bytes of audio files, got string; its col"):
        decode.load(dataset / "data/test-00000-of-00002.parquet/notes/0")


@pytest.mark.parametrize("most", [1_000_000, 5_000])
def test_in_a_mixed_order_more_row_groups_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """20 groups of 10 rows of 100 bytes: each is read once in order, and about twice in no order, where they fit."""
    values = [np.random.default_rng(i).bytes(100) for i in range(200)]
    parquet.write_table(pyarrow.table({"audio": values}), tmp_path / "x.parquet", row_group_size=10)
    groups = parquet_rows.RowGroups()
    monkeypatch.setattr(parquet_rows, "GROUPS", groups)
    monkeypatch.setattr(parquet_rows, "HELD", most)
    opened: list[Path] = []
    open_file = parquet_rows.open_file
    monkeypatch.setattr(parquet_rows, "open_file", lambda path: opened.append(path) or open_file(path))

    def read(order: list[int]) -> int:
        opened.clear()
        assert all(parquet_rows.read(tmp_path / f"x.parquet/audio/{row}") == values[row] for row in order)
        return len(opened)

    assert read([*range(200)]) == 20 + 1
    assert read([*range(200)]) == 20  # a second time in order
    assert len(groups.groups) == 2
    shuffled = np.random.default_rng(0).permutation(200).tolist()
    if most == 1_000_000:
        assert read(shuffled) <= 2 * 20
        assert read(shuffled) == 0
    else:
        assert read(shuffled) > 100
        assert 2 <= len(groups.groups) <= 4  # of 1,000 bytes and their places each


def test_a_file_that_changes_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    for time, (first, number) in enumerate([(0, 1), (1, 3), (7, 3)], start=1):
        shard(path, {"audio": [wav(first + i) for i in range(number)]})
        os.utime(path, ns=(time, time))
        assert decode.read(path / f"audio/{number - 1}").content == decode.digest(wav(first + number - 1))


def test_other_columns_and_words(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("a card")
    audio = [{"bytes": wav(i), "path": f"{i}.wav"} for i in range(3)]
    path = tmp_path / "data/train-00000-of-00001.parquet"
    columns = {"audio": "sound", "label": "label", "speaker": "who", "attack": "system"}
    other = {"sound": audio, "who": ["a", None, "b"], "system": [None, "x y", "z"]}
    for labels, names in ((["Real", "fake", "spoof"], None), ([1, 0, 0], ["spoof", "bonafide"])):
        shard(path, other | {"label": labels}, names=names)
        table = arena.trials(tmp_path, tmp_path / "README.md", "all", columns)
        assert table.is_bonafide.tolist() == [True, False, False]
        assert table.utterance.tolist() == ["0.wav", "1.wav", "2.wav"]
        assert table.speaker.tolist() == ["a", "-", "b"]
        assert table.attack.tolist() == ["-", "x y", "z"]
        assert decode.read(tmp_path / str(table.path[2])).content == decode.digest(wav(2))
    for labels, names, got in (([0, 1, 1], None, "got 0"), ([0, 1, 2], ["real", "cat"], "got 1 of .*cat.}")):
        shard(path, other | {"label": labels}, names=names)
        with pytest.raises(InputError, match=rf"parquet: row [01]: expected a label in words .*, {got}; say what"):
            arena.trials(tmp_path, tmp_path / "README.md", "train", columns)
    with pytest.raises(InputError, match="expected the columns nobody, got sound, who, system, label"):
        arena.trials(tmp_path, tmp_path / "README.md", "train", columns | {"speaker": "nobody"})
    with pytest.raises(InputError, match=r"expected columns for audio and label, and of path, .*, got \['age'\]"):
        arena.trials(tmp_path, tmp_path / "README.md", "train", columns | {"age": "who"})


@pytest.mark.parametrize(
    ("values", "names", "labels", "bonafide"),
    [
        ([False, True], None, {"False": "bonafide", "True": "spoof"}, [True, False]),
        ([0.0, 1.0], None, {"0.0": "spoof", "1.0": "bonafide"}, [False, True]),
        ([1, 0], ["fake", "cat"], {"0": "bonafide", "1": "spoof"}, [False, True]),  # the set says it, not the file
        (["wild", "tts"], None, {"wild": "bonafide", "tts": "spoof"}, [True, False]),
        (["wild", " Fake"], None, {"wild": "bonafide"}, [True, False]),
        (["real ", "fake"], None, {}, [True, False]),
        ([1, 0], ["0", "1"], {}, [False, True]),  # names that are numbers: as the Arena has it
    ],
)
def test_the_set_says_what_labels_mean(
    tmp_path: Path, values: list[Any], names: list[str] | None, labels: dict[str, str], bonafide: list[bool]
) -> None:
    (tmp_path / "README.md").write_text("a card")
    audio = [{"bytes": wav(i), "path": f"{i}.wav"} for i in range(2)]
    own = {"path": ["a", "b"], "audio": audio, "label": values, "notes": [None, None]}
    shard(tmp_path / "data/test-0.parquet", own, names=names)
    table = arena.trials(tmp_path, tmp_path / "README.md", "test", labels=labels)
    assert table.is_bonafide.tolist() == bonafide


@pytest.mark.parametrize(
    ("labels", "names", "bonafide"),
    [
        ([0, 1, 1], None, [True, False, False]),
        ([0, 1, 1], ["bonafide", "spoof"], [True, False, False]),
        ([1, 0, 0], ["fake", "real"], [True, False, False]),  # the words of the file count
        ([0, 1, 1], ["0", "1"], [True, False, False]),  # these are no words
        (["Bonafide ", " spoof", "SPOOF"], None, [True, False, False]),
        ([0, 1, 2], None, "row 2: expected a label in words .*, got 2"),
        ([0, 1, None], None, "row 2: expected a label in words .*, got None"),
        (["0", "1", "1"], None, [True, False, False]),
        ([0, 1, 1], ["voice", "spoof"], "row 0: expected a label in words .*, got 0 of .*'voice'"),
    ],
)
def test_labels_of_the_arenas_columns(
    tmp_path: Path, labels: list[Any], names: list[str] | None, bonafide: list[bool] | str
) -> None:
    (tmp_path / "README.md").write_text("a card")
    columns = {
        "path": ["a", "b", "c"],
        "audio": [{"bytes": wav(i), "path": None} for i in range(3)],
        "label": labels,
        "notes": ["{}"] * 3,
    }
    shard(tmp_path / "data/test-0.parquet", columns, names=names)
    if isinstance(bonafide, str):
        with pytest.raises(InputError, match=bonafide):
            arena.trials(tmp_path, tmp_path / "README.md", "test")
    else:
        assert arena.trials(tmp_path, tmp_path / "README.md", "test").is_bonafide.tolist() == bonafide


def test_what_cannot_be_read_is_named(dataset: Path) -> None:
    with pytest.raises(InputError, match=r"data: expected files train-\*\.parquet, got those of test; check `root`"):
        arena.trials(dataset, dataset / "README.md", "train")
    with pytest.raises(InputError, match=r"eval.yaml: no such file; `protocol` is a small file of the dataset"):
        arena.trials(dataset, dataset / "eval.yaml", "test")
    path = dataset / "data/test-00001-of-00002.parquet"
    good = path.read_bytes()
    for damaged in (good[:-20], b"", good[:20] + bytes(200) + good[220:]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"00001-of-00002\.parquet: expected a whole Parquet file: .*; copy or d"):
            with_contents(arena.trials(dataset, dataset / "README.md", "test"), dataset)
    table = parquet.read_table(io.BytesIO(good)).to_pydict()
    shard(path, table | {"path": pyarrow.array([b"\xff", b"x"]).view(pyarrow.string())})
    with pytest.raises(InputError, match=r"expected a whole Parquet file: 'utf-8' codec can't decode"):
        arena.trials(dataset, dataset / "README.md", "test")
    shard(path, table | {"notes": ["[1]", "{}"]})
    with pytest.raises(InputError, match=r"parquet: row 0: expected notes as a JSON object, got '\[1\]'"):
        arena.trials(dataset, dataset / "README.md", "test")
    shard(path, table | {"audio": [{"bytes": None, "path": "5.wav"}, {"bytes": wav(6), "path": "6.wav"}]})
    with pytest.raises(
        InputError, match=r"1 of 7 audio files cannot be used:\n  utterance u 5: .*holds no bytes of au"
    ):
        with_contents(arena.trials(dataset, dataset / "README.md", "test"), dataset)
    shard(path, table | {"notes": [json.dumps({"utterance_id": "u 0"})] * 2})
    with pytest.raises(
        InputError, match=r"row 0: utterance u 0 is listed twice, first at .*00000-of-00002.parquet: row"
    ):
        arena.trials(dataset, dataset / "README.md", "test")
