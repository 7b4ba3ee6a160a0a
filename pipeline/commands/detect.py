"""Is this audio bona fide? Scores, decisions and probabilities of files, nearest training utterances, timelines."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from pipeline.audio import decode
from pipeline.commands import _audio_arguments, _score_arguments
from pipeline.core import files
from pipeline.core.arguments import parser_of
from pipeline.core.errors import InputError, importing, in_one_line, listing, printable, run_command

if TYPE_CHECKING:  # torch imports slowly, and --help does not need it
    from pipeline.detect import Detection, System, Timeline, Unreadable

EXAMPLES = """\
RUN is the name of a run of the project in the current folder (`ls data/runs` shows them) or of a fusion of runs
(section `fuse` of params.yaml), a folder that `bonafide package` wrote, or hub:owner/name (hub:owner/name@revision), a
package on the Hugging Face hub. Centroid, far and neighbours of a fusion are those of its run with the largest weight.
A folder of audio is searched with its subfolders. Hidden files are left out, and links to folders are not followed.
How many files of other kinds were left out is printed on stderr. Formats are WAV, FLAC, OGG, MP3, AIFF, AU and CAF,
and with the extra `av` M4A, MP4, MOV, 3GP, WebM, MKA, AAC, AMR and WMA, at any sampling rate. A file is decoded and
checked to its end. All of it is kept, except with --windows first, and long files are decoded one at a time: an hour
at 44.1 kHz takes 1 GB of memory. Files longer than 3.3 hours at 44.1 kHz, or 9.3 hours at 16 kHz, are refused.

results for each file:
  score        of all of a file, see --windows; higher means more bona fide
  decision     bonafide where the score is above the threshold: the EER threshold of dev, or --threshold
  probability  that the file is bona fide, if half of all files are; calibrated on dev, so it may be wrong for
               recordings that are unlike dev
  verdict      bonafide, spoof or cannot_tell: of recordings like those of dev at most the share evaluate.error_rate of
               each class gets the verdict of the other; of others nothing is promised
  far          the distance to the training utterances as a percentile of their own: above 99 the file is unlike
               almost all of them; - where RUN has no embeddings of its training set
  mahal.       the same by the Mahalanobis distance to the nearer class of the training utterances
  centroid     the number of the nearest centroid, from 0; with QAMO a centroid is a quality level, and 0 is the worst
  neighbours   with --explain: the nearest training utterances, with label, attack and distance between embeddings; the
               run must have been analysed (section `analyse` of params.yaml)

--windows says which windows of a file are heard. A file that is no longer than one is heard as in training.
  mean   all of the file, in windows that overlap by half, without silent ones; the score is the mean of theirs
  min    the same with the lowest of their scores, which decides alone and is low by chance in a long file
  first  the first window alone
  run    those that the run was trained and scored on (extract.windows), as the leaderboard has it: their mean, the
         lowest, or what attention makes of them
Without it they are those of the calibration; else `run` where the run has several windows, else `mean`: threshold and
verdicts of such a run come from the first windows of dev, and `bonafide calibrate` fits them to whole files. Where
several are heard, a line names the part with the lowest score; centroid, far and neighbours are of that part. With
attention it is the part with the largest weight, and these are of all windows together.

--timeline scores all of a file and not only its first window. Windows overlap by half. It writes FOLDER/<file>.csv
(start and end in seconds, score, probability) and a drawing FOLDER/<file>.png, and shows which parts of a file are
spoofed. A silent window has no score. The lowest of many scores is also low by chance: compare it with timelines of
files that you trust.

Where the threshold or the calibration of dev did not fit an evaluation set of RUN, a warning on stderr says so. A file
whose samples are doubtful (their scale, or channels that cancel when they are averaged) gives a warning on
stderr, and in the output with --json. A file that cannot be scored, or a folder that cannot be read, gives an error on
stderr and in the output. The other files are still scored, and the exit code is 1. Bytes of a name that are not UTF-8
appear as \\udc80 to \\udcff.

examples:
  bonafide detect some.wav --run linear-qamo-all-clean-1
  bonafide detect some.wav other.flac --run linear-qamo-all-clean-1 --explain
  bonafide detect interview.mp3 --run package/ --timeline timelines
  bonafide detect recordings/ --run package/ --json > scores.jsonl           one JSON object in each line
"""
DOUBTS_SHOWN = 10
HEADER = (
    f"{'score':>9}  {'P(bona fide)':>12}  {'decision':8}  {'verdict':11}  {'far, %':>6}  {'mahal., %':>9}  "
    f"{'centroid':>8}  file"
)
NEAR_HEADER = f"{'':11}{'distance':>12}  {'class':8}  {'attack':>8}  nearest training utterances"


class AudioFile(NamedTuple):
    """An audio file, and the path of its timeline below the folder of timelines."""

    path: Path
    name: Path


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command. Raises InputError for arguments that cannot be used, SystemExit(1) after files that cannot."""
    given = _arguments(argv)
    _show_any_name()
    left_out: Counter[str] = Counter()
    found_files, closed = _audio_files(given.files, left_out)
    if left_out:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in left_out.most_common())
        print(f"left out: {left_out.total()} files of other kinds ({kinds})", file=sys.stderr)
    if given.timeline:
        _check_distinct(found_files)
    with importing():
        from pipeline import detect  # here, because torch imports slowly and --help does not need it

    system = _system(given)
    parts = system.parts
    for doubt in parts.doubts[:DOUBTS_SHOWN]:
        print(f"warning: {system.parts.name}: {printable(doubt)}", file=sys.stderr)
    for doubt in parts.rule.lacking if parts.rule else ():
        print(f"warning: {system.parts.name}: {doubt}", file=sys.stderr)
    if parts.embeddings.is_dir() and isinstance(system.known, InputError):  # there, but of no use
        print(f"warning: {system.parts.name}: no distances to the training set: {system.known}", file=sys.stderr)
    unreadable = [detect.Unreadable(folder, why) for folder, why in closed.items()]
    found = system.detect((audio.path for audio in found_files), explain=given.explain)
    part = "window of largest weight" if system.attends else "lowest window"
    if not given.json:
        _print_head(system, explain=given.explain)
    for folder in unreadable:
        _tell(folder, {}, part=part, as_json=given.json)
    failed = 0
    with tqdm(total=len(found_files), unit="file", disable=None, leave=False) as bar:
        for audio, result in zip(found_files, found, strict=True):
            timeline = _timeline(system, audio, given.timeline) if given.timeline else {}
            failed += _tell(result, timeline, part=part, as_json=given.json)
            bar.update()
    missed = [f"{failed} of {len(found_files)} files could not be scored"] if failed else []
    missed += [f"{len(closed)} folders could not be read"] if closed else []
    if missed:
        print(f"error: {', '.join(missed)}", file=sys.stderr)
        raise SystemExit(1)


def _system(given: argparse.Namespace) -> System:
    """The system that the arguments ask for. Raises InputError as `detect.load`, and where it cannot explain."""
    from pipeline.detect import assembly, loading, recalibration

    parts = assembly.find(given.run)
    calibration = given.calibration or parts.recalibration
    heard = loading.heard_by(parts, given.windows, calibration)
    if calibration:
        parts = recalibration.applied(parts, calibration, windows=heard, channel=given.channel)
    if given.explain:
        parts.training()
    return loading.of_parts(parts, threshold=given.threshold, channel=given.channel, windows=heard)


def _print_head(system: System, *, explain: bool) -> None:
    unknown = "; no distances to the training set" if isinstance(system.known, InputError) else ""
    print(f"{system.parts.name}: bona fide above {system.threshold:.5g}{unknown}\n{HEADER}")
    if explain:
        print(NEAR_HEADER)


def _show_any_name() -> None:
    """Let stdout and stderr print names of files that are not UTF-8, with escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    description = "Scores audio files with a trained system and decides which are bona fide."
    parser = parser_of("bonafide detect", description, EXAMPLES)
    add = parser.add_argument
    add("files", type=Path, nargs="+", metavar="FILE", help="audio files, or folders of audio files")
    add(
        "--run",
        required=True,
        metavar="RUN",
        help="name of a run or a fusion of this project, folder of a package, or hub:owner/name",
    )
    add(
        "--threshold",
        type=_score_arguments.finite,
        metavar="X",
        help="decide at X in place of the threshold of dev; for a negative X write --threshold=-1e-3",
    )
    add("--calibration", type=Path, metavar="FILE", help="of `bonafide calibrate`, in place of what dev gave")
    _audio_arguments.add_channel(parser)
    _audio_arguments.add_windows(parser)
    add("--explain", action="store_true", help="show the nearest training utterances")
    add("--timeline", type=Path, metavar="FOLDER", help="write the score over time of every file, as CSV and PNG")
    add("--json", action="store_true", help="print one JSON object in each line")
    return parser.parse_args(argv)


# ---------------------------------------------------------------- which files


def _audio_files(given: Sequence[Path], left_out: Counter[str]) -> tuple[list[AudioFile], dict[Path, str]]:
    """The audio files to score, in order; and the folders that cannot be read, with the reasons.

    left_out: counts the other files in the folders, by suffix.

    Raises InputError for a folder without audio.
    """
    found_files: list[AudioFile] = []
    closed: dict[Path, str] = {}
    for path in given:
        before = len(closed)
        found = list(_below(path, closed, left_out)) if path.is_dir() else [AudioFile(path, Path(path.name))]
        if not found and len(closed) == before:
            raise InputError(
                f"{path}: expected a folder of audio ({' '.join(sorted(decode.SUFFIXES))}), got none there"
            )
        found_files += found
    return found_files, closed


def _below(folder: Path, closed: dict[Path, str], left_out: Counter[str]) -> Iterator[AudioFile]:
    """Yield the audio files in a folder and its subfolders.

    Folders that cannot be read go into `closed`, and the suffixes of other files into `left_out`.
    """

    def note(error: OSError) -> None:
        closed[Path(error.filename)] = f"{error.filename}: {error.strerror or error}"

    above = Path(folder.resolve().name)
    for place, subfolders, names in os.walk(folder, onerror=note):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            if name.startswith("."):
                continue
            suffix = Path(name).suffix.lower()
            if suffix in decode.SUFFIXES:
                path = Path(place, name)
                yield AudioFile(path, above / path.relative_to(folder))
            else:
                left_out[in_one_line(suffix) or "without a suffix"] += 1


def _check_distinct(found_files: Sequence[AudioFile]) -> None:
    """Raise InputError where two timelines would go to the same file."""
    first: dict[Path, Path] = {}
    twice = [
        f"{audio.path} and {first[audio.name]}"
        for audio in found_files
        if first.setdefault(audio.name, audio.path) is not audio.path
    ]
    if twice:
        raise InputError(f"expected files that differ in their names, for --timeline, got:\n{listing(twice)}")


# ---------------------------------------------------------------- output


def _timeline(system: System, audio: AudioFile, folder: Path) -> dict[str, Any]:
    """Write the score over time of a file, and return a summary of it, or the error."""
    from pipeline.report.timeline import draw_timeline

    try:
        found = system.timeline(audio.path)
    except InputError as error:
        return {"error": str(error)}
    stem = folder / audio.name
    paths = {kind: stem.with_name(f"{stem.name}.{kind}") for kind in ("csv", "png")}
    files.write_text(paths["csv"], _to_csv(found, system))
    draw_timeline(paths["png"], found.start, found.end, found.score, threshold=system.threshold)
    below = int((found.score <= system.threshold).sum())
    return {kind: str(path) for kind, path in paths.items()} | {
        "windows": len(found.score),
        "below": below,
        "lowest": _lowest(found),
    }


def _lowest(found: Timeline) -> dict[str, Any] | None:
    at = found.lowest
    return None if at is None else {"score": _plain(found.score[at]), "start": found.start[at], "end": found.end[at]}


def _plain(score: Any) -> float:
    """A float32 as a float with no more digits than it needs."""
    return float(str(score))


def _to_csv(found: Timeline, system: System) -> str:
    """The timeline as CSV: start, end, score, probability. The last two are empty for a silent window."""
    rows: list[list[Any]] = [["start", "end", "score", "probability"]]
    for start, end, score in zip(found.start.tolist(), found.end.tolist(), found.score, strict=True):
        cells = [score, system.probability(_plain(score))] if np.isfinite(score) else ["", ""]
        rows.append([f"{start:.4f}", f"{end:.4f}", *cells])
    return files.csv_text(rows)


def _tell(result: Detection | Unreadable, timeline: dict[str, Any], *, part: str, as_json: bool) -> bool:
    """Print the results for one file, above the progress bar; return whether there was an error.

    part: the name of the window that decides.
    """
    from pipeline.detect import Unreadable

    for warning in [] if isinstance(result, Unreadable) else result.warnings:
        tqdm.write(f"warning: {in_one_line(result.path)}: {warning}", file=sys.stderr)
    errors = [result.why] if isinstance(result, Unreadable) else []
    errors += [timeline["error"]] if "error" in timeline else []
    for why in dict.fromkeys(errors):  # a file that cannot be decoded gives the same error twice
        tqdm.write(f"error: {why.replace(str(result.path), in_one_line(result.path))}", file=sys.stderr)
    tqdm.write(_json(result, timeline) if as_json else "\n".join(_rows(result, timeline, part=part)), file=sys.stdout)
    sys.stdout.flush()
    return bool(errors)


def _json(result: Detection | Unreadable, timeline: dict[str, Any]) -> str:
    from pipeline.detect import Unreadable

    facts: dict[str, Any] = {"file": str(result.path)}
    if isinstance(result, Unreadable):
        facts["error"] = result.why
    else:
        facts |= {"score": result.score, "decision": _decision(result), "probability": result.probability}
        facts |= {"verdict": result.verdict, "distance_percentile": result.distance_percentile}
        facts["mahalanobis_percentile"] = result.mahalanobis_percentile
        facts["centroid"] = result.centroid
        if result.part:
            facts["part"] = dict(zip(("start", "end"), result.part, strict=True))
        if result.warnings:
            facts["warnings"] = list(result.warnings)
        if result.neighbours:
            facts["neighbours"] = [near._asdict() for near in result.neighbours]
    if timeline:
        facts["timeline"] = timeline
    return json.dumps(facts, allow_nan=False)  # in ASCII, because names may be any bytes


def _rows(result: Detection | Unreadable, timeline: dict[str, Any], *, part: str) -> Iterator[str]:
    """Yield the lines of the table for one file."""
    from pipeline.detect import Unreadable

    name = in_one_line(result.path)
    if isinstance(result, Unreadable):
        yield f"{'-':>9}  {'-':>12}  {'error':8}  {'-':11}  {'-':>6}  {'-':>9}  {'-':>8}  {name}"
    else:
        likely = "-" if result.probability is None else f"{result.probability:.3f}"
        far, by_class = (
            "-" if found is None else f"{found:.1f}"
            for found in (result.distance_percentile, result.mahalanobis_percentile)
        )
        judged = f"{_decision(result):8}  {result.verdict or '-':11}  {far:>6}  {by_class:>9}"
        yield f"{result.score:9.4f}  {likely:>12}  {judged}  {result.centroid:>8}  {name}"
        if result.part:
            yield f"{'':11}{part} at {result.part[0]:.1f} to {result.part[1]:.1f} s"
        for near in result.neighbours:
            yield f"{'':11}{near.distance:12.4f}  {near.label:8}  {near.attack:>8}  {near.utterance}"
    if "windows" in timeline:
        place = in_one_line(timeline["csv"])
        yield f"{'':11}{timeline['below']} of {timeline['windows']} windows below{_low(timeline)}: {place}"


def _low(timeline: dict[str, Any]) -> str:
    lowest = timeline["lowest"]
    return f", lowest {lowest['score']:.4f} at {lowest['start']:.1f} to {lowest['end']:.1f} s" if lowest else ""


def _decision(result: Detection) -> str:
    return "bonafide" if result.is_bonafide else "spoof"


if __name__ == "__main__":
    run_command(main)
