"""Corpora of the field with protocols in CSV or in plain lines: miniatures laid out as the downloads are."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from pipeline.core.errors import InputError
from pipeline.core.trial_table import Trials
from pipeline.corpora import (
    add2022,
    add2023,
    antideepfake,
    asvspoof5,
    codecfake,
    deepfake_eval_2024,
    dfadd,
    mlaad,
    partialspoof,
    replaydf,
    speech_df_arena,
    spoofceleb,
    wavefake,
)
from tests.beside import CASES, needs


def read(adapter: ModuleType, folder: Path, text: str, split: str, *, root: Path = Path("/data")) -> Trials:
    (folder / "key.txt").write_text(text, encoding="utf-8")
    table = adapter.trials(root, folder / "key.txt", split)
    assert isinstance(table, Trials)
    return table


def shown(table: Trials) -> list[tuple[str, str, bool, str, str]]:
    """What the tables say of each trial."""
    columns = (table.utterance, table.path, table.is_bonafide, table.speaker, table.attack)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def test_speech_df_arena(tmp_path: Path) -> None:
    text = "file_name,label\n/data/data/AntiSpoofing-Datasets/In_Wild/0.wav,spoof\nOther/a b.wav,Bona-Fide\n"
    assert shown(read(speech_df_arena, tmp_path, text, "all")) == [
        ("/data/data/AntiSpoofing-Datasets/In_Wild/0.wav", "In_Wild/0.wav", False, "-", "-"),
        ("Other/a b.wav", "Other/a b.wav", True, "-", "-"),
    ]
    table = read(speech_df_arena, tmp_path, text, "all", root=Path("/"))
    assert table.path.tolist() == ["data/data/AntiSpoofing-Datasets/In_Wild/0.wav", "Other/a b.wav"]
    with pytest.raises(InputError, match=r"key.txt: expected the split all, got 'eval'"):
        read(speech_df_arena, tmp_path, text, "eval")
    with pytest.raises(InputError, match=r"key.txt: expected trials, got none; is it"):
        read(speech_df_arena, tmp_path, "file_name,label\n", "all")
    with pytest.raises(
        InputError, match=r"key.txt:2: .* below the corpus root, got '/data/b.wav'; absolute paths need"
    ):
        read(speech_df_arena, tmp_path, "file_name,label\n/data/b.wav,spoof\nOther/a.wav,bonafide\n", "all")


@needs(CASES)
def test_the_heads_of_published_lists(tmp_path: Path) -> None:
    lines = (CASES / "real_head_arena_in_the_wild.csv").read_text().splitlines()
    table = speech_df_arena.trials(Path("/data"), CASES / "real_head_arena_in_the_wild.csv", "all")
    assert table.path.tolist() == [line.split(",")[0].partition("Datasets/")[2] for line in lines[1:]]
    assert table.is_bonafide.tolist() == [line.endswith(",bonafide") for line in lines[1:]]
    text = (CASES / "real_head_nii_toy_test.csv").read_text()  # five fakes
    lines = [*text.splitlines(), "toy-1,real,2.0,16000,$ROOT//toy_example/eval/1.wav,-,LA_1,test,1,PCM_S,16,EN"]
    for split in ("test", "all"):
        table = read(antideepfake, tmp_path, "\n".join(lines), split)
        assert table.path.tolist() == [line.split(",")[4].removeprefix("$ROOT//") for line in lines[1:]]
        assert table.is_bonafide.tolist() == [line.split(",")[1] == "real" for line in lines[1:]]


@needs(CASES)
def test_the_key_of_the_evaluation_package_of_asvspoof5() -> None:
    path = CASES / "a5_official_key.tsv"
    lines = [line.split("\t") for line in path.read_text().splitlines()[1:]]
    table = asvspoof5.trials(Path("/data"), path, "eval")
    assert table.path.tolist() == [f"flac_E_eval/{name}.flac" for name, _ in lines]
    assert table.is_bonafide.tolist() == [word == "bonafide" for _, word in lines]
    with pytest.raises(InputError, match=r"key.tsv:2: expected an utterance of split dev, got E_0000000000; give the"):
        asvspoof5.trials(Path("/data"), path, "dev")


def test_antideepfake(tmp_path: Path) -> None:
    text = (
        "ID,Label,Duration,SampleRate,Path,Attack,Speaker,Proportion,Language\n"
        "M-a b,fake,2.2,16000,$ROOT/MLAAD/fake/a b.wav,vits,-,-,EN\n"
        "A-1,real,2.2,16000,$ROOT//x/1.wav,bonafide,LA_0045,test,EN\n"
        "A-2,fake,2.2,16000,x/2.wav,A18,LA_0044,test,EN\n"
    )
    assert shown(read(antideepfake, tmp_path, text, "test")) == [
        ("A-1", "x/1.wav", True, "LA_0045", "-"),
        ("A-2", "x/2.wav", False, "LA_0044", "A18"),
    ]
    assert shown(read(antideepfake, tmp_path, text, "all"))[0] == ("M-a b", "MLAAD/fake/a b.wav", False, "-", "vits")
    with pytest.raises(InputError, match=r"key.txt: expected the split -, test or all, got 'train'"):
        read(antideepfake, tmp_path, text, "train")
    with pytest.raises(InputError, match=r"key.txt:1: expected the columns ID, .*; Path, Speaker not in 'ID,Label,"):
        read(antideepfake, tmp_path, text.replace("Path", "File").replace("Speaker", "Voice"), "test")
    with pytest.raises(
        InputError, match=r"1 lines are not as the header says; .*\n  .*key.txt:3: expected 9 cells, got 8"
    ):
        read(antideepfake, tmp_path, text.replace("bonafide,LA", "LA"), "test")
    with pytest.raises(InputError, match=r"key.txt:3: utterance A-1: expected label bonafide or spoof, got 'true'"):
        read(antideepfake, tmp_path, text.replace("real", "true"), "test")


def test_spoofceleb(tmp_path: Path) -> None:
    text = "file,speaker,attack\na00/id1/Y-00002-006.flac,id1,a00\na06/id2/N-003.flac,id2,a06\n"
    assert shown(read(spoofceleb, tmp_path, text, "development")) == [
        ("a00/id1/Y-00002-006.flac", "flac/development/a00/id1/Y-00002-006.flac", True, "id1", "-"),
        ("a06/id2/N-003.flac", "flac/development/a06/id2/N-003.flac", False, "id2", "a06"),
    ]
    for word in ("real", "bonafide", "1", "a24", "A06", "a6", ""):
        wrong = text.replace("id2,a06", f"id2,{word}")
        with pytest.raises(InputError, match=rf"key.txt:3: expected an attack from a00 .* to a23, got '{word}'; mend"):
            read(spoofceleb, tmp_path, wrong, "development")
    with pytest.raises(InputError, match="expected the split train, development, evaluation of spoofceleb, got 'dev'"):
        read(spoofceleb, tmp_path, text, "dev")


def test_deepfake_eval_2024(tmp_path: Path) -> None:
    text = (
        "Filename,Finetuning Set,Ground Truth,Language\n"
        "1 (a).mp3,Train,Real,English\nb.m4a,Train,Fake,English\nc.wav,Test,Real,\nd.dat,Test,Fake,\n"
    )
    assert shown(read(deepfake_eval_2024, tmp_path, text, "train")) == [
        ("1 (a).mp3", "audio-data/1 (a).mp3", True, "-", "-"),
        ("b.m4a", "audio-data/b.m4a", False, "-", "-"),
    ]
    assert len(read(deepfake_eval_2024, tmp_path, text, "all")) == 4
    text = "segment_id\tsource_file\tlabel\tstart_s\tduration_s\n"
    text += "1 (a)_seg1.wav\t1 (a).mp3\tbonafide\t0\t4\nb_seg1.wav\tb.m4a\tspoof\t0\t3.5\n"
    assert shown(read(deepfake_eval_2024, tmp_path, text, "all")) == [
        ("1 (a)_seg1.wav", "segmented/wav/1 (a)_seg1.wav", True, "-", "-"),
        ("b_seg1.wav", "segmented/wav/b_seg1.wav", False, "-", "-"),
    ]


def test_codecfake(tmp_path: Path) -> None:
    text = "SSB13650058.wav real 0\nF01_SSB13650058.wav fake 1\nF07_p225.wav fake 7\na.wav fake F03\n"
    assert shown(read(codecfake, tmp_path, text, "all")) == [
        ("SSB13650058.wav", "SSB13650058.wav", True, "-", "-"),
        ("F01_SSB13650058.wav", "F01_SSB13650058.wav", False, "-", "F01"),
        ("F07_p225.wav", "F07_p225.wav", False, "-", "F07"),
        ("a.wav", "a.wav", False, "-", "F03"),
    ]
    with pytest.raises(InputError, match=r"1 lines .*\n  .*key.txt:5: expected `file label number`, got 'a.wav real'"):
        read(codecfake, tmp_path, text + "a.wav real\n", "all")


def test_add2023(tmp_path: Path) -> None:
    text = "ADD2023_T1.2R2_E_00000003.wav genuine\nADD2023_T1.2R2_E_00000004.wav fake\n\n"
    assert shown(read(add2023, tmp_path, text, "all")) == [
        ("ADD2023_T1.2R2_E_00000003.wav", "wav/ADD2023_T1.2R2_E_00000003.wav", True, "-", "-"),
        ("ADD2023_T1.2R2_E_00000004.wav", "wav/ADD2023_T1.2R2_E_00000004.wav", False, "-", "-"),
    ]


def test_add2022(tmp_path: Path) -> None:
    assert shown(read(add2022, tmp_path, "ADD_T_00000000.wav genuine\nADD_T_00000001.wav fake\n", "all")) == [
        ("ADD_T_00000000.wav", "ADD_T_00000000.wav", True, "-", "-"),
        ("ADD_T_00000001.wav", "ADD_T_00000001.wav", False, "-", "-"),
    ]
    numbered = "ADD_E3_00000000 spoof 0\nADD_E3_00000001 bonafide 4\n"
    assert shown(read(add2022, tmp_path, numbered, "all")) == [
        ("ADD_E3_00000000", "ADD_E3_00000000.wav", False, "-", "-"),
        ("ADD_E3_00000001", "ADD_E3_00000001.wav", True, "-", "-"),
    ]
    with pytest.raises(InputError, match=r"key.txt:3: expected `file label number`, got 'ADD_E3_2 spoof'"):
        read(add2022, tmp_path, numbered + "ADD_E3_2 spoof\n", "all")
    with pytest.raises(InputError, match=r"key.txt:2: expected `file label`, got 'b.wav'"):
        read(add2022, tmp_path, "a.wav fake\nb.wav\n", "all")


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_wavefake(tmp_path: Path) -> None:
    tts = "common_voices_prompts_from_conformer_fastspeech2_pwg_ljspeech"
    spoofs = ("ljspeech_melgan/LJ001-0001_gen.wav", f"{tts}/gen_0.wav", "jsut_parallel_wavegan/BASIC5000_0001_gen.wav")
    make(tmp_path / "generated_audio", *spoofs, f"{tts}/generated/gen_0.wav", "readme.txt", f"{tts}/._gen_0.wav")
    with pytest.raises(
        InputError, match=r"expected folders generated_audio/\*ljspeech\*.*, got 2 .* and 0 of the second"
    ):
        wavefake.trials(tmp_path, tmp_path / "README", "all")
    make(tmp_path, "LJSpeech-1.1/wavs/LJ001-0001.wav", "jsut_ver1.1/basic5000/wav/BASIC5000_0001.wav")
    make(tmp_path, "LJSpeech-1.1/metadata.csv")
    english = [
        (f"{tts}/gen_0", f"generated_audio/{tts}/gen_0.wav", False, "ljspeech", tts),
        ("ljspeech_melgan/LJ001-0001_gen", f"generated_audio/{spoofs[0]}", False, "ljspeech", "ljspeech_melgan"),
        ("LJSpeech-1.1/LJ001-0001", "LJSpeech-1.1/wavs/LJ001-0001.wav", True, "ljspeech", "-"),
    ]
    assert shown(wavefake.trials(tmp_path, tmp_path / "README", "ljspeech")) == english
    jsut = "jsut_ver1.1/basic5000/wav/BASIC5000_0001.wav"
    assert shown(wavefake.trials(tmp_path, tmp_path / "README", "all")) == [
        *english,
        ("jsut_parallel_wavegan/BASIC5000_0001_gen", f"generated_audio/{spoofs[2]}", False, "jsut", spoofs[2][:21]),
        ("jsut_ver1.1/BASIC5000_0001", jsut, True, "jsut", "-"),
    ]
    with pytest.raises(InputError, match="expected the split ljspeech, jsut or all of wavefake, got 'en'"):
        wavefake.trials(tmp_path, tmp_path / "README", "en")


def test_replaydf(tmp_path: Path) -> None:
    names = ["1a/benign/de/x.wav", "1a/spoof/bark/de/x.wav", "2b/benign/en/y.wav", "2b/spoof/xtts/en/y.wav"]
    make(
        tmp_path / "wav",
        *names,
        "1a/meta.csv",
        "1a/benign/de/notes.txt",
        "1a/benign/readme.txt",
        "1a/benign/de/._x.wav",
    )
    table = replaydf.trials(tmp_path, tmp_path / "README.md", "all")
    places = [f"wav/{names[i]}" for i in (0, 2, 1, 3)]
    assert table.utterance.tolist() == table.path.tolist() == places
    assert table.is_bonafide.tolist() == [True, True, False, False]
    assert table.attack.tolist() == ["-", "-", "bark", "xtts"]
    assert table.codec.tolist() == ["1a", "2b", "1a", "2b"]
    assert replaydf.trials(tmp_path, tmp_path / "README.md", "de").path.tolist() == [places[0], places[2]]
    with pytest.raises(InputError, match="expected the split de, en or all, got 'fr'"):
        replaydf.trials(tmp_path, tmp_path / "README.md", "fr")
    with pytest.raises(InputError, match="expected folders wav/<recording>/benign/<language> and "):
        replaydf.trials(tmp_path / "wav", tmp_path / "README.md", "all")


def test_partialspoof(tmp_path: Path) -> None:
    text = "LA_0098 LA_D_9497115 - - bonafide\nLA_0079 CON_D_0000029 - CON spoof\n"
    assert shown(read(partialspoof, tmp_path, text, "dev")) == [
        ("LA_D_9497115", "dev/con_wav/LA_D_9497115.wav", True, "LA_0098", "-"),
        ("CON_D_0000029", "dev/con_wav/CON_D_0000029.wav", False, "LA_0079", "CON"),
    ]
    with pytest.raises(InputError, match=r"key.txt:3: expected an utterance of split dev, got CON_T_2; give the prot"):
        read(partialspoof, tmp_path, text + "LA_0079 CON_T_2 - CON spoof\n", "dev")
    with pytest.raises(
        InputError, match=r"key.txt:3: expected CON_... for spoof and LA_... for bona fide, got CON_D_2"
    ):
        read(partialspoof, tmp_path, text + "LA_0079 CON_D_2 - - bonafide\n", "dev")


def test_the_segment_labels_of_partialspoof(tmp_path: Path) -> None:
    place = tmp_path / "protocols/PartialSpoof_LA_cm_protocols/PartialSpoof.LA.cm.train.trl.txt"
    make(tmp_path, place.relative_to(tmp_path).as_posix())
    names = [f"CON_T_{i}" for i in range(5)]
    place.write_text("LA_0098 LA_T_1 - - bonafide\n" + "".join(f"LA_0079 {name} - CON spoof\n" for name in names))
    spoofed = dict(zip(names, (0, 2, 3, 8, 1), strict=True))  # of 8 segments: 0, 25, 37.5, 100 and 12.5 %
    labels = {name: np.array(["0"] * n + ["1"] * (8 - n)) for name, n in spoofed.items()}

    def attacks(**changes: Any) -> list[str]:
        np.save(tmp_path / "train_seglab_0.16.npy", np.array(labels | {"LA_T_1": np.array(["1", "1"])} | changes))
        table = partialspoof.trials(tmp_path, tmp_path / "train_seglab_0.16.npy", "train")
        assert table.path[0] == "train/con_wav/LA_T_1.wav"
        return [str(attack) for attack in table.attack]

    assert attacks() == ["-", "CON_0", "CON_25", "CON_50", "CON_100", "CON_25"]
    assert attacks(CON_T_1=[0, 1, 1])[2] == "CON_50"
    bonafide = r"1 utterances .*\n.*train.trl.txt:1: LA_T_1 is bona fide, and .*.npy has 1 of its 2 segments as spoof"
    with pytest.raises(InputError, match=bonafide):
        attacks(LA_T_1=np.array(["0", "1"]))
    labels["CON_T_9"] = labels.pop("CON_T_2")
    with pytest.raises(InputError, match=r"train.trl.txt:4: CON_T_2 is a spoof, and .* has no segments of it"):
        attacks()
    for wrong in (np.array(["0", "2"]), np.array([]), "1", np.array([0.5])):
        with pytest.raises(InputError, match=r"0.16.npy: CON_T_1: expected an array of 1 .bona fide. and 0"):
            attacks(CON_T_1=wrong)
    with pytest.raises(InputError, match=r"0.16.npy: expected the segment labels .*: it holds a pathlib\S*\.PosixPath"):
        attacks(CON_T_1=Path("x"))
    for content in (b"", b"LA_T_1 1 1", b"\x93NUMPY\x01\x00"):
        (tmp_path / "cut.npy").write_bytes(content)
        with pytest.raises(InputError, match=r"cut.npy: expected the segment labels of PartialSpoof"):
            partialspoof.trials(tmp_path, tmp_path / "cut.npy", "train")


def test_dfadd(tmp_path: Path) -> None:
    for name in (
        "VCTK_BONAFIDE/test/p227_001.wav",
        "VCTK_BONAFIDE/train/p228_001.wav",
        "GradTTS/test/p227_001_GradTTS.flac",
        "GradTTS/test/notes.txt",
        "GradTTS/test/._p227_001_GradTTS.flac",
    ):
        make(tmp_path, f"DATASET_{name}")
    assert shown(dfadd.trials(tmp_path, tmp_path / "README.md", "test")) == [
        ("GradTTS/p227_001_GradTTS", "DATASET_GradTTS/test/p227_001_GradTTS.flac", False, "p227", "GradTTS"),
        ("VCTK_BONAFIDE/p227_001", "DATASET_VCTK_BONAFIDE/test/p227_001.wav", True, "p227", "-"),
    ]
    with pytest.raises(InputError, match="expected the split train, valid, test of dfadd, got 'all'"):
        dfadd.trials(tmp_path, tmp_path / "README.md", "all")
    with pytest.raises(InputError, match=r"expected folders DATASET_\.\.\./valid, got none; check `root` of the set$"):
        dfadd.trials(tmp_path, tmp_path / "README.md", "valid")
    for root in (tmp_path.parent, tmp_path / "DATASET_GradTTS"):
        with pytest.raises(InputError, match=rf"with `root: {tmp_path}` they are there$"):
            dfadd.trials(root, tmp_path / "README.md", "test")


def test_two_files_that_differ_in_the_suffix_are_named(tmp_path: Path) -> None:
    make(tmp_path, "DATASET_GradTTS/test/a.wav", "DATASET_GradTTS/test/a.flac", "DATASET_VCTK_BONAFIDE/test/b.wav")
    with pytest.raises(InputError, match=r"test/a\.wav: utterance GradTTS/a is listed twice, first at .*/a\.flac"):
        dfadd.trials(tmp_path, tmp_path / "README.md", "test")
    make(tmp_path / "generated_audio", "jsut_melgan/a.wav", "jsut_melgan/a.FLAC")
    make(tmp_path, "jsut_ver1.1/basic5000/wav/b.wav")
    with pytest.raises(InputError, match=r"a\.wav: utterance jsut_melgan/a is listed twice, first at .*/a\.FLAC"):
        wavefake.trials(tmp_path, tmp_path / "README.md", "jsut")


@pytest.mark.parametrize(
    ("adapter", "header", "split"),
    [
        (speech_df_arena, "file_name,label\n", "all"),
        (antideepfake, "ID,Label,Path,Attack,Speaker,Proportion\n", "all"),
        (deepfake_eval_2024, "Filename,Ground Truth,Finetuning Set\n", "test"),
        (codecfake, "", "all"),
        (add2022, "\n", "all"),
        (add2023, "", "all"),
    ],
)
def test_a_list_without_trials_is_named(tmp_path: Path, adapter: ModuleType, header: str, split: str) -> None:
    with pytest.raises(InputError, match=r"key\.txt: expected trials, got none; is it the list"):
        read(adapter, tmp_path, header, split)


def test_mlaad(tmp_path: Path) -> None:
    header = (
        "path|original_file|language|is_original_language|duration|training_data|model_name|architecture|transcript"
    )
    metas = {
        "de/vits": ['./fake/de/vits/a b.wav|de_DE/w/1.wav|de|True|2|x|tts/vits|VITS|"Hallo, | sagt', ""],
        "de/bark": ["fake/de/bark/1.wav|de_DE/w/1.wav|de|True|2|x|suno/bark|Bark|ja"],
        "ar/mms": ["1.wav|en_US/w/2.wav|ar|False|2|x|mms|VITS|la"],
    }
    for place, lines in metas.items():
        (tmp_path / "fake" / place).mkdir(parents=True)
        (tmp_path / "fake" / place / "meta.csv").write_text("\n".join([header, *lines]))
    german = [
        ("fake/de/bark/1.wav", "fake/de/bark/1.wav", False, "-", "suno/bark"),
        ("fake/de/vits/a b.wav", "fake/de/vits/a b.wav", False, "-", "tts/vits"),
        ("de_DE/w/1.wav", "de_DE/w/1.wav", True, "-", "-"),
    ]
    assert shown(mlaad.trials(tmp_path, tmp_path / "README.md", "de")) == german
    whole = shown(mlaad.trials(tmp_path, tmp_path / "README.md", "all"))
    assert whole[0] == ("fake/ar/mms/1.wav", "fake/ar/mms/1.wav", False, "-", "mms")
    assert [name for name, _, bonafide, _, _ in whole if bonafide] == ["en_US/w/2.wav", "de_DE/w/1.wav"]
    with pytest.raises(InputError, match="expected bona fide and spoof trials, got only spoof"):
        mlaad.trials(tmp_path, tmp_path / "README.md", "ar")
    with pytest.raises(InputError, match="expected the split ar, de or all, got 'test'"):
        mlaad.trials(tmp_path, tmp_path / "README.md", "test")
    (tmp_path / "fake/ar/mms/meta.csv").write_text(f"{header}\n1.wav|en_US\n")
    with pytest.raises(InputError, match=r"mms/meta.csv:2: expected 9 cells, got 2; copy or download it again"):
        mlaad.trials(tmp_path, tmp_path / "README.md", "all")
    for place in metas:
        (tmp_path / "fake" / place / "meta.csv").write_text(f"{header}\n")
    with pytest.raises(
        InputError, match=r"mms/meta.csv: expected lines with files, got none, as in all meta.csv; copy"
    ):
        mlaad.trials(tmp_path, tmp_path / "README.md", "all")
    (tmp_path / "fake/ar/mms/meta.csv").write_text("path|language\n")
    with pytest.raises(
        InputError, match=r"mms/meta.csv:1: expected the columns path\|.*; original_file, is_original_l"
    ):
        mlaad.trials(tmp_path, tmp_path / "README.md", "all")
    with pytest.raises(InputError, match=r"expected files fake/<language>/<system>/meta\.csv, got none"):
        mlaad.trials(tmp_path / "fake", tmp_path / "README.md", "all")
