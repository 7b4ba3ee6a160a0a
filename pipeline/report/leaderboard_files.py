"""The files of the leaderboard: read the results of the stages, and write tables as text, CSV and JSON."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.core.errors import InputError, listing
from pipeline.core.files import csv_text
from pipeline.report.leaderboard import (
    BEST,
    NEAR,
    ONE_SEED,
    TWO_SEEDS,
    Attack,
    Leaderboard,
    Result,
    TrainedFacts,
    Value,
)
from pipeline.report.measures import EER, GROUPS, Interval, finite, read_all, read_interval
from pipeline.report.stopped import sentence
from pipeline.training.dropped import Dropped

EVALUATE, TRAIN = "flow/evaluate/dvc.yaml", "train"  # as DVC names them
RESCORED = "†"
FINETUNED = "‡"
FUSED = "+"
REMARK = "!"
SHIFTED = "§"  # behind a set that lies elsewhere than dev
REMARKS_SHOWN = 10  # below the table on the terminal; all are on the page and in the CSV file
CAVEATS = {
    ONE_SEED: f"{ONE_SEED}: one seed; the interval says nothing about other seeds",
    TWO_SEEDS: f"{TWO_SEEDS}: an interval over seeds needs three",
}
SELECTION = "(dev)"  # in brackets, because dev chose the checkpoints and is no test of them


def read_result(path: Path) -> Result:
    """Read the metrics of `evaluate`. Raises InputError where the file is missing or has other contents."""
    found = _json(path, EVALUATE)
    try:
        return Result(
            eer=finite(found["eer"]),
            interval=read_interval(found.get("eer_interval")),
            threshold=finite(found["threshold"]),
            bonafide=int(found["bonafide"]),
            spoof=int(found["spoof"]),
            attacks=_groups(found["attacks"]),
            codecs=_groups(found.get("codecs", {})),
            vocoders=_groups(found.get("vocoders", {})),
            views={str(view): _eer_in(own) for view, own in found.get("views", {}).items()},
            measures=read_all(found),
            warnings=tuple(str(line) for line in found.get("warnings", ())),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _unexpected(path, "metrics with eer, threshold, bonafide, spoof and attacks", error, EVALUATE) from None


def _groups(found: Mapping[str, Any]) -> dict[str, Attack]:
    return {str(name): Attack(eer=finite(group["eer"]), spoof=int(group["spoof"])) for name, group in found.items()}


def _eer_in(own: Mapping[str, Any]) -> tuple[float, Interval | None]:
    return finite(own["eer"]), read_interval(own.get("eer_interval"))


def read_training(path: Path, seconds: Path) -> TrainedFacts:
    """Read the metrics of `train`, and its seconds where these weights were trained here.

    Raises InputError where the file is missing or has other contents.
    """
    found = _json(path, TRAIN)
    try:
        return TrainedFacts(
            dev_eer=finite(found["dev_eer"]),
            parameters=int(found["parameters"]),
            seconds=_seconds_of(found.get("weights"), seconds),
            remarks=tuple(str(line) for line in found.get("remarks", ())),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _unexpected(
            path, f"metrics with dev_eer and parameters (and {seconds} with seconds)", error, TRAIN
        ) from None


def _seconds_of(weights: str | None, path: Path) -> float | None:
    """The seconds in a file, where they are of these weights: DVC may have restored others, or another run's."""
    if weights is None or not path.is_file():
        return None
    timed = _json(path, TRAIN)
    return finite(timed["seconds"]) if timed.get("weights") == weights else None


def _json(path: Path, stage: str) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path}: no metrics there; run `dvc repro {stage}`")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _unexpected(path, "a JSON object", error, stage) from None
    if not isinstance(found, dict):
        raise _unexpected(path, "a JSON object", TypeError(type(found).__name__), stage)
    return found


def _unexpected(path: Path, what: str, error: Exception, stage: str) -> InputError:
    got = f"{type(error).__name__} {error}"
    return InputError(f"{path}: expected {what}, got {got}; run `dvc repro -f {stage}`")


def gather(
    folder: Path,
    *,
    runs: Mapping[str, str],
    sets: Sequence[str],
    sort_by: str,
    seconds: Path,
    rescored: Collection[str] = (),
    finetuned: Collection[str] = (),
    encoder_seed: int | None = None,
    stopped: Sequence[Dropped] = (),
    fused: Collection[str] = (),
) -> Leaderboard:
    """Read FOLDER/<run>.json and FOLDER/<run>/<set>.json for every run and set, and sort the systems by EER and name.

    Args:
        runs: run -> its system. seconds: folder with <run>.json for the runs that were trained here.
        rescored: the runs that score by an embedding index. finetuned: the run that was trained with the encoder.
        encoder_seed: of the fine-tuning; None where the encoder is frozen. stopped: systems that a search stopped
            early; none of `runs` is theirs. fused: those of `runs` that fuse the scores of others.

    Raises InputError for no or repeated names, a `sort_by` that is no set, metrics that are missing or malformed, and
    runs that were evaluated on different trials.
    """
    _check_names(list(runs), sets, sort_by)
    if not set(runs) - {*rescored, *fused}:
        raise InputError(f"expected at least one trained run, got only scores by an index: {listing(list(rescored))}")
    trainings, results = _read_all(folder, list(runs), sets, seconds=seconds)
    _check_same_trials(folder, list(runs), sets, results)
    members = {system: tuple(sorted(run for run in runs if runs[run] == system)) for system in runs.values()}
    by_index, end_to_end, of_others = (frozenset(runs[run] for run in names) for names in (rescored, finetuned, fused))
    eers = {system: math.fsum(results[run, sort_by].eer for run in own) / len(own) for system, own in members.items()}
    order = tuple(sorted(members, key=lambda system: (eers[system], system)))
    return Leaderboard(
        order, members, tuple(sets), sort_by, trainings, results, by_index, end_to_end, encoder_seed, tuple(stopped),
        fused=of_others,
    )  # fmt: skip


def _read_all(
    folder: Path, runs: Sequence[str], sets: Sequence[str], *, seconds: Path
) -> tuple[dict[str, TrainedFacts], dict[tuple[str, str], Result]]:
    """Read the metrics of every run and set. Raises InputError with all files that cannot be used."""
    problems, results, trainings = [], {}, {}
    for run in runs:
        try:
            trainings[run] = read_training(folder / f"{run}.json", seconds / f"{run}.json")
        except InputError as error:
            problems.append(str(error))
        for name in sets:
            try:
                results[run, name] = read_result(folder / run / f"{name}.json")
            except InputError as error:
                problems.append(str(error))
    if problems:
        count = len(runs) * (len(sets) + 1)
        raise InputError(f"{len(problems)} of {count} files of metrics cannot be used:\n{listing(problems)}")
    return trainings, results


def _check_names(runs: Sequence[str], sets: Sequence[str], sort_by: str) -> None:
    for kind, names in (("run", runs), ("set", sets)):
        if not names:
            raise InputError(f"expected at least one {kind}, got none")
        if twice := [name for name, times in Counter(names).items() if times > 1]:
            raise InputError(f"expected every {kind} once, got {twice[0]} twice")
    if sort_by not in sets:
        raise InputError(f"expected to sort by one of the sets {', '.join(sets)}, got {sort_by}")


def _check_same_trials(
    folder: Path, runs: Sequence[str], sets: Sequence[str], results: dict[tuple[str, str], Result]
) -> None:
    """Raise InputError where runs have different trials, because then their EERs cannot be compared."""
    for name in sets:
        for run in runs:
            if results[run, name].counts() != results[runs[0], name].counts():
                raise InputError(
                    f"{folder / run}/{name}.json and {folder / runs[0]}/{name}.json count different trials or "
                    f"attacks, so that their values cannot be compared; run `dvc repro {EVALUATE}`"
                )


def to_csv(board: Leaderboard) -> str:
    """The leaderboard as CSV, with a line for each system and EERs in percent. Cells without a value are empty.

    Columns: rank, system, runs, chosen (by dev: chosen, tied or nothing), dev_eer, dev_eer_sd; for each set eer/<set>
    with _sd, _low, _high (95 %) and _mark; seconds, parameters; eer/<set>/<attack>; <measure>/<set>, see
    `pipeline.report.measures`; eer_by_codec/<set>/<codec>, eer_by_vocoder/<set>/<vocoder>; eer_in_view/<set>/<view>.
    """
    attacks, others = (
        [(name, kind, group) for name in board.sets for kind in kinds for group in board.first(name).groups(kind)]
        for kinds in (("attack",), ("codec", "vocoder"))
    )
    measures = [(measure.key, name) for measure in board.measures if measure.key != EER for name in board.sets]
    header = ["rank", "system", "runs", "chosen", "dev_eer", "dev_eer_sd"]
    header += [f"eer/{name}{part}" for name in board.sets for part in ("", "_sd", "_low", "_high", "_mark")]
    header += ["seconds", "parameters", *(f"eer/{name}/{attack}" for name, _, attack in attacks)]
    header += [f"{key}/{name}" for key, name in measures]
    header += [f"eer_by_{kind}/{name}/{group}" for name, kind, group in others]
    views = [(name, view) for name in board.sets for view in board.views(name)]
    header += [f"eer_in_view/{name}/{view}" for name, view in views]
    columns = [board.group(*group) for group in (*attacks, *others)]
    by_attack, by_other = columns[: len(attacks)], columns[len(attacks) :]
    rows = []
    for rank, system in enumerate(board.systems, start=1):
        dev = board.dev_eer(system)
        row: list[Any] = [rank, system, len(board.runs[system]), board.choice(system), dev.mean, dev.deviation]
        for name in board.sets:
            value = board.eer(system, name)
            row += [value.mean, value.deviation, *(value.interval or (None, None)), board.mark(system, name)]
        row += [board.seconds(system), board.parameters(system), *(column[system] for column in by_attack)]
        values = [board.value(system, name, key) for key, name in measures]
        row += [None if value is None else value.mean for value in values]
        row += [column[system] for column in by_other]
        heard = [board.in_view(system, name, view) for name, view in views]
        rows.append(row + [None if value is None else value.mean for value in heard])
    return csv_text([header, *rows])


def metrics_to_csv(board: Leaderboard) -> str:
    """Every metric of every run as CSV, one in a line, as `evaluate` wrote it.

    Columns: system, run, set, by (all trials, attack, codec, vocoder, view), group, metric, value, low, high (95 %).
    The EERs of groups are in percent; `pipeline.report.measures` has the units of the others.
    """
    rows: list[list[Any]] = [["system", "run", "set", "by", "group", "metric", "value", "low", "high"]]
    for system in board.systems:
        for run in board.runs[system]:
            for name in board.sets:
                rows += [[system, run, name, *line] for line in _lines(board, board.results[run, name])]
    return csv_text(rows)


def _lines(board: Leaderboard, result: Result) -> Iterator[list[Any]]:
    """Yield the metrics of a run on a set: by, group, metric, value, low, high."""
    for measure in board.measures:
        if found := result.measure(measure.key):
            yield ["all", "", measure.key, found[0], *(found[1] or (None, None))]
    for kind in GROUPS:
        for group, own in result.groups(kind).items():
            yield [kind, group, EER, own.eer, None, None]
    for view, (eer, interval) in result.views.items():
        yield ["view", view, EER, eer, *(interval or (None, None))]


def runs_to_csv(board: Leaderboard) -> str:
    """The single runs as CSV: system, run, dev_eer, eer/<set>, seconds, parameters, remarks."""
    header = ["system", "run", "dev_eer", *(f"eer/{name}" for name in board.sets), "seconds", "parameters", "remarks"]
    rows = []
    for system in board.systems:
        for run in board.runs[system]:
            training = board.trainings[run]
            eers = [board.results[run, name].eer for name in board.sets]
            told = "; ".join(board.remarks_on(run))
            rows.append([system, run, training.dev_eer, *eers, training.seconds, training.parameters, told])
    return csv_text([header, *rows])


def to_json(board: Leaderboard) -> str:
    """The summary for `dvc exp show` and `dvc metrics diff`: the EER in percent of each system on `sort_by`, and all
    EERs of the trained system with the lowest dev EER."""
    chosen = board.chosen
    eers = {system: round(board.eer(system, board.sort_by).mean, 4) for system in sorted(board.systems)}
    sets = {name: round(board.eer(chosen, name).mean, 4) for name in board.sets}
    dev = round(board.dev_eer(chosen).mean, 4)
    tied = {"tied": list(board.tied)} if board.tied else {}
    found = {"chosen": {"system": chosen, "dev_eer": dev, "eer": sets} | tied, "eer": eers}
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"


def to_text(board: Leaderboard) -> str:
    """The leaderboard as an aligned table. Notes below it explain its marks and give the size of each set."""
    named = [f"{name} {SHIFTED}" if name in board.shifts else name for name in board.sets]
    header = ["", "system", "runs", SELECTION, *named]
    header += ["seconds", "parameters"]
    rows = [header] + [[f"{rank}", *_cells(board, system)] for rank, system in enumerate(board.systems, start=1)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    left = {1, 3, *range(4, 4 + len(board.sets))}
    lines = [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    title = f"EER in percent, sorted by {board.sort_by}: an order to look at, no selection"
    notes = [
        f"{BEST} best of its column, {NEAR} within noise of it; [] 95 % interval; ± standard deviation over seeds",
        f"{SELECTION}: the dev set, as training saw it when it chose its checkpoints; seconds: of training a run",
    ]
    notes.append(_chosen_by_dev(board))
    notes += [CAVEATS[caveat] for caveat in (ONE_SEED, TWO_SEEDS) if caveat in board.caveats]
    if board.rescored:
        notes.append(f"{RESCORED} by the embedding index of the trained system, and left out of what dev chooses")
    if board.finetuned:
        notes.append(f"{FINETUNED} trained with the encoder, whose parameters it counts; all others read its features")
    if board.fused:
        notes.append(f"{FUSED} fuses the scores of other runs, (dev) out of fold; left out of what dev chooses")
    notes += [board.one_encoder] if board.one_encoder else []
    notes += [sentence(board.stopped)] if board.stopped else []
    notes += [f"{SHIFTED} {line}" for line in board.shifts.values()]
    notes += _remarks(board)
    notes += [f"{name}: {board.first(name).bonafide} bona fide, {board.first(name).spoof} spoof" for name in board.sets]
    return "\n".join([title, "", *lines, "", *notes]) + "\n"


def _chosen_by_dev(board: Leaderboard) -> str:
    """The system with the lowest dev EER, and those that share it."""
    text = f"dev chooses {board.chosen}, with {board.dev_eer(board.chosen).mean:.2f} %"
    return f"{text}; the same EER has {', '.join(board.tied)}" if board.tied else text


def _remarks(board: Leaderboard) -> list[str]:
    lines = [f"{REMARK} {line}" for system in board.systems for line in board.remarks(system)]
    more = len(lines) - REMARKS_SHOWN
    return [*lines[:REMARKS_SHOWN], *([f"{REMARK} and {more} more, in runs.csv and on the page"] if more > 0 else [])]


def _cells(board: Leaderboard, system: str) -> list[str]:
    seconds = board.seconds(system)
    values = [_shown(board.dev_eer(system), "")]
    values += [_shown(board.eer(system, name), board.mark(system, name)) for name in board.sets]
    cost = ["-" if seconds is None else f"{seconds:.1f}", f"{board.parameters(system):,}"]
    mark = RESCORED if system in board.rescored else FINETUNED if system in board.finetuned else ""
    mark += FUSED if system in board.fused else ""
    mark += REMARK if board.remarks(system) else ""
    return [f"{system} {mark}".rstrip(), f"{len(board.runs[system])}", *values, *cost]


def _shown(value: Value, mark: str) -> str:
    """An EER as ` 3.25 ± 0.41 [2.40, 4.10] *`, of fewer than three seeds with a caveat behind its interval."""
    text = f"{value.mean:5.2f}"
    if value.deviation is not None:
        text += f" ± {value.deviation:.2f}"
    if value.interval is not None:
        text += f" [{value.interval[0]:.2f}, {value.interval[1]:.2f}] {value.caveat}".rstrip()
    return f"{text} {mark}".rstrip()
