"""PartialSpoof: utterances of ASVspoof 2019 LA with segments of spoof put into bona fide speech.

`root` is the folder `database` that the official download (https://zenodo.org/records/5766198) unpacks into:

    database/
        train/con_wav/CON_T_0000029.wav
        dev/con_wav/..., eval/con_wav/...
        segment_labels/                                  not read: a trial has one label
        protocols/PartialSpoof_LA_cm_protocols/
            PartialSpoof.LA.cm.train.trl.txt             split train
            PartialSpoof.LA.cm.dev.trl.txt               split dev
            PartialSpoof.LA.cm.eval.trl.txt              split eval

Protocol: `speaker utterance - attack label`, parted by white space. Spoofs are named CON_..., with the attack CON; bona
fide keep their names LA_... and have the attack `-`. An utterance with any spoof in it is a spoof.

Source: https://github.com/nii-yamagishilab/PartialSpoof; Zhang et al., The PartialSpoof Database, arXiv 2204.05177.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.core.errors import InputError
from pipeline.core.trial_table import LABELS, Row, Trials
from pipeline.corpora import _formats, _protocols

CORPUS = "partialspoof"
SPOOF = "CON_"


def trials(root: Path, protocol: Path, split: str) -> Trials:
    """The trials of a protocol file, paths relative to `root`.

    Raises InputError where `_protocols.read` does, for an utterance of another split, and for a spoof of ASVspoof 2019.
    """
    del root  # paths stay relative to it; `prepare` looks at the audio

    def row(where: str, cells: Sequence[str]) -> Row:
        speaker, utterance, _, attack, label = cells
        _protocols.check_split(where, utterance, split)
        if label in LABELS and utterance.startswith(SPOOF) != (label == LABELS[1]):
            raise InputError(
                f"{where}: expected {SPOOF}... for spoof and LA_... for bona fide, got {utterance} {label}; is this a "
                f"protocol of ASVspoof 2019? Give {_formats.FORMATS[CORPUS].source}"
            )
        return Row(where, utterance, f"{split}/con_wav/{utterance}.wav", label, speaker, attack)

    return _protocols.read(protocol, CORPUS, split, row)
