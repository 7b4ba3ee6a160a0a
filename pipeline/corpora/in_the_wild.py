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

Source: the file itself; Müller et al., Does Audio Deepfake Detection Generalize?, Interspeech 2022, arXiv 2203.16263.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.core.trial_table import UNKNOWN, Row, Trials, from_rows
from pipeline.corpora import _protocols

CORPUS = "in_the_wild"
LABELS = {"bona-fide": "bonafide", "spoof": "spoof"}


def trials(root: Path, protocol: Path, split: str) -> Trials:
    """The trials of the protocol file, paths relative to `root`; the only split is `eval`.

    Raises InputError, with file and line, for another corpus's protocol, a line that is cut off, and whatever
    `pipeline.core.trial_table.from_rows` refuses.
    """
    del root  # paths stay relative to it; `prepare` looks at the audio
    _protocols.check_split(protocol, CORPUS, split)
    return from_rows(_rows(protocol), source=str(protocol))


def _rows(protocol: Path) -> Iterator[Row]:
    for number, (file, speaker, label, mos) in _protocols.lines(protocol, CORPUS):
        yield Row(f"{protocol}:{number}", file, file, LABELS.get(label, label), speaker, UNKNOWN, mos)
