"""The embedding space of analysed runs on the page: read and check the files, and make panels and data for the map.

Each run has a folder with two files of the stage `analyse`: `analysis.json` (centroids, assignments, distances, path,
geometry, shift, hardest trials) and `map.json` (the points of the interactive map).
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.core.errors import InputError, listing
from pipeline.report.page.charts import COLOURS, DASHES, WIDE, Axis, Chart, Line, linear_axis, style

ANALYSIS_FILE, MAP_FILE = "analysis.json", "map.json"
REMEDY = "run `dvc repro -f flow/analyse/dvc.yaml`"
KINDS = {"quality_level": "quality level", "mos": "MOS"}  # kinds of groups, in words
LINES = COLOURS * DASHES  # the most centroids with different looks

Number = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Known = Number | None  # None: there is no such number, as for the silhouette of a single group


class _Part(BaseModel):
    """A part of a file, with exact types and finite numbers. Entries that the page does not need are ignored."""

    model_config = ConfigDict(strict=True, frozen=True)


class Spread(_Part):
    """The distances of n trials to their nearest centroid: their mean, and 5, 25, 50, 75 and 95 % quantiles."""

    n: Count
    mean: Number
    quantiles: Annotated[tuple[Number, ...], Field(min_length=5, max_length=5)]

    @model_validator(mode="after")
    def _ascend(self) -> Spread:
        if list(self.quantiles) != sorted(self.quantiles):
            raise ValueError(f"expected ascending quantiles, got {list(self.quantiles)}")
        return self


class Course(_Part):
    """The path of a run's vectors over training: distances (epochs, K) from the epoch before, and to the last one."""

    epochs: Annotated[tuple[Count, ...], Field(min_length=1)]
    moved: tuple[tuple[Known, ...], ...]
    to_last: tuple[tuple[Known, ...], ...]

    @model_validator(mode="after")
    def _of_every_epoch(self) -> Course:
        for name, rows in (("moved", self.moved), ("to_last", self.to_last)):
            _expect(f"{name}: epochs", len(rows), len(self.epochs))
            for i, row in enumerate(rows):
                _expect(f"{name}: numbers of row {i}", len(row), len(self.to_last[0]))
        return self


class Geometry(_Part):
    """The geometry of a set, as `pipeline.analysis.geometry` defines it."""

    purity: Known
    silhouette: Known
    within: Known
    between: Known
    effective_dimension: dict[str, Known]


class Shift(_Part):
    """How far the bona fide of a set are from those of the training set."""

    bonafide_to_train: Known
    bonafide_distance: Known
    ratio: Known
    auc: Known
    median_percentile: Known = None  # older analyses have neither this one nor the next three
    beyond_95: Known = None
    median_mahalanobis: Known = None
    beyond_95_mahalanobis: Known = None


class NearTrial(_Part):
    """A training trial that is near a hard trial."""

    utterance: str
    label: str
    attack: str
    distance: Number


class Hard(_Part):
    """A trial with one of the worst scores in its class, and its nearest training trials."""

    set: str
    utterance: str
    label: str
    attack: str
    score: Number
    neighbours: tuple[NearTrial, ...]


class Analysis(_Part):
    """The contents of `analysis.json`, for K centroids. Similarity and path use the run's own vectors."""

    run: str
    centroids: Annotated[int, Field(ge=1)]
    embedding_dim: Annotated[int, Field(ge=1)]
    train: str
    sets: Annotated[tuple[str, ...], Field(min_length=1)]
    distance: Annotated[str, Field(pattern="^(cosine|euclidean)$")]
    similarity: tuple[tuple[Number, ...], ...]
    assignments: dict[str, dict[str, dict[str, tuple[Count, ...]]]]
    distances: dict[str, dict[str, Spread]]
    path: Course | None
    geometry: dict[str, Geometry]
    shift: dict[str, Shift]
    hardest: tuple[Hard, ...]

    @model_validator(mode="after")
    def _of_k_centroids(self) -> Analysis:
        for i, row in enumerate(self.similarity):
            _expect(f"similarity: numbers of row {i}", len(row), len(self.similarity))
        for name, kinds in self.assignments.items():
            for kind, groups in kinds.items():
                for group, counts in groups.items():
                    _expect(f"assignments: counts of {name}, {kind}, {group}", len(counts), self.centroids)
        return self


class PlacedPoints(_Part):
    """The points of a projection, as whole numbers of `bits` bits, and the centroids where it places them."""

    name: str
    note: str
    x: tuple[Count, ...]
    y: tuple[Count, ...]
    centroids: tuple[tuple[Number, Number], ...] | None
    far: tuple[Count, ...] = ()  # points beyond the map, which stand at its border


class Category(_Part):
    """A category of the points. names: the possible names. codes: for each point, the index of its name."""

    names: tuple[str, ...]
    codes: tuple[Count, ...]


class Map(_Part):
    """The contents of `map.json`: columns with an entry for each point."""

    run: str
    points: Annotated[int, Field(ge=1)]
    bits: Annotated[int, Field(ge=1, le=16)]
    projections: Annotated[tuple[PlacedPoints, ...], Field(min_length=1)]
    utterance: tuple[str, ...]
    audio: tuple[str, ...]
    score: tuple[Known, ...]
    categories: Annotated[dict[str, Category], Field(min_length=1)]
    numbers: dict[str, tuple[Known, ...]] = {}
    neighbours: tuple[tuple[Count, ...], ...]

    @model_validator(mode="after")
    def _whole(self) -> Map:
        for name, column in self._columns():
            _expect(f"{name}: entries", len(column), self.points)
        for projection in self.projections:
            _below(f"projection {projection.name}: places", (*projection.x, *projection.y), 2**self.bits)
            _below(f"projection {projection.name}: points far away", projection.far, self.points)
        for name, category in self.categories.items():
            _below(f"category {name}: codes", category.codes, len(category.names))
        if "set" not in self.categories:
            raise ValueError(f"categories: expected `set` among them, got {', '.join(self.categories)}")
        _below("neighbours: points", itertools.chain.from_iterable(self.neighbours), self.points)
        return self

    def _columns(self) -> Iterable[tuple[str, Sequence[Any]]]:
        yield from (("utterance", self.utterance), ("audio", self.audio), ("score", self.score))
        yield "neighbours", self.neighbours
        yield from self.numbers.items()
        yield from ((f"category {name}", category.codes) for name, category in self.categories.items())
        for projection in self.projections:
            yield f"projection {projection.name}, x", projection.x
            yield f"projection {projection.name}, y", projection.y


def _expect(what: str, got: int, expected: int) -> None:
    if got != expected:
        raise ValueError(f"{what}: expected {expected}, got {got}")


def _below(what: str, values: Iterable[int], limit: int) -> None:
    if (greatest := max(values, default=0)) >= limit:
        raise ValueError(f"{what}: expected numbers below {limit}, got {greatest}")


@dataclass(frozen=True)
class AnalysedRun:
    """An analysed run: its analysis and its map."""

    analysis: Analysis
    map: Map

    @property
    def run(self) -> str:
        """The name of the run."""
        return self.analysis.run

    @property
    def hardest(self) -> dict[str, tuple[Hard, ...]]:
        """The hardest trials by set."""
        trials = self.analysis.hardest
        return {name: tuple(t for t in trials if t.set == name) for name in dict.fromkeys(t.set for t in trials)}

    @property
    def distance_axis(self) -> Axis:
        """The common axis for the distances of all sets and groups."""
        spreads = [spread for groups in self.analysis.distances.values() for spread in groups.values()]
        values = [value for spread in spreads for value in spread.quantiles]
        return linear_axis("distance to the nearest centroid", np.array([*values, 0.0]))

    @property
    def assignments(self) -> dict[str, dict[str, dict[str, tuple[int, ...]]]]:
        """Kind of group, in words -> set -> group -> counts."""
        found: dict[str, dict[str, dict[str, tuple[int, ...]]]] = {}
        for name, kinds in self.analysis.assignments.items():
            for kind, groups in kinds.items():
                found.setdefault(KINDS.get(kind, kind), {})[name] = groups
        return found

    @property
    def base_rates(self) -> dict[str, float | None]:
        """The purity of each set if all its trials had one centroid: the share of the larger class."""
        classes = {name: kinds.get("class", {}).values() for name, kinds in self.analysis.assignments.items()}
        sizes = {name: [sum(counts) for counts in groups] for name, groups in classes.items()}
        return {name: max(own) / sum(own) if sum(own) else None for name, own in sizes.items()}

    @property
    def centroid_lines(self) -> tuple[Line, ...]:
        """The legend of the centroids' colours."""
        count = min(self.analysis.centroids, COLOURS)
        return tuple(Line(f"centroid {k}", style(k), np.empty((0, 2))) for k in range(count))

    @property
    def path_charts(self) -> tuple[Chart, ...]:
        """Two charts: how far each centroid moved in each epoch, and its distance to its last position. May be none."""
        path = self.analysis.path
        if path is None:
            return ()
        return (
            _path_chart("moved since the epoch before", path.epochs, path.moved),
            _path_chart("distance to the last epoch's place", path.epochs, path.to_last),
        )


def _path_chart(caption: str, epochs: Sequence[int], rows: Sequence[Sequence[Known]]) -> Chart:
    values = np.array(rows, dtype=np.float64)[:, :LINES]  # (epochs, K); None becomes nan
    lines = []
    for k, column in enumerate(values.T):
        points = np.stack((np.array(epochs, dtype=np.float64), column), axis=1)
        lines.append(Line(f"centroid {k}", style(k), points[np.isfinite(column)]))
    x = linear_axis("epoch", np.array(epochs, dtype=np.float64), whole=True)
    return Chart(caption, WIDE, x, linear_axis("distance", np.append(values.ravel(), 0.0)), tuple(lines))


def gather(folder: Path, runs: Iterable[str]) -> tuple[AnalysedRun, ...]:
    """Read analysed runs, each from its folder in `folder`, in the given order.

    Raises InputError where a file is missing or is no file of `analyse`.
    """
    return tuple(read(folder / run) for run in runs)


def read(folder: Path) -> AnalysedRun:
    """Read the analysis and the map of one run. The folder is named as the run."""
    space = AnalysedRun(_read(folder / ANALYSIS_FILE, Analysis), _read(folder / MAP_FILE, Map))
    for name, run in ((ANALYSIS_FILE, space.analysis.run), (MAP_FILE, space.map.run)):
        if run != folder.name:
            raise InputError(f"{folder / name}: expected the run {folder.name}, got {run!r}; {REMEDY}")
    return space


Part = TypeVar("Part", bound=_Part)


def _read(path: Path, kind: type[Part]) -> Part:
    if not path.is_file():
        raise InputError(f"{path}: no such file; {REMEDY}")
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, problem['loc'])) or 'file'}: {problem['msg']}" for problem in error.errors()]
        raise InputError(f"{path}: expected what `analyse` writes, got\n{listing(problems)}\n{REMEDY}") from None


@dataclass(frozen=True)
class MapData:
    """The maps as JSON for <script> elements. index: their parts, with ids of columns. columns: id -> column."""

    index: str
    columns: dict[str, str]


def map_data(spaces: Sequence[AnalysedRun], *, root: str) -> MapData:
    """The maps of all runs. A column that several runs share, such as the utterances, is stored once.

    root: the path from the page to the folder to which audio paths are relative, such as `../..`.
    """
    ids: dict[str, str] = {}

    def column(values: Sequence[Any]) -> str:
        return ids.setdefault(to_json(values), f"column-{len(ids)}")

    maps = [_entry(space.map, column) for space in spaces]
    return MapData(to_json({"root": root, "maps": maps}), {name: text for text, name in ids.items()})


def _entry(found: Map, column: Any) -> dict[str, Any]:
    """A map with ids in place of its columns."""
    return {
        "run": found.run,
        "points": found.points,
        "bits": found.bits,
        "projections": [
            projection.model_dump() | {"x": column(projection.x), "y": column(projection.y)}
            for projection in found.projections
        ],
        "utterance": column(found.utterance),
        "audio": column([_from_project(path) for path in found.audio]),
        "categories": [
            {"name": name, "names": category.names, "codes": column(category.codes)}
            for name, category in found.categories.items()
        ],
        "numbers": [
            {"name": name, "values": column(values)}
            for name, values in ({"score": found.score} | found.numbers).items()
        ],
        "neighbours": column(found.neighbours),
    }


def _from_project(path: str) -> str:
    """The path of an audio file relative to the root of the project, where stages run. A page has no absolute paths."""
    return Path(os.path.relpath(path)).as_posix() if Path(path).is_absolute() else path


def to_json(value: Any) -> str:
    """Compact JSON in ASCII for a <script> element. Nothing in it can end the element."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
