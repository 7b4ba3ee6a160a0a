"""DFADD: speech of VCTK, and spoofs by five systems of diffusion or flow matching.

`root` is the folder that the ZIP files of the official download (https://huggingface.co/datasets/isjwdu/DFADD) unpack
into. There is no list of trials, so `protocol` is any small file that changes with the download, such as its README.md:

    DATASET_VCTK_BONAFIDE/
        train/, valid/
        test/p227_001.wav
    DATASET_GradTTS/test/p227_001_GradTTS.wav
    DATASET_MatchaTTS/, DATASET_NaturalSpeech2/, DATASET_PflowTTS/, DATASET_StyleTTS2/

All audio files of the folders of a split are its trials. They are named `<system>/<file without its suffix>`, as the
systems share the names of files. The speaker is the part of a file's name before the first `_`.

split    utterances   bona fide   spoof
test          3,755         755   3,000

The hub has DFADD in Parquet files, too: `arena` reads these with `columns: {audio: audio, label: label, utterance:
audio_name}`.

Source: DFADD.py of AntiDeepfake; the plan of the Arena's DFADD (github.com/lab260ru/speech_spoof_bench) and the list of
Speech DF Arena, which have the counts; prep_dfadd.py of AUDDT, for the Parquet files; Du et al., DFADD, SLT 2024, arXiv
2409.08731.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.core.errors import InputError
from pipeline.core.trial_table import LABELS, UNKNOWN, Row, Trials, from_rows
from pipeline.corpora import _folders

BEGIN, BONAFIDE = "DATASET_", "VCTK_BONAFIDE"
SPLITS = ("train", "valid", "test")


def trials(root: Path, protocol: Path, split: str) -> Trials:
    """The trials of a split, paths relative to `root`.

    Raises InputError for another split, and where there are no folders of it.
    """
    if split not in SPLITS:
        raise InputError(f"{protocol}: expected the split {', '.join(SPLITS)} of dfadd, got {split!r}")
    folders = sorted(root.glob(f"{BEGIN}*/{split}"))
    if not folders:
        hint = _folders.other_root(root, f"{BEGIN}*/{split}")
        raise InputError(f"{root}: expected folders {BEGIN}.../{split}, got none; check `root` of the set{hint}")
    return from_rows((row for folder in folders for row in _rows(root, folder)), source=f"{root} (split {split})")


def _rows(root: Path, folder: Path) -> Iterator[Row]:
    """The trials of a system in a split."""
    system = folder.parent.name.removeprefix(BEGIN)
    label, attack = (LABELS[0], UNKNOWN) if system == BONAFIDE else (LABELS[1], system)
    for path in _folders.audio_files(folder):
        place = path.relative_to(root).as_posix()
        yield Row(str(path), f"{system}/{path.stem}", place, label, path.stem.split("_")[0], attack)
