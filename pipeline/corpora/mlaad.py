"""MLAAD: spoofs in many languages by many systems, with M-AILABS, which it was made from, as its bona fide.

`root` is a folder with MLAAD's folder `fake` and the languages of M-AILABS side by side; links do. There is no single
list of trials, so `protocol` is any small file that changes with the download:

    fake/                                              https://deepfake-total.com/mlaad
        de/tts_models_de_thorsten_vits/
            meta.csv                                   lists the files of this folder
            a file.wav
    de_DE/by_book/female/.../wavs/....wav              https://github.com/imdatceleste/m-ailabs-dataset

A meta.csv has the header `path|original_file|language|is_original_language|duration|training_data|model_name|...`.
Cells are never quoted; quotes in a transcript are text. Only the last part of `path` counts, as versions differ in the
rest. The attack is `model_name`. Bona fide are the files that `original_file` names, each once; a file that is missing
is reported as others are (`on_bad_audio: skip` leaves it out).

`split` is a language of MLAAD, such as `de`, or `all`. Of a language, bona fide are the originals in that language.
Utterances are named as their paths below `root`, with blanks where these have some.

Source: MLAAD.py of AntiDeepfake; create_combined_mlaad_meta_all.py and docs/04-datasets.md of spoof_SUPERB, which takes
all of M-AILABS as bona fide; prep_mlaad.py of AUDDT, which takes the originals, below a folder `real`; Müller et al.,
MLAAD, IJCNN 2024, arXiv 2401.09512.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from pathlib import Path

from pipeline.core.errors import InputError
from pipeline.core.trial_table import LABELS, UNKNOWN, Row, Trials, from_rows, read_text
from pipeline.corpora import _folders
from pipeline.corpora._formats import ALL

COLUMNS_READ = ("path", "original_file", "language", "is_original_language", "model_name")


def trials(root: Path, protocol: Path, split: str) -> Trials:
    """The trials of a language or of `all`, the spoofs first; paths relative to `root`.

    Raises InputError where there is no meta.csv, one lacks a column or has a line that is cut off, and for another
    split.
    """
    del protocol  # each folder has its own list
    metas = sorted((root / "fake").glob("*/*/meta.csv"))
    if not metas:
        hint = _folders.other_root(root, "fake/*/*/meta.csv")
        raise InputError(
            f"{root}: expected files fake/<language>/<system>/meta.csv, got none; check `root` of the set{hint}"
        )
    spoofs: list[Row] = []
    originals: dict[str, Row] = {}
    languages: set[str] = set()
    for meta in metas:
        for where, (path, original, language, is_original, model) in _cells(meta):
            languages.add(language)
            if split not in (language, ALL):
                continue
            place = f"{meta.parent.relative_to(root).as_posix()}/{posixpath.basename(path)}"
            spoofs.append(Row(where, place, place, LABELS[1], UNKNOWN, model))
            if original and (split == ALL or is_original.lower() == "true"):
                originals.setdefault(original, Row(where, original, original, LABELS[0]))
    if not languages:
        raise InputError(
            f"{metas[0]}: expected lines with files, got none, as in all meta.csv; copy or download it again"
        )
    if not spoofs:
        raise InputError(f"{root}: expected the split {', '.join(sorted(languages))} or {ALL}, got {split!r}")
    return from_rows([*spoofs, *originals.values()], source=f"{root} (split {split})")


def _cells(meta: Path) -> Iterator[tuple[str, list[str]]]:
    """File and line, and the cells that are read, of every line below the header of a meta.csv."""
    header, *lines = read_text(meta).rstrip("\n").split("\n")
    names = header.split("|")
    if missing := [name for name in COLUMNS_READ if name not in names]:
        raise InputError(
            f"{meta}:1: expected the columns {'|'.join(COLUMNS_READ)}; {', '.join(missing)} not in {header!r}"
        )
    places = [names.index(name) for name in COLUMNS_READ]
    for number, line in enumerate(lines, start=2):
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) <= max(places):
            raise InputError(
                f"{meta}:{number}: expected {len(names)} cells, got {len(cells)}; copy or download it again"
            )
        yield f"{meta}:{number}", [cells[place] for place in places]
