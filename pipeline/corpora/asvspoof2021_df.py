"""ASVspoof 2021 DF: speech of three corpora and the spoofs of over a hundred systems, through lossy codecs.

`root` is the folder `ASVspoof2021_DF_eval` that the four parts of the official download unpack into
(https://zenodo.org/records/4835108); the key is a download of its own
(https://www.asvspoof.org/asvspoof2021/DF-keys-full.tar.gz):

    ASVspoof2021_DF_eval/
        flac/DF_E_2000011.flac
        ASVspoof2021.DF.cm.eval.trl.txt     names alone, no labels
    keys/DF/CM/trial_metadata.txt           the protocol

Key: `speaker utterance codec source attack label trim phase vocoder task team gender language`, parted by white space;
the last four are `-` except for the spoofs of VCC 2020. Codec and vocoder keep the key's words: nocodec, low_mp3,
high_mp3, low_m4a, high_m4a, low_ogg, high_ogg, mp3m4a, oggm4a (C1 to C9); neural_vocoder_autoregressive,
neural_vocoder_nonautoregressive, traditional_vocoder, waveform_concatenation, unknown. Bona fide have the vocoder
`bonafide` in the key and `-` in the table.

phase      utterances   bona fide     spoof
eval          533,928      14,869   519,059   what is published, the one to report
progress       59,325                         the leaderboard while the challenge ran
hidden         18,576                         silence at the ends is cut off
all           611,829      22,617   589,212   another task than the one that is published

Source: https://github.com/asvspoof-challenge/2021, README of eval-package; ASVspoof2021-DF.py of AntiDeepfake and
datasets.py of spoof_SUPERB, both of which take every phase; Liu et al., ASVspoof 2021, arXiv 2210.02437.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.core.trial_table import UNKNOWN, Row, Trials
from pipeline.corpora import _protocols

CORPUS = "asvspoof2021_df"


def trials(root: Path, protocol: Path, split: str) -> Trials:
    """The trials of one phase of the key `protocol`, or of `all`; paths relative to `root`.

    Raises InputError where `_protocols.read` does.
    """
    del root  # paths stay relative to it; `prepare` looks at the audio
    return _protocols.read(protocol, CORPUS, split, _row)


def _row(where: str, cells: Sequence[str]) -> Row:
    speaker, utterance, codec, _, attack, label, _, _, vocoder, *_ = cells
    vocoder = UNKNOWN if vocoder == "bonafide" else vocoder
    return Row(where, utterance, f"flac/{utterance}.flac", label, speaker, attack, "", "", codec, vocoder)
