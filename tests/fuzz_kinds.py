"""The kinds of files that are mutated, with their examples and oracles; see `tests/fuzz.py`."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import pyarrow
import zarr
from pyarrow import parquet
from ruamel.yaml import YAML

from pipeline import detect
from pipeline.analysis import embedding_index, embeddings
from pipeline.audio import decode, parquet_rows
from pipeline.core import params_file, trial_table
from pipeline.core.contracts import Centroids
from pipeline.core.errors import InputError
from pipeline.core.params import Params
from pipeline.corpora import _formats, _protocols, arena
from pipeline.detect import package
from pipeline.extraction import hdf5
from pipeline.metrics import keys, scorefile
from pipeline.scoring import centroids, runs
from tests import systems
from tests.fuzz import Kind, MisreadError
from tests.places import SETTINGS
from tests.test_audio import Pipe, encoded, speech
from tests.test_audio_whole import written
from tests.test_gather import make_cache

CASE = Path("case")  # in the folder of a worker
TOLERANCE_S = 0.6  # of the length of mutated audio: another reader may hear a damaged frame or two more
RATE = 16_000


def agree(what: str, got: object, wanted: object) -> None:
    """Raise MisreadError where two things differ."""
    if got != wanted:
        raise MisreadError(f"{what}: read {str(got)[:200]}, and there is {str(wanted)[:200]}")


# ---------------------------------------------------------------- audio


def audio(_: Path) -> Kind:
    """Files of many containers. A reader that stops at nothing may not hear much more than was heard."""
    x = speech(RATE, 1.2)
    y = 0.5 * x[::-1].copy()
    examples = [written(x, kind) for kind in ("FLAC", "WAV", "AIFF", "CAF", "AU", "W64", "RF64", "NIST")]
    examples += [written(np.stack([x, y], axis=1), "WAV"), written(x, "WAV", "FLOAT"), written(x, "OGG", "VORBIS")]
    examples += [written(x, kind) + written(y, kind) for kind in ("FLAC", "WAV")]
    examples += [encoded("wav", "pcm_s16le", x[None], target=Pipe())]
    for container, codec, rate in (
        ("mp3", "mp3", RATE),
        ("ogg", "libopus", 48_000),
        ("ipod", "aac", RATE),
        ("webm", "libopus", 48_000),
        ("adts", "aac", RATE),
        ("asf", "wmav2", 44_100),
    ):
        examples.append(encoded(container, codec, speech(rate, 1.2)[None], rate=rate, options={"b": "64000"}))
    return Kind("audio", examples, _check_audio)


def _check_audio(data: bytes, _: int) -> None:
    CASE.write_bytes(data)
    whole = decode.read(CASE)
    if not (whole.samples.dtype == np.float32 and np.isfinite(whole.samples).all()):
        raise MisreadError("samples that are not finite")
    agree("digest", whole.content, hashlib.sha256(data).hexdigest()[:16])
    for content in (None, whole.content):
        head = decode.read(CASE, keep=8_000, content=content).samples
        if not np.array_equal(head, whole.samples[:8_000]):
            raise MisreadError(f"the first samples are others than those of the whole (content {content})")
    heard = len(whole.samples) / RATE
    if (other := _seconds_by_ffmpeg(data)) > heard + TOLERANCE_S:
        raise MisreadError(f"{heard:.2f} s were heard, FFmpeg hears {other:.2f} s")


def _seconds_by_ffmpeg(data: bytes) -> float:
    seconds = 0.0
    try:
        with av.open(io.BytesIO(data), metadata_errors="ignore") as file:
            for packet in file.demux(audio=0):
                try:
                    seconds += sum(frame.samples / frame.sample_rate for frame in packet.decode())
                except av.error.FFmpegError:
                    continue
    except Exception:
        return seconds
    return seconds


# ---------------------------------------------------------------- Parquet


def parquet_files(_: Path) -> Kind:
    """Shards with embedded audio, against all of the file read at once: the same trials and the same bytes."""
    rows = range(5)
    columns = {
        "path": [f"LA/{i}.wav" for i in rows],
        "audio": [{"bytes": written(speech(RATE, 0.05) / (i + 1), "WAV"), "path": f"{i}.wav"} for i in rows],
        "label": [i % 2 for i in rows],
        "notes": [json.dumps({"utterance_id": f"u{i}", "attack": "A1"}) for i in rows],
    }
    examples = []
    for compression in ("snappy", "zstd", "none"):
        file = io.BytesIO()
        parquet.write_table(pyarrow.table(columns), file, row_group_size=2, compression=compression)
        examples.append(file.getvalue())
    return Kind("Parquet files", examples, _check_parquet)


def _check_parquet(data: bytes, _: int) -> None:
    place = Path("dataset", "data", "test-00000-of-00001.parquet")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    place.write_bytes(data)
    Path("dataset", "README.md").touch()
    table = arena.trials(Path("dataset"), Path("dataset", "README.md"), "test")
    found = [parquet_rows.read(Path("dataset", path)) for path in table.path.tolist()]
    parquet_rows.names(place / "audio")
    # By the same lower layer: that of `read_table` also refuses damage that plays no part.
    whole = parquet.ParquetFile(io.BytesIO(data)).read(["audio.bytes", "label"]).to_pydict()
    agree("audio", found, [audio["bytes"] for audio in whole["audio"]])
    words = ["bonafide" if bona_fide else "spoof" for bona_fide in table.is_bonafide]
    agree("labels", words, [("bonafide", "spoof")[label] for label in whole["label"]])


# ---------------------------------------------------------------- tables


TABLES = {
    "asvspoof2019_la": "LA_0079 LA_D_101 - - bonafide\nLA_0080 LA_D_102 - A07 spoof\nLA_0079 LA_D_3 - A1 spoof\n",
    "asvspoof2021_la": "".join(
        f"LA_000{i} LA_E_933288{i} alaw ita_tx {'A07 spoof' if i % 2 else 'bonafide bonafide'} notrim {phase}\n"
        for i, phase in enumerate(["eval", "eval", "progress", "eval", "hidden"])
    ),
    "asvspoof2021_df": "".join(
        f"LA_000{i} DF_E_200000{i} nocodec asvspoof {'A14 spoof' if i % 2 else 'bonafide bonafide'} notrim eval "
        "traditional_vocoder - - - -\n"
        for i in range(4)
    ),
    "asvspoof5": "".join(
        f"E_16{i} E_000953896{i} M C05 2 E_0009486171 AC1 {'A26 spoof' if i % 2 else 'bonafide bonafide'} -\n"
        for i in range(4)
    ),
    "in_the_wild": "file,speaker,label\n0.wav,Alec Guinness,spoof\n1.wav,Alec Guinness,bona-fide\n2.wav,B,spoof\n",
    "for_norm": "file,label\nfake/file1.wav,spoof\nreal/file2.wav,bona-fide\nfake/file3.wav,spoof\n",
    "manifest": "utterance,path,label,split,speaker,quality\na,a.wav,bonafide,dev,s1,2.5\nb,b.wav,spoof,dev,s2,\n"
    'c,"x,y/c.wav",spoof,dev,s3,NaN\n',
    "table": ",".join(trial_table.COLUMNS)
    + "\nu1,a/u1.flac,s1,bonafide,-,-,-,4.5,0123456789abcdef\nu2,a/u2.flac,s2,spoof,A1,c,v,,00ff\n"
    'u3,"a/""u3"".flac",\'=s,spoof,A2,-,-,1.0,00fe:left\n',
}
LABEL_WORDS = {"bonafide": True, "bona-fide": True, "spoof": False}


def tables(_: Path) -> Kind:
    """Protocols, keys, manifests and trial tables, against a reader of a few lines."""
    return Kind("tables", [text.encode() for text in TABLES.values()], _check_table, text=True)


def _check_table(data: bytes, _: int) -> None:
    path = CASE.with_suffix(".csv")
    path.write_bytes(data)
    corpus = _protocols.recognise(path)
    if corpus is None:
        raise InputError("no protocol")
    split = None if corpus == _formats.TABLE else _protocols.default_split(path, corpus)
    scores = scorefile.ScoreFile(path, "2021", [], np.zeros(0), [], [], [])
    found = keys.read(path, split, scores).trials
    got = list(zip(found.utterance.tolist(), found.is_bonafide.tolist(), strict=True))
    agree(corpus, got, _naive_table(data, corpus, split))
    again = path.with_name("again.csv")
    again.write_text(trial_table.to_csv(found), encoding="utf-8")
    for name, column in vars(trial_table.read(again)).items():
        agree(f"{name}, written and read", column.tolist().__repr__(), getattr(found, name).tolist().__repr__())


def _naive_table(data: bytes, corpus: str, split: str | None) -> list[tuple[str, bool]]:
    text = data.decode("utf-8-sig")
    if corpus in (_formats.MANIFEST, _formats.TABLE):
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        rows = [row for row in rows if split is None or row["split"] == split]
        names = [row["utterance"] for row in rows]
        names = [name[1:] if corpus == _formats.TABLE and re.match(r"'+[=+\-@\t\r]", name) else name for name in names]
        return list(zip(names, [LABEL_WORDS[row["label"]] for row in rows], strict=True))
    form = _formats.FORMATS[corpus]
    columns = form.columns
    found = []
    for i, line in enumerate(re.split("\r\n|\r|\n", text)):
        cells = next(csv.reader([line]), []) if form.comma else line.split()
        if not cells or (i == 0 and cells[: len(columns)] == columns) or (not found and cells[:2] == columns[:2]):
            continue
        row = dict(zip(columns, cells, strict=False))
        if row.get("phase", split) == split or split == "all":
            name = row[form.name].removesuffix(".wav") if corpus == "for_norm" else row[form.name]
            found.append((name, LABEL_WORDS[row["label"]]))
    return found


PLAIN_KEYS = {
    "words": "".join(f"u{i} {('real', 'Fake')[i % 2]}\n" for i in range(6)),
    "commas": "".join(f"u{i},{('bonafide', 'spoof')[i % 2]}\n" for i in range(6)),
    "csv": "Label,file,note\n" + "".join(f'{("real", "fake")[i % 2]},w/u{i}.wav,"a, b"\n' for i in range(6)),
    "asvspoof5": "filename\tcm-label\n" + "".join(f"E_{i}\t{('bonafide', 'spoof')[i % 2]}\n" for i in range(6)),
    "four": "".join(f"S1 u{i} {('- bonafide', 'A01 spoof')[i % 2]}\n" for i in range(6)),
    "pa": "".join(f"PA_1 PA_T_{i} aaa {('- bonafide', 'AA spoof')[i % 2]}\n" for i in range(6)),
    "phase1": "".join(f"T_1 T_{i} F - {('bonafide bonafide', 'A18 spoof')[i % 2]}\n" for i in range(6)),
}


def plain_keys(_: Path) -> Kind:
    """Keys that no adapter reads, against a reader of a few lines."""
    return Kind("plain keys", [text.encode() for text in PLAIN_KEYS.values()], _check_plain_key, text=True)


def _check_plain_key(data: bytes, _: int) -> None:
    CASE.write_bytes(data)
    scores = scorefile.ScoreFile(CASE, "2021", [], np.zeros(0), [], [], [])
    found = keys.read(CASE, None, scores)
    if found.corpus not in ("plain", "asvspoof2019_pa", "asvspoof5"):
        raise InputError("a key of the other kind")
    text = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    lines = [line for line in text.split("\n") if line.strip()]
    commas = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text, newline="")) if row]
    commas = commas if commas[0] != [""] else commas[1:]
    for rows in (commas, [line.split("\t") for line in lines], [line.split() for line in lines]):
        head = [cell.strip().lower() for cell in rows[0]]
        names = [i for i, cell in enumerate(head) if cell in OWN_NAMES]
        if names and (labels := [i for i, cell in enumerate(head) if cell in ("label", "cm-label", "cm_label")]):
            wanted = [(row[names[0]], row[labels[0]]) for row in rows[1:]]
            break
    else:
        first = commas[0]
        rows = commas if len(first) == 2 and first[1].lower() in SCORED_CLASSES and " " not in first[0] else rows
        wanted = [(row[0 if len(row) == 2 else 1], row[-1]) for row in rows]
    got = list(zip(found.trials.utterance.tolist(), found.trials.is_bonafide.tolist(), strict=True))
    agree("plain key", got, [(name, SCORED_CLASSES[word.lower()] == "bonafide") for name, word in wanted])


# ---------------------------------------------------------------- score files

SCORES = {
    "2019": "".join(f"LA_E_{i} {'A07 spoof' if i % 2 else '- bonafide'} {(-1) ** i * i / 7!r}\n" for i in range(8)),
    "2021": "".join(f"LA_E_{i} {i / 3 - 1!r}\n" for i in range(8)),
    "asvspoof5": "filename\tcm-score\n" + "".join(f"E_{i}\t{i / 9!r}\n" for i in range(8)),
    "csv": "score,other,utterance\n" + "".join(f'{i / 9!r},"a, b",u{i}\n' for i in range(8)),
    "csv2": "file,score\r\n" + "".join(f'"u{i}",{i}e-3\r\n' for i in range(8)),
    "csv3": "".join(f"u{i},{i}e-3\n" for i in range(8)),
    "csv4": "ID_audio,label,score_spoof,score_bonafide\n" + "".join(f"u{i},{i % 2},{-i},{i}\n" for i in range(8)),
    "label": "".join(f"u{i} {('fake', 'Real')[i % 2]} {i / 3!r}\n" for i in range(8)),
    "speaker": "".join(f"S1 u{i} - A01 {('spoof', 'bonafide')[i % 2]} {i / 3!r}\n" for i in range(8)),
    "tsv": "flac_file\tscore\tlabel\n"
    + "".join(f"u{i}\t{i / 3!r}\t{('spoof', 'bonafide')[i % 2]}\n" for i in range(8)),
    "tsv2": "utt score\n" + "".join(f"u{i} {i / 3!r}\n" for i in range(8)),
}
SCORE_NAMES = ("score", "scores", "cm-score", "cm_score", "score_bonafide", "bonafide_score")
OWN_NAMES = ("utterance", "filename", "file", "id_audio", "flac_file", "utt")
SCORED_CLASSES = {"spoof": "spoof", "spoofed": "spoof", "fake": "spoof"} | dict.fromkeys(
    ("bonafide", "bona-fide", "bona_fide", "genuine", "human", "real"), "bonafide"
)


def score_files(_: Path) -> Kind:
    """Score files of all layouts, against a reader of a few lines."""
    return Kind("score files", [text.encode() for text in SCORES.values()], _check_scores, text=True)


def _check_scores(data: bytes, _: int) -> None:
    CASE.write_bytes(data)
    found = scorefile.parse(CASE)
    text = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    lines = [line for line in text.split("\n") if line.strip()]
    if found.layout == "csv":
        rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text, newline="")) if row]
        rows = rows if rows[0] != [""] else rows[1:]
    elif found.layout in ("asvspoof5", "tsv"):
        tabs = bool(set(lines[0].strip().lower().split("\t")) & set(SCORE_NAMES))
        rows = [line.split("\t" if tabs else None) for line in lines]
    elif found.layout == "2019":  # a name before a dash may hold blanks
        rows = [line.strip().rsplit(None, 3) for line in lines]
    else:
        rows = [line.split() for line in lines]
    head = [cell.strip().lower() for cell in rows[0]]
    classes, label = SCORED_CLASSES, {"2019": 2, "label": 1, "speaker": 4}.get(str(found.layout))
    if found.layout in ("csv", "asvspoof5", "tsv") and (named := [i for i, x in enumerate(head) if x in SCORE_NAMES]):
        (score,), (name, *_) = named, [i for i, x in enumerate(head) if x in OWN_NAMES] or [-1]
        if name < 0:
            raise InputError("a name that this reader does not know")
        label = head.index("label") if "label" in head else None
        classes = (
            {"1": "bonafide", "0": "spoof"} if head == SCORES["csv4"].split("\n")[0].lower().split(",") else classes
        )
        rows = rows[1:]
    else:
        name, score = int(found.layout == "speaker"), -1
    agree(str(found.layout), list(zip(found.utterance, found.score.tolist(), strict=True)),
          [(row[name], float(row[score])) for row in rows])  # fmt: skip
    if found.label:
        agree("labels", found.label, [classes[row[label or 0].lower()] for row in rows])


# ---------------------------------------------------------------- parameter files


def parameters(_: Path) -> Kind:
    """Parameter files, against the safe loader of YAML."""
    recipes = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
    return Kind("parameter files", [SETTINGS.read_bytes(), recipes[0].read_bytes()], _check_params, text=True)


def _check_params(data: bytes, _: int) -> None:
    CASE.write_bytes(data)
    found = params_file.load(CASE)
    plain = YAML(typ="safe", pure=True).load(data.decode("utf-8-sig"))
    agree("parameters", found.model_dump(), Params.model_validate(plain).model_dump())


# ---------------------------------------------------------------- indexes


def indexes(folder: Path) -> Kind:
    """Indexes of centroids, and of embeddings (flat, IVF, IVF-PQ), also with the checksum of the changed bytes."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(400, 8)).astype(np.float32)
    told = centroids.write_index(centroids.build(Centroids(vectors[:3], True, 0.0, "max")), folder / "c.faiss")
    made: list[tuple[bytes, Any]] = [((folder / "c.faiss").read_bytes(), told)]
    limits = embedding_index.FLAT_UP_TO, embedding_index.IVF_UP_TO
    names = [f"u{i}" for i in range(len(vectors))]
    try:
        for kind, (flat, ivf) in {"flat": limits, "ivf": (0, 10**9), "ivfpq": (0, 0)}.items():
            embedding_index.FLAT_UP_TO, embedding_index.IVF_UP_TO = flat, ivf
            embedding_index.build(folder / kind, iter([vectors]), names, normalize=False, facts={"run": "r"})
            made.append(((folder / kind / embeddings.INDEX_FILE).read_bytes(), folder / kind))
    finally:
        embedding_index.FLAT_UP_TO, embedding_index.IVF_UP_TO = limits
    queries = vectors[:5] + 0.01
    wanted = {place: embeddings.read(place).search(queries, 3) for _, place in made[1:]}

    def check(data: bytes, which: int) -> None:
        original, place = made[which]
        sealed = data != original and zlib_even(data)
        if which == 0:
            _check_centroids(data, told, vectors[:3], sealed=sealed)
        else:
            _check_embeddings(data, place, sealed=sealed, queries=queries, wanted=wanted[place])

    return Kind("indexes", [data for data, _ in made], check)


def zlib_even(data: bytes) -> bool:
    """Half of all bytes."""
    return hashlib.sha256(data).digest()[0] % 2 == 0


def _check_centroids(data: bytes, told: dict[str, Any], vectors: Any, *, sealed: bool) -> None:
    CASE.write_bytes(data)
    told = told | ({"sha256": hashlib.sha256(data).hexdigest()} if sealed else {})
    found = centroids.read_index(CASE, told)
    got = found.centroids().vectors
    if sealed:  # the numbers are then others, but those that lie there
        vectors = np.frombuffer(data[-got.nbytes :], "<f4").reshape(got.shape)
    if not np.array_equal(got, vectors):
        raise MisreadError("other centroids than the file holds")


def _check_embeddings(data: bytes, place: Path, *, sealed: bool, queries: Any, wanted: Any) -> None:
    copy = Path("embeddings")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(place, copy)
    (copy / embeddings.INDEX_FILE).write_bytes(data)
    if sealed:
        card = json.loads((copy / embeddings.CARD_FILE).read_text())
        card["bytes"][embeddings.INDEX_FILE] = len(data)
        card["crc32c"][embeddings.INDEX_FILE] = embeddings.checksum(copy / embeddings.INDEX_FILE)
        (copy / embeddings.CARD_FILE).write_text(json.dumps(card))
    found = embeddings.read(copy)
    away, ids = found.search(queries, 3)
    if sealed:  # another choice of candidates may come, of which the distances are right
        true = np.sqrt(((queries[:, None] - np.asarray(found.vectors)[ids]) ** 2).sum(axis=-1))
        if not np.allclose(away, true, atol=1e-4):
            raise MisreadError("distances that are not those of the embeddings")
    elif not all(np.array_equal(a, b) for a, b in zip((away, ids), wanted, strict=True)):
        raise MisreadError("other neighbours than before")


# ---------------------------------------------------------------- HDF5


def hdf5_files(folder: Path) -> Kind:
    """Exported features, against h5py itself: the store that is made holds what the file does."""
    (folder / "h5").mkdir()
    made = make_cache(folder / "h5", "train")
    hdf5.export(made.receipt, folder / "x.h5", root=folder / "h5", trials=made.trials, layers=(2,), views=("clean",))
    return Kind("HDF5 files", [(folder / "x.h5").read_bytes()], _check_hdf5)


def _check_hdf5(data: bytes, _: int) -> None:
    root, path = Path("root"), Path("case.h5")
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    path.write_bytes(data)
    try:
        store = hdf5.bring_back(path, root=root)
    except InputError:
        if any(root.rglob("zarr.json")):
            raise MisreadError("refused, and something was written") from None
        raise
    with h5py.File(path) as file:
        for name in ("layer_02", "pooled_02"):
            got = zarr.open(str(store.path))[f"clean/{name}"][:]
            if not np.array_equal(got, file[f"clean/{name}"][:]):
                raise MisreadError(f"other numbers in {name}")


# ---------------------------------------------------------------- packages


def packages(folder: Path) -> Kind:
    """Files of a package, half of them with the digests of the changed bytes, as a stranger would write them."""
    project = systems.project(folder / "project")
    before = Path.cwd()
    os.chdir(project)
    try:
        package.write(systems.POOLED, folder / "package")
    finally:
        os.chdir(before)
    run = f"runs/{systems.POOLED}"
    names = ["package.json", f"{run}/run.json", f"{run}/backend.safetensors", f"{run}/centroids.faiss"]
    names += [str(p.relative_to(folder / "package")) for p in (folder / "package").rglob("embeddings.*")]
    sound = [(folder / "package" / name).read_bytes() for name in names]
    file = project / systems.audio("eval")[0]

    @cache
    def plain() -> Any:
        return detect.load(folder / "package").score(file)

    plain()

    def check(data: bytes, which: int) -> None:
        sealed = which > 0 and zlib_even(data)
        there = _repacked(folder / "package", names[which], data, sealed=sealed)
        system = detect.load(there)
        (found,) = system.detect([file], explain=names[which].startswith("embeddings/"))
        if isinstance(found, detect.Unreadable):
            raise InputError(found.why)
        if not np.isfinite(found.score):
            raise MisreadError(f"score {found.score}")
        if which > 0 and not sealed and data != sound[which]:
            raise MisreadError("damage was not seen")
        if which == 0 and found.score != plain():
            raise MisreadError(f"score {found.score}, expected {plain()}")

    return Kind("packages", sound, check)


def _repacked(source: Path, name: str, data: bytes, *, sealed: bool) -> Path:
    there = Path("package")
    if not there.is_dir():
        shutil.copytree(source, there)
    card = source / "package.json"
    for path in (p for p in source.rglob("*") if p.is_file()):
        copy = there / path.relative_to(source)
        if path.stat().st_size < 100_000 and copy.read_bytes() != path.read_bytes():
            shutil.copy(path, copy)
    (there / name).write_bytes(data)
    if sealed:
        told = json.loads(card.read_text())
        told["files"][name] = hashlib.sha256(data).hexdigest()
        if name.endswith(runs.CARD_FILE):
            with contextlib.suppress(ValueError, RecursionError):
                told["run"] = json.loads(data)
        (there / "package.json").write_text(json.dumps(told))
    return there


KINDS: Sequence[Callable[[Path], Kind]] = (
    audio,
    parquet_files,
    tables,
    plain_keys,
    score_files,
    packages,
    indexes,
    hdf5_files,
    parameters,
)
