"""Real data that lie in a folder beside the project, as they are not ours to copy. Without them their tests skip."""

from __future__ import annotations

from pathlib import Path

import pytest

BESIDE = Path(__file__).parents[2] / "shared"
SCORES, PROTOCOLS, SPEECH = BESIDE / "scores", BESIDE / "protocols", BESIDE / "speech"
CASES = BESIDE / "cases"

# What lies in each folder, and where it comes from.
SOURCES = {
    SCORES: "published score files of the ASVspoof 2019 LA evaluation and its ASV scores, from "
    "https://github.com/yzyouzhang/AIR-ASVspoof and LA.zip of https://datashare.ed.ac.uk/handle/10283/3336",
    PROTOCOLS: "protocol files of the public corpora, from the downloads that pipeline/corpora/*.py name",
    SPEECH: "digits and wild, two small corpora of free real speech, each with a manifest trials.csv",
    CASES: "small awkward inputs, as users have reported them",
}


def needs(folder: Path) -> pytest.MarkDecorator:
    """Skip a test where a folder is absent; the reason says what belongs there."""
    return pytest.mark.skipif(not folder.is_dir(), reason=f"{folder} is absent; put there {SOURCES[folder]}")
