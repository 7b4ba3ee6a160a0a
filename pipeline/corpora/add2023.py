"""ADD 2023, track 1.2: Chinese speech and fakes of the challenge's own generation track.

`root` is the folder of one part of the download:

    testR2/
        label.txt                             the protocol
        wav/ADD2023_T1.2R2_E_00000003.wav
    train/, dev/                              laid out alike

Protocol: `file label`, parted by white space, such as `ADD2023_T1.2R2_E_00000003.wav genuine`; the labels are genuine
and fake. An utterance is named as its file. The only split is `all`. Nothing is known of speakers and systems.

Source: ADD2023.py of AntiDeepfake; a script that reads label.txt of testR1 for SLS; another public reader, which has
train and dev as above and reads no labels of the test parts; http://addchallenge.cn/add2023; Yi et al., ADD 2023, arXiv
2305.13774.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.core.trial_table import Row, Trials
from pipeline.corpora import _formats, _lines, _protocols


def trials(root: Path, protocol: Path, split: str) -> Trials:
    """The trials of a protocol file, paths relative to `root`.

    Raises InputError where `_lines.worded_lines` and `_protocols.of_split` do.
    """
    del root  # paths stay relative to it; `prepare` looks at the audio
    rows = (
        Row(where, file, f"wav/{file}", _protocols.label_of(word))
        for where, (file, word) in _lines.worded_lines(protocol, "file label")
    )
    return _protocols.of_split(protocol, split, ((_formats.ALL, row) for row in rows))
