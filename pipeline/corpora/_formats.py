"""The layouts of the protocol and key files of the public corpora, which know a corpus by its lines.

corpus            a line; [MOS] stands in some files only
asvspoof2019_la   LA_0079 LA_T_1138215 - - bonafide [MOS]
asvspoof2021_la   LA_0009 LA_E_9332881 alaw ita_tx A07 spoof notrim eval
asvspoof2021_df   LA_0023 DF_E_2000011 nocodec asvspoof A14 spoof notrim progress traditional_vocoder - - - -
asvspoof5         E_1607 E_0009538969 M C05 2 E_0009486171 AC1 A26 spoof -
asvspoof5         E_0000000000<TAB>spoof                    below the line filename<TAB>cm-label
partialspoof      LA_0079 CON_T_0000029 - CON spoof           a file that begins with a whole spoof is of 2019
in_the_wild       0.wav,Alec Guinness,spoof[,MOS]           the header file,speaker,label stands in some files only
for_norm          fake/file1848.wav_16k.wav_norm.wav_mono.wav_silence,spoof                  header file,label
manifest          any CSV file whose header has the columns path, label, split
table             what `prepare` writes, see `pipeline.core.trial_table`

Sources: the files themselves, or the documents that the adapters in `pipeline/corpora/` name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

TABLE, MANIFEST = "table", "manifest"
MANIFEST_COLUMNS = ("path", "label")
KEY_OF_FIVE = ("filename", "cm-label")  # the first line of the key in the evaluation package of ASVspoof 5
PHASES = ("eval", "progress", "hidden")  # the words of the ASVspoof 2021 keys
ALL = "all"


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
