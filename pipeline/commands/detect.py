"""Is this bona fide? Scores, decisions, probabilities, nearest training utterances and timelines of audio files."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from pipeline.audio import decode
from pipeline.commands import _score_arguments
from pipeline.core import files
from pipeline.core.errors import InputError, listing

if TYPE_CHECKING:  # importing torch takes seconds, and --help needs none of it
    from pipeline.detect import Detection, System, Timeline, Unreadable

EXAMPLES = """\
RUN is the name of a run of the project in the current folder (data/runs has them), or the folder of a package that
`bonafide package` wrote. A folder of audio is searched with its subfolders; hidden files are left out, and links to
folders are not followed. Files may be anything that training may be: WAV, FLAC, OGG, MP3, and M4A with the extra `av`,
at any rate. A file is decoded whole, large ones one at a time: an hour of 44.1 kHz stereo takes 3 GB of memory.

what is told of a file:
  score        of the first window, as in training; higher means more bona fide
  decision     bonafide where the score is above the threshold: that of the EER on dev, or --threshold
  probability  of bona fide where half of all speech is, by the calibration on dev; recordings unlike dev may be off
  centroid     the nearest one, from 0; with QAMO, centroids are levels of quality and 0 is the worst
  neighbours   with --explain: nearest training utterances by embedding, with label, attack and distance; the run must
               have been analysed (section `analyse` of params.yaml)

--timeline looks at all of a file, not its first window alone: a score for every window of the run's length, each half a
window after the one before, as FOLDER/<file>.csv (start and end in seconds, score, probability) and .png. Of partially
spoofed speech it shows where. A silent window has no score. The lowest of many scores is low by chance too: judge it by
the timelines of files that you trust.

A file that cannot be scored, or a folder that cannot be read, is told on stderr and in the output, the others go on,
and the exit code is then 1. Bytes of a name that are no UTF-8 are shown as \\udc80 to \\udcff.

examples:
  bonafide detect some.wav --run linear-qamo-all-clean-1
  bonafide detect some.wav other.flac --run linear-qamo-all-clean-1 --explain
  bonafide detect interview.mp3 --run package/ --timeline timelines
  bonafide detect recordings/ --run package/ --json > scores.jsonl           one JSON object a line, as they come
"""
HEADER = f"{'score':>9}  {'P(bona fide)':>12}  {'decision':8}  {'centroid':>8}  file"


class Source(NamedTuple):
    """An audio file, and its name below the folder of timelines."""

    path: Path
    name: Path


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command. Raises InputError for arguments that cannot be used, SystemExit(1) where files could not be."""
    given = _arguments(argv)
    _show_any_name()
    sources, closed = _sources(given.files)
    if given.timeline:
        _check_distinct(sources)
    from pipeline import detect  # with torch, which takes seconds: --help goes without
    from pipeline.detect import assembly

    parts = assembly.find(given.run)
    if given.explain:
        parts.training()  # so that it is told before seconds have gone by
    system = detect.of_parts(parts, threshold=given.threshold)
    unreadable = [detect.Unreadable(folder, why) for folder, why in closed.items()]
    found = system.detect((source.path for source in sources), explain=given.explain)
    if not given.json:
        print(f"{system.parts.name}: bona fide above {system.threshold:.5g}\n{HEADER}")
    for folder in unreadable:
        _tell(folder, {}, as_json=given.json)
    failed = 0
    with tqdm(total=len(sources), unit="file", disable=None, leave=False) as bar:
        for source, result in zip(sources, found, strict=True):
            timeline = _timeline(system, source, given.timeline) if given.timeline else {}
            failed += _tell(result, timeline, as_json=given.json)
            bar.update()
    missed = [f"{failed} of {len(sources)} files could not be scored"] if failed else []
    missed += [f"{len(closed)} folders could not be read"] if closed else []
    if missed:
        print(f"error: {', '.join(missed)}", file=sys.stderr)
        raise SystemExit(1)


def _show_any_name() -> None:
    """Names of files may be any bytes; those that are no UTF-8 are printed as escapes, not refused."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bonafide detect",
        description="Scores audio files with a trained system, and says which are bona fide.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("files", type=Path, nargs="+", metavar="FILE", help="audio files, and folders of them")
    add("--run", required=True, metavar="RUN", help="name of a run of this project, or folder of a package")
    add(
        "--threshold",
        type=_score_arguments.finite,
        metavar="X",
        help="decide at X (--threshold=-1e-3 below 0), not as on dev",
    )
    add("--explain", action="store_true", help="show the nearest training utterances")
    add("--timeline", type=Path, metavar="FOLDER", help="write the score over time of every file there, CSV and PNG")
    add("--json", action="store_true", help="print one JSON object a line")
    return parser.parse_args(argv)


# ---------------------------------------------------------------- which files


def _sources(given: Sequence[Path]) -> tuple[list[Source], dict[Path, str]]:
    """The files that are named, and those of folders in order; and the folders that cannot be read, with the reasons.

    Raises InputError for a folder without audio.
    """
    sources: list[Source] = []
    closed: dict[Path, str] = {}
    for path in given:
        before = len(closed)
        found = list(_below(path, closed)) if path.is_dir() else [Source(path, Path(path.name))]
        if not found and len(closed) == before:
            raise InputError(
                f"{path}: expected a folder of audio ({' '.join(sorted(decode.SUFFIXES))}), got none there"
            )
        sources += found
    return sources, closed


def _below(folder: Path, closed: dict[Path, str]) -> Iterator[Source]:
    """The audio files of a folder and its subfolders; those that cannot be read are put into `closed`."""

    def tell(error: OSError) -> None:
        closed[Path(error.filename)] = f"{error.filename}: {error.strerror or error}"

    above = Path(folder.resolve().name)
    for place, subfolders, names in os.walk(folder, onerror=tell):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            if Path(name).suffix.lower() in decode.SUFFIXES and not name.startswith("."):
                path = Path(place, name)
                yield Source(path, above / path.relative_to(folder))


def _check_distinct(sources: Sequence[Source]) -> None:
    """Raise InputError where two timelines would be the same file."""
    first: dict[Path, Path] = {}
    twice = [
        f"{source.path} and {first[source.name]}"
        for source in sources
        if first.setdefault(source.name, source.path) is not source.path
    ]
    if twice:
        raise InputError(f"expected files that differ in their names, for --timeline, got:\n{listing(twice)}")


# ---------------------------------------------------------------- what is told


def _timeline(system: System, source: Source, folder: Path) -> dict[str, Any]:
    """Write the score over time; what is told of it, or the error."""
    from pipeline.report import timeline as picture

    try:
        found = system.timeline(source.path)
    except InputError as error:
        return {"error": str(error)}
    stem = folder / source.name
    paths = {kind: stem.with_name(f"{stem.name}.{kind}") for kind in ("csv", "png")}
    files.write_text(paths["csv"], _to_csv(found, system))
    picture.draw(paths["png"], found.start, found.end, found.score, threshold=system.threshold)
    told: dict[str, Any] = {kind: str(path) for kind, path in paths.items()}
    return told | {"windows": len(found.score), "below": int((found.score <= system.threshold).sum())} | _lowest(found)


def _lowest(found: Timeline) -> dict[str, Any]:
    at = found.lowest
    if at is None:
        return {"lowest": None}
    return {"lowest": {"score": _plain(found.score[at]), "start": found.start[at], "end": found.end[at]}}


def _plain(score: Any) -> float:
    """A float32 with the digits that it needs."""
    return float(str(score))


def _to_csv(found: Timeline, system: System) -> str:
    """Lines of start, end, score, probability; a silent window has no numbers."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["start", "end", "score", "probability"])
    for start, end, score in zip(found.start.tolist(), found.end.tolist(), found.score, strict=True):
        cells: list[Any] = ["", ""]
        if np.isfinite(score):
            cells = [score, system.probability(_plain(score))]
        writer.writerow([f"{start:.4f}", f"{end:.4f}", *cells])
    return text.getvalue()


def _tell(result: Detection | Unreadable, timeline: dict[str, Any], *, as_json: bool) -> bool:
    """Print what was found of one file as it comes, past the bar; whether something could not be."""
    from pipeline.detect import Unreadable

    errors = [result.why] if isinstance(result, Unreadable) else []
    errors += [timeline["error"]] if "error" in timeline else []
    for why in dict.fromkeys(errors):  # a file that cannot be decoded has neither score nor timeline
        tqdm.write(f"error: {why}", file=sys.stderr)
    tqdm.write(_json(result, timeline) if as_json else "\n".join(_rows(result, timeline)), file=sys.stdout)
    sys.stdout.flush()
    return bool(errors)


def _json(result: Detection | Unreadable, timeline: dict[str, Any]) -> str:
    from pipeline.detect import Unreadable

    told: dict[str, Any] = {"file": str(result.path)}
    if isinstance(result, Unreadable):
        told["error"] = result.why
    else:
        told |= {"score": result.score, "decision": _decision(result), "probability": result.probability}
        told["centroid"] = result.centroid
        if result.neighbours:
            told["neighbours"] = [near._asdict() for near in result.neighbours]
    if timeline:
        told["timeline"] = timeline
    return json.dumps(told, allow_nan=False)  # ASCII alone: names may be any bytes


def _rows(result: Detection | Unreadable, timeline: dict[str, Any]) -> Iterator[str]:
    """The lines of the table for one file."""
    from pipeline.detect import Unreadable

    if isinstance(result, Unreadable):
        yield f"{'-':>9}  {'-':>12}  {'error':8}  {'-':>8}  {result.path}"
    else:
        likely = "-" if result.probability is None else f"{result.probability:.3f}"
        yield f"{result.score:9.4f}  {likely:>12}  {_decision(result):8}  {result.centroid:>8}  {result.path}"
        for near in result.neighbours:
            yield f"{'':11}{near.distance:12.4f}  {near.label:8}  {near.attack:>8}  {near.utterance}"
    if "windows" in timeline:
        yield f"{'':11}{timeline['below']} of {timeline['windows']} windows below{_low(timeline)}: {timeline['csv']}"


def _low(timeline: dict[str, Any]) -> str:
    lowest = timeline["lowest"]
    return f", lowest {lowest['score']:.4f} at {lowest['start']:.1f} to {lowest['end']:.1f} s" if lowest else ""


def _decision(result: Detection) -> str:
    return "bonafide" if result.is_bonafide else "spoof"
