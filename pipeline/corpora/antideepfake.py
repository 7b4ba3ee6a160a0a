"""Protocol files of AntiDeepfake: its scripts write one form for more than 30 public corpora.

Protocol: CSV with the header `ID,Label,Duration,SampleRate,Path,Attack,Speaker,Proportion,AudioChannel,AudioEncoding,
AudioBitSample,Language`, in any order; those that are not read may be missing. `Label` is real or fake, and a `Path`
begins with `$ROOT/`, which is `root`:

    ASV19LAdemo-LA_E_7583177,fake,2.22,16000,$ROOT//toy_example/eval/LA_E_7583177.wav,A10,LA_0045,test,1,PCM_S,16,EN

The splits are the words of `Proportion`: train, valid, test, and - where a corpus has none. `all` takes every line.
Some scripts leave the path empty where they found no audio; such lines are refused.

Source: protocols/README.md, all scripts and the three toy_example_*.csv of that folder, and dataio/dataio.py, which
reads them, in https://github.com/nii-yamagishilab/AntiDeepfake.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.core.trial_table import LABELS, UNKNOWN, Row, Trials
from pipeline.corpora import _lines, _protocols

COLUMNS_READ = ("ID", "Label", "Path", "Attack", "Speaker", "Proportion")


def trials(root: Path, protocol: Path, split: str) -> Trials:
    """The trials of one split of a protocol file, paths relative to `root`.

    Raises InputError where `_lines.named_cells` and `_protocols.of_split` do.
    """
    return _protocols.of_split(protocol, split, _rows(root, protocol))


def _rows(root: Path, protocol: Path) -> Iterator[tuple[str, Row]]:
    """The split and the row of every trial."""
    for where, (name, word, path, attack, speaker, split) in _lines.named_cells(protocol, COLUMNS_READ):
        label = _protocols.label_of(word)
        if path.startswith("$ROOT") or root == Path("/"):
            path = path.removeprefix("$ROOT").lstrip("/")
        yield split, Row(where, name, path, label, speaker, UNKNOWN if label == LABELS[0] else attack)
