"""ADD 2022: Chinese speech and fakes of the first Audio Deep synthesis Detection challenge.

The parts of the download lie differently: ADD_train_dev has label/train_label.txt beside train/, track1adp_out has
label.txt among its files, and the evaluation of track 3.2 has track3_R2_label.txt beside wav/. So `root` is the folder
with the files that the protocol lists:

    ADD_T_00000000.wav                    of ADD_train_dev/train
    ADD_D_00000000.wav                    of ADD_train_dev/dev
    ADD_E3_00000000.wav                   of the wav/ of track 3.2

Protocol: `file label` or `file label number`, parted by white space, such as `ADD_T_00000000.wav genuine`. The labels
are words: genuine and fake, or bonafide and spoof. The number of track 3.2 is not read, as no source says what it
means. A file without a suffix is a WAV. An utterance is named as in the protocol. The only split is `all`. Nothing is
known of speakers and systems.

Source: three public readers that agree on the lines: DeepFense's script for ADD22, which has those of train, dev and
tracks 1 and 3; a loader of ADD_train_dev and track1adp_out; a script with ADD_train_dev/label/dev_label.txt and
track3_R2_label.txt; http://addchallenge.cn/add2022; Yi et al., ADD 2022, ICASSP 2022, arXiv 2202.08433.
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
        Row(where, file, file if Path(file).suffix else f"{file}.wav", _protocols.label_of(word))
        for where, (file, word, *_) in _lines.worded_lines(protocol, "file label", "file label number")
    )
    return _protocols.of_split(protocol, split, ((_formats.ALL, row) for row in rows))
