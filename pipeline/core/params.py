"""The sections and types of `params.yaml`, and the checks between its sections."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, field_validator, model_validator

from pipeline.core.files import folder_of, in_project

Keys = tuple[str | int, ...]  # from the root of the parameters to a value
Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, le=1e30, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) != len(values):
        raise ValueError(f"expected each entry once, got {list(values)}")
    return values


Names = Annotated[tuple[Name, ...], Field(min_length=1, strict=False), AfterValidator(_distinct)]
Choices = Annotated[tuple[Name, ...], Field(strict=False), AfterValidator(_distinct)]
Layer = NotNegative | Literal["final"]
Layers = Annotated[tuple[Layer, ...], Field(min_length=1, strict=False), AfterValidator(_distinct)]
Views = Choices


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class SetParams(_Section):
    """One set of trials.

    corpus: the adapter, a file of `pipeline/corpora/`. protocol: the file that lists the trials; DVC reruns `prepare`
    when it changes. root: the folder of the audio. quality: the source of the MOS, a file of `pipeline/quality/`;
    `column` takes the values of the corpus itself.
    """

    corpus: Name
    protocol: str
    root: str
    split: str
    quality: Name
    on_bad_audio: Literal["fail", "skip"] = "fail"

    @property
    def folder(self) -> Path:
        """The folder of the audio: that of the project itself, also where DVC runs an experiment in a copy of it."""
        return in_project(self.root)


class RandomEncoder(_Section):
    """Size and seed of a random encoder with XLSR's structure."""

    layers: Positive
    width: Positive
    heads: Positive
    feedforward: Positive
    conv_channels: Positive
    seed: Seed

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.width % self.heads or self.width % 16:
            raise ValueError(
                f"expected a width divisible by 16 and by heads, got width {self.width}, heads {self.heads}"
            )
        return self


class EncoderParams(_Section):
    """The source of the encoder, and how it is fine-tuned.

    source: a hub name, a local folder, a fairseq checkpoint, or `random`, which needs the section `random`. finetune:
    None for a frozen encoder; a section with `on: false` becomes None.
    """

    source: str
    revision: str | None = None
    random: RandomEncoder | None = None
    normalize: Literal["utterance", "none"]
    finetune: FinetuneParams | None = None

    @field_validator("finetune")
    @classmethod
    def _frozen_unless_on(cls, finetune: FinetuneParams | None) -> FinetuneParams | None:
        return finetune if finetune and finetune.on else None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.source == "random") != (self.random is not None):
            raise ValueError("expected the section `random` with source: random, and only then")
        if self.revision is not None and (self.random is not None or Path(self.source).exists()):
            raise ValueError("expected a revision with a hub name alone; files and random weights have none")
        return self


class WindowParams(_Section):
    """The samples at 16 kHz that the encoder gets from an utterance, and how a shorter one is filled up."""

    samples: Annotated[int, Field(ge=400)]
    pad: Literal["repeat", "zero"]


class ExtractParams(_Section):
    """Which features are cached, and how they are computed.

    views: augmented views beside `clean`, for the training set only. storage: the type of frames in the store.
    precision: the type in which the encoder computes; auto is bfloat16 where the device has it. batch_size: auto finds
    the size on a GPU. scheduler: the address of a running Dask scheduler, or local:N for N workers on this machine.
    """

    layers: Layers
    views: Views = ()
    window: WindowParams
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


class FeaturesParams(_Section):
    """Where feature stores are: a folder, or the URL of a folder on an object store."""

    root: str

    @property
    def folder(self) -> Path:
        """The root of all stores: that of the project itself, also where DVC runs an experiment in a copy of it.

        Raises InputError for a URL that cannot be opened.
        """
        return folder_of(self.root)


class LearningRates(_Section):
    """Adam's learning rates for the backend, the vectors of the loss, and the layer weighting."""

    backend: Rate
    centroids: Rate
    layers: Rate


class PoolParams(_Section):
    """Sets that are trained together, each with an equal share of every batch: two sets, or pools defined above."""

    first: Name
    second: Name


class DatasetParams(_Section):
    """Where training reads features from: the disk, memory, or the memory of the device."""

    hold: Literal["disk", "ram", "device"]


class ViewsParams(_Section):
    """The augmented views that training draws in place of the clean features, and the probability of that."""

    draw: Views
    probability: Share

    @model_validator(mode="after")
    def _drawn(self) -> Self:
        if bool(self.draw) != (self.probability > 0):
            raise ValueError("expected views to draw with a probability above 0, or none of both")
        return self


class FinetuneRates(LearningRates):
    """The learning rates of fine-tuning: one more, for the encoder."""

    encoder: Rate


class LoraParams(_Section):
    """Low-rank updates of the named linear maps: fine-tuning trains A and B of W + alpha / rank · B A, and not W."""

    rank: Positive
    alpha: Rate
    targets: Annotated[
        tuple[Literal["q_proj", "k_proj", "v_proj", "out_proj", "intermediate_dense", "output_dense"], ...],
        Field(min_length=1, strict=False),
        AfterValidator(_distinct),
    ]


class FinetuneParams(_Section):
    """How the encoder is trained end to end with a backend and a loss, which have their own sections.

    on: false freezes the encoder. set: the training set. layers: those that the backend reads. views: augmented views,
    computed during training. accumulate: a step of the optimizer takes accumulate × batch_size utterances, of which
    batch_size are in the device's memory at once. freeze_front_end: do not train the convolutions.
    gradient_checkpointing: compute layers twice to save memory. lora: train low-rank updates, and none of the encoder's
    own weights; without it all of them are trained.
    """

    on: bool = True
    set: Name = "train"
    backend: Name
    loss: Name
    layers: Layers
    views: ViewsParams
    seed: Seed
    epochs: Positive
    batch_size: Annotated[int, Field(ge=2)]
    accumulate: Positive
    learning_rate: FinetuneRates
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    patience: Positive
    average_best: Positive
    freeze_front_end: bool
    gradient_checkpointing: bool
    precision: Literal["float32", "bfloat16"]
    lora: LoraParams | None = None

    @model_validator(mode="after")
    def _lora_freezes(self) -> Self:
        if self.lora and not self.freeze_front_end:
            raise ValueError("expected freeze_front_end: true with lora, which trains no convolution, got false")
        return self


class TrainParams(_Section):
    """How every cell of the grid is trained. set: the set or pool to train on."""

    set: Name
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["float32", "bfloat16"]
    epochs: Positive
    batch_size: Annotated[int, Field(ge=2)]
    learning_rate: LearningRates
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    patience: Positive
    average_best: Positive


class GridParams(_Section):
    """The ablation grid: every backend with every loss, choice of layers, choice of views, and seed."""

    backend: Names
    loss: Names
    layers: Names
    views: Names
    seed: Annotated[tuple[Seed, ...], Field(min_length=1, strict=False), AfterValidator(_distinct)]

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


class AnalyseParams(_Section):
    """The runs of the grid whose embeddings are kept and analysed, and how.

    backend, loss, layers, views, seed: every combination is a run. scorings: further scores of these runs by the
    embeddings of the training set. centroids: of the scoring kmeans; None takes the number with the best silhouette.
    neighbours: of the scorings knn and knn_difference. points: trials on the map. projections: of the map.
    """

    backend: Choices
    loss: Choices
    layers: Choices
    views: Choices
    seed: Annotated[tuple[Seed, ...], Field(strict=False), AfterValidator(_distinct)]
    scorings: Annotated[
        tuple[Literal["kmeans", "knn", "knn_difference", "mahalanobis"], ...],
        Field(strict=False),
        AfterValidator(_distinct),
    ]
    centroids: Annotated[int, Field(ge=1)] | None
    neighbours: Positive
    points: Annotated[int, Field(ge=100)]
    projections: Annotated[
        tuple[Literal["pca", "tsne", "umap"], ...], Field(min_length=1, strict=False), AfterValidator(_distinct)
    ]


class AsvParams(_Section):
    """The error rates, from 0 to 1, of a speaker verification system at its own EER threshold, for the t-DCF."""

    p_fa: Share
    p_miss: Share
    p_fa_spoof: Share


class EvaluateParams(_Section):
    """The sets on which every run is scored, and how.

    finetuned: [] or one name. With a name, the run of the fine-tuning is scored, too, under that name. bootstrap: the
    number of resamples for confidence intervals, 0 for none. asv: for the t-DCF, the error rates of the speaker
    verification system by set.
    """

    sets: Names
    finetuned: Annotated[Choices, Field(max_length=1)]
    bootstrap: NotNegative
    asv: dict[Name, AsvParams]


class ReportParams(_Section):
    """How the report looks. sort_by: the set by whose EER the leaderboard is sorted. note: shown on the page."""

    sort_by: Name
    note: str = ""


class Params(_Section):
    """All of `params.yaml`."""

    sets: dict[Name, SetParams]
    pools: dict[Name, PoolParams]
    encoder: EncoderParams
    extract: ExtractParams
    features: FeaturesParams
    dataset: DatasetParams
    train: TrainParams
    backends: dict[Name, dict[str, Any]]
    losses: dict[Name, dict[str, Any]]
    layers: dict[Name, Layers]
    views: dict[Name, ViewsParams]
    grid: GridParams
    evaluate: EvaluateParams
    analyse: AnalyseParams
    report: ReportParams

    _places: dict[Keys, str] = PrivateAttr(default_factory=dict)  # key -> file:line

    def where(self, *keys: str | int) -> str:
        """`file:line: a.b.c`, for a message about a value. The line is that of the key, or of the nearest key above."""
        name = ".".join(str(key) for key in keys)
        for end in range(len(keys), 0, -1):
            if place := self._places.get(keys[:end]):
                return f"{place}: {name}"
        return name

    def misfits(self) -> list[str]:
        """Messages about sections that do not fit together: names that one uses and another lacks."""
        wrong = [] if "dev" in self.sets else [f"{self.where('sets')}: expected a set dev"]
        wrong += (wrong_pools := self._wrong_pools())
        there = self.train.set in {**self.sets, **self.pools}
        if not there or (not wrong_pools and "dev" in self.members(self.train.set)):
            wrong.append(f"{self.where('train', 'set')}: expected a set or a pool without dev, got {self.train.set!r}")
        wrong += self._unknown(("evaluate", "sets"), self.evaluate.sets, self.sets, "sets")
        trained_on = {self.encoder.finetune.set} if self.encoder.finetune else set()
        if there and not wrong_pools:
            trained_on |= set(self.members(self.train.set))
        wrong += [
            f"{self.where('evaluate', 'sets', i)}: expected a set that is not trained on, got {name!r}"
            for i, name in enumerate(self.evaluate.sets)
            if name in trained_on
        ]
        wrong += [
            f"{self.where('evaluate', 'asv', name)}: expected one of evaluate.sets, got {name!r}"
            for name in self.evaluate.asv
            if name not in self.evaluate.sets
        ]
        for axis, section, known in (
            ("backend", "backends", self.backends),
            ("loss", "losses", self.losses),
            ("layers", "layers", self.layers),
            ("views", "views", self.views),
        ):
            wrong += self._unknown(("grid", axis), getattr(self.grid, axis), known, section)
        wrong += self._not_in_the_grid()
        wrong += self._not_finetuned()
        for name, layers in self.layers.items():
            wrong += self._not_cached(("layers", name), layers, self.extract.layers, "layers")
        for name, views in self.views.items():
            wrong += self._not_cached(("views", name, "draw"), views.draw, self.extract.views, "views")
        if self.report.sort_by not in self.evaluate.sets:
            sets = ", ".join(self.evaluate.sets)
            wrong.append(f"{self.where('report', 'sort_by')}: expected one of {sets}, got {self.report.sort_by!r}")
        return wrong

    @property
    def used_sets(self) -> tuple[str, ...]:
        """Every set that runs read, once: what is trained on (a set or a pool), dev, and the evaluation sets."""
        return tuple(dict.fromkeys((self.train.set, "dev", *self.evaluate.sets)))

    @property
    def analysed(self) -> tuple[str, ...]:
        """The runs of the grid whose embeddings are kept and analysed."""
        chosen = self.analyse
        cells = itertools.product(chosen.backend, chosen.loss, chosen.layers, chosen.views, chosen.seed)
        return tuple("-".join(map(str, cell)) for cell in cells)

    @property
    def rescored(self) -> dict[str, str]:
        """The further scores of analysed runs: `<run>-<scoring>` -> `<system>-<scoring>`."""
        trained = self.grid.runs
        return {
            f"{run}-{scoring}": f"{trained[run]}-{scoring}"
            for run in self.analysed
            for scoring in self.analyse.scorings
        }

    @property
    def runs(self) -> dict[str, str]:
        """Run -> its system, for all runs of the leaderboard: those of the grid, the fine-tuned one, the rescored."""
        return self.grid.runs | {run: run for run in self.evaluate.finetuned} | self.rescored

    def _not_in_the_grid(self) -> list[str]:
        chosen = {axis: getattr(self.analyse, axis) for axis in ("backend", "loss", "layers", "views", "seed")}
        if not all(chosen.values()):  # nothing is analysed
            return []
        return [
            f"{self.where('analyse', axis, i)}: expected one of grid.{axis}, got {name!r}; add it there, or analyse "
            "other runs, or none (`backend: []`)"
            for axis, names in chosen.items()
            for i, name in enumerate(names)
            if name not in getattr(self.grid, axis)
        ]

    def _not_finetuned(self) -> list[str]:
        """Messages where the fine-tuned run cannot be scored: the encoder is frozen, or its layers are not cached."""
        if not self.evaluate.finetuned:
            return []
        if self.encoder.finetune is None:
            return [
                f"{self.where('evaluate', 'finetuned')}: expected [] with a frozen encoder, got "
                f"{list(self.evaluate.finetuned)}; set it to [], or encoder.finetune.on to true"
            ]
        return self._not_cached(
            ("encoder", "finetune", "layers"), self.encoder.finetune.layers, self.extract.layers, "layers"
        )

    def _wrong_pools(self) -> list[str]:
        wrong, known = [], set(self.sets)
        for name, pool in self.pools.items():
            wrong += [
                f"{self.where('pools', name, key)}: expected a set or a pool above, got {part!r}"
                for key, part in pool.model_dump().items()
                if part not in known
            ]
            if name in known:
                wrong.append(f"{self.where('pools', name)}: expected a name that no set has")
            elif not wrong and set(self.members(pool.first)) & set(self.members(pool.second)):
                wrong.append(f"{self.where('pools', name)}: expected every set once, got one twice")
            known.add(name)
        return wrong

    def members(self, name: str) -> tuple[str, ...]:
        """The sets of a pool, in order; for a set the set itself."""
        if name not in self.pools:
            return (name,)
        pool = self.pools[name]
        return (*self.members(pool.first), *self.members(pool.second))

    def _not_cached(self, keys: Keys, names: Sequence[Any], cached: Sequence[Any], what: str) -> list[str]:
        return [
            f"{self.where(*keys, i)}: expected one of extract.{what} ({', '.join(map(str, cached)) or 'none'}), "
            f"got {name!r}; add it there, and the next `dvc repro` caches it"
            for i, name in enumerate(names)
            if name not in cached
        ]

    def _unknown(self, keys: Keys, names: tuple[str, ...], sections: Mapping[str, Any], section: str) -> list[str]:
        return [
            f"{self.where(*keys, i)}: expected a name that has a section in {section}, got {name!r}; "
            f"add one below {section}, empty (`{name}: {{}}`) where it has no parameters"
            for i, name in enumerate(names)
            if name not in sections
        ]
