"""The rows of the page's tables as HTML. Python writes them, because a grid may have hundreds of systems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from pipeline.report.leaderboard import BEST, CHOSEN, NEAR, TIED, Leaderboard, Value
from pipeline.report.measures import EER, Measure

DARKEST = 50  # percent: from this EER on, a cell has the full tint
CHOICES = {CHOSEN: "chosen by dev", TIED: "the same EER"}
DECISIONS = (
    "eer", "threshold", "threshold_dev", "frr_at_dev", "far_at_dev", "act_dcf", "act_dcf_calibrated", "cllr",
    "cllr_calibrated", "min_cllr", "calibration_slope", "calibration_offset", "aurc_at_dev", "bonafide_called_spoof",
    "spoof_called_bonafide", "cannot_tell",
)  # fmt: skip

WHOLE = 100  # rows of a table that a browser gets at once; a script adds the others
AXES = ("backend", "loss", "layers", "views", "scoring")  # that systems can be filtered by

Styles = Mapping[str, str]  # system -> CSS classes of its lines in charts, for charted systems


@dataclass(frozen=True)
class Rows:
    """The rows of a table: the first ones, and the others as text that a browser reads later, or when asked to."""

    first: Markup
    rest: Markup


def _rows(rows: Sequence[str]) -> Rows:
    return Rows(Markup("".join(rows[:WHOLE])), Markup("".join(rows[WHOLE:])))  # noqa: S704  # names are escaped


def switched(board: Leaderboard) -> tuple[Measure, ...]:
    """The measures that the leaderboard can show: those of which one value is better than another."""
    return tuple(measure for measure in board.measures if measure.better)


def decisions(board: Leaderboard) -> tuple[Measure, ...]:
    """The measures that tell what a threshold and a calibration from dev do on other sets; none without them."""
    known = {measure.key: measure for measure in board.measures}
    return tuple(known[key] for key in DECISIONS if key in known) if len(known) > 1 else ()


def ordered_sets(board: Leaderboard) -> tuple[str, ...]:
    """The sets, that which sorts the leaderboard first, so that a narrow screen shows it."""
    return (board.sort_by, *(name for name in board.sets if name != board.sort_by))


def leaderboard_rows(board: Leaderboard, styles: Styles, axes: Mapping[str, Mapping[str, str]]) -> Rows:
    """A row for each system: its measures on each set, its EER on dev, its runs, seconds and parameters.

    axes: system -> axis of the grid -> the system's choice, which the filters use.
    """
    rows = []
    for number, system in enumerate(board.systems):
        known = "".join(f' data-{axis}="{escape(choice)}"' for axis, choice in axes.get(system, {}).items())
        choice = board.choice(system)
        cells = [
            _cell(board.value(system, name, measure.key), board.mark(system, name, measure.key), measure)
            for name in ordered_sets(board)
            for measure in switched(board)
        ]
        dev, runs, seconds = board.dev_eer(system), len(board.runs[system]), board.seconds(system)
        told = f"<small>{CHOICES[choice]}</small>" if choice else ""
        cells.append(f'<td data-value="{dev.mean}">{_eer_of_dev(dev)}{told}</td><td>{runs}</td>')
        cells.append("<td>-</td>" if seconds is None else f'<td data-value="{seconds}">{seconds:.1f}</td>')
        parameters = board.parameters(system)
        cells.append(f'<td data-value="{parameters}">{parameters:,}</td>')
        kind = f' class="{choice}"' if choice else ""
        rows.append(f'<tr data-row="{number}"{known}{kind}>{_name(board, system, styles)}{"".join(cells)}</tr>\n')
    return _rows(rows)


def filters(axes: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
    """The choices of each axis in which systems differ."""
    known = {axis: {own[axis] for own in axes.values() if axis in own} for axis in AXES}
    return {axis: sorted(choices) for axis, choices in known.items() if len(choices) > 1}


def group_rows(board: Leaderboard, name: str, kind: str, styles: Styles) -> Rows:
    """A row for each system: its EERs on the attacks, codecs or vocoders of a set. The tint grows with the EER."""
    columns = [board.group(name, kind, group) for group in board.first(name).groups(kind)]
    best = [min(column.values()) for column in columns]
    rows = []
    for number, system in enumerate(board.systems):
        cells = []
        for column, lowest in zip(columns, best, strict=True):
            value = column[system]
            text = f"<strong>{value:.2f}</strong>" if value == lowest else f"{value:.2f}"
            cells.append(f'<td class="h{min(round(value), DARKEST)}">{text}</td>')
        rows.append(f'<tr data-row="{number}">{_name(board, system, styles)}{"".join(cells)}</tr>\n')
    return _rows(rows)


def view_rows(board: Leaderboard, name: str, styles: Styles) -> Rows:
    """A row for each system: its EER on a set, clean and in each view, with its interval. The tint grows with the EER.

    Systems are left out that were scored clean alone, as those by the embedding index are.
    """
    views = board.views(name)
    found = {
        system: [board.eer(system, name), *(board.in_view(system, name, view) for view in views)]
        for system in board.systems
    }
    known = {system: [value for value in values if value] for system, values in found.items() if None not in values}
    best = [min(value.mean for value in column) for column in zip(*known.values(), strict=True)]
    rows = []
    for number, system in enumerate(board.systems):
        if values := known.get(system):
            cells = "".join(_tinted(value, is_best=value.mean == low) for value, low in zip(values, best, strict=True))
            rows.append(f'<tr data-row="{number}">{_name(board, system, styles)}{cells}</tr>\n')
    return _rows(rows)


def _tinted(value: Value, *, is_best: bool) -> str:
    """A cell with an EER and its interval."""
    text = f"<strong>{value.mean:.2f}</strong>" if is_best else f"{value.mean:.2f}"
    ends = f"<small>{value.interval[0]:.2f} to {value.interval[1]:.2f}</small>" if value.interval else ""
    return f'<td class="h{min(round(value.mean), DARKEST)}">{text}{ends}</td>'


def decision_rows(board: Leaderboard, name: str, styles: Styles) -> Rows:
    """A row for each system: what the threshold and the calibration of dev do on a set."""
    rows = []
    for number, system in enumerate(board.systems):
        values = [(board.value(system, name, measure.key), measure.digits) for measure in decisions(board)]
        cells = "".join(
            "<td>-</td>" if value is None else f"<td>{value.mean:.{digits}f}</td>" for value, digits in values
        )
        rows.append(f'<tr data-row="{number}">{_name(board, system, styles)}{cells}</tr>\n')
    return _rows(rows)


def _name(board: Leaderboard, system: str, styles: Styles) -> str:
    """The header of a row: the colour of its lines, its name, and marks with their meanings."""
    text = str(escape(system))
    if style := styles.get(system):
        line = f'<path class="{style}" d="M0,4H14"/>'
        text = f'<svg viewBox="0 0 14 8" width="14" height="8" aria-hidden="true">{line}</svg>{text}'
    if system in board.rescored:
        text += ' <abbr title="by the embedding index">†</abbr>'
    if system in board.finetuned:
        text += ' <abbr title="trained with the encoder">‡</abbr>'
    if system in board.fused:
        text += ' <abbr title="fuses the scores of other runs">+</abbr>'
    if remarks := board.remarks(system):
        text += f' <abbr title="{escape("; ".join(remarks))}">!</abbr>'
    return f'<th class="run" scope="row">{text}</th>'


def _cell(value: Value | None, mark: str, measure: Measure) -> str:
    """A measure with its deviation over seeds, its mark and its interval. Only one measure is shown at a time."""
    kind = f' class="m {measure.key}"'
    if value is None:
        return f"<td{kind}>-</td>"
    mean = f"{value.mean:.{measure.digits}f}"
    text = f"<strong>{mean}</strong>" if mark == BEST else mean
    if value.deviation is not None:
        text += f" ± {value.deviation:.{measure.digits}f}"
    if mark == NEAR:
        text += ' <abbr title="within noise of the best">~</abbr>'
    if value.interval:
        ends = " to ".join(f"{end:.{measure.digits}f}" for end in value.interval)
        text += f"<small>{ends}{f', {value.caveat}' if value.caveat else ''}</small>"
    return f'<td{kind} data-value="{value.mean}">{text}</td>'


def _eer_of_dev(value: Value) -> str:
    return f"{value.mean:.2f}" if value.deviation is None else f"{value.mean:.2f} ± {value.deviation:.2f}"


def menu_styles(measures: Sequence[Measure], *, groups: int) -> Markup:
    """The style rules by which menus show one measure and one table of groups, and the tints of cells.

    They need no script. A browser that does not know `:has` shows the EER and all tables. `:has` looks into the menus
    alone: if it looked into the tables, a browser would look again for each of their rows.
    """
    others = [measure.key for measure in measures if measure.key != EER]
    rules = [f".m:not(.{EER}) {{ display: none; }}"]
    for key in others:
        chosen = f'.metric-menu:has(option[value="{key}"]:checked) + *'
        rules += [f"{chosen} .{key} {{ display: table-cell; }}", f"{chosen} .{EER} {{ display: none; }}"]
    for name in (f"group-{number}" for number in range(groups)):
        rules.append(f'.group-menu:has(option[value="{name}"]:checked) ~ .group:not(#{name}) {{ display: none; }}')
    rules += [f".h{tint} {{ --share: {tint}; }}" for tint in range(1, DARKEST + 1)]
    return Markup("\n".join(rules))  # noqa: S704  # keys are our own
