"""ReplayDF: bona fide speech of M-AILABS and spoofs of MLAAD, played by loudspeakers and recorded again.

`root` is the folder of the official download (https://huggingface.co/datasets/mueller91/ReplayDF). There is no single
list of trials, so `protocol` is any small file that changes with the download, such as its README.md:

    wav/09252b6aeda2/                       one loudspeaker and microphone in a room
        benign/de/....wav                   bona fide, in one of six languages
        spoof/bark/de/....wav               spoof by a system
        meta.csv                            not read: some lie in the folder of other recordings
    aux/09252b6aeda2/RIR.wav, info.txt      not read

Both classes are recordings of loudspeakers: bona fide means that a person spoke what was played. The system is the
attack. The folder of the recording is the codec, so that metrics show each loudspeaker and microphone apart.

`split` is a language, such as `de`, or `all`. Utterances are named as their paths below `root`.

Source: the script for ReplayDF of DeepFense, which finds the languages de, en, es, fr, it and pl; two further public
readers, one of which found the files meta.csv in wrong folders; Müller et al., Replay Attacks Against Audio Deepfake
Detection, Interspeech 2025, arXiv 2505.14862.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.core.errors import InputError
from pipeline.core.trial_table import LABELS, UNKNOWN, Row, Trials, from_rows
from pipeline.corpora import _folders
from pipeline.corpora._formats import ALL

BONAFIDE, SPOOF = "benign", "spoof"


def trials(root: Path, protocol: Path, split: str) -> Trials:
    """The trials of a language or of `all`, the bona fide first; paths relative to `root`.

    Raises InputError where there are no folders of recordings, and for another split.
    """
    del protocol  # the folders are the list
    folders = sorted([*(root / "wav").glob(f"*/{BONAFIDE}/*"), *(root / "wav").glob(f"*/{SPOOF}/*/*")], key=_order)
    folders = [folder for folder in folders if folder.is_dir()]
    if not folders:
        raise InputError(
            f"{root}: expected folders wav/<recording>/{BONAFIDE}/<language> and "
            f"wav/<recording>/{SPOOF}/<system>/<language>, got none; check `root` of the set"
            f"{_folders.other_root(root, f'wav/*/{BONAFIDE}')}"
        )
    languages = sorted({folder.name for folder in folders})
    if split not in (*languages, ALL):
        raise InputError(f"{root}: expected the split {', '.join(languages)} or {ALL}, got {split!r}")
    chosen = [folder for folder in folders if split in (folder.name, ALL)]
    return from_rows((row for folder in chosen for row in _rows(root, folder)), source=f"{root} (split {split})")


def _order(folder: Path) -> tuple[bool, Path]:
    """Bona fide first, then by name."""
    return folder.parent.name != BONAFIDE, folder


def _rows(root: Path, folder: Path) -> Iterator[Row]:
    """The trials of a folder of one language."""
    recording, kind, *system, _ = folder.relative_to(root / "wav").parts
    label, attack = (LABELS[0], UNKNOWN) if kind == BONAFIDE else (LABELS[1], system[0])
    for path in _folders.audio_files(folder):
        place = path.relative_to(root).as_posix()
        yield Row(str(path), place, place, label, attack=attack, codec=recording)
