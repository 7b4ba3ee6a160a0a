"""ASVspoof 2019 LA: read speech from VCTK, and text-to-speech and voice conversion by attacks A01 to A19.

`root` is the folder `LA` of the official LA.zip (https://datashare.ed.ac.uk/handle/10283/3336):

    LA/
        ASVspoof2019_LA_train/flac/LA_T_1138215.flac
        ASVspoof2019_LA_dev/flac/LA_D_1047731.flac
        ASVspoof2019_LA_eval/flac/LA_E_2834763.flac
        ASVspoof2019_LA_cm_protocols/
            ASVspoof2019.LA.cm.train.trn.txt    split train
            ASVspoof2019.LA.cm.dev.trl.txt      split dev
            ASVspoof2019.LA.cm.eval.trl.txt     split eval

Protocol: `speaker utterance - attack label`, parted by white space, attack `-` for bona fide. A MOS may follow as a
last cell, then on every line; it becomes the quality.

split    utterances   bona fide    spoof   attacks
train        25,380       2,580   22,800   A01 to A06
dev          24,844       2,548   22,296   A01 to A06
eval         71,237       7,355   63,882   A07 to A19

Source: README.LA.txt of the download; ASVspoof2019-LA.py of AntiDeepfake, datasets.py of spoof_SUPERB and prep_asv19.py
of AUDDT, which read the same cells; Wang et al., ASVspoof 2019, Computer Speech & Language 64 (2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.core.trial_table import Row, Trials
from pipeline.corpora import _protocols

CORPUS = "asvspoof2019_la"


def trials(root: Path, protocol: Path, split: str) -> Trials:
    """The trials of a protocol file, paths relative to `root`.

    Raises InputError where `_protocols.read` does.
    """
    del root  # paths stay relative to it; `prepare` looks at the audio
    folder = f"ASVspoof2019_LA_{split}/flac"

    def row(where: str, cells: Sequence[str]) -> Row:
        speaker, utterance, _, attack, label, mos = cells
        return Row(where, utterance, f"{folder}/{utterance}.flac", label, speaker, attack, mos)

    return _protocols.read(protocol, CORPUS, split, row)
