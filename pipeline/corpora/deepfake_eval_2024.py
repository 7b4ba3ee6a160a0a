"""Deepfake-Eval-2024, its audio: real and fake recordings that went round the web in 2024, whole or in segments.

`root` is the folder of the official download (https://huggingface.co/datasets/nuriachandra/Deepfake-Eval-2024):

    audio-metadata-publish.csv        the protocol of whole recordings
    audio-data/...                    MP3, M4A, MP4 (four of them named .dat) and WAV; some need the extra `av`
    segmented/                        not in the download: made by spoof_superb.data.prep.segment_deepfake_eval
        protocol.txt                  the protocol of segments
        wav/<recording>_seg1.wav      4 s each

Protocol of recordings: CSV whose header has `Filename`, `Ground Truth` (Real or Fake) and `Finetuning Set`. The splits
are `train` and `test` of the last; `all` takes both, 1,980 recordings. Protocol of segments: parted by tabs, with the
header `segment_id  source_file  label  start_s  duration_s`; its only split is `all`.

Recordings last minutes, so a window at their beginning hears little of them: EERs of segments and of recordings do not
compare.

Source: DeepfakeEval2024_preprocess.py of AntiDeepfake, segment_deepfake_eval.py and datasets.py of spoof_SUPERB;
Chandra et al., Deepfake-Eval-2024, arXiv 2503.02857.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.core.trial_table import Row, Trials
from pipeline.corpora import _formats, _lines, _protocols

WHOLE = ("Filename", "Ground Truth", "Finetuning Set")
SEGMENTS = ("segment_id", "label")


def trials(root: Path, protocol: Path, split: str) -> Trials:
    """The trials of one split of the recordings, or all segments; paths relative to `root`.

    Raises InputError where `_lines.named_cells` and `_protocols.of_split` do.
    """
    del root  # paths stay relative to it; `prepare` looks at the audio
    _, head = next(_lines.csv_cells(protocol, "\t"), (1, []))
    rows = _segments(protocol) if SEGMENTS[0] in head else _recordings(protocol)
    return _protocols.of_split(protocol, split, rows)


def _recordings(protocol: Path) -> Iterator[tuple[str, Row]]:
    for where, (name, word, part) in _lines.named_cells(protocol, WHOLE):
        yield part.strip().lower(), Row(where, name, f"audio-data/{name}", _protocols.label_of(word))


def _segments(protocol: Path) -> Iterator[tuple[str, Row]]:
    for where, (name, word) in _lines.named_cells(protocol, SEGMENTS, "\t"):
        yield _formats.ALL, Row(where, name, f"segmented/wav/{name}", _protocols.label_of(word))
