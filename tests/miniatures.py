"""Five corpora of the field as their downloads lie, each with a few utterances of noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

EACH = 4  # utterances of a class in a split
ATTACKS = ("a01", "a02")
MLAAD_HEADER = "path|original_file|language|is_original_language|duration|training_data|model_name|architecture"


def five(folder: Path) -> dict[str, dict[str, str]]:
    """Make the five below a folder. Gives the sets of `params.yaml` for training on them, and `dev` and `eval`."""
    (folder / "README.md").write_text("Five downloads.\n")
    readme = str(folder / "README.md")
    _spoofceleb(folder / "spoofceleb")
    _dfadd(folder / "dfadd")
    _wavefake(folder / "wavefake")
    _asvspoof5(folder / "asvspoof5")
    _mlaad(folder / "mlaad")
    celeb, five = str(folder / "spoofceleb/metadata/{}.csv"), str(folder / "asvspoof5/ASVspoof5.train.tsv")
    places = {
        "celeb": ("spoofceleb", celeb.format("train"), "train"),
        "diffusion": ("dfadd", readme, "train"),
        "vocoders": ("wavefake", readme, "all"),
        "crowd": ("asvspoof5", five, "train"),
        "languages": ("mlaad", readme, "all"),
        "dev": ("spoofceleb", celeb.format("development"), "development"),
        "eval": ("dfadd", readme, "test"),
    }
    return {
        name: {
            "corpus": corpus,
            "protocol": protocol,
            "root": str(folder / corpus),
            "split": split,
            "quality": "column",
            "on_bad_audio": "fail",
        }
        for name, (corpus, protocol, split) in places.items()
    }


def _spoofceleb(root: Path) -> None:
    (root / "metadata").mkdir(parents=True)
    for split in ("train", "development"):
        lines = ["file,speaker,attack"]
        for i in range(EACH):
            for attack in ("a00", ATTACKS[i % 2]):
                lines.append(f"{attack}/id{i}/{split}-{i}.flac,id{i},{attack}")
                _noise(root / f"flac/{split}/{attack}/id{i}/{split}-{i}.flac", spoof=attack != "a00")
        (root / f"metadata/{split}.csv").write_text("\n".join(lines) + "\n")


def _dfadd(root: Path) -> None:
    for split in ("train", "test"):
        for i in range(EACH):
            _noise(root / f"DATASET_VCTK_BONAFIDE/{split}/p22{i}_001.wav", spoof=False)
            _noise(root / f"DATASET_GradTTS/{split}/p22{i}_001_GradTTS.wav", spoof=True)


def _wavefake(root: Path) -> None:
    for i in range(EACH):
        _noise(root / f"generated_audio/ljspeech_melgan/LJ001-000{i}_gen.wav", spoof=True)
        _noise(root / f"LJSpeech-1.1/wavs/LJ001-000{i}.wav", spoof=False)
        _noise(root / f"generated_audio/jsut_parallel_wavegan/BASIC5000_000{i}_gen.wav", spoof=True)
        _noise(root / f"jsut_ver1.1/basic5000/wav/BASIC5000_000{i}.wav", spoof=False)


def _asvspoof5(root: Path) -> None:
    lines = []
    for i in range(2 * EACH):
        attack, label = (("bonafide", "bonafide"), ("A01", "spoof"))[i % 2]
        lines.append(f"T_000{i % 2} T_000000000{i} F - - - AC1 {attack} {label} -\n")
        _noise(root / f"flac_T/T_000000000{i}.flac", spoof=label == "spoof")
    (root / "ASVspoof5.train.tsv").write_text("".join(lines))


def _mlaad(root: Path) -> None:
    lines = [MLAAD_HEADER]
    for i in range(EACH):
        original = f"de_DE/by_book/female/Ärger/wavs/{i}.wav"
        lines.append(f"./fake/de/vits/ein Satz {i}.wav|{original}|de|True|0.2|x|tts/vits|VITS")
        _noise(root / f"fake/de/vits/ein Satz {i}.wav", spoof=True)
        _noise(root / original, spoof=False)
    (root / "fake/de/vits/meta.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _noise(path: Path, *, spoof: bool) -> None:
    """White noise of 0.2 s for bona fide, brown noise for spoof; no two files are alike."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng([*path.as_posix().encode()[-60:]]).normal(size=3_200)
    samples = samples.cumsum() if spoof else samples
    soundfile.write(path, 0.5 * samples / np.abs(samples).max(), 16_000)
