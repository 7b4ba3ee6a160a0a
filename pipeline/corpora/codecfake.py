"""Codecfake: speech of LibriTTS, VCTK and AISHELL-3, and the same through seven neural audio codecs.

Readers place the folders of the official parts differently. So `root` is the folder with the files that the protocol
lists:

    label/train.txt, label/dev.txt, label/C1.txt to C7.txt,     the protocols
    label/A1.txt to A3.txt
    SSB13650058.wav                                             of root, such as train or C7
    F01_SSB13650058.wav

Protocol: `file label number`, parted by white space, the label real or fake. The number is 0 for bona fide, else that
of the codec, which becomes the attack F01 to F07; another word becomes the attack as it is. An utterance is named as
its file. The only split is `all`.

Source: README and raw_dataset.py of https://github.com/xieyuankun/Codecfake; Codecfake.py of AntiDeepfake;
prep_Codecfake.py of AUDDT, which reads the same lines and counts all of C1 to C7 as bona fide, in spite of their
labels; Xie et al., arXiv 2405.04880.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.core.trial_table import UNKNOWN, Row, Trials
from pipeline.corpora import _formats, _lines, _protocols


def trials(root: Path, protocol: Path, split: str) -> Trials:
    """The trials of a protocol file, paths relative to `root`.

    Raises InputError where `_lines.worded_lines` and `_protocols.of_split` do.
    """
    del root  # paths stay relative to it; `prepare` looks at the audio
    rows = (
        Row(where, file, file, _protocols.label_of(word), attack=_attack(number))
        for where, (file, word, number) in _lines.worded_lines(protocol, "file label number")
    )
    return _protocols.of_split(protocol, split, ((_formats.ALL, row) for row in rows))


def _attack(number: str) -> str:
    """The attack of a number, of bona fide 0."""
    if number == "0":
        return UNKNOWN
    return f"F{int(number):02}" if number.isdecimal() else number
