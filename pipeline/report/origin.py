"""What the report says of itself: its title, the encoder, the corpora, and the date and commit of the newest run.

The page holds no date of its own, so that making it again gives the same bytes. Date and commit are those that the
newest training left beside its seconds (`pipeline.training.provenance`); a clone that trained nothing shows none.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from pipeline.core.params import Params
from pipeline.core.sections import SetParams
from pipeline.report.page.page import Origin


def of(settings: Params, seconds: Path) -> Origin:
    """The origin of the report on all runs of the parameters. seconds: folder with <run>.json of runs trained here."""
    date, commit = _newest(seconds / f"{run}.json" for run in settings.runs)
    sets = {name: _corpus(settings.sets[name]) for name in _sets(settings)}
    return Origin(
        title=settings.report.title, encoder=_encoder(settings), corpora=sets, date=date, commit=commit,
        axes=settings.axes,
    )  # fmt: skip


def _sets(settings: Params) -> Iterable[str]:
    """The sets that runs read, each once; those of a pool in its place."""
    members = (member for name in settings.used_sets for member in settings.members(name))
    return dict.fromkeys(members)


def _corpus(own: SetParams) -> str:
    return f"{own.corpus} ({own.split})"


def _encoder(settings: Params) -> str:
    """The source of the encoder and how it was fine-tuned, in words."""
    encoder = settings.encoder
    text = encoder.source if encoder.revision is None else f"{encoder.source}, revision {encoder.revision}"
    if encoder.random:
        text = f"random weights, {encoder.random.layers} layers of {encoder.random.width}"
    tuning = encoder.finetune
    return f"{text}, fine-tuned on {tuning.set} with {tuning.backend} and {tuning.loss}" if tuning else text


def _newest(paths: Iterable[Path]) -> tuple[str, str]:
    """The date and the commit of the newest training, empty where they are unknown."""
    found = [("", "")]
    for path in paths:
        try:
            stamp = json.loads(path.read_text(encoding="utf-8"))
            found.append((str(stamp.get("date", "")), str(stamp.get("commit", ""))))
        except (OSError, ValueError, AttributeError):  # another reader of these files says what is wrong with them
            continue
    date, commit = max(found)
    return date.replace("T", " ").replace("Z", " UTC"), commit
