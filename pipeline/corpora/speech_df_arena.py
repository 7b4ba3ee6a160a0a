"""Protocol files of Speech DF Arena, which list many public corpora in one form.

Protocol: CSV with the header `file_name,label`, such as `/data/data/AntiSpoofing-Datasets/In_Wild/0.wav,spoof`. The
labels are words. An utterance is named as in the file, whole, as the toolkit's score files have it.

`root` takes the place of all that stands before `AntiSpoofing-Datasets/` and of this folder itself:

    In_Wild/0.wav
    for-norm/testing/fake/...

With `root: /` the paths are taken as they are, and other paths are below the root. Absolute paths without this folder,
as in its list of DFADD, need `root: /`, or to be made relative first. The only split is `all`.

Source: README, utils/datamodule.py and utils/metrics.py of https://github.com/Speech-Arena/speech_df_arena, and its
lists of In-the-Wild, FoR, SONAR and DFADD; arXiv 2509.02859.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.core.trial_table import Row, Trials
from pipeline.corpora import _formats, _lines, _protocols

BEFORE = "AntiSpoofing-Datasets/"


def trials(root: Path, protocol: Path, split: str) -> Trials:
    """The trials of a protocol file, paths relative to `root`.

    Raises InputError where `_lines.named_cells` and `_protocols.of_split` do.
    """
    found = _lines.named_cells(protocol, ("file_name", "label"))
    rows = (Row(where, name, _path(root, name), _protocols.label_of(label)) for where, (name, label) in found)
    return _protocols.of_split(protocol, split, ((_formats.ALL, row) for row in rows))


def _path(root: Path, name: str) -> str:
    if root == Path("/"):
        return name.lstrip("/")
    return name.partition(BEFORE)[2] or name
