"""WaveFake: LJSpeech and JSUT through seven vocoders, and text to speech in LJSpeech's voice.

The official download has no bona fide speech, so `root` is a folder with three downloads side by side; links do. There
is no list of trials, so `protocol` is any small file that changes with the downloads:

    generated_audio/                                        https://zenodo.org/records/5642694
        ljspeech_melgan/LJ001-0001_gen.wav
        ljspeech_hifiGAN/, ljspeech_waveglow/, ...
        jsut_multi_band_melgan/BASIC5000_0001_gen.wav
        jsut_parallel_wavegan/
        common_voices_prompts_from_conformer_fastspeech2_pwg_ljspeech/gen_0.wav
    LJSpeech-1.1/wavs/LJ001-0001.wav                        https://keithito.com/LJ-Speech-Dataset
    jsut_ver1.1/basic5000/wav/BASIC5000_0001.wav            https://sites.google.com/site/shinnosuketakamichi

Spoofs are the audio files directly in a folder of generated_audio. Folders inside it are not read: the last one holds
its 16,283 files a second time, in `generated`. The folder's name is the attack. Each corpus has one speaker. Utterances
are named `<folder>/<file without its suffix>`, as the folders share the names of files.

`split` is `ljspeech` or `jsut`, which takes the folders with this word in their names and the bona fide of that corpus,
or `all`.

Source: WaveFake.py of AntiDeepfake, which has the folders of spoofs; wavefake_dataset.py of deepfake-whisper-features,
which takes bona fide from the two folders above, in a folder real_audio; a public reader that found the files that are
there twice, which DeepFense's script takes twice. AUDDT counts vocoded speech as bona fide. Frank and Schönherr,
WaveFake, NeurIPS 2021, arXiv 2111.02813.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.core.errors import InputError
from pipeline.core.trial_table import LABELS, UNKNOWN, Row, Trials, from_rows
from pipeline.corpora import _folders
from pipeline.corpora._formats import ALL

SPOOFS = "generated_audio"
BONAFIDE = {"ljspeech": "LJSpeech-1.1/wavs", "jsut": "jsut_ver1.1/basic5000/wav"}  # by the corpus, which is the split


def trials(root: Path, protocol: Path, split: str) -> Trials:
    """The trials of a corpus or of `all`, the spoofs first; paths relative to `root`.

    Raises InputError for another split, and where the folders of spoofs or of bona fide are not there.
    """
    if split not in (*BONAFIDE, ALL):
        raise InputError(f"{protocol}: expected the split {', '.join(BONAFIDE)} or {ALL} of wavefake, got {split!r}")
    return from_rows(_rows(root, split), source=f"{root} (split {split})")


def _rows(root: Path, split: str) -> Iterator[Row]:
    """The trials of a split."""
    for corpus, bonafide in BONAFIDE.items():
        if split not in (corpus, ALL):
            continue
        folders = sorted(path for path in (root / SPOOFS).glob(f"*{corpus}*") if path.is_dir())
        if not folders or not (root / bonafide).is_dir():
            hint = _folders.other_root(root, f"{SPOOFS}/*{corpus}*")
            raise InputError(
                f"{root}: expected folders {SPOOFS}/*{corpus}* with the spoofs and {bonafide} with the bona fide, got "
                f"{len(folders)} of the first and {int((root / bonafide).is_dir())} of the second; WaveFake itself has "
                f"no bona fide: put the other download beside it, and check `root` of the set{hint}"
            )
        for folder in folders:
            yield from _of_folder(root, folder, folder.name, corpus, folder.name)
        yield from _of_folder(root, root / bonafide, bonafide.split("/")[0], corpus, UNKNOWN)


def _of_folder(root: Path, folder: Path, name: str, speaker: str, attack: str) -> Iterator[Row]:
    """The audio files of a folder. name: stands before the names of its files."""
    label = LABELS[0] if attack == UNKNOWN else LABELS[1]
    for path in _folders.audio_files(folder):
        yield Row(str(path), f"{name}/{path.stem}", path.relative_to(root).as_posix(), label, speaker, attack)
