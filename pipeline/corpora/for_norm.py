"""FoR (Fake or Real), version for-norm, its testing part: normalized, 16 kHz, mono, silence trimmed.

`root` is the folder `for-norm` of the official download (https://bil.eecs.yorku.ca/share/for-norm.tar.gz):

    for-norm/
        testing/
            fake/file1848.wav_16k.wav_norm.wav_mono.wav_silence.wav
            real/file1461.wav_16k.wav_norm.wav_mono.wav_silence.wav
        training/, validation/      not used

The download has no protocol. It is a CSV file with the header `file,label` and lines such as
`fake/file1848.wav_16k.wav_norm.wav_mono.wav_silence,spoof` or `real/...,bona-fide`, with or without the last `.wav`; in
the folder `testing` this makes one:

    (echo file,label; ls fake/* | sed 's/$/,spoof/'; ls real/* | sed 's/$/,bona-fide/') > ../testing.csv

An utterance is named as its file, with the folder, without the last `.wav`: both folders hold a file1.wav... of their
own. Nothing is known of speakers and systems.

split    utterances   bona fide   spoof
eval          4,634       2,264   2,370

Source: file lists of the download; FakeOrReal.py of AntiDeepfake and prep_for.py of AUDDT, which walk the same folders.
The list of Speech DF Arena has 2,264 spoofs only. Reimao and Tzerpos, FoR: A Dataset for Synthetic Speech Detection,
SpeD 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.core.errors import InputError
from pipeline.core.trial_table import Row, Trials
from pipeline.corpora import _protocols

CORPUS = "for_norm"
FOLDERS = {"bona-fide": "real/", "spoof": "fake/"}


def trials(root: Path, protocol: Path, split: str) -> Trials:
    """The trials of the protocol file, paths relative to `root`; the only split is `eval`.

    Raises InputError where `_protocols.read` does, and for a label that contradicts the folder.
    """
    del root  # paths stay relative to it; `prepare` looks at the audio
    return _protocols.read(protocol, CORPUS, split, _row)


def _row(where: str, cells: Sequence[str]) -> Row:
    file, label = cells
    if label in FOLDERS and not file.startswith(FOLDERS[label]):
        raise InputError(f"{where}: expected a file below {FOLDERS[label]} for {label}, got {file}; mend the line")
    utterance = file.removesuffix(".wav")
    return Row(where, utterance, f"testing/{utterance}.wav", _protocols.LABELS.get(label, label))
