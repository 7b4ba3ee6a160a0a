"""Teach a trained system a few clips of a new generator, without training: a package with more training embeddings.

A taught package scores by `knn_difference` (`pipeline.analysis.embedding_scores`) with `NEIGHBOURS` utterances of each
class. The clips are appended to the training embeddings and trials; their attack is the name of the teaching.
Threshold, calibration and rule of verdicts are fitted on dev anew. The package carries the embeddings of dev and of the
evaluation sets, so that it can be taught again and can forget a teaching. The system that was taught stays as it is.

Source: nearest neighbours as in Sun et al., "Out-of-distribution detection with deep nearest neighbors", ICML 2022.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.analysis import embedding_index, embedding_scores, embeddings
from pipeline.audio import decode
from pipeline.core import trial_table
from pipeline.core.errors import InputError, listing
from pipeline.core.files import csv_text, folder_beside, read_json, replace_folder, write_text
from pipeline.core.trial_table import LABELS, UNKNOWN, Trials
from pipeline.detect import assembly, loading, package
from pipeline.detect.assembly import FusedParts, Parts, calibrated_by
from pipeline.detect.detection import Unreadable
from pipeline.detect.model_card import model_card
from pipeline.detect.package_card import CARD_FILE, EMBEDDED, MODEL_CARD_FILE, Teaching, checked
from pipeline.metrics import verdicts
from pipeline.metrics.eer import eer_of
from pipeline.scoring import runs, scorer

NEIGHBOURS = 3  # of each class; fewer than the clips of the smallest teaching
FEWEST = 5  # clips of a teaching
FLIPS_FILE = "flips.csv"
DEV = "dev"
ERROR_RATE = 0.05  # of verdicts, for a package without a rule
FLIPS_HEADER = (
    "set",
    "utterance",
    "label",
    "attack",
    "score_before",
    "score_after",
    "decision_before",
    "decision_after",
)

Scores = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Known:
    """Training embeddings (N, E) as the backend gives them, and their trials."""

    vectors: NDArray[np.float32]
    trials: Trials


@dataclass(frozen=True, eq=False)
class Change:
    """What teaching changes on one set of N trials.

    by_centroids, before, after: (N,) scores of the run, of the neighbours without what was taught or forgotten, and
    with it. thresholds: of the EER on dev, before and after.
    """

    name: str
    trials: Trials
    by_centroids: Scores
    before: Scores
    after: Scores
    thresholds: tuple[float, float] = (0.0, 0.0)

    def eers(self) -> tuple[float, float, float]:
        """EER in % by the centroids, and by the neighbours before and after."""
        scores = (self.by_centroids, self.before, self.after)
        a, b, c = (100 * eer_of(one, self.trials.is_bonafide).eer for one in scores)
        return a, b, c

    def accepted(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which trials (N,) are taken for bona fide, before and after."""
        return self.before > self.thresholds[0], self.after > self.thresholds[1]

    def flipped(self) -> NDArray[np.intp]:
        """The trials whose decision changes."""
        before, after = self.accepted()
        return np.flatnonzero(before != after)

    def hurt(self) -> list[str]:
        """The bona fide that are rejected now and were not before."""
        before, after = self.accepted()
        names: list[str] = self.trials.utterance[self.trials.is_bonafide & before & ~after].tolist()
        return names


# ---------------------------------------------------------------- what is known


def taught(parts: Parts, clips: Sequence[Path], *, name: str, label: str) -> tuple[Known, Teaching]:
    """What a system knows with some clips, and the record of the teaching.

    Raises InputError for fewer than five clips, for one that cannot be scored or is known already, and where the name
    is taken.
    """
    train, table = parts.training()
    _check_free(name, table)
    if len(clips) < FEWEST:
        raise InputError(f"expected at least {FEWEST} clips of {name}, better 20, got {len(clips)}")
    contents = _contents(clips, table)
    new = _new_trials(clips, contents, name=name, label=label)
    vectors = np.concatenate([train.vectors, _embedded(parts, clips)])
    digest = hashlib.sha256("\n".join([name, label, *contents]).encode()).hexdigest()[:16]
    teaching = Teaching.model_validate({"name": name, "label": label, "count": len(clips), "digest": digest})
    return Known(vectors, _joined(package.labels_alone(table), new)), teaching


def without(parts: Parts, name: str) -> Known:
    """What a system knows without one teaching. Raises InputError where it was never taught that."""
    names = [one.name for one in parts.taught]
    if name not in names:
        raise InputError(f"{parts.root}: expected the name of a teaching, one of {', '.join(names) or '-'}, got {name}")
    train, table = parts.training()
    kept = table.attack != name
    return Known(np.asarray(train.vectors)[kept], package.labels_alone(table.take(kept)))


def _check_free(name: str, table: Trials) -> None:
    if name in set(table.attack.tolist()) or name == UNKNOWN:
        raise InputError(f"--name {name}: training has an attack of this name already; choose another name")


def _contents(clips: Sequence[Path], table: Trials) -> list[str]:
    """The digests of the clips' bytes. Raises InputError for clips that training has, or that come twice."""
    known = {content.partition(":")[0]: str(utterance) for content, utterance in
             zip(table.content.tolist(), table.utterance, strict=True)}  # fmt: skip
    contents, twice = [], []
    for clip in clips:
        try:
            content = decode.digest(clip.read_bytes())
        except OSError as error:
            raise InputError(f"{clip}: {error.strerror or error}") from None
        if content in known:
            twice.append(f"{clip}: as {known[content]}")
        known[content] = str(clip)
        contents.append(content)
    if twice:
        raise InputError(
            f"{len(twice)} of {len(clips)} clips have the bytes of others or of training; leave them out:\n"
            f"{listing(twice)}"
        )
    return contents


def _new_trials(clips: Sequence[Path], contents: Sequence[str], *, name: str, label: str) -> Trials:
    count = len(clips)
    unknown = {key: np.full(count, UNKNOWN) for key in ("path", "speaker", "codec", "vocoder")}
    return Trials(
        utterance=np.array([f"{name}/{i:04d}" for i in range(count)]),
        is_bonafide=np.full(count, label == LABELS[0]),
        attack=np.full(count, name),
        quality=np.full(count, np.nan),
        content=np.array(contents),
        **unknown,
    )


def _joined(table: Trials, new: Trials) -> Trials:
    return Trials(**{key: np.concatenate([column, vars(new)[key]]) for key, column in vars(table).items()})


def _embedded(parts: Parts, clips: Sequence[Path]) -> NDArray[np.float32]:
    """The embeddings (n, E) of clips, as the flow has them. Raises InputError naming all that have none."""
    found = list(loading.of_parts(dataclasses.replace(parts, neighbours=None)).embeddings(clips))
    if wrong := [one.why for one in found if isinstance(one, Unreadable)]:
        raise InputError(f"{len(wrong)} of {len(found)} clips cannot be taught; leave them out:\n{listing(wrong)}")
    return np.stack([one for one in found if not isinstance(one, Unreadable)])


# ---------------------------------------------------------------- what changes


def check_teachable(parts: Parts) -> None:
    """Raise InputError where the embeddings of training or dev are missing: the run was not analysed, or is packed.

    Also for a fusion, which has no embedding of its own.
    """
    if isinstance(parts, FusedParts):
        names = ", ".join(member.name for member in parts.members)
        raise InputError(f"{parts.name}: expected one run to teach, got a fusion of {names}; teach one of these")
    parts.training()
    if DEV not in parts.judged_sets():
        raise InputError(
            f"{parts.root}: expected the embeddings of dev, which a plain package does not have; teach the run of the "
            "project that it was made of, or a taught package"
        )


def changes(parts: Parts, known: Known) -> list[Change]:
    """What knowing this in place of the training embeddings changes on dev and on each evaluation set, dev first.

    Trials with the bytes of a clip that is taught or forgotten are left out. Raises InputError where a set has one
    class without them.
    """
    centroids = runs.index(parts.run)
    old, table = parts.training()
    new = dataclasses.replace(old, vectors=known.vectors)
    scorings = [
        embedding_scores.by_neighbours(embedded, trials, NEIGHBOURS)
        for embedded, trials in ((old, table), (new, known.trials))
    ]
    found = []
    for name in parts.judged_sets():
        embedded, trials = parts.embedded(name)
        own = scorer.score(np.asarray(embedded.vectors), centroids, names=trials.utterance.tolist())
        scores = (own, *(embedding_scores.scores(scoring, embedded) for scoring in scorings))
        rows = ~np.isin(trials.content, np.setxor1d(table.content, known.trials.content))
        if len(set(trials.is_bonafide[rows].tolist())) < len(LABELS):
            raise InputError(f"set {name}: expected trials of both classes that are no clips, got one class alone")
        by_centroids, before, after = (one[rows].astype(float) for one in scores)
        found.append(Change(name, trials.take(rows), by_centroids, before, after))
    dev = found[0]
    first, second = (eer_of(scores, dev.trials.is_bonafide).threshold for scores in (dev.before, dev.after))
    return [dataclasses.replace(one, thresholds=(first, second)) for one in found]


def flips(found: Sequence[Change]) -> str:
    """The trials whose decision changes, as CSV."""
    rows: list[tuple[Any, ...]] = [FLIPS_HEADER]
    for one in found:
        before, after = one.accepted()
        for i in one.flipped().tolist():
            label = LABELS[0] if one.trials.is_bonafide[i] else LABELS[1]
            decisions = (LABELS[0] if taken[i] else LABELS[1] for taken in (before, after))
            scores = (f"{scores[i]:.6g}" for scores in (one.before, one.after))
            rows.append((one.name, one.trials.utterance[i], label, one.trials.attack[i], *scores, *decisions))
    return csv_text(rows)


# ---------------------------------------------------------------- the package


def write(parts: Parts, known: Known, teachings: Sequence[Teaching], found: Sequence[Change], folder: Path) -> None:
    """Write the taught package; `folder` is whole or not there. Raises InputError where something is there already."""
    check_free_place(folder)
    beside = folder_beside(folder)
    if parts.explaining is None:
        inner = beside / "package"
        package.write(parts.name, inner)
        for path in sorted(inner.iterdir()):
            shutil.move(path, beside / path.name)
        inner.rmdir()
    else:
        shutil.copytree(parts.root, beside, dirs_exist_ok=True, symlinks=False)
    there = dataclasses.replace(parts, root=beside)
    _write_known(there, known)
    for name in parts.judged_sets() if parts.explaining is None else ():
        _copy_set(parts, there, name)
    write_text(beside / FLIPS_FILE, flips(found))
    _write_cards(beside, parts, teachings, found[0])
    assembly.find(beside).training()  # raises an error where it cannot be read again
    replace_folder(beside, folder, mark=CARD_FILE)


def check_free_place(folder: Path) -> None:
    """Raise InputError where there is something already: no package is replaced by a taught one."""
    if folder.exists():
        raise InputError(f"{folder}: something is there already, and teaching replaces nothing; choose another name")


def _write_known(there: Parts, known: Known) -> None:
    facts = embeddings.identity(there.run, there.train_set, known.trials)
    normalize = runs.index(there.run).normalize_query
    names = known.trials.utterance.tolist()
    embedding_index.build(there.embeddings, [known.vectors], names, normalize=normalize, facts=facts)
    (there.embeddings / embeddings.INDEX_FILE).unlink()  # a package has none
    write_text(there.trials, trial_table.to_csv(known.trials))


def _copy_set(parts: Parts, there: Parts, name: str) -> None:
    _, table = parts.embedded(name)
    target = there.embeddings.parent / name
    target.mkdir(parents=True, exist_ok=True)
    for file in EMBEDDED:
        shutil.copyfile(parts.embeddings.parent / name / file, target / file)
    write_text(there.root / "trials" / f"{name}.csv", trial_table.to_csv(package.labels_alone(table)))


def _write_cards(beside: Path, parts: Parts, teachings: Sequence[Teaching], dev: Change) -> None:
    card = read_json(beside / CARD_FILE, what="card of a package", keys=("sets",), remedy="package the run again")
    kept, refused = dev.after[dev.trials.is_bonafide], dev.after[~dev.trials.is_bonafide]
    line = calibrated_by(kept, refused)
    rule = verdicts.fit(kept, refused, error_rate=parts.rule.error_rate if parts.rule else ERROR_RATE)
    card |= {
        "threshold": dev.thresholds[1],
        "calibration": vars(line) if line else None,
        "verdicts": vars(rule),
        "sets": [one | {"metrics": None} for one in card["sets"]],
        "files": package.digests(beside),
        "neighbours": NEIGHBOURS,
        "taught": [one.model_dump() for one in teachings],
    }
    checked(card, beside / CARD_FILE, remedy="mend the run, and teach it again")
    write_text(beside / CARD_FILE, json.dumps(card, indent=2, ensure_ascii=False) + "\n")
    write_text(beside / MODEL_CARD_FILE, model_card(card))
