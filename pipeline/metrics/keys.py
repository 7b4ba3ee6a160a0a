"""The key of score files, as commands take it: any protocol, key, manifest, trial table or dataset of the Arena."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.core import members, trial_table
from pipeline.core.errors import InputError
from pipeline.core.trial_table import Trials
from pipeline.corpora import _formats, _protocols
from pipeline.metrics import asv_scores, plain_keys, scorefile
from pipeline.metrics.scorefile import ScoreFile

ARENA, ARENA_SPLIT = "arena", "test"  # the corpus, and the only split that its datasets have
MISSING = (
    "every trial of the key needs a score; score these too, or give the key of the part that was scored (--split), "
    "as a system that may leave trials out looks better than it is"
)


@dataclass(frozen=True)
class Key:
    """The trials that scores are joined with, and the file that lists them.

    corpus: as `_protocols.recognise` or `plain_keys` names it, None for a score file that is its own key. split: None
    where the file has no splits.
    """

    path: Path
    corpus: str | None
    split: str | None
    trials: Trials


def read(path: Path | None, split: str | None, scores: ScoreFile) -> Key:
    """The key of a file, or the one that a score file with classes carries itself.

    Raises InputError for a file that is none, for a split that it does not have, and without a path where the score
    file has no labels.
    """
    if path is None:
        if split:
            raise InputError(f"expected --split with a --key that has splits alone, got --split {split}; leave it out")
        return Key(scores.path, None, None, scorefile.own_key(scores))
    if path.is_dir():
        return _of_dataset(path, split)
    corpus = _protocols.recognise(path)
    if corpus is None:
        asv_scores.check_no_list(path)
        plain = plain_keys.read(path, split)
        if plain is None:
            raise InputError(
                f"{path}: expected a protocol or key of {', '.join(_formats.FORMATS)}, a manifest or a trial table, "
                "or lines of an utterance and its class; its first line is of none of them. Write it as a CSV file "
                "with the first line utterance,label and the classes bonafide and spoof"
            )
        return Key(path, *plain)
    if corpus == _formats.TABLE:
        if split:
            raise InputError(f"{path}: a trial table has no splits, got --split {split}; leave it out")
        return Key(path, corpus, None, trial_table.read(path))
    split = split or _protocols.default_split(path, corpus)
    return Key(path, corpus, split, members.member("corpora", corpus).trials(path.parent, path, split))


def _of_dataset(folder: Path, split: str | None) -> Key:
    """The key that a dataset of the Arena holds beside its audio. Raises InputError for another folder."""
    shards = sorted((folder / "data").glob("*.parquet"))
    if not shards:
        raise InputError(
            f"{folder}: expected a file, or the folder of a dataset of the Arena with data/*.parquet, got another one"
        )
    split = split or ARENA_SPLIT
    return Key(folder, ARENA, split, members.member("corpora", ARENA).trials(folder, shards[0], split))


def short_names(paths: Sequence[Path]) -> list[str]:
    """Short names that differ: the last parts of each path, as many as needed, without suffixes where these are alike.

    Raises InputError for one file twice.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise InputError(f"expected different score files, got {', '.join(map(str, paths))}")
    bare = [path.with_suffix("").parts for path in paths]
    parts = bare if len(set(bare)) == len(bare) else [path.parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]
