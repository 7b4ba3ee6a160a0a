"""The metrics of score files as one aligned table: a row for each metric or group, a column for each system."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.core.errors import SHOWN

Report = dict[str, Any]
Row = tuple[str, list[str]]  # a label, and the cell of each system


def to_text(report: Report) -> str:
    """The object that `bonafide metrics --json` prints, as a table."""
    systems = report["systems"]
    rows: list[Row] = [("", [system["name"] for system in systems]), *_overall(systems), *_grouped(systems)]
    label_width = max(len(label) for label, _ in rows)
    widths = [max(len(cells[i]) for _, cells in rows) for i in range(len(systems))]
    lines = [
        "  ".join([label.ljust(label_width), *(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))])
        for label, cells in rows
    ]
    return "\n".join([*_head(report), "", *(line.rstrip() for line in lines), "", *_notes(report)])


def _head(report: Report) -> Iterator[str]:
    key, asv = report["key"], report["asv"]
    of = ", ".join(word for word in (key["corpus"], key["split"]) if word) or "a score file with its own labels"
    yield f"key  {key['file']} ({of}): {key['bonafide']} bona fide, {key['spoof']} spoof"
    if asv:
        yield "ASV  " + ", ".join(f"{name} {100 * rate:.5f} %" for name, rate in asv.items())


def _overall(systems: Sequence[Report]) -> Iterator[Row]:
    """The metrics over all trials, one in each row."""
    yield _row("EER, %", systems, "eer", 2)
    if "eer_interval_by_speaker" in systems[0]:
        yield "  over speakers", [" " * 7 + _interval(system["eer_interval_by_speaker"], 2) for system in systems]
    if any(system["eer"] != system["eer_interpolated"] for system in systems):
        yield (
            "  official / interpolated",
            [f"{system['eer']:.5f} / {system['eer_interpolated']:.5f}" for system in systems],
        )
    yield "  at the score", [f"{system['threshold']!r}".rjust(7) for system in systems]
    costs = {
        "min_tdcf_2019": "min t-DCF, 2019",
        "min_tdcf_2021": "min t-DCF, 2021 and 5",
        "min_dcf": "min DCF",
        "act_dcf": "actual DCF *",
        "cllr": "Cllr, bits *",
        "min_cllr": "min Cllr, bits",
    }
    for name, label in costs.items():
        if name in systems[0]:
            yield _row(label, systems, name, 4)
    if "at_threshold" in systems[0]:
        decided = [system["at_threshold"] for system in systems]
        yield "decisions at the score", [f"{at['threshold']!r}".rjust(7) for at in decided]
        for name in ("accuracy", "balanced_accuracy"):
            yield _row(f"  {name.replace('_', ' ')}, %", decided, name, 2)
        yield _row("  bona fide rejected, %", decided, "frr", 2)
        yield _row("  spoof accepted, %", decided, "far", 2)
        yield _row("  wrong, %, mean over all coverages", decided, "aurc", 2)


def _grouped(systems: Sequence[Report]) -> Iterator[Row]:
    """EERs by attack, vocoder and codec, one in each row. There may be many speakers: a median and the worst one."""
    blank = [""] * len(systems)
    for kind in ("attacks", "vocoders", "codecs"):
        if first := systems[0][kind]:
            yield "", blank
            yield f"EER, %, of {len(first)} {kind}", blank
            for name, group in first.items():
                counts = " + ".join(f"{group[of]} {of}" for of in ("bonafide", "spoof") if of in group)
                yield _row(f"  {name} ({counts})", [system[kind][name] for system in systems], "eer", 2)
    if first := systems[0]["speakers"]:
        yield "", blank
        yield f"EER, %, of {len(first)} speakers", blank
        yield "  median", [_median(system["speakers"]) for system in systems]
        yield "  worst", [_worst(system["speakers"]) for system in systems]


def _row(label: str, systems: Sequence[Mapping[str, Any]], name: str, digits: int) -> Row:
    return label, [_cell(system, name, digits) for system in systems]


def _cell(system: Mapping[str, Any], name: str, digits: int) -> str:
    value = f"{system[name]:.{digits}f}".rjust(7)
    return f"{value} {_interval(system[f'{name}_interval'], digits)}" if f"{name}_interval" in system else value


def _interval(ends: Sequence[float], digits: int) -> str:
    return "[{:.{digits}f}, {:.{digits}f}]".format(*ends, digits=digits)


def _median(speakers: Mapping[str, Any]) -> str:
    eers = sorted(group["eer"] for group in speakers.values())
    return f"{(eers[(len(eers) - 1) // 2] + eers[len(eers) // 2]) / 2:.2f}".rjust(7)


def _worst(speakers: Mapping[str, Any]) -> str:
    name = max(speakers, key=lambda speaker: speakers[speaker]["eer"])
    return f"{speakers[name]['eer']:.2f}".rjust(7) + f" ({name})"


def _notes(report: Report) -> Iterator[str]:
    for found in report["comparisons"]:
        yield (
            f"{found['system']} - {found['against']}: EER {found['eer_difference']:+.2f} points "
            f"{_interval(found['interval'], 2)}, p = {found['p_value']:.2g} (the same resamples of both)"
            + ("; of fewer than five errors: too narrow, and p too small" if found["few_errors"] else "")
        )
    yield "*  of use for log-likelihood ratios in nats; on any other scale of scores they say little"
    if report["folds"]:
        yield f"[]  95 % confidence; EER: {report['folds']} resamples of the trials (over speakers: of the speakers);"
        yield "    minima, and an EER of fewer than five errors: exact limits of the error rates"
    for kind in ("codecs", "speakers"):
        if left_out := report["systems"][0].get(f"{kind}_left_out"):
            yield f"{left_out} {kind} have trials of one class only and no EER"
    for system in report["systems"]:
        if system["surplus"]:
            names = ", ".join(system["surplus_first"]) + (", ..." if system["surplus"] > SHOWN else "")
            yield f"{system['name']}: left out {system['surplus']} scores that belong to no trial of the key: {names}"
