"""Datasets of the Speech Anti-Spoofing Arena, and any other dataset of the Hugging Face hub with its audio inside.

`root` is the folder of the dataset, as `hf download --repo-type dataset SpeechAntiSpoofingBenchmarks/...` makes it:

    README.md                             the protocol: any small file that changes with the dataset
    eval.yaml
    data/
        test-00000-of-00012.parquet       the shards of the split `test`, read in place
        test-00001-of-00012.parquet

The shards have four columns. Only they count; nothing is read from the protocol:

    path      string       name of the file in the original corpus, unique
    audio     struct       its bytes, at 16 kHz, and a path
    label     class label  0 = bona fide, 1 = spoof
    notes     string       JSON with `utterance_id`, and speaker_id, attack, codec and the like where they are known

`split` is the beginning of the files' names, mostly `test`; `all` takes every file. The split `test` of ASVspoof 2021
LA and DF has the trials of all phases, so its EER is no EER of a paper.

Other datasets give the names of their columns in the parameters of the set:

    columns: {audio: audio, label: is_fake, utterance: file_id, speaker: speaker, attack: generator}

`audio` and `label` are needed. Without `utterance` it is `utterance_id` of `notes`, else the `path`, else the path in
the column of the audio. The label is a word, or a number for which the file itself has the word (`ClassLabel` in the
library datasets). Other numbers are refused there, because 0 is spoof in some projects.

Source: docs, loader.py and validate.py of https://github.com/lab260ru/speech_spoof_bench; the page of
https://huggingface.co/datasets/SpeechAntiSpoofingBenchmarks/J-SPAW_LA; prep_dfadd.py of AUDDT, for other columns.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.audio import parquet_rows
from pipeline.core.errors import InputError
from pipeline.core.trial_table import CLASS_OF, LABELS, UNKNOWN, Row, Trials, from_rows
from pipeline.corpora import _folders, _protocols
from pipeline.corpora._formats import ALL

COLUMNS = {"path": "path", "audio": "audio", "label": "label", "notes": "notes"}
KNOWN = (*COLUMNS, "utterance", "speaker", "attack", "codec", "vocoder")
NUMBERS = ["0", "1"]  # words of a class label that say no more than its numbers
NOTES = {  # the names that a fact has in the notes
    "utterance": ("utterance_id",),
    "speaker": ("speaker_id", "speaker"),
    "attack": ("attack", "attack_id", "attack_type"),
    "codec": ("codec",),
    "vocoder": ("vocoder",),
}


def trials(root: Path, protocol: Path, split: str, columns: Mapping[str, str] = COLUMNS) -> Trials:
    """The trials of the shards of a split; the path of each is `<shard>/<column of the audio>/<row>`.

    columns: the names of the columns in the files, by what they hold.

    Raises InputError where there are no shards, for a missing column, a label of unknown meaning, notes that are no
    JSON, and whatever `pipeline.core.trial_table.from_rows` refuses.
    """
    if not protocol.is_file():
        raise InputError(f"{protocol}: no such file; `protocol` is a small file of the dataset, such as its README.md")
    if wrong := sorted({*columns} - {*KNOWN}) or [name for name in ("audio", "label") if name not in columns]:
        raise InputError(f"{root}: expected columns for audio and label, and of {', '.join(KNOWN)}, got {wrong}")
    shards = sorted((root / "data").glob("*.parquet" if split == ALL else f"{split}-*.parquet"))
    if not shards:
        there = sorted({path.name.split("-")[0] for path in (root / "data").glob("*.parquet")})
        raise InputError(
            f"{root}/data: expected files {split}-*.parquet, got those of {', '.join(there) or 'no split'}; check "
            f"`root` and `split`{_folders.other_root(root, 'data/*.parquet')}"
        )
    rows = [row for shard in shards for row in _rows(root, shard, columns)]
    return from_rows(rows, source=f"{root} (split {split})")


def _rows(root: Path, shard: Path, columns: Mapping[str, str]) -> Iterator[Row]:
    """The trials of a shard, without its audio."""
    file = parquet_rows.open_file(shard)
    there = file.schema_arrow.names
    if missing := [name for name in columns.values() if name not in there]:
        raise InputError(f"{shard}: expected the columns {', '.join(missing)}, got {', '.join(there)}")
    class_names = _class_names(file.schema_arrow, columns["label"])
    place = f"{shard.relative_to(root).as_posix()}/{columns['audio']}"
    read = {of: name for of, name in columns.items() if of != "audio"}
    wanted = list(dict.fromkeys(read.values()))
    if "utterance" not in columns and not {"notes", "path"} & {*columns}:
        wanted.append(f"{columns['audio']}.path")
    with parquet_rows.telling(shard):
        lines = (cells for batch in file.iter_batches(columns=wanted) for cells in batch.to_pylist())
        for row, cells in enumerate(lines):
            where = f"{shard}: row {row}"
            found = {of: cells[name] for of, name in read.items()}
            label = _label(where, found["label"], class_names, own=columns == COLUMNS)
            facts = _facts(where, found)
            name = facts["utterance"] or found.get("path") or (cells.get(columns["audio"]) or {}).get("path") or ""
            attack = UNKNOWN if label == LABELS[0] else facts["attack"]
            codec, vocoder = facts["codec"] or UNKNOWN, facts["vocoder"] or UNKNOWN
            yield Row(where, str(name), f"{place}/{row}", label, facts["speaker"], attack, "", "", codec, vocoder)


def _class_names(schema: Any, column: str) -> list[str]:
    """The words of a class label, in the order of its numbers, where the file tells them."""
    try:
        told = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError):
        return []
    return [str(name) for name in told] if isinstance(told, list) else []


def _label(where: str, label: Any, names: list[str], *, own: bool) -> str:
    """The class of a trial. own: whether the columns are the Arena's, where 0 is bona fide."""
    number = label if isinstance(label, int) and not isinstance(label, bool) else None
    if own and names == NUMBERS:
        names = []
    if number is not None and names:
        label = names[number] if 0 <= number < len(names) else None
    elif number in (0, 1) and own:
        label = LABELS[number]
    if isinstance(label, str) and (found := _protocols.label_of(label)) in LABELS:
        return found
    raise InputError(
        f"{where}: expected a label in words ({', '.join(CLASS_OF)}), or a number whose words the file tells, got "
        f"{label if number is None else number!r}{f' of {names}' if names else ''}"
    )


def _facts(where: str, found: Mapping[str, Any]) -> dict[str, str]:
    """Name, speaker, attack, codec and vocoder, from their columns, else from the notes; empty where unknown."""
    notes: Any = {}
    if text := found.get("notes"):
        try:
            notes = json.loads(text)
        except (TypeError, ValueError):
            notes = None
        if not isinstance(notes, dict):
            raise InputError(f"{where}: expected notes as a JSON object, got {text!r}")
    facts = {}
    for of, names in NOTES.items():
        values = (found.get(of), *(notes.get(name) for name in names))
        facts[of] = next((str(value) for value in values if value not in (None, "")), "")
    return facts
