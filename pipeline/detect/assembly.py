"""The parts of a trained system, found in a project or in a package."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.analysis import embeddings
from pipeline.analysis.embeddings import Embeddings
from pipeline.core import params_file, trial_table
from pipeline.core.encoder_sections import EncoderParams
from pipeline.core.errors import InputError
from pipeline.core.files import read_json
from pipeline.core.params import Params
from pipeline.core.trial_table import Trials
from pipeline.detect import fused_card, hub
from pipeline.detect.package_card import AGAIN, CALIBRATION_FILE, CARD_FILE, EMBEDDED, ENCODER, Teaching, check, read
from pipeline.encoder import kept
from pipeline.features import receipt_files, specs
from pipeline.metrics import calibration, scorefile, verdicts
from pipeline.metrics.calibration import Calibration
from pipeline.metrics.eer import eer_of
from pipeline.metrics.fusion import Fusion
from pipeline.metrics.verdicts import VerdictRule
from pipeline.scoring import runs

Scores = NDArray[np.float64]

PARAMS = Path("params.yaml")  # of the project, in the current folder
DATA = Path("data")
FUSE_AGAIN = "run `dvc repro -f flow/evaluate/dvc.yaml`"


@dataclass(frozen=True)
class Parts:
    """What a trained system is made of, and where that lies.

    root: data/ of the project, or the package. train_set: what the run was trained on. encoder: where the encoder comes
    from; weights: the folder of the fine-tuned one. features: what the features that the run was trained on depend on,
    the encoder's digest and the window among it. threshold: of the EER on dev; scores above it are accepted.
    calibration: of scores, by those on dev; None where these cannot be calibrated. rule: of verdicts, by those on dev;
    None in a package that an older version wrote. explaining: of a package, the sha256 of the files that explanations
    alone need, by name; None in a project. doubts: warnings of evaluation sets, which threshold or calibration did not
    fit. recalibration: the file of a package that was made with one, see `recalibration.applied`. neighbours and
    taught: of a package of `bonafide teach`, see `PackageCard`.
    """

    name: str
    root: Path
    train_set: str
    encoder: EncoderParams
    weights: Path | None
    features: dict[str, Any]
    batch_size: int
    device: Literal["auto", "cpu", "cuda"]
    threshold: float
    calibration: Calibration | None
    rule: VerdictRule | None = None
    explaining: Mapping[str, str] | None = None
    doubts: tuple[str, ...] = ()
    recalibration: Path | None = None
    neighbours: int | None = None
    taught: tuple[Teaching, ...] = ()

    @property
    def run(self) -> Path:
        """The folder of the trained run."""
        return self.root / "runs" / self.name

    @property
    def embeddings(self) -> Path:
        """The folder of the training set's embeddings, which is there for analysed runs alone."""
        return self.root / "embeddings" / self.name / self.train_set

    @property
    def trials(self) -> Path:
        """The trial table of the training set."""
        return self.root / "trials" / f"{self.train_set}.csv"

    def training(self) -> tuple[Embeddings, Trials]:
        """The embeddings of the training set and its trials, read once.

        Raises InputError where the run was not analysed, or files of a package are not those that it lists.
        """
        return self._training

    @cached_property
    def _training(self) -> tuple[Embeddings, Trials]:
        return self.embedded(self.train_set)

    def embedded(self, name: str) -> tuple[Embeddings, Trials]:
        """The embeddings of a set and its trials. Raises InputError where they are not there, or damaged."""
        folder, trials = self.embeddings.parent / name, self.root / "trials" / f"{name}.csv"
        if not folder.is_dir():
            what = "the training set" if name == self.train_set else f"the set {name}"
            raise InputError(
                f"{folder}: no embeddings of {what} there, which explanations need; name a run of "
                "the grid in the section `analyse` of params.yaml (the fine-tuned run needs none), run "
                "`dvc repro flow/analyse/dvc.yaml`, and make a package anew"
            )
        if self.explaining is not None:
            needed = [*(folder / file for file in EMBEDDED), trials]
            check(self.root, self.explaining, needed=[path.relative_to(self.root).as_posix() for path in needed])
        table = trial_table.read(trials)
        packed = self.explaining is not None
        return embeddings.of_run(folder, self.run, name, table, indexed=not packed), table

    def judged_sets(self) -> list[str]:
        """The sets with embeddings but the training set, dev first."""
        there = (path.parent.name for path in self.embeddings.parent.glob(f"*/{embeddings.CARD_FILE}"))
        return sorted(set(there) - {self.train_set}, key=lambda name: (name != "dev", name))


@dataclass(frozen=True, kw_only=True)
class FusedParts(Parts):
    """The parts of a fusion of runs. Root, training set and embeddings are those of the leading member.

    members: in the order of the weights. The leading one has the largest weight.
    """

    members: tuple[Parts, ...]
    fusion: Fusion

    @property
    def lead(self) -> Parts:
        """The member with the largest weight, the first of equals."""
        return self.members[self.fusion.weights.index(max(self.fusion.weights))]

    @property
    def run(self) -> Path:
        """The folder of the leading member."""
        return self.lead.run

    @property
    def embeddings(self) -> Path:
        """The folder of the training set's embeddings by the leading member."""
        return self.lead.embeddings


def find(run: str | Path) -> Parts:
    """The parts of a run or a fusion of the project in the current folder, by its name, or of a package.

    A package is a folder, or on the hub.

    Raises InputError where there is neither, where a part is missing, or where parts do not belong together.
    """
    on_hub = str(run).startswith(hub.PREFIX)
    folder = hub.fetch(str(run).removeprefix(hub.PREFIX)) if on_hub else Path(run)
    if (folder / CARD_FILE).is_file():
        return _of_package(folder)
    there = sorted(path.parent.name for path in (DATA / "runs").glob(f"*/{runs.CARD_FILE}"))
    if str(run) not in there and PARAMS.is_file() and str(run) in (settings := params_file.load(PARAMS)).fuse:
        return _of_fusion(str(run), settings)
    if str(run) not in there:
        known = f"data/runs has {', '.join(there)}" if there else "there is no data/runs with runs in this folder"
        raise InputError(
            f"{run}: expected the name of a run or a fusion of the project in the current folder, the folder of a "
            f"package (with {CARD_FILE}), or {hub.PREFIX}owner/name; {known}"
        )
    return _of_project(str(run), params_file.load(PARAMS))


def _of_project(name: str, settings: Params) -> Parts:
    run = DATA / "runs" / name
    facts = runs.card(run)
    if not all(facts.get(key) is not None for key in ("train", "features", "dev_threshold")):
        raise InputError(f"{run}: expected the card of a run that `train` wrote, got another; run `dvc repro`")
    receipt = receipt_files.read_receipts(DATA / "features" / "dev.json")["dev"]
    if specs.fingerprint(receipt["encoder"]) != _trained_on(facts) or not _is_pinned(facts):
        raise InputError(f"{run}: trained on other features than data/features/dev.json tells of; run `dvc repro`")
    bonafide, spoof = _dev_scores(DATA / "dev_scores" / f"{name}.txt")
    return Parts(
        name=name,
        root=DATA,
        train_set=facts["train"]["set"],
        encoder=settings.encoder,
        weights=kept.weights_of(settings.encoder, DATA / "encoder.json", features=settings.features.folder),
        features=receipt["encoder"],
        batch_size=settings.extract.first_batch,
        device=settings.extract.device,
        threshold=float(facts["dev_threshold"]),
        calibration=calibrated_by(bonafide, spoof),
        rule=verdicts.fit(bonafide, spoof, error_rate=settings.evaluate.error_rate),
        doubts=tuple(_doubts(DATA / "metrics" / name, settings.evaluate.sets)),
    )


def _of_fusion(name: str, settings: Params) -> FusedParts:
    """Threshold, calibration and rule are those of the fused scores of dev, which are out of fold."""
    folder = DATA / "fusions" / name
    told = read_json(folder / "fusion.json", what="fusion", keys=("weights", "offset"), remedy=FUSE_AGAIN)
    numbers = [*told["weights"].values(), told["offset"]] if isinstance(told["weights"], dict) else []
    if not numbers or not all(type(number) is float and math.isfinite(number) for number in numbers):
        raise InputError(f"{folder / 'fusion.json'}: expected finite weights and an offset; {FUSE_AGAIN}")
    if min(numbers[:-1], default=-1) < 0:
        raise InputError(f"{folder / 'fusion.json'}: expected weights from 0 up; {FUSE_AGAIN}")
    if list(told["weights"]) != list(settings.fuse[name]):
        raise InputError(f"{folder}: of other runs than {PARAMS} names in fuse.{name}; {FUSE_AGAIN}")
    if further := [run for run in told["weights"] if not (DATA / "runs" / run / runs.CARD_FILE).is_file()]:
        raise InputError(
            f"{name}: expected a fusion of runs that are in data/runs, got {', '.join(further)}; further scores of "
            "analysed runs, and scores of other systems, are fused in score files alone"
        )
    members = tuple(_of_project(run, settings) for run in told["weights"])
    bonafide, spoof = _dev_scores(folder / "dev.txt")
    threshold = eer_of(np.concatenate([bonafide, spoof]), np.arange(len(bonafide) + len(spoof)) < len(bonafide))
    return fused_of(
        members,
        Fusion(tuple(told["weights"].values()), told["offset"]),
        name=name,
        threshold=float(str(np.float32(threshold.threshold))),
        calibration=calibrated_by(bonafide, spoof),
        rule=verdicts.fit(bonafide, spoof, error_rate=settings.evaluate.error_rate),
        doubts=tuple(_doubts(DATA / "metrics" / name, settings.evaluate.sets)),
    )


def fused_of(members: tuple[Parts, ...], fusion: Fusion, **changes: Any) -> FusedParts:
    """The parts of a fusion; whatever `changes` does not name is that of the leading member.

    Raises InputError for members that hear other features than the first.
    """
    for other in members[1:]:
        if (other.features, other.encoder) != (members[0].features, members[0].encoder):
            raise InputError(
                f"{members[0].name} and {other.name}: expected members of a fusion with one encoder and window, got two"
            )
    lead = members[fusion.weights.index(max(fusion.weights))]
    own = {field.name: getattr(lead, field.name) for field in dataclasses.fields(Parts)}
    return FusedParts(**(own | changes), members=members, fusion=fusion)


def _is_pinned(facts: dict[str, Any]) -> bool:
    """Whether a receipt of dev, of all layers or of a choice, stands for the features that a run was trained on."""
    paths = (DATA / "features" / "dev.json", *sorted((DATA / "selected" / "dev").glob("*.json")))
    receipts = (receipt for path in paths for receipt in receipt_files.read_receipts(path).values())
    return any(receipt["digest"] == facts["features"].get("dev") for receipt in receipts)


def _doubts(folder: Path, sets: Sequence[str]) -> Iterator[str]:
    """The warnings of the sets that were evaluated. folder: of the run's metrics."""
    for name in sets:
        file = folder / f"{name}.json"
        if file.is_file():
            found = read_json(file, what="metrics", remedy="run `dvc repro -f flow/evaluate/dvc.yaml`")
            yield from (f"on {name}, {line}" for line in found.get("warnings", ()))


def _trained_on(facts: dict[str, Any]) -> Any:
    """The fingerprint of the encoder and window that a run was trained with."""
    return facts["kind"].get("encoder")


def _dev_scores(path: Path) -> tuple[Scores, Scores]:
    """The bona fide (B,) and the spoof (S,) scores of a score file that carries its key."""
    if not path.is_file():
        raise InputError(f"{path}: no score file there; run `dvc repro -f train`")
    found = scorefile.parse(path)
    dev = scorefile.own_key(found)
    return found.score[dev.is_bonafide], found.score[~dev.is_bonafide]


def calibrated_by(bonafide: Scores, spoof: Scores) -> Calibration | None:
    """The calibration by scores; None where they cannot be calibrated."""
    try:
        return calibration.fit(bonafide, spoof)
    except ValueError:
        return None


def _of_package(folder: Path) -> Parts:
    return _of_fused_package(folder) if fused_card.is_fused(folder) else _of_card(folder, CARD_FILE)


def _of_fused_package(folder: Path) -> FusedParts:
    card = fused_card.read_fused(folder)
    members = tuple(_of_card(folder, fused_card.member_card(run)) for run in card.weights)
    if [member.name for member in members] != list(card.weights):
        raise InputError(f"{folder / CARD_FILE}: expected the cards of members to be of the runs they name; {AGAIN}")
    return fused_of(
        members,
        Fusion(tuple(card.weights.values()), card.offset),
        name=card.name,
        threshold=card.threshold,
        calibration=card.calibration,
        rule=card.verdicts,
        doubts=card.doubts,
        recalibration=folder / CALIBRATION_FILE if CALIBRATION_FILE in card.files else None,
    )


def _of_card(folder: Path, name: str) -> Parts:
    card, explaining = read(folder, name)
    encoder, features = card.encoder, card.features.model_dump()
    if specs.fingerprint(features) != _trained_on(runs.card(folder / "runs" / card.name)):
        raise InputError(f"{folder / name}: the run was trained on other features than the card tells; {AGAIN}")
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
        rule=card.verdicts,
        explaining=explaining,
        doubts=card.doubts,
        recalibration=folder / CALIBRATION_FILE if CALIBRATION_FILE in card.files else None,
        neighbours=card.neighbours,
        taught=card.taught,
    )
