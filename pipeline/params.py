"""`params.yaml`: read, checked and typed; a wrong key or value is an error that names it and its line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from pipeline.contracts import Tap
from pipeline.errors import InputError

Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class SetParams(_Section):
    """One set of trials: which adapter reads it, from where.

    protocol is the file that lists the trials (DVC reruns `prepare` when it changes), root the folder that the paths
    are relative to.
    """

    corpus: Name
    protocol: str
    root: str
    split: str


class RandomEncoder(_Section):
    """Size and seed of a randomly initialised encoder of XLSR's structure."""

    layers: Positive
    width: Positive
    heads: Positive
    feedforward: Positive
    conv_channels: Positive
    seed: NotNegative

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.width % self.heads or self.width % 16:
            raise ValueError(
                f"expected a width divisible by 16 and by heads, got width {self.width}, heads {self.heads}"
            )
        return self


class EncoderParams(_Section):
    """Where the encoder comes from: a hub name, a local folder, or `random` with its size."""

    source: str
    revision: str | None = None
    random: RandomEncoder | None = None
    normalize: Literal["utterance", "none"]

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.source == "random") != (self.random is not None):
            raise ValueError("expected the section `random` with source: random, and only then")
        return self


class WindowParams(_Section):
    """Samples at 16 kHz that the encoder sees of an utterance, and what fills up a shorter one."""

    samples: Annotated[int, Field(ge=400)]
    pad: Literal["repeat", "zero"]


class ExtractParams(_Section):
    """What is cached, and how it is computed."""

    layers: Annotated[tuple[NotNegative | Literal["final"], ...], Field(min_length=1, strict=False)]
    window: WindowParams
    shard: Positive
    batch_size: Positive
    device: Literal["auto", "cpu", "cuda"]

    @field_validator("layers")
    @classmethod
    def _distinct(cls, layers: tuple[Tap, ...]) -> tuple[Tap, ...]:
        if len(set(layers)) != len(layers):
            raise ValueError(f"expected each layer once, got {list(layers)}")
        return layers


class FeaturesParams(_Section):
    """Where feature stores lie."""

    root: str


class LearningRates(_Section):
    """Adam's learning rates: for the backend, for the loss's vectors, and for the layer weighting."""

    backend: Rate
    centroids: Rate
    layers: Rate


class TrainParams(_Section):
    """How every cell of the grid is trained."""

    seed: NotNegative
    epochs: Positive
    batch_size: Annotated[int, Field(ge=2)]
    learning_rate: LearningRates
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    patience: Positive
    average_best: Positive


class GridParams(_Section):
    """The ablation grid: every backend with every loss."""

    backend: Annotated[tuple[Name, ...], Field(min_length=1, strict=False)]
    loss: Annotated[tuple[Name, ...], Field(min_length=1, strict=False)]

    @property
    def runs(self) -> tuple[str, ...]:
        """The names of all runs, `<backend>-<loss>`."""
        return tuple(f"{backend}-{loss}" for backend in self.backend for loss in self.loss)


class EvaluateParams(_Section):
    """The sets that every run is scored on."""

    sets: Annotated[tuple[Name, ...], Field(min_length=1, strict=False)]


class ReportParams(_Section):
    """The set whose EER orders the leaderboard, and a caveat that the page shows."""

    sort_by: Name
    note: str = ""


class Params(_Section):
    """All of `params.yaml`."""

    sets: dict[Name, SetParams]
    encoder: EncoderParams
    extract: ExtractParams
    features: FeaturesParams
    train: TrainParams
    backends: dict[Name, dict[str, Any]]
    losses: dict[Name, dict[str, Any]]
    grid: GridParams
    evaluate: EvaluateParams
    report: ReportParams

    @model_validator(mode="after")
    def _names_meet(self) -> Self:
        _expect("sets", {"train", "dev"} | set(self.evaluate.sets), set(self.sets))
        _expect("backends", set(self.grid.backend), set(self.backends))
        _expect("losses", set(self.grid.loss), set(self.losses))
        _expect("evaluate.sets", {self.report.sort_by}, set(self.evaluate.sets))
        return self


def _expect(section: str, needed: set[str], given: set[str]) -> None:
    if missing := sorted(needed - given):
        raise ValueError(f"{section} lacks {', '.join(missing)} (give it a section, empty if need be: `{{}}`)")


def load(path: Path) -> Params:
    """Read and check a parameter file. Raises InputError naming file, line, key, what was expected and what came."""
    if not path.is_file():
        raise InputError(f"{path}: no parameter file there; run from the project's folder")
    try:
        tree = YAML(typ="rt").load(path.read_text(encoding="utf-8"))
    except MarkedYAMLError as error:
        mark = error.problem_mark
        line = f":{mark.line + 1}" if mark else ""
        raise InputError(f"{path}{line}: not valid YAML: {error.problem}") from None
    try:
        return Params.model_validate(_plain(tree))
    except ValidationError as error:
        problems = (_say(path, tree, problem) for problem in error.errors())
        raise InputError("\n".join(dict.fromkeys(problems))) from None


def _plain(node: Any) -> Any:
    """ruamel's containers and scalars as plain Python ones."""
    if isinstance(node, dict):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


def _say(path: Path, tree: Any, problem: Any) -> str:
    """One validation problem as `file:line: key: expected ..., got ...`."""
    keys: list[str] = []
    line = 0
    node: Any = tree
    for key in problem["loc"]:
        try:
            lc = node.lc  # line and column of each entry
            position = lc.key(key) if isinstance(node, dict) else lc.item(key)
            node = node[key]
        except (KeyError, IndexError, TypeError, AttributeError):
            if problem["type"] == "missing":
                keys.append(str(key))
            break  # deeper parts of `loc` name the alternatives of a type, not keys of the file
        keys.append(str(key))
        line = position[0] + 1
    name = ".".join(keys) or "the whole"
    where = f"{path}:{line or 1}"
    if problem["type"] == "extra_forbidden":
        return f"{where}: {name}: unknown parameter; remove it or mend its name"
    if problem["type"] == "missing":
        return f"{where}: {name}: missing"
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if problem["type"] == "value_error":
        return f"{where}: {name}: {message}"
    return f"{where}: {name}: expected {message}, got {problem['input']!r}"
