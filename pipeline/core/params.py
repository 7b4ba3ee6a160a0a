"""`params.yaml`: read, checked and typed; a wrong key or value is an error that names it and its line."""

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
    """One set of trials: which adapter reads it, from where.

    protocol is the file that lists the trials (DVC reruns `prepare` when it changes), root the folder that the paths
    are relative to. quality says who estimates the MOS: `column` is the corpus itself, other names are files of
    `pipeline/quality/`.
    """

    corpus: Name
    protocol: str
    root: str
    split: str
    quality: Name
    on_bad_audio: Literal["fail", "skip"] = "fail"

    @property
    def folder(self) -> Path:
        """The folder that paths are relative to, of the project itself where DVC runs an experiment in a copy."""
        return in_project(self.root)


class RandomEncoder(_Section):
    """Size and seed of a randomly initialised encoder of XLSR's structure."""

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
    """Where the encoder comes from: a hub name, a local folder, a checkpoint of fairseq's, or `random` with its size;
    fine-tuned or frozen.

    finetune is None for a frozen encoder, which is also one whose section says `on: false`.
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
    """Samples at 16 kHz that the encoder sees of an utterance, and what fills up a shorter one."""

    samples: Annotated[int, Field(ge=400)]
    pad: Literal["repeat", "zero"]


class ExtractParams(_Section):
    """What is cached, and how it is computed; views are those beside `clean`, of the training set alone.

    storage is how frames are kept; precision is what the encoder computes in, auto: bfloat16 where the device has it.
    batch_size auto finds itself on a GPU. scheduler is Dask's: the address of one that runs, or local:N for N workers
    on this machine.
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
        """How many utterances the encoder gets at once, to begin with; on a CPU more are no faster."""
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
    """Where feature stores lie: a folder, or the URL of one on an object store."""

    root: str

    @property
    def folder(self) -> Path:
        """The root of all stores, of the project itself where DVC runs an experiment in a copy.

        Raises InputError for a URL that cannot be opened.
        """
        return folder_of(self.root)


class LearningRates(_Section):
    """Adam's learning rates: for the backend, for the loss's vectors, and for the layer weighting."""

    backend: Rate
    centroids: Rate
    layers: Rate


class PoolParams(_Section):
    """Two sets, or pools that stand above, that are trained on together, each with an equal share of every batch."""

    first: Name
    second: Name


class DatasetParams(_Section):
    """Where the features lie that training reads: on disk, in memory, or in the device's memory."""

    hold: Literal["disk", "ram", "device"]


class ViewsParams(_Section):
    """The augmented views that training draws in place of the clean features, and how often it does."""

    draw: Views
    probability: Share

    @model_validator(mode="after")
    def _drawn(self) -> Self:
        if bool(self.draw) != (self.probability > 0):
            raise ValueError("expected views to draw with a probability above 0, or none of both")
        return self


class FinetuneRates(LearningRates):
    """Those, and one for the encoder."""

    encoder: Rate


class LoraParams(_Section):
    """Low-rank updates of the encoder in place of its weights: W + alpha / rank · B A, for the named linear maps."""

    rank: Positive
    alpha: Rate
    targets: Annotated[
        tuple[Literal["q_proj", "k_proj", "v_proj", "out_proj", "intermediate_dense", "output_dense"], ...],
        Field(min_length=1, strict=False),
        AfterValidator(_distinct),
    ]


class FinetuneParams(_Section):
    """How the encoder is trained end to end with a backend and a loss, whose own parameters stand in their sections.

    set is the set that it is trained on; layers are those that the backend reads, views those that RawBoost and the
    like make on the fly. A step of the optimiser takes accumulate × batch_size utterances, of which batch_size are in
    the device's memory at once.
    freeze_front_end keeps the convolutions as they are; gradient_checkpointing computes layers twice to save memory.
    With `on: false` the encoder is frozen, and the section only names what it would be trained with.
    With lora the encoder's own weights all stay as they are; without it they are all trained.
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
    """How every cell of the grid is trained; set is the set or pool that it is trained on."""

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
    """The ablation grid: every backend with every loss, on every choice of layers and of views, from every seed."""

    backend: Names
    loss: Names
    layers: Names
    views: Names
    seed: Annotated[tuple[Seed, ...], Field(min_length=1, strict=False), AfterValidator(_distinct)]

    @property
    def runs(self) -> dict[str, str]:
        """The names of all runs, `<backend>-<loss>-<layers>-<views>-<seed>`, and of each the system that it is one of.

        Runs of a system differ in the seed alone. Its name is that of the run without the seed, and without the
        layers and views where the grid has one choice of them.
        """
        found = {}
        for cell in itertools.product(self.backend, self.loss, self.layers, self.views, self.seed):
            backend, loss, layers, views, seed = cell
            varied = [name for name, all_names in ((layers, self.layers), (views, self.views)) if len(all_names) > 1]
            found[f"{backend}-{loss}-{layers}-{views}-{seed}"] = "-".join([backend, loss, *varied])
        return found


class AnalyseParams(_Section):
    """Runs of the grid whose embeddings are kept, indexed and looked at, and how.

    scorings are further scores of theirs, by the embeddings of the training set: centroids of its bona fide by k-means
    (`centroids` of them; null: as many as the silhouette favours), distances to the nearest `neighbours`, Mahalanobis.
    points is how many trials the map of embeddings shows, by the projections.
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
    """Error rates of a speaker verification system at its own EER threshold, shares in 0..1; the t-DCF needs them."""

    p_fa: Share
    p_miss: Share
    p_fa_spoof: Share


class EvaluateParams(_Section):
    """The sets that every run is scored on, and how.

    finetuned names the run that the encoder was fine-tuned with, which is then scored as those of the grid are; it is a
    list of one or none, as that is what DVC makes stages of. bootstrap is the number of resamples behind the confidence
    intervals, 0 for none; asv has the rates of the speaker verification system of a set, for its t-DCF.
    """

    sets: Names
    finetuned: Annotated[Choices, Field(max_length=1)]
    bootstrap: NotNegative
    asv: dict[Name, AsvParams]


class ReportParams(_Section):
    """The set whose EER orders the leaderboard, and a caveat that the page shows."""

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

    _places: dict[Keys, str] = PrivateAttr(default_factory=dict)  # where each key stands, as file:line

    def where(self, *keys: str | int) -> str:
        """`file:line: a.b.c`, for a message about a value that was read; the line is that of the nearest key above."""
        name = ".".join(str(key) for key in keys)
        for end in range(len(keys), 0, -1):
            if place := self._places.get(keys[:end]):
                return f"{place}: {name}"
        return name

    def misfits(self) -> list[str]:
        """What is wrong between the sections: names that one uses and another lacks."""
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
        """The runs of the grid whose embeddings are kept and looked at."""
        chosen = self.analyse
        cells = itertools.product(chosen.backend, chosen.loss, chosen.layers, chosen.views, chosen.seed)
        return tuple("-".join(map(str, cell)) for cell in cells)

    @property
    def rescored(self) -> dict[str, str]:
        """What the scorings make of analysed runs, `<run>-<scoring>`, each with its system, `<system>-<scoring>`."""
        trained = self.grid.runs
        return {
            f"{run}-{scoring}": f"{trained[run]}-{scoring}"
            for run in self.analysed
            for scoring in self.analyse.scorings
        }

    @property
    def runs(self) -> dict[str, str]:
        """The rows of the leaderboard, with their systems: runs of the grid, the fine-tuned one, what is rescored."""
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
        """What keeps the fine-tuned run from being scored: a frozen encoder, or layers of its backend not cached."""
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
        """The sets of a pool, in order; a set is its own only one."""
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
