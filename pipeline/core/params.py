"""`params.yaml` as a whole: all sections, what follows from several of them, and the checks between them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field, PrivateAttr

from pipeline.core.encoder_sections import EncoderParams
from pipeline.core.sections import (
    OTHER,
    AnalyseParams,
    AtlasParams,
    DatasetParams,
    EvaluateParams,
    ExtractParams,
    FeaturesParams,
    Fused,
    GridParams,
    Layers,
    Name,
    OneSet,
    Pool,
    ReportParams,
    Section,
    TrainParams,
    ViewsParams,
)

Keys = tuple[str | int, ...]  # from the root of the parameters to a value


class Params(Section):
    """All of `params.yaml`."""

    sets: dict[Name, OneSet]
    pools: dict[Name, Pool]
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
    fuse: dict[Name, Fused] = Field(default_factory=dict)  # older parameters have none
    analyse: AnalyseParams
    atlas: AtlasParams = AtlasParams()
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
        wrong += self._wrong_finetune_set()
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
        for domain, names in self.atlas.domains.items():
            wrong += self._unknown(("atlas", "domains", domain), names, self.sets, "sets")
        wrong += self._not_in_the_grid() + self._not_finetuned()
        wrong += self._wrong_fusions() if not wrong else []  # the names of runs follow from the other sections
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
        """The runs whose embeddings are kept and analysed: those that `analyse` names, and the fine-tuned one."""
        return (*self._analysed_of_grid, *self.evaluate.finetuned)

    @property
    def _analysed_of_grid(self) -> tuple[str, ...]:
        chosen = self.analyse
        cells = itertools.product(chosen.backend, chosen.loss, chosen.layers, chosen.views, chosen.seed)
        return tuple("-".join(map(str, cell)) for cell in cells)

    @property
    def rescored(self) -> dict[str, str]:
        """The further scores of analysed runs of the grid: `<run>-<scoring>` -> `<system>-<scoring>`."""
        trained = self.grid.runs
        return {
            f"{run}-{scoring}": f"{trained[run]}-{scoring}"
            for run in self._analysed_of_grid
            for scoring in self.analyse.scorings
        }

    @property
    def runs(self) -> dict[str, str]:
        """Run -> its system, for all rows of the leaderboard: the grid, the fine-tuned run, the rescored, the fused."""
        return self._fusible | {name: name for name in self.fuse}

    @property
    def fused_runs(self) -> tuple[str, ...]:
        """The runs that fusions name, once, without the systems of elsewhere."""
        named = (run for runs in self.fuse.values() for run in runs if not run.startswith(OTHER))
        return tuple(dict.fromkeys(named))

    @property
    def _fusible(self) -> dict[str, str]:
        """Run -> its system, for all runs that a fusion may name."""
        return self.grid.runs | {run: run for run in self.evaluate.finetuned} | self.rescored

    @property
    def axes(self) -> dict[str, dict[str, str]]:
        """System -> the names of its backend, loss, layers and views, and of its scoring by an embedding index."""
        names, grid = ("backend", "loss", "layers", "views"), self.grid
        cells = itertools.product(grid.backend, grid.loss, grid.layers, grid.views)
        chosen = {cell: dict(zip(names, cell, strict=True)) for cell in cells}
        trained = grid.runs
        found = {trained["-".join((*cell, str(grid.seed[0])))]: own for cell, own in chosen.items()}
        if tuning := self.encoder.finetune:
            found |= {name: {"backend": tuning.backend, "loss": tuning.loss} for name in self.evaluate.finetuned}
        for run in self._analysed_of_grid:
            for scoring in self.analyse.scorings:
                found[f"{trained[run]}-{scoring}"] = found[trained[run]] | {"scoring": scoring}
        return found

    def cached_views(self, name: str) -> tuple[str, ...]:
        """The views of a set that are cached beside the clean one: of training sets and of evaluation sets."""
        return (self.extract.views if name in self.members(self.train.set) else ()) + self.scored_views(name)

    def scored_views(self, name: str) -> tuple[str, ...]:
        """The views beside the clean one in which runs score a set."""
        return self.evaluate.views if name in self.evaluate.sets else ()

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

    def _wrong_finetune_set(self) -> list[str]:
        """A message where the set of `encoder.finetune` is none; also where it is off, because `dvc.yaml` names it."""
        name = self.encoder.finetune_set
        if name is None or name in self.sets:
            return []
        there = [one for one in self.sets if one != "dev"]
        also = "; a pool is made from features, which the encoder makes" if name in self.pools else ""
        return [
            f"{self.where('encoder', 'finetune', 'set')}: expected one of the sets {', '.join(there)}, also with "
            f"`on: false`, got {name!r}{also}"
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

    def _wrong_fusions(self) -> list[str]:
        known = self._fusible
        wrong = [
            f"{self.where('fuse', name, i)}: expected a run of the grid, the fine-tuned run, one of these with a "
            f"scoring of `analyse`, such as {next(iter(known))}, or {OTHER}<name>, which has scores in data/others, "
            f"got {run!r}"
            for name, runs in self.fuse.items()
            for i, run in enumerate(runs)
            if run not in known and not run.startswith(OTHER)
        ]
        taken = {*known, *known.values()}
        return wrong + [
            f"{self.where('fuse', name)}: expected a name that no run has" for name in self.fuse if name in taken
        ]

    def _wrong_pools(self) -> list[str]:
        wrong = []
        for name, parts in self.pools.items():
            wrong += [
                f"{self.where('pools', name, i)}: expected one of the sets {', '.join(self.sets)}, got {part!r}"
                for i, part in enumerate(parts)
                if part not in self.sets
            ]
            if name in self.sets:
                wrong.append(f"{self.where('pools', name)}: expected a name that no set has")
        return wrong

    def members(self, name: str) -> tuple[str, ...]:
        """The sets of a pool, in order; for a set the set itself."""
        return self.pools.get(name, (name,))

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
