"""The sections of `params.yaml`: the keys of each, their types and ranges."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from pipeline.core import windows
from pipeline.core.arguments import MOST_FOLDS
from pipeline.core.files import folder_of, in_project

Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, le=1e30, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Dropped = Annotated[float, Field(ge=0, lt=1)]  # a share, of which something must be left
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


def distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values. Raises ValueError where one comes twice."""
    if len(set(values)) != len(values):
        raise ValueError(f"expected each entry once, got {list(values)}")
    return values


Names = Annotated[tuple[Name, ...], Field(min_length=1, strict=False), AfterValidator(distinct)]
Choices = Annotated[tuple[Name, ...], Field(strict=False), AfterValidator(distinct)]


def _several(value: Any) -> Any:
    if not isinstance(value, list | tuple) or len(value) < 2:
        raise ValueError(f"expected a list of at least two sets, such as [train, more], got {value!r}")
    return value


Pool = Annotated[Names, BeforeValidator(_several)]  # sets that are trained together, an equal share of every batch each
OTHER = "other/"  # before the name of a system whose scores are in data/others
FusedRun = Annotated[str, Field(pattern=rf"^({OTHER})?[a-z][a-z0-9_]*(-[a-z0-9_]+)*$")]
Fused = Annotated[tuple[FusedRun, ...], Field(min_length=2, strict=False), AfterValidator(distinct)]  # runs
Layer = NotNegative | Literal["final"]
Layers = Annotated[tuple[Layer, ...], Field(min_length=1, strict=False), AfterValidator(distinct)]
Views = Choices


def _as_text(value: Any) -> Any:
    return {str(key): label for key, label in value.items()} if isinstance(value, dict) else value


# What a file has for a class -> the class; 0, 0.0 and false are three values.
Labels = Annotated[dict[str, Literal["bonafide", "spoof"]], BeforeValidator(_as_text)]
Channel = Literal["mean", "left", "right"] | Annotated[int, Field(ge=0, lt=1024)]  # of audio; 0 is left
MEAN: Literal["mean"] = "mean"
WINDOWS = "windows"  # key in receipts and in the kind of a run's features; without it there is one window


class Section(BaseModel):
    """A section of `params.yaml`: unknown keys and values of another type are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class SetParams(Section):
    """One set of trials.

    corpus: the adapter, a file of `pipeline/corpora/`. protocol: the file that lists the trials; DVC reruns `prepare`
    when it changes. root: the folder of the audio. quality: the source of the MOS, a file of `pipeline/quality/`;
    `column` takes the values of the corpus itself. columns: the names of the corpus's columns, for an adapter that
    takes them. labels: which of its labels are bona fide and which spoof, likewise. channel: the channel of files with
    several that is heard: their mean, `left`, `right`, or a number from 0.
    """

    corpus: Name
    protocol: str
    root: str
    split: str
    quality: Name
    on_bad_audio: Literal["fail", "skip"] = "fail"
    columns: dict[str, str] | None = None
    labels: Labels | None = None
    channel: Channel = MEAN

    @property
    def folder(self) -> Path:
        """The folder of the audio: that of the project itself, also where DVC runs an experiment in a copy of it."""
        return in_project(self.root)

    @property
    def origin(self) -> tuple[str, str]:
        """The adapter and the place of the corpus: sets that agree in them are parts of one corpus."""
        return self.corpus, self.root if self.root != "/" else self.protocol


def _one_corpus(value: Any) -> Any:
    if isinstance(value, list) or (isinstance(value, dict) and isinstance(value.get("corpus"), list)):
        raise ValueError(
            "expected one corpus, got a list; make each corpus a set of its own, and list these sets as a pool, such "
            "as `pools: {both: [train, more]}`"
        )
    return value


OneSet = Annotated[SetParams, BeforeValidator(_one_corpus)]


class WindowParams(Section):
    """The samples at 16 kHz that the encoder gets from an utterance, and how a shorter one is filled up."""

    samples: Annotated[int, Field(ge=400)]
    pad: Literal["repeat", "zero"]


class WindowsParams(Section):
    """How many windows of an utterance are heard, and how they come to one score.

    hop: samples at 16 kHz from the start of one to that of the next; None spreads them over the utterance, see
    `windows.Window.start`. reduce: the score of an utterance is the mean of those of its windows, or the lowest; or
    that of one embedding, a mean of theirs with weights that the backend learns, see `pipeline.scoring.attention`.
    """

    count: Annotated[int, Field(ge=1, le=windows.MOST)] = 1
    hop: Positive | None = None
    reduce: Literal["mean", "min", "attention"] = "mean"

    @property
    def each(self) -> tuple[windows.Window, ...]:
        """The windows, in order."""
        return tuple(windows.Window(number, self.count, self.hop) for number in range(self.count))

    def names(self, views: Iterable[str]) -> tuple[str, ...]:
        """The names under which the features of views are cached: all windows of the first view, and on."""
        return tuple(window.name(view) for view in views for window in self.each)

    @property
    def attended(self) -> bool:
        """Whether an utterance has one embedding of all its windows."""
        return self.count > 1 and self.reduce == "attention"

    @property
    def apart(self) -> int:
        """How many embeddings and scores an utterance has: one a window, or one of all."""
        return 1 if self.attended else self.count

    @property
    def facts(self) -> dict[str, Any]:
        """What receipts and run cards say of them, JSON-ready: nothing of one window."""
        return {WINDOWS: self.model_dump()} if self.count > 1 else {}

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Self:
        """Those of a receipt or card, see `facts`. Raises ValueError where it says something else."""
        return cls.model_validate(facts.get(WINDOWS, {}))

    @model_validator(mode="after")
    def _a_hop_between_two(self) -> Self:
        if self.hop is not None and self.count == 1:
            raise ValueError("expected a hop with a count of 2 or more, and null with one window")
        return self


ONE_WINDOW = WindowsParams()


class ExtractParams(Section):
    """Which features are cached, and how they are computed.

    views: augmented views beside `clean`, of the training set; those of evaluation sets are evaluate.views. windows:
    of every utterance; one, unless they say otherwise. storage:
    the type of frames in the store. precision: the type in which the encoder computes; auto is bfloat16 where the
    device has it. batch_size: auto finds the size on a GPU. scheduler: the address of a running Dask scheduler, or
    local:N for N workers on this machine.
    """

    layers: Layers
    views: Views = ()
    window: WindowParams
    windows: WindowsParams = ONE_WINDOW
    shard: Positive
    storage: Literal["float16", "int8"] = "float16"
    batch_size: Positive | Literal["auto"] = "auto"
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    engine: Literal["local", "dask"] = "local"
    scheduler: str | None = None

    @property
    def first_batch(self) -> int:
        """The number of utterances in the first batch. On a CPU larger batches are no faster."""
        return 8 if self.batch_size == "auto" else self.batch_size

    @model_validator(mode="after")
    def _cluster(self) -> Self:
        if (self.engine == "dask") != (self.scheduler is not None):
            raise ValueError("expected a scheduler with engine: dask, and only then")
        if self.engine == "dask" and self.precision == "auto":
            raise ValueError(
                "expected precision: float32 or bfloat16 with engine: dask, as the workers' hardware is not known here"
            )
        return self


class FeaturesParams(Section):
    """Where feature stores are: a folder, or the URL of a folder on an object store."""

    root: str

    @property
    def folder(self) -> Path:
        """The root of all stores: that of the project itself, also where DVC runs an experiment in a copy of it.

        Raises InputError for a URL that cannot be opened.
        """
        return folder_of(self.root)


class LearningRates(Section):
    """Adam's learning rates for the backend, the vectors of the loss, and the layer weighting."""

    backend: Rate
    centroids: Rate
    layers: Rate


class DatasetParams(Section):
    """Where training reads features from: the disk, memory, or the memory of the device.

    together: whether `bonafide sweep` trains runs that read the same features in one process, from one reading. Neither
    changes a number.
    """

    hold: Literal["disk", "ram", "device"]
    together: bool = True


class ViewsParams(Section):
    """The augmented views that training draws in place of the clean features, and the probability of that."""

    draw: Views
    probability: Share

    @model_validator(mode="after")
    def _drawn(self) -> Self:
        if bool(self.draw) != (self.probability > 0):
            raise ValueError("expected views to draw with a probability above 0, or none of both")
        return self


class TrainParams(Section):
    """How every cell of the grid is trained. set: the set or pool to train on.

    threads: of the processor. Sums are made in an order that depends on them, and so are their last bits.
    """

    set: Name
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["float32", "bfloat16"]
    threads: Positive = 1
    epochs: Positive
    batch_size: Annotated[int, Field(ge=2)]
    learning_rate: LearningRates
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    patience: Positive
    average_best: Positive


class GridParams(Section):
    """The ablation grid: every backend with every loss, choice of layers, choice of views, and seed."""

    backend: Names
    loss: Names
    layers: Names
    views: Names
    seed: Annotated[tuple[Seed, ...], Field(min_length=1, strict=False), AfterValidator(distinct)]

    @property
    def runs(self) -> dict[str, str]:
        """Run -> its system, for all runs of the grid. A run is named `<backend>-<loss>-<layers>-<views>-<seed>`.

        The runs of a system differ only in the seed. The name of the system is that of its runs without the seed, and
        without the layers or views where the grid has only one choice of them.
        """
        found = {}
        for cell in itertools.product(self.backend, self.loss, self.layers, self.views, self.seed):
            backend, loss, layers, views, seed = cell
            varied = [name for name, all_names in ((layers, self.layers), (views, self.views)) if len(all_names) > 1]
            found[f"{backend}-{loss}-{layers}-{views}-{seed}"] = "-".join([backend, loss, *varied])
        return found


class AnalyseParams(Section):
    """The runs of the grid whose embeddings are kept and analysed, and how.

    backend, loss, layers, views, seed: every combination is a run. scorings: further scores of these runs by the
    embeddings of the training set. centroids: of the scoring kmeans; None takes the number with the best silhouette.
    neighbours: of the scorings knn and knn_difference. points: trials on the map. projections: of the map.
    """

    backend: Choices
    loss: Choices
    layers: Choices
    views: Choices
    seed: Annotated[tuple[Seed, ...], Field(strict=False), AfterValidator(distinct)]
    scorings: Annotated[
        tuple[Literal["kmeans", "knn", "knn_difference", "mahalanobis"], ...],
        Field(strict=False),
        AfterValidator(distinct),
    ]
    centroids: Annotated[int, Field(ge=1)] | None
    neighbours: Positive
    points: Annotated[int, Field(ge=100)]
    projections: Annotated[
        tuple[Literal["pca", "tsne", "umap"], ...], Field(min_length=1, strict=False), AfterValidator(distinct)
    ]


class AsvParams(Section):
    """The error rates, from 0 to 1, of a speaker verification system at its own EER threshold, for the t-DCF."""

    p_fa: Share
    p_miss: Share
    p_fa_spoof: Share


class EvaluateParams(Section):
    """The sets on which every run is scored, and how.

    views: every set is cached and scored in these views, too, which degrade it. finetuned: [] or one name. With a name,
    the run of the fine-tuning is scored and analysed, too, under that name. bootstrap: the number of resamples for
    confidence intervals, 0 for none, 100,000 at most. asv: for the t-DCF, the error rates of the speaker verification
    system by set. error_rate: the share of each class, in 0..1, that may get the verdict of the other one.
    """

    sets: Names
    views: Views
    finetuned: Annotated[Choices, Field(max_length=1)]
    bootstrap: Annotated[int, Field(ge=0, le=MOST_FOLDS)]
    asv: dict[Name, AsvParams]
    error_rate: Annotated[float, Field(gt=0, lt=1)] = 0.05


Fingerprint = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


class AtlasParams(Section):
    """The layer atlas: every layer probed across corpora.

    domains: name of a corpus -> its sets; {} for no atlas. encoders: fingerprints of other encoders, which have stores
    of these sets below features.root; `all` for every one that has. views: cached views, tested beside the clean one.
    """

    domains: dict[str, Names] = {}
    encoders: Literal["all"] | Annotated[tuple[Fingerprint, ...], Field(strict=False), AfterValidator(distinct)] = ()
    views: Views = ()

    @property
    def sets(self) -> tuple[str, ...]:
        """All sets, domain by domain."""
        return tuple(itertools.chain.from_iterable(self.domains.values()))

    @model_validator(mode="after")
    def _each_set_in_one_domain(self) -> Self:
        distinct(self.sets)
        return self


class ReportParams(Section):
    """How the report looks. sort_by: the set by whose EER the leaderboard is sorted. title, note: shown on the page."""

    sort_by: Name
    title: str = "Report"
    note: str = ""
