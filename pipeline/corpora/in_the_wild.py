"""In-the-Wild: clips of public figures, genuine and faked, as they were found on the web; for evaluation only.

`root` is the folder `release_in_the_wild` of the official download (release_in_the_wild.zip of
https://huggingface.co/datasets/mueller91/In-The-Wild):

    release_in_the_wild/
        0.wav
        ...
        31778.wav
        meta.csv        the protocol

Protocol: CSV with the header `file,speaker,label`, labels `bona-fide` and `spoof`. A file with MOS has them as a fourth
column and may lack the header. An utterance is named as its file, `0.wav`, as in published score files. Nothing is
known of the systems behind the spoofs.

split    utterances   bona fide    spoof
eval         31,779      19,963   11,816

Source: the file itself; In-the-Wild.py of AntiDeepfake and in_the_wild_dataset.py of deepfake-whisper-features, both of
which name utterances without the suffix; Müller et al., Does Audio Deepfake Detection Generalize?, Interspeech 2022,
arXiv 2203.16263.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.core.trial_table import UNKNOWN, Row, Trials
from pipeline.corpora import _protocols

CORPUS = "in_the_wild"


def trials(root: Path, protocol: Path, split: str) -> Trials:
    """The trials of the protocol file, paths relative to `root`; the only split is `eval`.

    Raises InputError where `_protocols.read` does.
    """
    del root  # paths stay relative to it; `prepare` looks at the audio
    return _protocols.read(protocol, CORPUS, split, _row)


def _row(where: str, cells: Sequence[str]) -> Row:
    file, speaker, label, mos = cells
    return Row(where, file, file, _protocols.LABELS.get(label, label), speaker, UNKNOWN, mos)
