"""Protocol files of every corpus: recognised, told apart from each other, and refused where they are damaged."""

import tracemalloc
from pathlib import Path
from types import ModuleType

import pytest

from pipeline.core import members, trial_table
from pipeline.core.errors import InputError
from pipeline.core.trial_table import Row, from_rows
from pipeline.corpora import _formats, _protocols

# Lines as the official files have them; the first two of each are of different classes.
SAMPLES = {
    "asvspoof2019_la": """\
LA_0079 LA_T_1138215 - - bonafide
LA_0079 LA_T_1004644 - A01 spoof
LA_0098 LA_T_9982036 - A06 spoof
""",
    "asvspoof2021_la": """\
LA_0009 LA_E_9332881 alaw ita_tx A07 spoof notrim eval
LA_0020 LA_E_7294490 g722 loc_tx bonafide bonafide notrim eval
LA_0013 LA_E_5932896 none loc_tx A19 spoof notrim progress
LA_0048 LA_E_7045648 opus sin_tx bonafide bonafide notrim progress
LA_0031 LA_E_1665632 pstn mad_tx A10 spoof trim hidden
LA_0031 LA_E_1665633 pstn mad_tx bonafide bonafide trim hidden
""",
    "asvspoof2021_df": """\
LA_0023 DF_E_2000011 nocodec asvspoof A14 spoof notrim progress traditional_vocoder - - - -
LA_0048 DF_E_2000058 mp3m4a asvspoof - bonafide notrim progress bonafide - - - -
TEF2 DF_E_2000013 low_m4a vcc2020 Task1-team20 spoof notrim eval neural_vocoder_nonautoregressive Task1 team20 FF E
TGF1 DF_E_2000024 mp3m4a vcc2020 Task2-team12 spoof notrim eval traditional_vocoder Task2 team12 FF G
VCC2TM1 DF_E_2000040 low_m4a vcc2018 SPO-B01 spoof notrim eval unknown - - - -
LA_0044 DF_E_2000503 high_ogg asvspoof - bonafide notrim eval bonafide - - - -
LA_0044 DF_E_2000504 high_ogg asvspoof - bonafide trim hidden bonafide - - - -
LA_0044 DF_E_2000505 high_ogg asvspoof A16 spoof trim hidden waveform_concatenation - - - -
""",
    "asvspoof5": """\
D_0062 D_0000000001 F - - - AC1 A11 spoof -
D_0461 D_0000000190 M - - - - bonafide bonafide -
D_0913 D_0000000295 F - - - AC2 A11 spoof -
""",
    "partialspoof": """\
LA_0079 CON_T_0000029 - CON spoof
LA_0098 LA_T_9497115 - - bonafide
LA_0079 CON_T_0000069 - CON spoof
""",
    "in_the_wild": """\
file,speaker,label
0.wav,Alec Guinness,spoof
4.wav,Christopher Hitchens,bona-fide
""",
    "for_norm": """\
file,label
fake/file1848.wav_16k.wav_norm.wav_mono.wav_silence,spoof
real/file1461.wav_16k.wav_norm.wav_mono.wav_silence,bona-fide
""",
    "manifest": """\
utterance,path,label,split
u1,a/u1.wav,bonafide,test
u2,a/u2.wav,spoof,test
""",
    "table": trial_table.to_csv(
        from_rows([Row("", "u1", "u1.wav", "bonafide"), Row("", "u2", "u2.wav", "spoof")], source="")
    ),
}
SPLITS = {
    "asvspoof2019_la": "train",
    "asvspoof2021_la": "eval",
    "asvspoof2021_df": "eval",
    "asvspoof5": "dev",
    "partialspoof": "train",
    "in_the_wild": "eval",
    "for_norm": "eval",
    "manifest": "test",
}
OFFICIAL = [corpus for corpus in SPLITS if corpus != "manifest"]


def write(folder: Path, text: str) -> Path:
    path = folder / "key.txt"
    path.write_bytes(text.encode())
    return path


def adapter(corpus: str) -> ModuleType:
    return members.member("corpora", corpus)


def refusal(corpus: str, path: Path) -> str:
    """What the adapter says against a file."""
    with pytest.raises(InputError) as caught:
        adapter(corpus).trials(path.parent, path, SPLITS[corpus])
    return str(caught.value)


@pytest.mark.parametrize("corpus", SAMPLES)
def test_a_file_is_recognised_by_its_first_lines(tmp_path: Path, corpus: str) -> None:
    text = SAMPLES[corpus]
    assert _protocols.recognise(write(tmp_path, text)) == corpus
    assert _protocols.recognise(write(tmp_path, "\ufeff" + text.replace("\n", "\r\n"))) == corpus
    assert _protocols.recognise(write(tmp_path, "\n\n" + text.replace(" ", "\t"))) == corpus


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "file,speaker,label\n",
        "file,label\nx.wav,1\n",
        "LA_E_9332881\n",  # a list of names without labels
        "PA_0079 PA_T_0000001 aaa - bonafide\n",
        "LA_0007-alaw-ita_tx LA_E_5013670-alaw-ita_tx alaw ita_tx A07 spoof notrim eval\n",  # a key for speaker systems
        "LA_0015 LA_E_1103494 bonafide target\n",
        "LA_E_2834763 A11 spoof 0.2\n",  # scores
        "LA_0079 LA_T_1138215 - - real\n",
        "utterance,path,label\nu1,u1.wav,spoof\n",
        "{}\n",
    ],
)
def test_other_files_are_not_recognised(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    assert _protocols.recognise(path) is None
    for corpus in OFFICIAL:
        form = _formats.FORMATS[corpus]
        said = refusal(corpus, path)
        assert f"expected lines `{form}` of {corpus}, got " in said
        assert said.endswith(f"; mend the line, or give {form.source}")


def test_only_the_first_lines_matter(tmp_path: Path) -> None:
    assert _protocols.recognise(write(tmp_path, SAMPLES["asvspoof5"] + "nonsense\n")) == "asvspoof5"
    (tmp_path / "key.txt").write_bytes(SAMPLES["asvspoof5"].encode() * 2 + b"\xff\n")
    assert _protocols.recognise(tmp_path / "key.txt") == "asvspoof5"


@pytest.mark.parametrize("given", SAMPLES)
@pytest.mark.parametrize("corpus", SPLITS)
def test_a_file_of_another_corpus_is_named(tmp_path: Path, corpus: str, given: str) -> None:
    path = write(tmp_path, SAMPLES[given])
    if corpus == given:
        assert len(adapter(corpus).trials(tmp_path, path, SPLITS[corpus])) >= 2
        return
    said = refusal(corpus, path)
    if (corpus, given) == ("partialspoof", "asvspoof2019_la"):  # whose bona fide it has
        assert f"{path}:2: expected CON_... for spoof and LA_... for bona fide, got LA_T_1004644 spoof; is " in said
        return
    assert said.startswith(f"{path}:1: expected ")
    if given == "table":
        assert "this is a trial table, which `prepare` makes; give " in said
    else:
        assert said.endswith(f"; this looks like a protocol of {given}: set `corpus: {given}`")


def test_the_message_in_full(tmp_path: Path) -> None:
    path = write(tmp_path, SAMPLES["asvspoof2019_la"])
    assert refusal("asvspoof2021_df", path) == (
        f"{path}:1: expected lines `speaker utterance codec source attack label trim phase vocoder task team gender "
        "language` of asvspoof2021_df, got 'LA_0079 LA_T_1138215 - - bonafide'; this looks like a protocol of "
        "asvspoof2019_la: set `corpus: asvspoof2019_la`"
    )
    assert "`file,speaker,label,[MOS]` of in_the_wild, got" in refusal("in_the_wild", path)


@pytest.mark.parametrize("corpus", SPLITS)
def test_without_being_told_the_split_is_the_evaluations_or_the_only_one(tmp_path: Path, corpus: str) -> None:
    path = write(tmp_path, SAMPLES[corpus])
    assert _protocols.default_split(path, corpus) == SPLITS[corpus]


def test_the_default_split_of_other_files(tmp_path: Path) -> None:
    for letter, split in (("T", "train"), ("D", "dev"), ("E", "eval")):
        key = SAMPLES["asvspoof2019_la"].replace("LA_T_", f"LA_{letter}_")
        assert _protocols.default_split(write(tmp_path, key), "asvspoof2019_la") == split
        key = SAMPLES["asvspoof5"].replace(" D_", f" {letter}_")
        assert _protocols.default_split(write(tmp_path, key), "asvspoof5") == split
    path = write(tmp_path, SAMPLES["manifest"] + "\nu3,u3.wav,spoof,dev\n")
    with pytest.raises(InputError, match="expected trials of one split, got dev, test; say which to read"):
        _protocols.default_split(path, "manifest")
    with pytest.raises(InputError, match="expected trials of one split, got none"):
        _protocols.default_split(write(tmp_path, "utterance,path,label,split\n"), "manifest")


@pytest.mark.parametrize("corpus", OFFICIAL)
def test_an_unknown_split_names_the_known_ones(tmp_path: Path, corpus: str) -> None:
    with pytest.raises(InputError) as caught:
        adapter(corpus).trials(tmp_path, write(tmp_path, SAMPLES[corpus]), "test")
    splits = dict.fromkeys(("asvspoof2019_la", "asvspoof5", "partialspoof"), "split train, dev, eval") | {
        f"asvspoof2021_{track}": "phase eval, progress, hidden, all" for track in ("la", "df")
    }
    assert f"expected the {splits.get(corpus, 'split eval')} of {corpus}, got 'test'; set `split`" in str(caught.value)


@pytest.mark.parametrize("corpus", OFFICIAL)
def test_a_missing_file_and_one_that_is_not_text(tmp_path: Path, corpus: str) -> None:
    for path in (tmp_path / "none.txt", tmp_path):
        assert refusal(corpus, path) == f"{path}: no such protocol or key; check the path"
    path = tmp_path / "key.txt"
    path.write_bytes(SAMPLES[corpus].encode("utf-16"))
    assert refusal(corpus, path) == f"{path}:1: expected UTF-8 text, got byte 0xff; save it as UTF-8"
    path.write_bytes(SAMPLES[corpus].encode() + b"\n caf\xe9\n")
    line = SAMPLES[corpus].count("\n") + 2
    assert refusal(corpus, path) == f"{path}:{line}: expected UTF-8 text, got byte 0xe9; save it as UTF-8"


@pytest.mark.parametrize("corpus", OFFICIAL)
def test_lines_that_are_cut_off_or_too_long_are_named(tmp_path: Path, corpus: str) -> None:
    text, mark = SAMPLES[corpus], "," if "," in SAMPLES[corpus] else " "
    last = text.splitlines()[-1]
    width, line = last.count(mark) + 1, text.count("\n")
    short = last.rpartition(mark)[0]
    long = last + (mark + "1") * (2 if _formats.FORMATS[corpus].mos else 1)
    said = refusal(corpus, write(tmp_path, f"{text}{short}\n{long}\n"))
    path = tmp_path / "key.txt"
    assert said.startswith(f"2 lines are not `{_formats.FORMATS[corpus]}` like the first; mend or remove them:\n")
    assert f"{path}:{line + 1}: expected {width} cells, got {width - 1}: " in said
    assert f"{path}:{line + 2}: expected {width} cells, got {long.count(mark) + 1}: " in said


@pytest.mark.parametrize("corpus", OFFICIAL)
def test_a_file_cut_off_in_its_last_line_is_refused_or_reads_as_the_whole(tmp_path: Path, corpus: str) -> None:
    text = SAMPLES[corpus].rstrip("\n")
    split = "hidden" if "2021" in corpus else SPLITS[corpus]  # the phase of the last lines
    whole = trial_table.to_csv(adapter(corpus).trials(tmp_path, write(tmp_path, text), split))
    said = []
    for end in range(text.rindex("\n") + 2, len(text)):
        path = write(tmp_path, text[:end])
        try:
            assert trial_table.to_csv(adapter(corpus).trials(tmp_path, path, split)) == whole
        except InputError as error:
            said.append(str(error))
    assert len(said) >= 10
    assert all(f"{tmp_path}/key.txt:{len(text.splitlines())}: " in message for message in said)


@pytest.mark.parametrize("corpus", ["asvspoof2019_la", "in_the_wild"])
def test_a_mos_stands_on_every_line_or_on_none(tmp_path: Path, corpus: str) -> None:
    mark = " " if corpus == "asvspoof2019_la" else ","
    first, *rest = SAMPLES[corpus].splitlines()
    body = [line + mark + "3.25" for line in rest]
    first = first if "file" in first else first + mark + "3.25"
    table = adapter(corpus).trials(tmp_path, write(tmp_path, "\n".join([first, *body])), SPLITS[corpus])
    assert (table.quality == 3.25).all()
    said = refusal(corpus, write(tmp_path, "\n".join([first, *body, "x" + rest[-1]])))
    width = len(_formats.FORMATS[corpus].columns)
    assert f"key.txt:{len(rest) + 2}: expected {width + 1} cells, got {width}: " in said
    said = refusal(corpus, write(tmp_path, "\n".join([first, *body[:-1], body[-1] + "x"])))
    assert f"key.txt:{len(rest) + 1}: " in said
    assert "expected a quality (MOS) from 0 to 6 or nothing, got '3.25x'" in said


def test_a_quote_that_stays_open(tmp_path: Path) -> None:
    text = '"' + "x" * 140_000
    said = refusal("in_the_wild", write(tmp_path, f"{SAMPLES['in_the_wild']}7.wav,{text}"))
    assert said.startswith(f"{tmp_path}/key.txt:4: not valid CSV: ")
    assert said.endswith("; is a quote left open?")
    assert _protocols.recognise(write(tmp_path, text)) is None


def test_a_key_of_600_000_trials_needs_less_than_a_gigabyte(tmp_path: Path) -> None:
    lines = SAMPLES["asvspoof2021_df"].splitlines()
    n = 20_000
    path = write(tmp_path, "\n".join(lines[i % 8].replace("DF_E_", f"DF_E_{i:06d}") for i in range(n)))
    tracemalloc.start()
    try:
        assert len(adapter("asvspoof2021_df").trials(tmp_path, path, "all")) == n
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak / n * 611_829 < 1e9
