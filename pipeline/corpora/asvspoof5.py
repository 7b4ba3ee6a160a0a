"""ASVspoof 5, track 1: crowd-sourced speech (MLS English), 32 attacks, and in the evaluation eleven codecs or none.

`root` is the folder that the official download (https://zenodo.org/records/14498691) is unpacked in:

    flac_T/T_0000000000.flac
    flac_D/D_0000000001.flac
    flac_E_eval/E_0009538969.flac
    ASVspoof5.train.tsv             split train
    ASVspoof5.dev.track_1.tsv       split dev
    ASVspoof5.eval.track_1.tsv      split eval

Protocol: `speaker utterance gender codec codec_q codec_seed attack_tag attack label -`, parted by single spaces in
spite of the name. The codec keeps the file's word, C01 to C11; speech that went through none has `-` in the file and
`none` in the table, where `-` is unknown. Only the evaluation has codecs. Bona fide have the attack `bonafide` in the
file and `-` in the table. An attack's name means another system than the same name in ASVspoof 2019.

Or the key of the evaluation package, `filename<TAB>cm-label` below a line of these two words, which tells neither
speakers nor attacks nor codecs.

split    utterances   bona fide     spoof   attacks
train       182,357      18,797   163,560   A01 to A08
dev         140,950      31,334   109,616   A09 to A16
eval        680,774     138,688   542,086   A17 to A32

Source: README.txt of the download; README of the evaluation package in https://github.com/asvspoof-challenge/asvspoof5;
prep_asv5.py of AUDDT, and ASVspoof5.py of AntiDeepfake, which has flac_T, flac_D and flac_E_eval in three folders (each
is then the `root` of its split); Wang et al., ASVspoof 5, arXiv 2502.08857.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.core.trial_table import UNKNOWN, Row, Trials, from_rows
from pipeline.corpora import _formats, _lines, _protocols

CORPUS = "asvspoof5"
UNCODED = "none"  # the word of ASVspoof 2021 LA
FOLDERS = {"train": "flac_T", "dev": "flac_D", "eval": "flac_E_eval"}


def trials(root: Path, protocol: Path, split: str) -> Trials:
    """The trials of a protocol file, paths relative to `root`.

    Raises InputError where `_protocols.read` does, and for a key with an utterance of another split.
    """
    del root  # paths stay relative to it; `prepare` looks at the audio

    if next(_lines.lines(protocol), "").split() == [*_formats.KEY_OF_FIVE] and split in FOLDERS:
        return from_rows(_of_key(protocol, split), source=f"{protocol} (split {split})")

    def row(where: str, cells: Sequence[str]) -> Row:
        speaker, utterance, _, codec, _, _, _, attack, label, _ = cells
        attack = UNKNOWN if attack == "bonafide" else attack
        codec = UNCODED if codec == UNKNOWN else codec
        return Row(where, utterance, f"{FOLDERS[split]}/{utterance}.flac", label, speaker, attack, "", "", codec)

    return _protocols.read(protocol, CORPUS, split, row)


def _of_key(protocol: Path, split: str) -> Iterator[Row]:
    """The trials of a key of the evaluation package."""
    for where, (utterance, word) in _lines.named_cells(protocol, _formats.KEY_OF_FIVE, "\t"):
        _protocols.check_split(where, utterance, split)
        yield Row(where, utterance, f"{FOLDERS[split]}/{utterance}.flac", _protocols.label_of(word))
