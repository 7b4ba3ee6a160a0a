"""A trained system with all that detection needs: found in a project, or in a package, one folder that goes anywhere.

    package.json             the card: what the system is, where it comes from, what it got right; digests of the files
    model_card.md            the card for people
    runs/<run>/              backend weights, centroids and parameters, as below data/ of the project
    index/<run>/             the centroid index
    embeddings/<run>/<set>/  of the training set, where the run was analysed, and
    trials/<set>.csv         its trial table, which tells labels and attacks alone
    encoder/                 config.json and model.safetensors, where no hub name and no seed gives the same weights

Weights are safetensors; nothing is pickled. An encoder that is only named is held against its sha256 when it is loaded.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from pipeline import centroids, embeddings, params, runs, scorefile, store, trials
from pipeline.centroids import CentroidIndex
from pipeline.embeddings import Embeddings
from pipeline.errors import InputError, listing
from pipeline.files import check_place, folder_beside, read_json, replace_folder, write_text
from pipeline.metrics import calibration
from pipeline.metrics.calibration import Calibration
from pipeline.params import EncoderParams, Name, Params, Positive, WindowParams
from pipeline.trials import UNKNOWN, Trials

FORMAT = 1  # raised when older packages can no longer be read
CARD_FILE, MODEL_CARD_FILE, TEMPLATE = "package.json", "model_card.md", "model_card.md.j2"
ENCODER = "encoder"  # the folder of weights that are copied
EMBEDDED = (embeddings.VECTORS_FILE, embeddings.INDEX_FILE, embeddings.UTTERANCES_FILE, embeddings.CARD_FILE)
EXPLAINING = ("embeddings/", "trials/")  # files that explanations alone need

PARAMS = Path("params.yaml")  # of the project, in the current folder
DATA = Path("data")
PACKAGES = ("bonafide", "torch", "transformers", "numpy", "safetensors", "faiss-cpu", "faiss-gpu", "soundfile", "soxr")


@dataclass(frozen=True)
class Parts:
    """What a trained system is made of, and where that lies.

    root: data/ of the project, or the package. train_set: what the run was trained on. encoder: where the encoder comes
    from; weights: the folder of the fine-tuned one. features: what the features that the run was trained on depend on,
    the encoder's digest and the window among it. threshold: of the EER on dev; scores above it are accepted.
    calibration: of scores, by those on dev; None where these cannot be calibrated. explaining: of a package, the sha256
    of the files that explanations alone need, by name; None in a project.
    """

    name: str
    root: Path
    train_set: str
    encoder: EncoderParams
    weights: Path
    features: dict[str, Any]
    batch_size: int
    device: Literal["auto", "cpu", "cuda"]
    threshold: float
    calibration: Calibration | None
    explaining: Mapping[str, str] | None = None

    @property
    def run(self) -> Path:
        """The folder of the trained run."""
        return self.root / "runs" / self.name

    @property
    def index(self) -> Path:
        """The folder of its centroid index."""
        return self.root / "index" / self.name

    @property
    def embeddings(self) -> Path:
        """The folder of the training set's embeddings, which is there for analysed runs alone."""
        return self.root / "embeddings" / self.name / self.train_set

    @property
    def trials(self) -> Path:
        """The trial table of the training set."""
        return self.root / "trials" / f"{self.train_set}.csv"

    def centroid_index(self) -> CentroidIndex:
        """The centroid index. Raises InputError where its centroids are not the run's."""
        found = centroids.read(self.index)
        if not found.centroids().same_as(runs.centroids(self.run)):
            raise InputError(f"{self.index}: not the centroids of {self.run}; run `dvc repro flow/index/dvc.yaml`")
        return found

    def training(self) -> tuple[Embeddings, Trials]:
        """The embeddings of the training set and its trials, read once.

        Raises InputError where the run was not analysed, or files of a package are not those that it lists.
        """
        return self._training

    @cached_property
    def _training(self) -> tuple[Embeddings, Trials]:
        if not self.embeddings.is_dir():
            raise InputError(
                f"{self.embeddings}: no embeddings of the training set there, which explanations need; name the run in "
                "the section `analyse` of params.yaml, run `dvc repro flow/analyse/dvc.yaml`, and make a package anew"
            )
        if self.explaining is not None:
            needed = [*(self.embeddings / name for name in EMBEDDED), self.trials]
            _check(self.root, self.explaining, needed=[path.relative_to(self.root).as_posix() for path in needed])
        table = trials.read(self.trials)
        return embeddings.of_run(self.embeddings, self.run, self.train_set, table), table


def find(run: str | Path) -> Parts:
    """The parts of a run of the project in the current folder, by its name, or of the package in a folder.

    Raises InputError where there is neither, where a part is missing, or where parts do not belong together.
    """
    folder = Path(run)
    if (folder / CARD_FILE).is_file():
        return _of_package(folder)
    there = sorted(path.parent.name for path in (DATA / "runs").glob(f"*/{runs.CARD_FILE}"))
    if str(run) not in there:
        known = f"data/runs has {', '.join(there)}" if there else "there is no data/runs with runs in this folder"
        raise InputError(
            f"{run}: expected the name of a run of the project in the current folder, or the folder of a package "
            f"(with {CARD_FILE}); {known}"
        )
    return _of_project(str(run), params.load(PARAMS))


def _of_project(name: str, settings: Params) -> Parts:
    run = DATA / "runs" / name
    facts = runs.card(run)
    receipt = store.read_receipts(DATA / "features" / "dev.json")["dev"]
    if receipt["digest"] != facts["features"]["dev"] or store.fingerprint(receipt["encoder"]) != _trained_on(facts):
        raise InputError(f"{run}: trained on other features than data/features/dev.json tells of; run `dvc repro`")
    return Parts(
        name=name,
        root=DATA,
        train_set=facts["train"]["set"],
        encoder=settings.encoder,
        weights=DATA / "finetuned",
        features=receipt["encoder"],
        batch_size=settings.extract.first_batch,
        device=settings.extract.device,
        threshold=float(facts["dev_threshold"]),
        calibration=_calibration(DATA / "dev_scores" / f"{name}.txt"),
    )


def _trained_on(facts: dict[str, Any]) -> Any:
    """The fingerprint of the encoder and window that a run was trained with."""
    return facts["kind"]["encoder"]


def _calibration(path: Path) -> Calibration | None:
    """The calibration by a score file that carries its key; None where its scores cannot be calibrated."""
    if not path.is_file():
        raise InputError(f"{path}: no score file there; run `dvc repro -f train`")
    found = scorefile.parse(path)
    dev = scorefile.own_key(found)
    try:
        return calibration.fit(found.score[dev.is_bonafide], found.score[~dev.is_bonafide])
    except ValueError:
        return None


# ---------------------------------------------------------------- reading a package


EVALUATE = "run `dvc repro -f flow/evaluate/dvc.yaml`"
AGAIN = "copy the package again, or make it anew with `bonafide package`"

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)
RunName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*((-[a-z][a-z0-9_]*){3}-[0-9]+)?$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*$")]  # no ".."
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _carried(encoder: EncoderParams) -> EncoderParams:
    """An encoder that a package may name. Raises ValueError for a path."""
    if encoder.finetune is not None or not HUB_NAME.fullmatch(encoder.source):
        raise ValueError(f"expected {ENCODER!r}, 'random' or a hub name as the source, got {encoder.source!r}")
    return encoder


class _Section(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


class _Features(_Section, extra="allow"):
    """What features depend on; of that, what detection cannot do without."""

    window: WindowParams


class _Card(_Section):
    """What is read again of the card; the rest is for people. Names of files are below the package, never outside."""

    name: RunName
    train_set: Name
    encoder: Annotated[EncoderParams, AfterValidator(_carried)]
    features: _Features
    batch_size: Positive
    threshold: float
    calibration: Calibration | None
    files: dict[FileName, Digest]

    @property
    def needed(self) -> list[str]:
        """The files that detection needs."""
        run = [f"runs/{self.name}/{file}" for file in (runs.CARD_FILE, runs.BACKEND_FILE, runs.CENTROIDS_FILE)]
        index = [f"index/{self.name}/{file}" for file in (centroids.CARD_FILE, centroids.INDEX_FILE)]
        encoder = [f"{ENCODER}/config.json"] if self.encoder.source == ENCODER else []
        return [*run, *index, *encoder]


def _of_package(folder: Path) -> Parts:
    card, explaining = _read(folder)
    encoder, features = card.encoder, card.features.model_dump()
    if store.fingerprint(features) != _trained_on(runs.card(folder / "runs" / card.name)):
        raise InputError(f"{folder / CARD_FILE}: the run was trained on other features than the card tells; {AGAIN}")
    if encoder.source == ENCODER:
        encoder = encoder.model_copy(update={"source": str(folder / ENCODER)})
    return Parts(
        name=card.name,
        root=folder,
        train_set=card.train_set,
        encoder=encoder,
        weights=folder / ENCODER,
        features=features,
        batch_size=card.batch_size,
        device="auto",
        threshold=card.threshold,
        calibration=card.calibration,
        explaining=explaining,
    )


def _read(folder: Path) -> tuple[_Card, dict[str, str]]:
    """The card of a package, and the digests of files that explanations alone need; the others are checked.

    Raises InputError for another card, and naming the files that are not those that it lists.
    """
    path = folder / CARD_FILE
    told = read_json(path, what="card of a package", keys=("format",), remedy=AGAIN)
    if told["format"] != FORMAT:
        raise InputError(f"{path}: expected format {FORMAT} of packages, got {told['format']!r}; {AGAIN}")
    try:
        card = _Card.model_validate_json(json.dumps(told))
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, problem['loc'])) or 'card'}: {problem['msg']}" for problem in error.errors()]
        raise InputError(f"{path}: not the card of a package; {AGAIN}:\n{listing(problems)}") from None
    explaining = {name: digest for name, digest in card.files.items() if name.startswith(EXPLAINING)}
    _check(folder, {name: card.files[name] for name in card.files if name not in explaining}, needed=card.needed)
    return card, explaining


def _check(folder: Path, files: Mapping[str, str], *, needed: Iterable[str]) -> None:
    """Raise InputError where files are not as their digests say, or needed ones have none."""
    if unlisted := [name for name in needed if name not in files]:
        raise InputError(
            f"{folder / CARD_FILE}: expected the digests of all files that are needed, got none of {len(unlisted)}; "
            f"{AGAIN}:\n{listing(unlisted)}"
        )
    if wrong := [name for name, digest in files.items() if _digest(folder / name) != digest]:
        raise InputError(f"{folder}: {len(wrong)} files are missing or damaged; {AGAIN}:\n{listing(wrong)}")


def _digest(path: Path) -> str | None:
    """The sha256 of a file's bytes; None where there is no file."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------- writing one


def write(run: str, folder: Path) -> dict[str, Any]:
    """Write a run of the project in the current folder as a package, and give its card; `folder` is whole or not there.

    An older package there is replaced. Raises InputError where the run or a part of it is missing, index, metrics or
    encoder are not the run's, or a folder of other things is in the way.
    """
    if (Path(run) / CARD_FILE).is_file():
        raise InputError(f"{run}: expected the name of a run of this project, got a package; copy its folder")
    parts, settings = find(run), params.load(PARAMS)
    check_place(folder, mark=CARD_FILE)
    parts.centroid_index()
    beside = folder_beside(folder)
    there = dataclasses.replace(parts, root=beside)
    there.run.mkdir(parents=True)
    for name in (runs.CARD_FILE, runs.BACKEND_FILE, runs.CENTROIDS_FILE):
        shutil.copyfile(parts.run / name, there.run / name)
    shutil.copytree(parts.index, there.index)
    if parts.embeddings.is_dir():
        _, table = parts.training()
        shutil.copytree(parts.embeddings, there.embeddings)
        write_text(there.trials, trials.to_csv(_labels_alone(table)))
    named = _write_encoder(parts, settings.encoder, beside / ENCODER)
    card = _card(parts, settings, named) | {"files": _digests(beside)}
    write_text(beside / CARD_FILE, json.dumps(card, indent=2, ensure_ascii=False) + "\n")
    write_text(beside / MODEL_CARD_FILE, model_card(card))
    replace_folder(beside, folder, mark=CARD_FILE)
    return card


def _digests(folder: Path) -> dict[str, str | None]:
    """Every file of a package but its cards, and the sha256 of its bytes.

    The weights of the encoder are left out: they are read once, and have a digest of their own.
    """
    names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    apart = (CARD_FILE, MODEL_CARD_FILE, f"{ENCODER}/model.safetensors")
    return {name: _digest(folder / name) for name in names if name not in apart}


def _write_encoder(parts: Parts, source: EncoderParams, folder: Path) -> EncoderParams:
    """Where a package's encoder comes from; its weights are copied where nothing else brings them along.

    Raises InputError where they are not those that the run was trained with.
    """
    from pipeline import xlsr  # takes seconds to import

    model, card = xlsr.load_deployed(source, weights=parts.weights)
    if card.weights_sha256 != parts.features["weights_sha256"]:
        raise InputError(
            f"{parts.name}: trained on an encoder with weights {parts.features['weights_sha256'][:16]}..., got "
            f"{card.source} with {card.weights_sha256[:16]}...; run `dvc repro`"
        )
    if source.finetune is None and not _is_local(source):
        return source
    xlsr.save(model, folder)
    copied = EncoderParams(source=str(folder), normalize=source.normalize)
    if xlsr.load(copied)[1].weights_sha256 != card.weights_sha256:
        raise InputError(f"{folder}: read back, the weights of the encoder are not those written; try again")
    return EncoderParams(source=ENCODER, normalize=source.normalize)


def _labels_alone(table: Trials) -> Trials:
    """A trial table without what a package does not show: speakers, paths, codecs, MOS."""
    blank = np.full(len(table), UNKNOWN)
    unknown = dict.fromkeys(("path", "speaker", "codec", "vocoder"), blank)
    return dataclasses.replace(table, quality=np.full(len(table), np.nan), **unknown)


def _card(parts: Parts, settings: Params, encoder: EncoderParams) -> dict[str, Any]:
    centres = runs.centroids(parts.run)
    return {
        "format": FORMAT,
        "name": parts.name,
        "train_set": parts.train_set,
        "note": settings.report.note,
        "encoder": encoder.model_dump(exclude={"finetune"}),
        "encoder_source": _source(settings.encoder),
        "features": parts.features,
        "batch_size": parts.batch_size,
        "run": runs.card(parts.run),
        "centroids": len(centres.vectors),
        "embedding_dim": centres.vectors.shape[1],
        "threshold": parts.threshold,
        "calibration": vars(parts.calibration) if parts.calibration else None,
        "sets": [_set(parts, settings, name, role) for name, role in _roles(settings, parts.train_set)],
        "training_embeddings": parts.embeddings.is_dir(),
        "versions": {"python": platform.python_version(), **dict(_versions())},
    }


def _source(encoder: EncoderParams) -> dict[str, Any]:
    """The encoder's parameters; of a local folder or checkpoint the name alone, as its path says nothing elsewhere."""
    told = encoder.model_dump(exclude_none=True)
    return told | {"source": Path(encoder.source).resolve().name} if _is_local(encoder) else told


def _is_local(encoder: EncoderParams) -> bool:
    return encoder.random is None and Path(encoder.source).exists()


def _roles(settings: Params, train_set: str) -> Iterator[tuple[str, str]]:
    for name in settings.members(train_set):
        yield name, "training"
    yield "dev", "development"
    for name in settings.evaluate.sets:
        if name != "dev":
            yield name, "evaluation"


def _set(parts: Parts, settings: Params, name: str, role: str) -> dict[str, Any]:
    """What a package tells of a set; receipt and metrics are None where they are not there."""
    if name not in settings.sets:
        raise InputError(
            f"{PARAMS}: expected the set {name}, which {parts.name} was trained on, below sets; put it back, or take a "
            "run that was trained on a set that is there"
        )
    told = settings.sets[name]
    receipts = DATA / "features" / f"{parts.train_set if role == 'training' else name}.json"
    receipt = store.read_receipts(receipts).get(name) if receipts.is_file() else None
    return {
        "name": name,
        "role": role,
        "corpus": told.corpus,
        "split": told.split,
        "quality": told.quality,
        "utterances": receipt and receipt["utterances"],
        "receipt": receipt and receipt["digest"],
        "metrics": _metrics(parts, name),
    }


def _metrics(parts: Parts, name: str) -> dict[str, Any] | None:
    """The metrics of a set; None where it was not evaluated. Raises InputError for those at another threshold."""
    path = DATA / "metrics" / f"{parts.name}-{name}.json"
    if not path.is_file():
        return None
    found = read_json(path, what="metrics", keys=("at_threshold",), remedy=EVALUATE)
    at = found["at_threshold"]
    told = at.get("threshold") if isinstance(at, dict) else None
    if told != parts.threshold:
        raise InputError(f"{path}: expected metrics at the run's threshold {parts.threshold}, got {told}; {EVALUATE}")
    return found


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # one of the two of FAISS
            continue


def model_card(card: dict[str, Any]) -> str:
    """The card of a package as Markdown; the same card gives the same text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # noqa: S701  # Markdown, of the user's own project
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(TEMPLATE).render(**card)
