"""The feature stores: list, check, clean up, and take layers of a set elsewhere as one HDF5 file."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.core import params_file, trial_table
from pipeline.core.contracts import Tap
from pipeline.core.errors import InputError
from pipeline.extraction.hdf5 import bring_back, export
from pipeline.extraction.housekeeping import Found, leftovers, look, remove
from pipeline.features import receipt_files

FEATURES, TRIALS = Path("data/features"), Path("data/trials")
EXAMPLES = """\
examples:
  bonafide cache ls                                     which stores there are, what they cost, who needs them
  bonafide cache verify                                 read every shard that a receipt stands for: are its bytes sound?
  bonafide cache gc                                     what no receipt here needs; with --yes it is deleted
  bonafide cache export train train.h5 --layers 5 9     layers of a set, for any program that reads HDF5
  bonafide cache import train.h5                        back into the store; `dvc repro` then finds it extracted

A receipt is a file of data/features, which `dvc repro` writes. Receipts of other branches, of other projects or people
with the same features.root are not known here: what gc deletes of theirs, they have to extract again.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command. Raises InputError for stores and files that cannot be used."""
    given = _arguments(argv)
    root = params_file.load(given.params).features.folder
    if given.what == "ls":
        _list(look(root, FEATURES))
    elif given.what == "verify":
        _verify(given.receipts or sorted(FEATURES.glob("*.json")), root)
    elif given.what == "gc":
        _clean(root, delete=given.yes)
    elif given.what == "export":
        _export(given, root)
    else:
        print(f"{given.file} -> {bring_back(given.file, root=root).path}; run `dvc repro extract` for its receipt")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bonafide cache",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="names the root of the stores")
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    commands.add_parser("ls", help="list all stores")
    verify = commands.add_parser("verify", help="read every shard and compare its checksum")
    verify.add_argument("receipts", type=Path, nargs="*", help="such as data/features/train.json; default: all")
    clean = commands.add_parser("gc", help="list, or delete, the stores that no receipt needs")
    clean.add_argument("--yes", action="store_true", help="delete them")
    out = commands.add_parser("export", help="write layers of a set into one HDF5 file")
    out.add_argument("set", help="name of the set, as in data/features/SET.json")
    out.add_argument("file", type=Path, help="the file to write, such as train.h5")
    out.add_argument("--layers", type=_tap, nargs="+", default=[], metavar="K", help="layers; default: all")
    out.add_argument("--views", nargs="+", default=[], metavar="VIEW", help="views; default: all")
    back = commands.add_parser("import", help="put an exported file back into its store")
    back.add_argument("file", type=Path, help="what export wrote")
    return parser.parse_args(argv)


def _tap(text: str) -> Tap:
    if text == "final":
        return "final"
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"expected the number of a layer or final, got {text!r}")


def _list(found: Sequence[Found]) -> None:
    for one in found:
        spec = one.store.spec
        print(f"{one.store.path}  {_bytes(one.size)}{'' if one.complete else '  INCOMPLETE'}")
        print(f"  {spec.utterances:,} utterances of {spec.frames} x {spec.channels}, encoder {_encoder(spec.encoder)}")
        for view, layers in one.layers.items():
            print(f"  {view}: layers {', '.join(map(str, layers))}; {one.shards[view]} of {spec.shards} shards")
        print(f"  receipts: {', '.join(map(str, one.receipts)) or 'none here'}")
    print(f"{len(found)} stores, {_bytes(sum(one.size for one in found))}")


def _encoder(facts: Mapping[str, Any]) -> str:
    """The plain facts of an encoder, checksums by their beginning."""
    return ", ".join(
        f"{name.removesuffix('_sha256')} {str(value)[:12]}"
        for name, value in facts.items()
        if not isinstance(value, Mapping)
    )


def _verify(receipts: Sequence[Path], root: Path) -> None:
    if not receipts:
        raise InputError(f"{FEATURES}: expected receipts of features, got none; run from the project's folder")
    for path in receipts:
        opened = receipt_files.open_receipts(path, root=root).values()
        files = sum(target.verify(receipt["views"], receipt["layers"]) for target, receipt in opened)
        print(f"{path}: {files} shard files, all as they were written")


def _clean(root: Path, *, delete: bool) -> None:
    doomed = leftovers(root, FEATURES)
    for path, size in doomed.items():
        print(f"{path}  {_bytes(size)}")
    if delete:
        remove(doomed)
    done = "deleted" if delete else "that no receipt here needs; --yes deletes them"
    print(f"{len(doomed)} stores {done}")


def _export(given: argparse.Namespace, root: Path) -> None:
    table = trial_table.read(TRIALS / f"{given.set}.csv")
    receipt = FEATURES / f"{given.set}.json"
    size = export(receipt, given.file, root=root, trials=table, layers=given.layers, views=given.views)
    print(f"{receipt} -> {given.file}, {_bytes(size)}")


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
