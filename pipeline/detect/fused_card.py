"""The card `package.json` of a package of a fusion, and where the cards of its members lie."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from pipeline.core.sections import Name
from pipeline.detect.package_card import (
    AGAIN,
    CALIBRATION_FILE,
    CARD_FILE,
    MOST_NUMBER,
    MOST_TEXT,
    Digest,
    FileName,
    PackageSection,
    PackedSet,
    RunName,
    check,
    doubts_of,
    told_by,
    valid,
)  # fmt: skip
from pipeline.metrics.calibration import Calibration
from pipeline.metrics.verdicts import VerdictRule


class FusedCard(PackageSection):
    """The card of a package of a fusion. Each member has a card of its own, `member_card`.

    weights: of the members, by name. files: digests of all files but the card; of them reading checks the members'
    cards, which have the digests of what they need. training_embeddings: whether the leading member has them.
    """

    name: Name
    note: Annotated[str, Field(max_length=MOST_TEXT)]
    weights: Annotated[dict[RunName, Annotated[float, Field(ge=0, le=MOST_NUMBER)]], Field(min_length=1, max_length=99)]
    offset: Annotated[float, Field(ge=-MOST_NUMBER, le=MOST_NUMBER)]
    threshold: float
    calibration: Calibration | None
    verdicts: VerdictRule | None
    sets: tuple[PackedSet, ...]
    training_embeddings: bool
    files: dict[FileName, Digest]

    @property
    def doubts(self) -> tuple[str, ...]:
        """The warnings of the sets that were evaluated."""
        return doubts_of(self.sets)


def member_card(run: str) -> str:
    """Where the card of a member lies in the package of a fusion."""
    return f"members/{run}.json"


def is_fused(folder: Path) -> bool:
    """Whether a package is that of a fusion. Raises InputError where it has no card of this format."""
    return "weights" in told_by(folder, CARD_FILE)


def read_fused(folder: Path) -> FusedCard:
    """The card of a package of a fusion. Raises InputError for another card, and for other cards of its members."""
    card = valid(FusedCard, told_by(folder, CARD_FILE), folder / CARD_FILE, AGAIN)
    cards = [member_card(run) for run in card.weights]
    read = [name for name in (*cards, CALIBRATION_FILE) if name in card.files]
    check(folder, {name: card.files[name] for name in read}, needed=cards)
    return card


def checked_fused(told: Mapping[str, Any], path: Path, *, remedy: str) -> FusedCard:
    """The card of a fusion that a file will hold; see `package_card.checked`."""
    return valid(FusedCard, told, path, remedy)
