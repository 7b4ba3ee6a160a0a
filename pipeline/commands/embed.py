"""Embeddings of a set with its trials, for your own notebook: as Parquet, npz, or for TensorBoard's projector."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import csv
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.analysis import embeddings
from pipeline.analysis.embeddings import Embeddings
from pipeline.core import trial_table
from pipeline.core.arguments import parser_of
from pipeline.core.errors import InputError, run_command
from pipeline.core.files import check_file_place, flush_names, safe_cell, write_text, writing
from pipeline.core.trial_table import LABELS, Trials

DATA = Path("data")  # of the project in the current folder
BLOCK = 16_384  # rows that are written at once
EXAMPLES = """\
The run must have been analysed: name it in the section `analyse` of params.yaml, and run `dvc repro
flow/analyse/dvc.yaml`. Each row is an utterance, in the order of the trial table. Embeddings come unchanged from the
backend, (N, E) float32. Where the loss of the run normalizes, scoring compares them at unit length.

columns beside the embedding: utterance, path, speaker, label, attack, codec, vocoder ("-" where unknown), quality (MOS,
nan where unknown)

FILE.npz       for NumPy, without pickle: found = np.load("eval.npz"); found["embedding"], found["label"]
FILE.parquet   for pandas, polars, R: pd.read_parquet("eval.parquet"); needs the extra `parquet`
--projector    vectors.tsv, metadata.tsv and projector_config.pbtxt for TensorBoard (tensorboard --logdir FOLDER) or for
               https://projector.tensorflow.org

examples:
  bonafide embed linear-qamo-all-clean-1 eval --out eval.npz
  bonafide embed linear-qamo-all-clean-1 train --out train.parquet --projector projector
"""

Columns = dict[str, NDArray[Any]]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command. Raises InputError for a set without embeddings, and where a package is not installed."""
    given = _arguments(argv)
    found, table = _read(given.run, given.set)
    columns = _columns(table)
    if given.out:
        write = _write_npz if given.out.suffix == ".npz" else _write_parquet
        write(given.out, columns, found)
        print(f"{len(table)} embeddings of {found.vectors.shape[1]} -> {given.out}")
    if given.projector:
        _write_projector(given.projector, columns, found, name=f"{given.run} {given.set}")
        print(f"{len(table)} embeddings of {found.vectors.shape[1]} -> {given.projector}")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    description = "Writes the embeddings of a set with the facts of its trial table."
    parser = parser_of("bonafide embed", description, EXAMPLES)
    add = parser.add_argument
    add("run", metavar="RUN", help="name of an analysed run of the project in the current folder")
    add("set", metavar="SET", help="name of a set: the training set, dev, or one of evaluate.sets")
    add("--out", type=Path, metavar="FILE", help="file to write, .npz or .parquet")
    add("--projector", type=Path, metavar="FOLDER", help="folder for the files of TensorBoard's projector")
    given = parser.parse_args(argv)
    if not (given.out or given.projector):
        parser.error("expected --out FILE, --projector FOLDER, or both")
    if given.out and given.out.suffix not in (".npz", ".parquet"):
        parser.error(f"--out: expected a name that ends with .npz or .parquet, got {given.out}")
    return given


def _read(run: str, name: str) -> tuple[Embeddings, Trials]:
    folder = DATA / "embeddings" / run / name
    if not folder.is_dir():
        there = sorted(f"{path.parent.name} {path.name}" for path in (DATA / "embeddings").glob("*/*") if path.is_dir())
        raise InputError(
            f"{folder}: no embeddings there; there are {', '.join(there) or 'none'}; name the run in the section "
            "`analyse` of params.yaml and run `dvc repro flow/analyse/dvc.yaml`"
        )
    table = trial_table.read(DATA / "trials" / f"{name}.csv")
    return embeddings.of_run(folder, DATA / "runs" / run, name, table), table


def _columns(table: Trials) -> Columns:
    """The columns (N,) that describe the trials, by name."""
    label = np.where(table.is_bonafide, *LABELS)
    columns = {"utterance": table.utterance, "path": table.path, "speaker": table.speaker, "label": label}
    return columns | {"attack": table.attack, "codec": table.codec, "vocoder": table.vocoder, "quality": table.quality}


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[IO[bytes]]:
    """Open a file beside `path` to write, and rename it to `path` at the end. Missing folders are made."""
    check_file_place(path)
    beside = path.with_name(path.name + ".part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        flush_names(path.parent)


def _write_npz(path: Path, columns: Columns, found: Embeddings) -> None:
    with _beside(path) as file:
        np.savez(file, allow_pickle=False, embedding=found.vectors, **columns)


def _write_parquet(path: Path, columns: Columns, found: Embeddings) -> None:
    try:
        import pyarrow
        from pyarrow import parquet  # an extra
    except ImportError:
        raise InputError(f'{path}: Parquet needs pyarrow: pip install "bonafide[parquet]", or write .npz') from None
    flat = pyarrow.array(np.ascontiguousarray(found.vectors).ravel())
    vectors = pyarrow.FixedSizeListArray.from_arrays(flat, found.vectors.shape[1])
    known = {name: pyarrow.array(column.tolist()) for name, column in columns.items()}
    with _beside(path) as file:
        parquet.write_table(pyarrow.table({**known, "embedding": vectors}), file, row_group_size=BLOCK)


def _write_projector(folder: Path, columns: Columns, found: Embeddings, *, name: str) -> None:
    """Write the files that TensorBoard's projector reads; the configuration comes last."""
    with _beside(folder / "vectors.tsv") as file:
        np.savetxt(file, found.vectors, delimiter="\t", fmt="%.9g")  # enough digits for a float32
    with _beside(folder / "metadata.tsv") as file:
        text = codecs.getwriter("utf-8")(file)
        writer = csv.writer(text, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONE, quotechar=None)
        writer.writerow(columns)
        for start in range(0, len(found.vectors), BLOCK):
            cells = (map(_cell, column[start : start + BLOCK].tolist()) for column in columns.values())
            writer.writerows(zip(*cells, strict=True))
    paths = 'tensor_path: "vectors.tsv"\n  metadata_path: "metadata.tsv"'
    config = f"embeddings {{\n  tensor_name: {json.dumps(name)}\n  {paths}\n}}\n"
    write_text(folder / "projector_config.pbtxt", config)


def _cell(value: Any) -> str:
    """A value as text without tabs and line breaks, which no spreadsheet computes."""
    return str(safe_cell(" ".join(str(value).split())))


if __name__ == "__main__":
    run_command(main)
