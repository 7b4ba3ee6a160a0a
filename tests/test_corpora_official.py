"""The public corpora: their real protocol files to the last count, and small corpora laid out as the downloads are."""

import csv
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from pipeline.audio.inspection import with_contents
from pipeline.core.errors import InputError
from pipeline.core.trial_table import Trials
from pipeline.corpora import _formats, asvspoof2019_la, asvspoof2021_df, asvspoof2021_la, for_norm, in_the_wild
from tests.beside import PROTOCOLS, needs
from tests.test_protocols import OFFICIAL, SAMPLES, SPLITS, adapter, write

real = needs(PROTOCOLS)

LA19 = {
    "train": "ASVspoof2019.LA.cm.train.trn.score.txt",
    "dev": "ASVspoof2019.LA.cm.dev.trl.score.txt",
    "eval": "ASVspoof2019.LA.cm.eval.trl.txt",
}
A01_TO_A06 = {f"A{i:02d}" for i in range(1, 7)}
A07_TO_A19 = {f"A{i:02d}" for i in range(7, 20)}

# Where the downloads keep the audio of the samples, written down by hand.
AUDIO = {
    "asvspoof2019_la": [
        "ASVspoof2019_LA_train/flac/LA_T_1138215.flac",
        "ASVspoof2019_LA_train/flac/LA_T_1004644.flac",
        "ASVspoof2019_LA_train/flac/LA_T_9982036.flac",
    ],
    "asvspoof2021_la": ["flac/LA_E_9332881.flac", "flac/LA_E_7294490.flac"],
    "asvspoof2021_df": [
        "flac/DF_E_2000013.flac",
        "flac/DF_E_2000024.flac",
        "flac/DF_E_2000040.flac",
        "flac/DF_E_2000503.flac",
    ],
    "asvspoof5": ["flac_D/D_0000000001.flac", "flac_D/D_0000000190.flac", "flac_D/D_0000000295.flac"],
    "partialspoof": [
        "train/con_wav/CON_T_0000029.wav",
        "train/con_wav/LA_T_9497115.wav",
        "train/con_wav/CON_T_0000069.wav",
    ],
    "in_the_wild": ["0.wav", "4.wav"],
    "for_norm": [
        "testing/fake/file1848.wav_16k.wav_norm.wav_mono.wav_silence.wav",
        "testing/real/file1461.wav_16k.wav_norm.wav_mono.wav_silence.wav",
    ],
}


def read(corpus: str, folder: Path, text: str, split: str) -> Trials:
    table = adapter(corpus).trials(folder, write(folder, text), split)
    assert isinstance(table, Trials)
    return table


def classes(table: Trials) -> tuple[int, int]:
    """Numbers of bona fide and of spoof trials."""
    return int(table.is_bonafide.sum()), int((~table.is_bonafide).sum())


def row(table: Trials, index: int) -> dict[str, Any]:
    """What the columns say of one trial, besides its quality."""
    return {name: column[index].item() for name, column in vars(table).items() if name != "quality"}


@real
@pytest.mark.parametrize(
    ("split", "counts", "attacks", "first", "last"),
    [
        ("train", (2_580, 22_800), A01_TO_A06, ("LA_0079", "LA_T_1138215", "-"), ("LA_0098", "LA_T_9982036", "A06")),
        ("dev", (2_548, 22_296), A01_TO_A06, ("LA_0069", "LA_D_1047731", "-"), ("LA_0078", "LA_D_9967770", "A06")),
        ("eval", (7_355, 63_882), A07_TO_A19, ("LA_0039", "LA_E_2834763", "A11"), ("LA_0009", "LA_E_4689563", "A19")),
    ],
)
def test_the_real_asvspoof2019_la(
    split: str, counts: tuple[int, int], attacks: set[str], first: tuple[str, ...], last: tuple[str, ...]
) -> None:
    table = asvspoof2019_la.trials(Path("not/there"), PROTOCOLS / LA19[split], split)
    assert classes(table) == counts
    assert set(table.attack[~table.is_bonafide]) == attacks
    assert set(table.attack[table.is_bonafide]) == {"-"}
    for index, (speaker, utterance, attack) in ((0, first), (-1, last)):
        assert row(table, index) == {
            "speaker": speaker,
            "utterance": utterance,
            "path": f"ASVspoof2019_LA_{split}/flac/{utterance}.flac",
            "is_bonafide": attack == "-",
            "attack": attack,
            "codec": "-",
            "vocoder": "-",
            "content": "",
        }


@real
@pytest.mark.parametrize(
    ("split", "bonafide", "spoof", "first"),
    [("train", 4.397969, 3.419151, 4.3344), ("dev", 4.338337, 3.398744, 4.5853)],
)
def test_the_mos_of_asvspoof2019_la(split: str, bonafide: float, spoof: float, first: float) -> None:
    path = PROTOCOLS / LA19[split]
    quality: dict[str, list[float]] = {"bonafide": [], "spoof": []}
    for line in path.read_text().splitlines():
        quality[line.split()[4]].append(float(line.split()[5]))
    table = asvspoof2019_la.trials(Path(), path, split)
    np.testing.assert_array_equal(table.quality[table.is_bonafide], quality["bonafide"])
    np.testing.assert_array_equal(table.quality[~table.is_bonafide], quality["spoof"])
    assert table.quality[0] == first
    assert math.fsum(quality["bonafide"]) / len(quality["bonafide"]) == pytest.approx(bonafide, abs=1e-6)
    assert math.fsum(quality["spoof"]) / len(quality["spoof"]) == pytest.approx(spoof, abs=1e-6)
    if split == "train":
        assert np.median(table.quality[table.is_bonafide]) == pytest.approx(4.42, abs=0.005)
        assert (table.quality[table.is_bonafide] < 2.5).sum() == 1


@real
def test_the_evaluation_of_asvspoof2019_la_has_no_mos() -> None:
    assert np.isnan(asvspoof2019_la.trials(Path(), PROTOCOLS / LA19["eval"], "eval").quality).all()


@real
@pytest.mark.parametrize("name", ["in_the_wild.meta.csv", "in_the_wild.meta.score.txt"])
def test_the_real_in_the_wild(name: str) -> None:
    table = in_the_wild.trials(Path("not/there"), PROTOCOLS / name, "eval")
    assert classes(table) == (19_963, 11_816)
    assert table.utterance.tolist() == table.path.tolist() == [f"{i}.wav" for i in range(31_779)]
    assert table.speaker[[0, -1]].tolist() == ["Alec Guinness", "Arnold Schwarzenegger"]
    assert table.is_bonafide[[0, 31_777, -1]].tolist() == [False, True, False]
    assert Counter(table.speaker.tolist())["Alexandria Ocasio-Cortez"] == 390
    assert len(set(table.speaker)) == 54
    assert {*table.attack, *table.codec, *table.vocoder} == {"-"}


@real
def test_the_mos_of_in_the_wild() -> None:
    with (PROTOCOLS / "in_the_wild.meta.score.txt").open(newline="") as file:
        lines = list(csv.reader(file))
    table = in_the_wild.trials(Path(), PROTOCOLS / "in_the_wild.meta.score.txt", "eval")
    np.testing.assert_array_equal(table.quality, [float(line[3]) for line in lines])
    bonafide, spoof = ([float(line[3]) for line in lines if line[2] == word] for word in ("bona-fide", "spoof"))
    assert math.fsum(bonafide) / len(bonafide) == pytest.approx(3.462220, abs=1e-6)
    assert math.fsum(spoof) / len(spoof) == pytest.approx(2.658972, abs=1e-6)
    assert (table.quality.min(), table.quality[0], table.quality[-1]) == (0.5123, 1.9514, 2.8535)
    plain = in_the_wild.trials(Path(), PROTOCOLS / "in_the_wild.meta.csv", "eval")
    np.testing.assert_array_equal(plain.is_bonafide, table.is_bonafide)
    assert np.isnan(plain.quality).all()


@real
def test_the_real_for_norm() -> None:
    table = for_norm.trials(Path("not/there"), PROTOCOLS / "for_norm.meta.csv", "eval")
    assert classes(table) == (2_264, 2_370)
    assert [name.startswith("real/") for name in table.utterance] == table.is_bonafide.tolist()
    assert table.utterance[0] == "fake/file1848.wav_16k.wav_norm.wav_mono.wav_silence"
    assert table.path[0] == "testing/fake/file1848.wav_16k.wav_norm.wav_mono.wav_silence.wav"
    assert table.path[-1] == "testing/real/file2241.wav_16k.wav_norm.wav_mono.wav_silence.wav"
    assert len(set(table.path)) == 4_634
    assert {*table.speaker, *table.attack} == {"-"}


@pytest.mark.parametrize("corpus", OFFICIAL)
def test_paths_are_those_of_the_download(tmp_path: Path, corpus: str) -> None:
    root = tmp_path / "download"
    for i, name in enumerate(AUDIO[corpus]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / name, np.random.default_rng(i).normal(0, 0.1, 1_600), 16_000)
    table = adapter(corpus).trials(root, write(tmp_path, SAMPLES[corpus]), SPLITS[corpus])
    assert table.path.tolist() == AUDIO[corpus]
    assert len(set(with_contents(table, root).content)) == len(AUDIO[corpus])


@pytest.mark.parametrize("corpus", OFFICIAL)
def test_an_utterance_that_is_listed_twice_is_named(tmp_path: Path, corpus: str) -> None:
    text = SAMPLES[corpus]
    last, end = text.splitlines()[-1], len(text.splitlines())
    with pytest.raises(InputError) as caught:
        read(corpus, tmp_path, f"{text}{last}\n", "hidden" if "2021" in corpus else SPLITS[corpus])
    key = tmp_path / "key.txt"
    assert f"{key}:{end + 1}: utterance " in str(caught.value)
    assert f" is listed twice, first at {key}:{end}" in str(caught.value)


@pytest.mark.parametrize("corpus", OFFICIAL)
@pytest.mark.parametrize("word", ["real", "fake", "bona fide", "Spoof", "1", "genuine"])
def test_another_word_for_a_class_is_refused(tmp_path: Path, corpus: str, word: str) -> None:
    form, lines = _formats.FORMATS[corpus], SAMPLES[corpus].splitlines()
    mark = "," if form.comma else " "
    cells = lines[-1].split(mark)
    cells[form.columns.index("label")] = word if form.comma else word.replace(" ", "_")
    split = "hidden" if "2021" in corpus else SPLITS[corpus]
    with pytest.raises(InputError) as caught:
        read(corpus, tmp_path, "\n".join([*lines, mark.join(cells)]), split)
    assert f"key.txt:{len(lines) + 1}: " in str(caught.value)
    assert f"expected label bonafide or spoof, got '{cells[form.columns.index('label')]}'" in str(caught.value)


@pytest.mark.parametrize(
    ("corpus", "found", "named"),
    [
        ("asvspoof2019_la", "dev", "LA_D_1"),
        ("asvspoof2019_la", "eval", "LA_E_1"),
        ("asvspoof2019_la", None, "PA_X_1"),
        ("asvspoof5", "train", "T_1"),
        ("asvspoof5", "eval", "E_1"),
        ("asvspoof5", None, "whatever"),
    ],
)
def test_an_utterance_of_another_split_is_refused(tmp_path: Path, corpus: str, found: str | None, named: str) -> None:
    lines = SAMPLES[corpus].splitlines()
    cells = [lines[-1].split()[0], named, *lines[-1].split()[2:]]
    with pytest.raises(InputError) as caught:
        read(corpus, tmp_path, "\n".join([*lines, " ".join(cells)]), SPLITS[corpus])
    assert str(caught.value) == (
        f"{tmp_path / 'key.txt'}:{len(lines) + 1}: expected an utterance of split {SPLITS[corpus]}, got {named}; "
        f"give the protocol of {SPLITS[corpus]}" + (f", or set `split: {found}`" if found else "")
    )


@pytest.mark.parametrize(("corpus", "asked"), [("asvspoof2019_la", "dev"), ("asvspoof5", "eval")])
def test_a_protocol_of_another_split_is_refused(tmp_path: Path, corpus: str, asked: str) -> None:
    with pytest.raises(InputError, match=f"key.txt:1: expected an utterance of split {asked}, got "):
        read(corpus, tmp_path, SAMPLES[corpus], asked)


def test_asvspoof2021_la_keeps_to_one_phase(tmp_path: Path) -> None:
    text = SAMPLES["asvspoof2021_la"]
    table = read("asvspoof2021_la", tmp_path, text, "eval")
    assert table.utterance.tolist() == ["LA_E_9332881", "LA_E_7294490"]
    assert row(table, 0) == row(table, 0) | {"speaker": "LA_0009", "attack": "A07", "codec": "alaw", "vocoder": "-"}
    assert row(table, 1) == row(table, 1) | {"speaker": "LA_0020", "attack": "-", "codec": "g722", "vocoder": "-"}
    assert table.is_bonafide.tolist() == [False, True]
    assert np.isnan(table.quality).all()
    assert read("asvspoof2021_la", tmp_path, text, "progress").codec.tolist() == ["none", "opus"]
    assert read("asvspoof2021_la", tmp_path, text, "hidden").speaker.tolist() == ["LA_0031", "LA_0031"]
    assert read("asvspoof2021_la", tmp_path, text, "all").attack.tolist() == ["A07", "-", "A19", "-", "A10", "-"]


def test_asvspoof2021_df_keeps_to_one_phase(tmp_path: Path) -> None:
    text = SAMPLES["asvspoof2021_df"]
    table = read("asvspoof2021_df", tmp_path, text, "eval")
    assert table.utterance.tolist() == [f"DF_E_2000{i}" for i in ("013", "024", "040", "503")]
    assert table.speaker.tolist() == ["TEF2", "TGF1", "VCC2TM1", "LA_0044"]
    assert table.is_bonafide.tolist() == [False, False, False, True]
    assert table.attack.tolist() == ["Task1-team20", "Task2-team12", "SPO-B01", "-"]
    assert table.codec.tolist() == ["low_m4a", "mp3m4a", "low_m4a", "high_ogg"]
    assert table.vocoder.tolist() == ["neural_vocoder_nonautoregressive", "traditional_vocoder", "unknown", "-"]
    assert np.isnan(table.quality).all()
    assert read("asvspoof2021_df", tmp_path, text, "progress").utterance.tolist() == ["DF_E_2000011", "DF_E_2000058"]
    assert read("asvspoof2021_df", tmp_path, text, "hidden").vocoder.tolist() == ["-", "waveform_concatenation"]
    assert len(read("asvspoof2021_df", tmp_path, text, "all")) == 8


@pytest.mark.parametrize("adapter", [asvspoof2021_la, asvspoof2021_df])
@pytest.mark.parametrize("split", ["eval", "all"])
def test_an_unknown_phase_is_refused(tmp_path: Path, adapter: Any, split: str) -> None:
    path = write(tmp_path, SAMPLES[adapter.CORPUS].replace(" hidden", " secret"))
    with pytest.raises(InputError, match=r"key.txt:[57]: expected the phase eval, progress, hidden, got 'secret'"):
        adapter.trials(tmp_path, path, split)


def test_asvspoof5_knows_the_attack_and_the_codec(tmp_path: Path) -> None:
    text = """\
E_1607 E_0009538969 M C05 2 E_0009486171 AC1 A26 spoof -
E_1607 E_0009486171 F - 0 - - bonafide bonafide -
"""
    table = read("asvspoof5", tmp_path, text, "eval")
    assert row(table, 0) == row(table, 0) | {"speaker": "E_1607", "attack": "A26", "codec": "C05", "vocoder": "-"}
    assert row(table, 1) == row(table, 1) | {"attack": "-", "codec": "none", "vocoder": "-", "is_bonafide": True}
    assert table.path.tolist() == ["flac_E_eval/E_0009538969.flac", "flac_E_eval/E_0009486171.flac"]
    assert read("asvspoof5", tmp_path, text.replace("E_0", "T_0"), "train").path[0] == "flac_T/T_0009538969.flac"


def test_names_with_commas_and_spaces(tmp_path: Path) -> None:
    text = SAMPLES["in_the_wild"] + '7.wav,"Kennedy, Jr., John",spoof\n'
    table = read("in_the_wild", tmp_path, text, "eval")
    assert table.speaker.tolist() == ["Alec Guinness", "Christopher Hitchens", "Kennedy, Jr., John"]


def test_a_fake_file_cannot_be_bona_fide(tmp_path: Path) -> None:
    text = SAMPLES["for_norm"]
    with pytest.raises(InputError, match=r"key.txt:4: expected a file below fake/ for spoof, got real/x; mend"):
        read("for_norm", tmp_path, text + "real/x,spoof\n", "eval")
    with pytest.raises(InputError, match=r"key.txt:4: expected a file below real/ for bona-fide, got fake/x; mend"):
        read("for_norm", tmp_path, text + "fake/x,bona-fide\n", "eval")


def test_for_norm_takes_names_with_and_without_the_last_suffix(tmp_path: Path) -> None:
    text = SAMPLES["for_norm"]
    plain, full = (read("for_norm", tmp_path, t, "eval") for t in (text, text.replace("silence,", "silence.wav,")))
    assert plain.path.tolist() == full.path.tolist()
    assert plain.utterance.tolist() == full.utterance.tolist()
