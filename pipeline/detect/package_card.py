"""A package's card `package.json`: what it must hold, read and checked."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.analysis import embeddings
from pipeline.core.arguments import TAUGHT_NAME
from pipeline.core.encoder_sections import EncoderParams, RandomEncoder
from pipeline.core.errors import InputError, listing
from pipeline.core.files import read_json
from pipeline.core.sections import Name, WindowParams
from pipeline.metrics.calibration import Calibration
from pipeline.metrics.verdicts import VerdictRule
from pipeline.scoring import runs

FORMAT = 2  # raised when older packages can no longer be read
CARD_FILE, MODEL_CARD_FILE = "package.json", "model_card.md"
CALIBRATION_FILE = "calibration.json"  # where the package was made with one
ENCODER = "encoder"  # the folder of weights that are copied
EMBEDDED = (embeddings.VECTORS_FILE, embeddings.UTTERANCES_FILE, embeddings.CARD_FILE)
MOST_BYTES = 16 * 2**20  # of a card; with many sets and attacks it has 100 kB
MOST_SAMPLES = 16_000 * 600  # of a window, ten minutes
MOST_AT_ONCE = 2**28  # samples of a batch, 1 GB
MOST_WEIGHTS = 2_500_000_000  # of a random encoder; the largest XLSR has 2.2 billion
MOST_LAYERS = 200
MOST_TEXT = 100_000  # characters of a text for people
MOST_NUMBER = 1e100  # of what is for people alone, either sign
EXPLAINING = ("embeddings/", "trials/")  # files that explanations alone need
AGAIN = "copy the package again, or make it anew with `bonafide package`"

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)
RunName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*((-[a-z][a-z0-9_]*){3}-[0-9]+)?$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*$")]  # no ".."
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
TaughtName = Annotated[str, Field(pattern=f"^{TAUGHT_NAME}$")]
ShortText = Annotated[str, Field(max_length=1_000)]
Count = Annotated[int, Field(ge=1, le=2**31)]


def _plain(value: Any) -> Any:
    """A JSON value that nothing computes with. Raises ValueError for a number or a text in it that is out of range."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in parts:
        _plain(part)
    if isinstance(value, int | float) and not abs(value) <= MOST_NUMBER:
        raise ValueError(f"expected numbers up to {MOST_NUMBER:g}, got {str(value)[:40]}")
    if isinstance(value, str) and len(value) > MOST_TEXT:
        raise ValueError(f"expected texts of at most {MOST_TEXT:,} characters, got {len(value):,}")
    return value


PlainObject = Annotated[dict[ShortText, Any], AfterValidator(_plain)]


def _carried(encoder: EncoderParams) -> EncoderParams:
    """An encoder that a package may name. Raises ValueError for a path, and for a random one that no memory holds."""
    if shape := encoder.random:
        weights = shape.layers * shape.width * (4 * shape.width + 2 * shape.feedforward) + 20 * shape.conv_channels**2
        if shape.layers > MOST_LAYERS or weights > MOST_WEIGHTS:
            raise ValueError(f"expected a random encoder of at most {MOST_LAYERS} layers and {MOST_WEIGHTS:,} weights")
    if encoder.finetune is not None or not HUB_NAME.fullmatch(encoder.source):
        raise ValueError(f"expected {ENCODER!r}, 'random' or a hub name as the source, got {encoder.source!r}")
    return encoder


class PackageSection(BaseModel):
    """A part of a card: types are taken as they are, and no number is infinite or nan."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


Card = TypeVar("Card", bound=PackageSection)


def _short(window: WindowParams) -> WindowParams:
    """A window that a package may name. Raises ValueError for a longer one: every file would be filled up to it."""
    if window.samples > MOST_SAMPLES:
        raise ValueError(f"expected at most {MOST_SAMPLES:,} samples, got {window.samples:,}")
    return window


class _OpenSection(PackageSection, extra="allow"):
    """A section with further keys for people, whose values are plain. They are also compared, never computed with."""

    @model_validator(mode="after")
    def _plain_further(self) -> Self:
        _plain(self.model_extra)
        return self


class _PackedFeatures(_OpenSection):
    """What features depend on; of that, what detection cannot do without."""

    window: Annotated[WindowParams, AfterValidator(_short)]


class _PackedMetrics(_OpenSection):
    warnings: tuple[ShortText, ...] = ()


class PackedSet(PackageSection):
    """What a card tells of a set; None where the project did not know."""

    name: Name
    role: Literal["training", "development", "evaluation"]
    corpus: Name
    split: ShortText
    quality: Name
    utterances: Count | None
    receipt: Digest | None
    metrics: _PackedMetrics | None


class _PackedTraining(_OpenSection):
    """How the encoder was fine-tuned."""

    set: Name
    backend: Name
    loss: Name


class _PackedSource(PackageSection):
    """Where the encoder of the project came from, which may be nowhere else."""

    source: ShortText
    revision: ShortText | None = None
    random: RandomEncoder | None = None
    normalize: Literal["auto", "utterance", "none"]
    finetune: _PackedTraining | None = None


class Teaching(PackageSection):
    """Clips that were added to the training embeddings. name: their attack. digest: of the clips' names and bytes."""

    name: TaughtName
    label: Literal["bonafide", "spoof"]
    count: Count
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


class PackageCard(PackageSection):
    """The card as a whole. Names of files are below the package, never outside.

    run: what the card of the run says. centroids: how many. note: of the project's report. training_embeddings: whether
    the package has those that explanations need. versions: of Python and its packages, by name. neighbours: how many of
    each class the score compares with, in a package of `bonafide teach`; None where it compares with centroids. taught:
    what was added to the training embeddings, in order.
    """

    name: RunName
    train_set: Name
    note: Annotated[str, Field(max_length=MOST_TEXT)]
    encoder: Annotated[EncoderParams, AfterValidator(_carried)]
    encoder_source: _PackedSource
    features: _PackedFeatures
    batch_size: Annotated[int, Field(ge=1, le=4_096)]
    run: PlainObject
    centroids: Count
    embedding_dim: Count
    threshold: float
    calibration: Calibration | None
    verdicts: VerdictRule | None = None  # older packages have none
    sets: tuple[PackedSet, ...]
    training_embeddings: bool
    versions: Annotated[dict[ShortText, ShortText], Field(max_length=1_000)]
    files: dict[FileName, Digest]
    neighbours: Annotated[int, Field(ge=1, le=100)] | None = None
    taught: tuple[Teaching, ...] = ()

    @model_validator(mode="after")
    def _fits_memory(self) -> Self:
        if self.batch_size * self.features.window.samples > MOST_AT_ONCE:
            raise ValueError(f"expected batch_size windows of {MOST_AT_ONCE:,} samples at most, got more")
        return self

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        """What the card says twice is the same."""
        scoring = self.run.get("scoring")
        for key in ("centroids", "embedding_dim"):
            told = scoring.get(key) if isinstance(scoring, dict) else None
            if told != getattr(self, key):
                raise ValueError(f"expected {key} as in run.scoring, {told!r}, got {getattr(self, key)}")
        there = any(name.startswith("embeddings/") for name in self.files)
        if self.training_embeddings != there:
            raise ValueError(f"expected training_embeddings: {str(there).lower()}, as the names of files say")
        if (self.taught and self.neighbours is None) or (self.neighbours is not None and not there):
            raise ValueError("expected taught with neighbours, and neighbours with training embeddings")
        return self

    @property
    def doubts(self) -> tuple[str, ...]:
        """The warnings of the sets that were evaluated."""
        return doubts_of(self.sets)

    @property
    def needed(self) -> list[str]:
        """The files that detection needs."""
        run = [f"runs/{self.name}/{file}" for file in (runs.CARD_FILE, runs.BACKEND_FILE, runs.CENTROIDS_FILE)]
        encoder = [f"{ENCODER}/config.json"] if self.encoder.source == ENCODER else []
        return [*run, *encoder]


def doubts_of(sets: Iterable[PackedSet]) -> tuple[str, ...]:
    """The warnings of some sets, each with the name of the set."""
    return tuple(f"on {part.name}, {line}" for part in sets if part.metrics for line in part.metrics.warnings)


def read(folder: Path, name: str = CARD_FILE) -> tuple[PackageCard, dict[str, str]]:
    """The card of a package, and the digests of files that explanations alone need; the others are checked.

    name: of the card, which is another for a member of a fusion.

    Raises InputError for another card, and naming the files that are not those that it lists.
    """
    path = folder / name
    card = checked(told_by(folder, name), path)
    explaining = {name: digest for name, digest in card.files.items() if name.startswith(EXPLAINING)}
    check(folder, {name: card.files[name] for name in card.files if name not in explaining}, needed=card.needed)
    if card.run != runs.card(folder / "runs" / card.name):
        raise InputError(f"{path}: expected below `run` what runs/{card.name}/{runs.CARD_FILE} says; {AGAIN}")
    return card, explaining


def told_by(folder: Path, name: str) -> dict[str, Any]:
    """What a card of a package says, unchecked but for its format, and for links in the folder."""
    path = folder / name
    _check_links(folder)
    told = read_json(path, what="card of a package", keys=("format",), remedy=AGAIN, most=MOST_BYTES)
    if told["format"] != FORMAT:
        raise InputError(
            f"{path}: expected format {FORMAT} of packages, got {told['format']!r}, which another version of bonafide "
            "wrote; package it again with `bonafide package`"
        )
    return told


def checked(told: Mapping[str, Any], path: Path, *, remedy: str = AGAIN) -> PackageCard:
    """The card that a file holds, or will hold. Raises InputError where a value is missing, or of no use."""
    return valid(PackageCard, told, path, remedy)


def valid(kind: type[Card], told: Mapping[str, Any], path: Path, remedy: str) -> Card:
    """A card of some kind; errors are those of `checked`."""
    try:
        return kind.model_validate_json(json.dumps(told))
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, problem['loc'])) or 'card'}: {problem['msg']}" for problem in error.errors()]
        raise InputError(f"{path}: not the card of a package; {remedy}:\n{listing(problems)}") from None


def check(folder: Path, files: Mapping[str, str], *, needed: Iterable[str]) -> None:
    """Raise InputError where files are not as their digests say, or needed ones have none."""
    if unlisted := [name for name in needed if name not in files]:
        raise InputError(
            f"{folder / CARD_FILE}: expected the digests of all files that are needed, got none of {len(unlisted)}; "
            f"{AGAIN}:\n{listing(unlisted)}"
        )
    if wrong := [name for name, wanted in files.items() if digest(folder / name) != wanted]:
        raise InputError(f"{folder}: {len(wrong)} files are missing or damaged; {AGAIN}:\n{listing(wrong)}")


def _check_links(folder: Path) -> None:
    """Raise InputError where a link in a package leads out of it, or nowhere: what lies there is not the package's.

    Links of a snapshot in the hub's cache may lead to its blobs.
    """
    root = folder.resolve()
    roots = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
    try:
        every = (Path(base, name) for base, folders, files in os.walk(folder) for name in (*folders, *files))
        links = [path for path in every if path.is_symlink()]
    except RecursionError:
        raise InputError(
            f"{folder}: expected the folder of a package, got one with folders nested without end"
        ) from None
    wrong = [path.relative_to(folder).as_posix() for path in links if not _leads_below(path, roots)]
    if wrong:
        raise InputError(
            f"{folder}: expected files of the package alone, got links that lead out of it or nowhere; copy it with "
            f"what they lead to (cp -rL), if you trust that:\n{listing(sorted(wrong))}"
        )


def _leads_below(link: Path, roots: Sequence[Path]) -> bool:
    try:
        return any(link.resolve(strict=True).is_relative_to(root) for root in roots)
    except (OSError, RuntimeError):  # RuntimeError: links in a circle
        return False


def digest(path: Path) -> str | None:
    """The sha256 of a file's bytes; None where there is no file that can be read."""
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:  # also a name that is too long
        return None
