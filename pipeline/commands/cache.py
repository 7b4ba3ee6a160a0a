"""Feature stores and fine-tuned encoders: list, check, clean up; share features by a URL or as one HDF5 file."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.core import params_file, trial_table
from pipeline.core.contracts import Tap
from pipeline.core.errors import InputError, run_command
from pipeline.core.files import folder_of, read_json, readable_size
from pipeline.core.params import Params
from pipeline.encoder import kept
from pipeline.extraction import identity, needed, sharing
from pipeline.extraction.hdf5 import bring_back, export
from pipeline.extraction.housekeeping import (
    STORE_SUFFIX,
    Found,
    FoundEncoder,
    leftovers,
    look,
    look_at,
    look_at_encoders,
    remove,
)
from pipeline.extraction.needed import Needed
from pipeline.features import receipt_files
from pipeline.features.libraries import IMPORTED
from pipeline.features.specs import STORAGE
from pipeline.features.store import Store

FEATURES, TRIALS, CARD = Path("data/features"), Path("data/trials"), Path("data/encoder.json")
DAYS = 7.0  # what was written to since then stays
EXAMPLES = """\
examples:
  bonafide cache ls                                     which stores and encoders there are, who needs them
  bonafide cache verify                                 read every shard that a receipt stands for: are its bytes sound?
  bonafide cache gc                                     what nobody needs; with --yes it is deleted
  bonafide cache export train train.h5 --layers 5 9     layers of a set, for any program that reads HDF5
  bonafide cache import train.h5                        back into the store; `dvc repro` then finds it extracted
  bonafide cache push train s3://bucket/features        features and trial table of a set, for others; or a folder
  bonafide cache push train s3://bucket/features --pooled    means and deviations alone
  bonafide cache pull train s3://bucket/features        the same on another machine, which needs no audio

push and pull compare the checksum of every shard before they write it. Cut off, the same command goes on.

Needed is what receipts (data/features) and the encoder's card (data/encoder.json) stand for, here and in the other
branches, tags, stashes, worktrees and experiments of this repository: gc reads these from Git, and from DVC's cache by
the dvc.lock in Git. Where a receipt is missing or damaged there, everything that it could stand for is kept: `dvc fetch
--all-branches --all-tags` brings it, --only-here leaves other states out of account.
The stores and encoders that params.yaml asks for now are kept; where the card here is of another encoder, all that it
may ask for. Kept are also those that were written to in the last days, and those that are incomplete. With --older-than
the days alone decide. Folders and links that bonafide did not make are left alone.
Other projects or people with the same features.root are not known here: what gc deletes of theirs, they have to make
again.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command. Raises InputError for stores and files that cannot be used."""
    given = _arguments(argv)
    settings = params_file.load(given.params)
    root = settings.features.folder
    if given.what == "ls":
        _list(root, _needed(only_here=given.only_here))
    elif given.what == "verify":
        _verify(given.receipts or sorted(FEATURES.glob("*.json")), root)
    elif given.what == "gc":
        _clean(settings, _needed(only_here=given.only_here), days=given.older_than, delete=given.yes)
    elif given.what == "export":
        _export(given, root)
    elif given.what == "push":
        receipt, table = FEATURES / f"{given.set}.json", TRIALS / f"{given.set}.csv"
        copied = sharing.push(
            receipt,
            table,
            folder_of(given.place),
            root=root,
            layers=[*dict.fromkeys(given.layers)],
            pooled=given.pooled,
        )
        print(f"{given.set} -> {given.place}: {copied} shards copied, the others are there")
    elif given.what == "pull":
        copied = sharing.pull(given.set, folder_of(given.place), root=root, receipts=FEATURES, tables=TRIALS)
        print(f"{given.place} -> {given.set}: {copied} shards copied, the others are here")
    else:
        path = bring_back(given.file, root=root).path
        print(f"{given.file} -> {path}; run `dvc repro extract` for a receipt, which names what was imported")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bonafide cache",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="names the root of the stores")
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    listing = commands.add_parser("ls", help="list all stores and fine-tuned encoders")
    verify = commands.add_parser("verify", help="read every shard and compare its checksum")
    verify.add_argument("receipts", type=Path, nargs="*", help="such as data/features/train.json; default: all")
    clean = commands.add_parser("gc", help="list, or delete, the stores and encoders that nobody needs")
    clean.add_argument("--yes", action="store_true", help="delete them")
    clean.add_argument(
        "--older-than", type=_days, metavar="DAYS",
        help=f"keep what was written to since, complete or not; 0: keep nothing for that; default: {DAYS:g}, and keep "
        "all that is incomplete",
    )  # fmt: skip
    for command in (listing, clean):
        command.add_argument(
            "--only-here", action="store_true", help="ask neither other branches and tags nor stashes and experiments"
        )
    out = commands.add_parser("export", help="write layers of a set into one HDF5 file")
    out.add_argument("set", help="name of the set, as in data/features/SET.json")
    out.add_argument("file", type=Path, help="the file to write, such as train.h5")
    out.add_argument("--layers", type=_tap, nargs="+", default=[], metavar="K", help="layers; default: all")
    out.add_argument("--views", nargs="+", default=[], metavar="VIEW", help="views; default: all")
    back = commands.add_parser("import", help="put an exported file back into its store")
    back.add_argument("file", type=Path, help="what export wrote")
    _add_sharing(commands)
    return parser.parse_args(argv)


def _add_sharing(commands: Any) -> None:
    there = commands.add_parser("push", help="copy the features of a set to a folder or object store")
    here = commands.add_parser("pull", help="copy the features of a set from there")
    for command in (there, here):
        command.add_argument("set", type=_set, help="name of the set or pool, as in data/features/SET.json")
        command.add_argument("place", metavar="URL", help="a folder, or a URL such as s3://bucket/features")
    there.add_argument("--layers", type=_tap, nargs="+", default=[], metavar="K", help="layers; default: all")
    there.add_argument("--pooled", action="store_true", help="means and deviations alone, for backends that pool")


def _set(text: str) -> str:
    if not re.fullmatch("[a-z][a-z0-9_]*", text):
        raise argparse.ArgumentTypeError(f"expected the name of a set, got {text!r}")
    return text


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = -1.0
    if not 0 <= days < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of days, 0 or more, got {text!r}")
    return days


def _tap(text: str) -> Tap:
    if text == "final":
        return "final"
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"expected the number of a layer or final, got {text!r}")


def _needed(*, only_here: bool) -> Needed:
    found = needed.here(FEATURES)
    if not only_here:
        needed.add_elsewhere(found, Path())
    return found


def _list(root: Path, wanted: Needed) -> None:
    stores, encoders = look(root, wanted), look_at_encoders(root, wanted)
    for line in (*map(_store_lines, stores), *map(_encoder_lines, encoders)):
        print("\n".join(line))
    for path, users in wanted.unread.items():
        print(f"not in DVC's cache, so that nobody can say what it needs: {path} of {', '.join(sorted(users))}")
    size = sum(one.size for one in stores) + sum(one.size for one in encoders)
    print(f"{len(stores)} stores, {len(encoders)} fine-tuned encoders, {readable_size(size)}")


def _store_lines(one: Found) -> Iterator[str]:
    spec = one.store.spec
    yield f"{one.store.path}  {readable_size(one.size)}{'' if one.complete else '  INCOMPLETE'}"
    yield f"  {spec.utterances:,} utterances of {spec.frames} x {spec.channels}, encoder {_encoder(spec.encoder)}"
    for view, layers in one.layers.items():
        yield f"  {view}: layers {_names(layers)}; {one.shards[view]} of {spec.shards} shards"
        for maker in sorted(set[str]().union(*one.store.made((view,), layers).values())):
            yield "    imported" if maker == IMPORTED else f"    made by {maker}"
    yield f"  needed by: {', '.join(one.users) or 'nobody'}"


def _names(layers: Sequence[Tap]) -> str:
    return ", ".join(map(str, layers))


def _encoder_lines(one: FoundEncoder) -> Iterator[str]:
    params = one.facts["finetune"]
    state = "" if one.epochs is None else f"  INCOMPLETE: {one.epochs} of up to {params['epochs']} epochs"
    yield f"{one.folder}  {readable_size(one.size)}{state}"
    yield f"  from weights {one.facts['weights_sha256'][:12]}, window {_plain(one.facts['window'])}"
    yield f"  {_plain(params)}"
    yield f"  backend {_plain(one.facts['backend'])}; loss {_plain(one.facts['loss'])}"
    yield f"  needed by: {', '.join(one.users) or 'nobody'}"


def _plain(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {f'({_plain(v)})' if isinstance(v, Mapping) else v}" for name, v in facts.items())


def _encoder(facts: Mapping[str, Any]) -> str:
    """The plain facts of an encoder, checksums by their beginning, and the window."""
    window = facts.get("window")
    plain = [
        f"{name.removesuffix('_sha256')} {str(value)[:12]}"
        for name, value in facts.items()
        if not isinstance(value, Mapping)
    ]
    return ", ".join([*plain, *([f"window {_plain(window)}"] if isinstance(window, Mapping) else [])])


def _verify(receipts: Sequence[Path], root: Path) -> None:
    if not receipts:
        raise InputError(f"{FEATURES}: expected receipts of features, got none; run from the project's folder")
    for path in receipts:
        opened = receipt_files.open_receipts(path, root=root).values()
        files = sum(
            target.verify(one["views"], one["layers"], pooled=receipt_files.has_no_frames(one))
            for target, one in opened
        )
        foreign = [f"{view} {_names(taps)}" for _, one in opened for view, taps in one.get(IMPORTED, {}).items()]
        note = f"; imported, not computed here: layers of {'; '.join(foreign)}" if foreign else ""
        print(f"{path}: {files} shard files, all as they were written{note}")


def _clean(settings: Params, wanted: Needed, *, days: float | None, delete: bool) -> None:
    """days: as given; None where none were."""
    if not wanted.stores and not wanted.encoders:
        raise InputError(f"{FEATURES}: expected receipts of features, got none; run from the project's folder")
    root = settings.features.folder
    weights = _asked_weights(settings)

    def asked(path: Path) -> bool:
        if path.parent == kept.folder_of(root):
            return _asks_for_encoder(settings, path)
        return _asks_for_store(settings, path, weights)

    found = leftovers(root, wanted, asked=asked, days=DAYS if days is None else days, incomplete=days is not None)
    for path, why in found.spared.items():
        print("\n".join([f"{path}  stays: {why}", *_details(path, root, wanted)]))
    for path, size in found.doomed.items():
        print("\n".join([f"{path}  {readable_size(size)}", *_details(path, root, wanted)]))
    if delete:
        remove(found.doomed)
    done = "deleted" if delete else "that nobody needs; --yes deletes them"
    print(f"{len(found.doomed)} stores and encoders {done}")
    if any("cannot be read" in why for why in found.spared.values()):
        print(f"to have receipts that cannot be read: `dvc fetch --all-branches --all-tags`; {needed.ONLY_HERE}")


def _details(path: Path, root: Path, wanted: Needed) -> list[str]:
    """Which parameters made a store or an encoder, and how complete it is; nothing of what is none yet."""
    try:
        if path.name.endswith(STORE_SUFFIX):
            return list(_store_lines(look_at(path, wanted)))[1:-1]
        mine = [one for one in look_at_encoders(root, wanted) if one.folder == path]
        return [line for one in mine for line in list(_encoder_lines(one))[1:-1]]
    except InputError:  # which `ls` tells
        return []


def _asked_weights(settings: Params) -> set[str] | None:
    """The sha256 of the weights of the encoder that the parameters name; None where nobody knows them."""
    if settings.encoder.finetune is not None:
        folders = (path for path in kept.folder_of(settings.features.folder).glob("*") if not path.suffix)
        tuned = (kept.find(path) for path in folders if (path / kept.MARK_FILE).is_file())
        return {str(one.card.get("weights_sha256")) for one in tuned if one and _asks_for_encoder(settings, one.folder)}
    if not CARD.is_file():
        return None
    told = read_json(CARD, what="card of an encoder", remedy="run `dvc repro encoder`")
    fits = told.get("source") == settings.encoder.source
    return {str(told.get("weights_sha256"))} if fits and _normalizes_as(settings, told) else None


def _normalizes_as(settings: Params, facts: Mapping[str, Any]) -> bool:
    return settings.encoder.normalize in ("auto", facts.get("normalize"))


def _asks_for_store(settings: Params, path: Path, weights: set[str] | None) -> bool:
    """Whether the parameters ask for a store, as far as they, the card and the trial table of its set can say.

    weights: of the encoder; None where nobody knows them, so that those of the store may be.
    """
    name = path.name.rpartition("-")[0]
    if name not in settings.sets or not path.name.endswith(STORE_SUFFIX):
        return False
    try:
        spec = Store.open(path).spec
    except InputError:
        return False
    facts, table, asked = spec.encoder, TRIALS / f"{name}.csv", settings.extract
    return (
        (weights is None or facts.get("weights_sha256") in weights)
        and facts.get("window") == asked.window.model_dump()
        and _normalizes_as(settings, facts)
        and facts.get(STORAGE, "float16") == asked.storage
        and asked.precision in ("auto", facts.get("compute_dtype"))
        and facts.get("features_version") == identity.FEATURES_VERSION
        and (not table.is_file() or trial_table.fingerprint(trial_table.read(table)) == spec.trials)
    )


def _asks_for_encoder(settings: Params, folder: Path) -> bool:
    """Whether the parameters ask for a fine-tuned encoder, or a training under way, as far as they alone can say."""
    tuning = settings.encoder.finetune
    if tuning is None or folder.suffix not in ("", kept.UNFINISHED):
        return False
    facts = kept.facts_of(folder)
    wanted = {
        "finetune": tuning.facts,
        "window": settings.extract.window.model_dump(mode="json"),
    }
    return _normalizes_as(settings, facts) and {key: facts.get(key) for key in wanted} == wanted


def _export(given: argparse.Namespace, root: Path) -> None:
    table = trial_table.read(TRIALS / f"{given.set}.csv")
    receipt = FEATURES / f"{given.set}.json"
    size = export(receipt, given.file, root=root, trials=table, layers=given.layers, views=given.views)
    print(f"{receipt} -> {given.file}, {readable_size(size)}")


if __name__ == "__main__":
    run_command(main)
