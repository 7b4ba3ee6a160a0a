"""PartialSpoof: utterances of ASVspoof 2019 LA with segments of spoof put into bona fide speech.

`root` is the folder `database` that the official download (https://zenodo.org/records/5766198) unpacks into:

    database/
        train/con_wav/CON_T_0000029.wav
        dev/con_wav/..., eval/con_wav/...
        protocols/PartialSpoof_LA_cm_protocols/
            PartialSpoof.LA.cm.train.trl.txt             split train
            PartialSpoof.LA.cm.dev.trl.txt               split dev
            PartialSpoof.LA.cm.eval.trl.txt              split eval
        segment_labels/
            train_seglab_0.16.npy                        split train, segments of 0.16 s; the others alike

Protocol: `speaker utterance - attack label`, parted by white space. Spoofs are named CON_..., with the attack CON; bona
fide keep their names LA_... and have the attack `-`. An utterance with any spoof in it is a spoof.

Or the protocol is a file of segment labels. Then the trials are those of the `.trl.txt` of the split below `root`, and
the attack of a spoof says how many of its segments are spoofed: `CON_25` up to 25 %, `CON_50`, `CON_75` and `CON_100`
up to these, and `CON_0` none. So metrics by attack show what a system does with short spoofs. A bona fide utterance
with a spoofed segment is an error. Such a file is a dict of utterances, for each an array of the characters 1 (bona
fide) and 0 (spoof), pickled in the NPY format. It is read without making any of its objects.

Source: https://github.com/nii-yamagishilab/PartialSpoof, where 03multireso/model.py reads the segment labels;
generate_partialspoof.py of DeepFense, which has the folders and the labels as characters; another public reader of
these; Zhang et al., The PartialSpoof Database, arXiv 2204.05177.
"""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from pipeline.core.errors import InputError, listing
from pipeline.core.trial_table import LABELS, Row, Trials
from pipeline.corpora import _formats, _protocols

CORPUS = "partialspoof"
SPOOF = "CON_"
SEGMENTS = ".npy"
SHARES = np.array([0, 25, 50, 75, 100])  # percent of the segments, each up to and with the number
CHARACTERS = {"1", "0"}  # bona fide, spoof
ARRAYS = {"ndarray", "dtype", "_reconstruct"}  # all that NumPy makes an array of
CODES = {"U1": "u4", "S1": "u1"}  # how arrays of characters hold them


def trials(root: Path, protocol: Path, split: str) -> Trials:
    """The trials of a protocol file, or of the split that segment labels are of; paths relative to `root`.

    Raises InputError where `_protocols.read` does, for an utterance of another split, for a spoof of ASVspoof 2019, and
    for segment labels that cannot be read or contradict the protocol.
    """
    if protocol.suffix != SEGMENTS:
        return _utterances(protocol, split)
    utterances = root / "protocols/PartialSpoof_LA_cm_protocols" / f"PartialSpoof.LA.cm.{split}.trl.txt"
    return _with_shares(_utterances(utterances, split), utterances, protocol)


def _utterances(protocol: Path, split: str) -> Trials:
    """The trials of a list of utterances."""

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


def _with_shares(table: Trials, protocol: Path, segments: Path) -> Trials:
    """The trials with the share of spoofed segments in the attack. Raises InputError where both files contradict."""
    labels = _read(segments)
    attacks: list[str] = table.attack.tolist()
    wrong: dict[str, str] = {}
    for i, (name, bonafide) in enumerate(zip(table.utterance.tolist(), table.is_bonafide.tolist(), strict=True)):
        found = labels.get(name)
        if found is None:
            if not bonafide:
                wrong[name] = f"{name} is a spoof, and {segments} has no segments of it"
            continue
        characters = _characters(segments, name, found)
        spoofed = int((characters == "0").sum())
        if bonafide and spoofed:
            wrong[name] = (
                f"{name} is bona fide, and {segments} has {spoofed} of its {len(characters)} segments as spoof"
            )
        elif not bonafide:
            attacks[i] = f"{SPOOF}{SHARES[np.searchsorted(SHARES, 100 * spoofed / len(characters))]}"
    if wrong:
        places = {cells[1]: number for number, cells in _protocols.lines(protocol, CORPUS)}
        told = [f"{protocol}:{places[name]}: {said}" for name, said in wrong.items()]
        raise InputError(
            f"{len(wrong)} utterances contradict their segment labels; are they of this split?\n{listing(told)}"
        )
    return dataclasses.replace(table, attack=np.array(attacks))


def _characters(segments: Path, name: str, found: Any) -> Any:
    """The labels of the segments of an utterance, (segments,) of characters. Raises InputError for any other value."""
    try:
        characters = np.asarray(found.texts() if isinstance(found, _Piece) else found).astype(str)
    except (AttributeError, LookupError, OverflowError, TypeError, ValueError):  # pieces of something else
        characters = np.array([])
    if characters.ndim != 1 or not len(characters) or not {*characters.tolist()} <= CHARACTERS:
        raise InputError(f"{segments}: {name}: expected an array of 1 (bona fide) and 0 (spoof), got something else")
    return characters


class _Piece:
    """Something that a pickle makes by a call: it keeps what the pickle says and does nothing."""

    def __init__(self, *given: Any) -> None:
        self.given = given
        self.state: Any = ()

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def texts(self) -> Any:
        """The values of a pickled array: a list, or an array of characters. Raises errors of many kinds for others."""
        _, _, kind, _, values = self.state
        if isinstance(values, list):
            return values
        if not isinstance(values, bytes):
            raise TypeError
        codes = np.frombuffer(values, kind.state[1] + CODES[kind.given[0]])
        return [chr(code) for code in codes.tolist()]


class _Pieces(pickle._Unpickler):  # the one in Python
    """Reads a pickle of arrays without making one: neither code of the file runs, nor NumPy's on its bytes."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] != "numpy" or name not in ARRAYS:
            raise pickle.UnpicklingError(f"it holds a {module}.{name}")
        return _Piece


def _read(path: Path) -> dict[str, Any]:
    """The segment labels of every utterance of a file. Raises InputError for any other file."""
    if not path.is_file():
        raise InputError(f"{path}: no such segment labels; check `protocol` of the set")
    try:
        with path.open("rb") as file:
            header = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
            header(file)
            (labels,) = _Pieces(file).load().texts()  # one dict in an array without dimensions
    except Exception as error:  # a damaged file gives errors of many kinds
        said = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(
            f"{path}: expected the segment labels of PartialSpoof, such as train_seglab_0.16.npy: {said}; download it "
            "again"
        ) from None
    if not isinstance(labels, dict):
        raise InputError(f"{path}: expected a dict of utterances, got a {type(labels).__name__}; download it again")
    return labels
