"""SpoofCeleb: speech of VoxCeleb1 as it was found on the web, and 23 systems trained on it.

`root` is the folder `spoofceleb` of the official download (https://huggingface.co/datasets/jungjee/spoofceleb):

    spoofceleb/
        flac/train/a00/id10318/YYsxcZ5saac-00002-006.flac      a00 is bona fide, a01 to a23 are spoof
        flac/development/..., flac/evaluation/...
        metadata/train.csv            split train
        metadata/development.csv      split development
        metadata/evaluation.csv       split evaluation

Protocol: CSV with the header `file,speaker,attack`, the file below `flac/<split>/`. An utterance is named as its file,
with its folders and suffix, as in published score files.

Source: SpoofCeleb.py of AntiDeepfake, datasets.py of spoof_SUPERB, generate_spoofceleb.py of DeepFense, and
prep_spoofceleb.py of AUDDT, which agree on the labels; Jung et al., SpoofCeleb, arXiv 2409.17285.
"""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.core.errors import InputError
from pipeline.core.trial_table import LABELS, UNKNOWN, Row, Trials, from_rows
from pipeline.corpora import _lines

BONAFIDE = "a00"
ATTACK = re.compile("a([01][0-9]|2[0-3])").fullmatch
SPLITS = ("train", "development", "evaluation")


def trials(root: Path, protocol: Path, split: str) -> Trials:
    """The trials of a protocol file, paths relative to `root`.

    Raises InputError for another split, an unknown attack, and where `_lines.named_cells` does.
    """
    del root  # paths stay relative to it; `prepare` looks at the audio
    if split not in SPLITS:
        raise InputError(f"{protocol}: expected the split {', '.join(SPLITS)} of spoofceleb, got {split!r}")
    rows = (
        Row(where, file, f"flac/{split}/{file}", *_class(where, attack, speaker))
        for where, (file, speaker, attack) in _lines.named_cells(protocol, ("file", "speaker", "attack"))
    )
    return from_rows(rows, source=f"{protocol} (split {split})")


def _class(where: str, attack: str, speaker: str) -> tuple[str, str, str]:
    """The label, the speaker and the attack of a trial. Raises InputError for another word, which would be a spoof."""
    if not ATTACK(attack):
        raise InputError(f"{where}: expected an attack from a00 (bona fide) to a23, got {attack!r}; mend the line")
    return (LABELS[0], speaker, UNKNOWN) if attack == BONAFIDE else (LABELS[1], speaker, attack)
