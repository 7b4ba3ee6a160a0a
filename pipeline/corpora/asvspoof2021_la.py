"""ASVspoof 2021 LA: the speakers and attacks of ASVspoof 2019 LA's evaluation, sent over telephone lines.

`root` is the folder `ASVspoof2021_LA_eval` of the official download (https://zenodo.org/records/4837263); the key is a
download of its own (https://www.asvspoof.org/asvspoof2021/LA-keys-full.tar.gz):

    ASVspoof2021_LA_eval/
        flac/LA_E_9332881.flac
        ASVspoof2021.LA.cm.eval.trl.txt     names alone, no labels
    keys/LA/CM/trial_metadata.txt           the protocol

Key: `speaker utterance codec transmission attack label trim phase`, parted by white space. The codec keeps the key's
word: none, alaw, pstn, g722, ulaw, gsm, opus, which are the conditions C1 to C7. Bona fide have the attack `bonafide`
in the key and `-` in the table.

phase      utterances
eval          148,176   what is published, the one to report
progress                the leaderboard while the challenge ran
hidden                  silence at the ends is cut off
all           181,566   no published number, and another task: pooling the phases can raise the EER tenfold

Source: https://github.com/asvspoof-challenge/2021, README of eval-package; ASVspoof2021-LA.py of AntiDeepfake,
prep_asv21-la.py of AUDDT and datasets.py of spoof_SUPERB, all three of which take every phase; Liu et al., ASVspoof
2021, arXiv 2210.02437.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.core.trial_table import UNKNOWN, Row, Trials
from pipeline.corpora import _protocols

CORPUS = "asvspoof2021_la"


def trials(root: Path, protocol: Path, split: str) -> Trials:
    """The trials of one phase of the key `protocol`, or of `all`; paths relative to `root`.

    Raises InputError where `_protocols.read` does.
    """
    del root  # paths stay relative to it; `prepare` looks at the audio
    return _protocols.read(protocol, CORPUS, split, _row)


def _row(where: str, cells: Sequence[str]) -> Row:
    speaker, utterance, codec, _, attack, label, _, _ = cells
    attack = UNKNOWN if attack == "bonafide" else attack
    return Row(where, utterance, f"flac/{utterance}.flac", label, speaker, attack, "", "", codec)
