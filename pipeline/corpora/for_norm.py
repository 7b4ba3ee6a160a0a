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

Source: file lists of the download; Reimao and Tzerpos, FoR: A Dataset for Synthetic Speech Detection, SpeD 2019.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.core.errors import InputError
from pipeline.core.trial_table import Row, Trials, from_rows
from pipeline.corpora import _protocols

CORPUS = "for_norm"
LABELS = {"bona-fide": "bonafide", "spoof": "spoof"}
FOLDERS = {"bona-fide": "real/", "spoof": "fake/"}


def trials(root: Path, protocol: Path, split: str) -> Trials:
    """The trials of the protocol file, paths relative to `root`; the only split is `eval`.

    Raises InputError, with file and line, for another corpus's protocol, a label that contradicts the folder, a line
    that is cut off, and whatever `pipeline.core.trial_table.from_rows` refuses.
    """
    del root  # paths stay relative to it; `prepare` looks at the audio
    _protocols.check_split(protocol, CORPUS, split)
    return from_rows(_rows(protocol), source=str(protocol))


def _rows(protocol: Path) -> Iterator[Row]:
    for number, (file, label) in _protocols.lines(protocol, CORPUS):
        where = f"{protocol}:{number}"
        if label in FOLDERS and not file.startswith(FOLDERS[label]):
            raise InputError(f"{where}: expected a file below {FOLDERS[label]} for {label}, got {file}; mend the line")
        utterance = file.removesuffix(".wav")
        yield Row(where, utterance, f"testing/{utterance}.wav", LABELS.get(label, label))
