"""Protocol and key files of the public corpora: finding a file's corpus, and reading its trials.

A protocol lists trials and their class; a key is the protocol of an evaluation. The first lines of a file are enough
to recognise its corpus, so a key can be read without its audio, and a file of the wrong corpus is named.

corpus            a line; [MOS] stands in some files only
asvspoof2019_la   LA_0079 LA_T_1138215 - - bonafide [MOS]
asvspoof2021_la   LA_0009 LA_E_9332881 alaw ita_tx A07 spoof notrim eval
asvspoof2021_df   LA_0023 DF_E_2000011 nocodec asvspoof A14 spoof notrim progress traditional_vocoder - - - -
asvspoof5         E_1607 E_0009538969 M C05 2 E_0009486171 AC1 A26 spoof -
partialspoof      LA_0079 CON_T_0000029 - CON spoof           a file that begins with a whole spoof is of 2019
in_the_wild       0.wav,Alec Guinness,spoof[,MOS]           the header file,speaker,label stands in some files only
for_norm          fake/file1848.wav_16k.wav_norm.wav_mono.wav_silence,spoof                  header file,label
manifest          any CSV file whose header has the columns path, label, split
table             what `prepare` writes, see `pipeline.core.trial_table`

Sources: the files themselves, or the documents that the adapters in `pipeline/corpora/` name.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

from pipeline.core.errors import InputError, listing
from pipeline.core.trial_table import CLASS_OF, COLUMNS, Row, Trials, from_rows

TABLE, MANIFEST = "table", "manifest"
MANIFEST_COLUMNS = ("path", "label")
SPLIT_OF = {"T": "train", "D": "dev", "E": "eval"}  # the letter in the names of ASVspoof utterances
LABELS = {"bona-fide": "bonafide"}  # the words of In-the-Wild and FoR that are not ours
PHASES = ("eval", "progress", "hidden")  # the words of the ASVspoof 2021 keys
ALL = "all"
SHOWN = 100  # characters of a line in a message

ReadRow = Callable[[str, Sequence[str]], Row]  # file and line for messages, and the cells of a line -> the trial


@dataclass(frozen=True)
class Format:
    """The layout of the lines of a corpus.

    cells: what a line holds, in order; a MOS may follow where `mos`. name: the cell whose looks differ between the
    corpora, and pattern: its regular expression. words: the labels. splits: what `split` may be, the default first.
    prefixes: how the names of the utterances of each split begin, where they say it. source: where the file is found.
    comma: a CSV file, with or without its header; else white space parts the cells.
    """

    cells: str
    name: str
    pattern: str
    words: tuple[str, ...]
    splits: tuple[str, ...]
    source: str
    prefixes: Mapping[str, str] = field(default_factory=dict)
    mos: bool = False
    comma: bool = False

    def __str__(self) -> str:
        line = self.cells + (" [MOS]" if self.mos else "")
        return line.replace(" ", ",") if self.comma else line

    @property
    def columns(self) -> list[str]:
        """The names of the cells."""
        return self.cells.split()

    @property
    def kind(self) -> str:
        """What the corpus calls a split."""
        return "phase" if ALL in self.splits else "split"

    def is_header(self, cells: Sequence[str]) -> bool:
        """Whether cells are the header of a CSV file."""
        return self.comma and list(cells[: len(self.columns)]) == self.columns

    def fits(self, cells: Sequence[str]) -> bool:
        """Whether cells are a trial of this corpus."""
        if len(cells) - len(self.columns) not in ((0, 1) if self.mos else (0,)):
            return False
        name, label = cells[self.columns.index(self.name)], cells[self.columns.index("label")]
        return bool(re.fullmatch(self.pattern, name)) and label in self.words


FORMATS = {
    "asvspoof2019_la": Format(
        cells="speaker utterance - attack label",
        mos=True,
        name="utterance",
        pattern="LA_[TDE]_[0-9]+",
        words=("bonafide", "spoof"),
        splits=("train", "dev", "eval"),
        prefixes={"train": "LA_T_", "dev": "LA_D_", "eval": "LA_E_"},
        source="a file ASVspoof2019.LA.cm.*.txt of ASVspoof2019_LA_cm_protocols",
    ),
    "asvspoof2021_la": Format(
        cells="speaker utterance codec transmission attack label trim phase",
        name="utterance",
        pattern="LA_E_[0-9]+",
        words=("bonafide", "spoof"),
        splits=(*PHASES, ALL),
        source="keys/LA/CM/trial_metadata.txt of LA-keys-full.tar.gz",
    ),
    "asvspoof2021_df": Format(
        cells="speaker utterance codec source attack label trim phase vocoder task team gender language",
        name="utterance",
        pattern="DF_E_[0-9]+",
        words=("bonafide", "spoof"),
        splits=(*PHASES, ALL),
        source="keys/DF/CM/trial_metadata.txt of DF-keys-full.tar.gz",
    ),
    "asvspoof5": Format(
        cells="speaker utterance gender codec codec_q codec_seed attack_tag attack label -",
        name="utterance",
        pattern="[TDE]_[0-9]+",
        words=("bonafide", "spoof"),
        splits=("train", "dev", "eval"),
        prefixes={"train": "T_", "dev": "D_", "eval": "E_"},
        source="ASVspoof5.train.tsv, ASVspoof5.dev.track_1.tsv or ASVspoof5.eval.track_1.tsv",
    ),
    "partialspoof": Format(
        cells="speaker utterance - attack label",
        name="utterance",
        pattern="(CON|LA)_[TDE]_[0-9]+",
        words=("bonafide", "spoof"),
        splits=("train", "dev", "eval"),
        source="a file PartialSpoof.LA.cm.*.trl.txt of PartialSpoof_LA_cm_protocols",
    ),
    "in_the_wild": Format(
        cells="file speaker label",
        mos=True,
        comma=True,
        name="file",
        pattern=r"[0-9]+\.wav",
        words=("bona-fide", "spoof"),
        splits=("eval",),
        source="meta.csv of release_in_the_wild",
    ),
    "for_norm": Format(
        cells="file label",
        comma=True,
        name="file",
        pattern="(fake|real)/.+",
        words=("bona-fide", "spoof"),
        splits=("eval",),
        source="a list of for-norm/testing (`pipeline/corpora/for_norm.py` says how to make one)",
    ),
}


def recognise(path: Path) -> str | None:
    """Name of the corpus that a protocol belongs to, `manifest`, `table`, or None.

    It looks at the first two lines only. Raises InputError where there is no file, or no UTF-8 text.
    """
    head = list(islice((line for line in _lines(path) if not line.isspace()), 2))
    for corpus, form in FORMATS.items():
        cells = [_commas(line) if form.comma else line.split() for line in head]
        body = cells[1:] if cells and form.is_header(cells[0]) else cells
        if body and form.fits(body[0]):
            return corpus
    columns = _commas(head[0]) if head else []
    if tuple(columns) == COLUMNS:
        return TABLE
    return MANIFEST if {*MANIFEST_COLUMNS, "split"} <= set(columns) else None


def _commas(line: str) -> list[str]:
    """The cells of a line of a CSV file, none where the line is no CSV."""
    try:
        return next(csv.reader([line]), [])
    except csv.Error:
        return []


def default_split(path: Path, corpus: str) -> str:
    """The split of a protocol where the user names none.

    For ASVspoof 2021 the phase `eval`, as published results have it; for ASVspoof 2019 and 5 the split that the names
    of the utterances say; for others the only split. Raises InputError for a manifest of several splits.
    """
    if corpus == MANIFEST:
        return _only_split(path)
    splits = FORMATS[corpus].splits
    if set(splits) != set(SPLIT_OF.values()):
        return splits[0]
    _, (_, utterance, *_) = next(lines(path, corpus))
    return SPLIT_OF[utterance.rpartition("_")[0][-1:]]


def _only_split(path: Path) -> str:
    """The split of a manifest that has no other."""
    numbered = csv_cells(path)
    at = next(numbered)[1].index("split")
    found = sorted({cells[at] for _, cells in numbered if len(cells) > at})
    if len(found) != 1:
        raise InputError(f"{path}: expected trials of one split, got {', '.join(found) or 'none'}; say which to read")
    return found[0]


def read(path: Path, corpus: str, split: str, row: ReadRow) -> Trials:
    """The trials of one split of a protocol, or of one phase of a key; `row` makes the cells of a line a trial.

    Raises InputError, with file and line, for a split that the corpus does not have, another corpus's protocol, an
    utterance of another split, an unknown phase, a line that is cut off, and whatever
    `pipeline.core.trial_table.from_rows` refuses.
    """
    form = FORMATS[corpus]
    if split not in form.splits:
        raise InputError(
            f"{path}: expected the {form.kind} {', '.join(form.splits)} of {corpus}, got {split!r}; "
            "set `split` to one of these"
        )
    source = str(path) if len(form.splits) == 1 else f"{path} ({form.kind} {split})"
    return from_rows(_rows(path, corpus, split, row), source=source)


def _rows(path: Path, corpus: str, split: str, row: ReadRow) -> Iterator[Row]:
    """The trials of a split, line by line."""
    form, file = FORMATS[corpus], str(path)
    phase = form.columns.index("phase") if "phase" in form.columns else None
    prefix = form.prefixes.get(split, "")
    for number, cells in lines(path, corpus):
        where = f"{file}:{number}"
        if phase is not None and not in_phase(where, cells[phase], split):
            continue
        found = row(where, cells)
        if not found.utterance.startswith(prefix):
            raise _other_split(where, found.utterance, split)
        yield found


def in_phase(where: str, phase: str, split: str) -> bool:
    """Whether a trial of an ASVspoof 2021 key is of the phase asked for. Raises InputError for an unknown phase."""
    if phase not in PHASES:
        raise InputError(f"{where}: expected the phase {', '.join(PHASES)}, got {phase!r}; mend the line")
    return split in (phase, ALL)


def _other_split(where: str, utterance: str, split: str) -> InputError:
    """The error for an utterance of another split, as its name says."""
    found = SPLIT_OF.get(utterance.rpartition("_")[0][-1:])
    mend = f"give the protocol of {split}" + (f", or set `split: {found}`" if found else "")
    return InputError(f"{where}: expected an utterance of split {split}, got {utterance}; {mend}")


def check_split(where: str, utterance: str, split: str) -> None:
    """Raise InputError where the name of an utterance says another split, by the letter before its last number."""
    if SPLIT_OF.get(utterance.rpartition("_")[0][-1:]) != split:
        raise _other_split(where, utterance, split)


def lines(path: Path, corpus: str) -> Iterator[tuple[int, list[str]]]:
    """Number and cells of every trial; a MOS that the file does not have comes as a last, empty cell.

    Blank lines are skipped. Raises InputError, with file and line, for a missing file, text that is not UTF-8, and a
    protocol of another corpus, which it names; after the last line also for all lines that are too short or too long.
    """
    form = FORMATS[corpus]
    numbered = _cells(path, form)
    head = list(islice(numbered, 2))
    body = head[1:] if head and form.is_header(head[0][1]) else head
    if not body or not form.fits(body[0][1]):
        raise _mismatch(path, corpus, *(body[0] if body else (len(head) + 1, [])))
    width = len(body[0][1])
    without_mos = form.mos and width == len(form.columns)
    problems: list[str] = []
    for number, cells in chain(body, numbered):
        if len(cells) != width:
            problems.append(f"{path}:{number}: expected {width} cells, got {len(cells)}: {' '.join(cells)[:SHOWN]!r}")
            continue
        if without_mos:
            cells.append("")
        yield number, cells
    if problems:
        raise InputError(
            f"{len(problems)} lines are not `{form}` like the first; mend or remove them:\n{listing(problems)}"
        )


def _mismatch(path: Path, corpus: str, number: int, cells: Sequence[str]) -> InputError:
    """The error for a line that is no trial of a corpus."""
    got = repr(" ".join(cells)[:SHOWN]) if cells else "the end of the file"
    return InputError(
        f"{path}:{number}: expected lines `{FORMATS[corpus]}` of {corpus}, got {got}; {remedy(path, corpus)}"
    )


def remedy(path: Path, corpus: str) -> str:
    """How to mend a file that is no protocol of a corpus, and the corpus that it looks like."""
    other = recognise(path)
    source = "a CSV file with these columns" if corpus == MANIFEST else FORMATS[corpus].source
    if other == TABLE:
        return f"this is a trial table, which `prepare` makes; give {source}"
    if other and other != corpus:
        return f"this looks like a protocol of {other}: set `corpus: {other}`"
    return f"mend the line, or give {source}"


def _cells(path: Path, form: Format) -> Iterator[tuple[int, list[str]]]:
    """Number and cells of every line that is not blank."""
    if form.comma:
        yield from csv_cells(path)
        return
    for number, line in enumerate(_lines(path), start=1):
        if cells := line.split():
            yield number, cells


def csv_cells(path: Path, separator: str = ",") -> Iterator[tuple[int, list[str]]]:
    """Number and cells of every line of a CSV file that is not blank, the header among them.

    A row over several lines has the number of its first one. Raises InputError with file and line where there is no
    file, no UTF-8 text, or no CSV.
    """
    reader = csv.reader(_lines(path), strict=True, delimiter=separator)
    first = 1
    try:
        for cells in reader:
            if cells:
                yield first, cells
            first = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}:{first}: not valid CSV: {error}; is a quote left open?") from None


def named_cells(path: Path, wanted: Sequence[str], separator: str = ",") -> Iterator[tuple[str, list[str]]]:
    """File and line, and the cells of the wanted columns, of every trial of a CSV file whose header names its columns.

    Raises InputError for a missing column, and after the last line for all lines that are too short or too long.
    """
    numbered = csv_cells(path, separator)
    first, names = next(numbered, (1, []))
    if missing := [name for name in wanted if name not in names]:
        got = separator.join(names)[:SHOWN]
        raise InputError(
            f"{path}:{first}: expected the columns {', '.join(wanted)}; {', '.join(missing)} not in {got!r}"
        )
    places = [names.index(name) for name in wanted]
    wrong = []
    for number, cells in numbered:
        if len(cells) == len(names):
            yield f"{path}:{number}", [cells[place] for place in places]
        else:
            wrong.append(f"{path}:{number}: expected {len(names)} cells, got {len(cells)}")
    if wrong:
        raise InputError(f"{len(wrong)} lines are not as the header says; mend or remove them:\n{listing(wrong)}")


def worded_lines(path: Path, line: str) -> Iterator[tuple[str, list[str]]]:
    """File and line, and the cells, of every line whose cells white space parts. line: the names of the cells.

    Raises InputError, after the last line, for all lines that have more or fewer cells.
    """
    wrong = []
    for number, text in enumerate(_lines(path), start=1):
        cells = text.split()
        if len(cells) == len(line.split()):
            yield f"{path}:{number}", cells
        elif cells:
            wrong.append(f"{path}:{number}: expected `{line}`, got {text.strip()[:SHOWN]!r}")
    if wrong:
        raise InputError(f"{len(wrong)} lines cannot be used; mend or remove them:\n{listing(wrong)}")


def of_split(path: Path, split: str, rows: Iterable[tuple[str, Row]]) -> Trials:
    """The trials of a split, of rows that each say their own; `all` takes every row.

    Raises InputError where no row is of the split, and whatever `pipeline.core.trial_table.from_rows` refuses.
    """
    kept, seen = [], set()
    for own, row in rows:
        seen.add(own)
        if split in (own, ALL):
            kept.append(row)
    if not kept:
        raise InputError(
            f"{path}: expected the split {', '.join(sorted(seen)) or 'of some trial'} or all, got {split!r}"
        )
    return from_rows(kept, source=f"{path} (split {split})")


def label_of(word: str) -> str:
    """Our word for the class that a file names by another one; a word that is none stays, and is refused later."""
    return CLASS_OF.get(word.strip().lower(), word)


def _lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, with or without a byte order mark; they may end in LF, CR LF or CR."""
    if not path.is_file():
        raise InputError(f"{path}: no such protocol or key; check the path")
    with path.open("rb") as file:
        for number, line in enumerate(chain.from_iterable(map(_at_cr, file)), start=1):
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                byte = f"{line[error.start]:#x}"
                raise InputError(f"{path}:{number}: expected UTF-8 text, got byte {byte}; save it as UTF-8") from None
            yield text.removeprefix("\ufeff") if number == 1 else text


def _at_cr(line: bytes) -> list[bytes]:
    """A line that ends in LF or CR LF, as the lines in it that end in CR."""
    return line.splitlines(keepends=True) if b"\r" in line else [line]
