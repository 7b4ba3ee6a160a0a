"""Anyone's CSV file: every column that a table can hold; `test_prepare` has what is refused."""

from pathlib import Path

import pytest

from pipeline.core.errors import InputError
from pipeline.core.trial_table import Trials
from pipeline.corpora import manifest

HEADER = "label,codec,note,utterance,vocoder,split,path,speaker,attack,quality"


def read(folder: Path, text: str, split: str = "dev") -> Trials:
    path = folder / "trials.csv"
    path.write_bytes(text.encode())
    return manifest.trials(folder, path, split)


def test_all_columns_in_any_order(tmp_path: Path) -> None:
    lines = ["bonafide,low_mp3,x,a,,dev,a.wav,s 1,,4.5", 'spoof,,"x,\ny",b,traditional,dev,b.wav,,A1,']
    table = read(tmp_path, "\r\n".join(["\ufeff" + HEADER, *lines, "", "spoof,,,c,,test,c.wav,,,"]))
    assert table.utterance.tolist() == ["a", "b"]
    assert table.is_bonafide.tolist() == [True, False]
    assert table.codec.tolist() == ["low_mp3", "-"]
    assert table.vocoder.tolist() == ["-", "traditional"]
    assert table.speaker.tolist() == ["s 1", "-"]
    assert table.attack.tolist() == ["-", "A1"]
    assert table.path.tolist() == ["a.wav", "b.wav"]
    assert table.quality[0] == 4.5
    assert table.quality[1] != table.quality[1]


@pytest.mark.parametrize("missing", ["codec", "vocoder", "speaker", "attack", "quality"])
def test_a_column_that_is_not_there_is_unknown(tmp_path: Path, missing: str) -> None:
    names = [name for name in HEADER.split(",") if name != missing]
    same = dict.fromkeys(names, "3") | {"split": "dev"}
    rows = [same | {"label": word, "utterance": word} for word in ("bonafide", "spoof")]
    table = read(tmp_path, "\n".join([",".join(names), *(",".join(row.values()) for row in rows)]))
    for name in ("codec", "vocoder", "speaker", "attack"):
        assert set(getattr(table, name)) == {"-" if name == missing else "3"}
    assert (table.quality == 3).all() == (missing != "quality")


def test_lines_are_counted_as_an_editor_counts_them(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, 'utterance,path,label,split\n\n"a",a.wav,bonafide,dev\nb,b.wav,fake,dev\n')
    assert f"{tmp_path}/trials.csv:4: utterance b: expected label bonafide or spoof, got 'fake'" in str(caught.value)
    path = tmp_path / "trials.csv"
    path.write_bytes(b"utterance,path,label,split\na,a.wav,bonafide,dev\nb,\xe9.wav,spoof,dev\n")
    with pytest.raises(InputError, match=r"trials.csv:3: expected UTF-8 text, got byte 0xe9"):
        manifest.trials(tmp_path, path, "dev")


def test_path_and_label_are_enough(tmp_path: Path) -> None:
    text = "label,path\nbonafide,sub/a b.wav\nspoof,c.wav\n"
    table = read(tmp_path, text, "all")
    assert table.utterance.tolist() == table.path.tolist() == ["sub/a b.wav", "c.wav"]
    with pytest.raises(InputError, match=r"of split 'dev', got only all; it has no column split: set `split: all`$"):
        read(tmp_path, text, "dev")


def test_all_is_every_split(tmp_path: Path) -> None:
    text = "utterance,path,label,split\na,a.wav,bonafide,dev\nb,b.wav,spoof,dev\nc,c.wav,spoof,test\n"
    assert read(tmp_path, text, "all").utterance.tolist() == ["a", "b", "c"]
    assert read(tmp_path, text, "dev").utterance.tolist() == ["a", "b"]


def test_absolute_paths_need_the_root_of_all(tmp_path: Path) -> None:
    (tmp_path / "trials.csv").write_text("path,label\n/data/a.wav,bonafide\ndata/b.wav,spoof\n")
    table = manifest.trials(Path("/"), tmp_path / "trials.csv", "all")
    assert table.path.tolist() == ["data/a.wav", "data/b.wav"]
    assert table.utterance.tolist() == ["/data/a.wav", "data/b.wav"]
    with pytest.raises(
        InputError, match=r"csv:2: .* below the corpus root, got '/data/a.wav'; absolute paths need `ro"
    ):
        manifest.trials(Path("/data"), tmp_path / "trials.csv", "all")
    (tmp_path / "trials.csv").write_text("path,label\n/../a.wav,bonafide\ndata/b.wav,spoof\n")
    with pytest.raises(InputError, match=r"csv:2: .*expected a path below the corpus root, got '../a.wav'"):
        manifest.trials(Path("/"), tmp_path / "trials.csv", "all")
