"""Which feature stores and fine-tuned encoders are needed: by receipts and cards here, and by those of other states.

Other states of the project are its branches, tags, stashes, DVC's experiments and the heads of its worktrees. Git has
their dvc.lock, which pins each receipt by its md5; the cache of DVC on this machine has the receipts. Receipts that Git
itself has, as a commit or `git stash --all` puts them there, count as well. No state is checked out.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.core.errors import InputError
from pipeline.core.files import read_json
from pipeline.encoder import kept
from pipeline.features.receipt_files import read_receipts

CARD, LOCK = "data/encoder.json", "dvc.lock"
RECEIPT = re.compile(r"data/features/([a-z][a-z0-9_]*)\.json")
OF_CHOICES = ("selected", "analysed")  # folders beside data/features with the receipts of choices
STASHES = ("/stash", "/failed")  # how the names of refs end that keep more than one commit, in their reflog
ONLY_HERE = "or give --only-here, which leaves other branches, tags, stashes and experiments out of account"
Who = dict[str, set[str]]


@dataclass(frozen=True)
class Needed:
    """The stores and encoders that somebody needs, each with those who need it.

    stores: by their paths below the root. encoders: by their identities. weights: the sha256 of the weights that made
    needed features. unread: paths of receipts and cards that other states need and that cannot be read.
    """

    stores: Who = field(default_factory=dict)
    encoders: Who = field(default_factory=dict)
    weights: Who = field(default_factory=dict)
    unread: Who = field(default_factory=dict)

    def add(self, path: str, found: Mapping[str, Any], who: str) -> None:
        """Take note of a receipt or card. path: in the project."""
        if path == CARD:
            if identity := kept.identity_of(found):
                self.encoders.setdefault(identity, set()).add(who)
            return
        for receipt in found.get("pool", {path: found}).values():
            self.stores.setdefault(str(receipt["store"]), set()).add(who)
            if weights := receipt.get("encoder", {}).get("weights_sha256"):
                self.weights.setdefault(str(weights), set()).add(who)

    def unsure_of_store(self, store: str) -> set[str]:
        """Who may need a store by a receipt that cannot be read. store: path below the root."""
        name = store.partition("/")[2].rpartition("-")[0]
        return self.unread.get(f"data/features/{name}.json", set())

    def unsure_of_encoders(self) -> set[str]:
        """Who may need any encoder by a card that cannot be read."""
        return self.unread.get(CARD, set())


def here(receipts: Path) -> Needed:
    """What the receipts and the card in the project's folder need. receipts: their folder, `data/features`.

    Raises InputError for a file among them that is none.
    """
    found = Needed()
    _add_files(found, receipts)
    return found


def _add_files(found: Needed, receipts: Path) -> None:
    """Add what the files in a folder need. DVC deletes the receipt of a set before it extracts the set anew.

    So the receipts of choices count, too, which it deletes later.
    """
    of_choices = (receipts.parent.glob(f"{folder}/*/*.json") for folder in OF_CHOICES)
    for file in (*sorted(receipts.glob("*.json")), *sorted(chain.from_iterable(of_choices))):
        found.add("receipt", {"pool": read_receipts(file)}, str(file))
    card = receipts.parent / "encoder.json"
    if card.is_file():
        found.add(CARD, read_json(card, what="card of an encoder", remedy="run `dvc repro encoder`"), str(card))


def add_elsewhere(found: Needed, project: Path) -> None:
    """Add what other states of a project need; nothing where it is not in a Git repository.

    Raises InputError where Git is not installed, or cannot read one of them.
    """
    git = _Git(project)
    if not git.is_repository():
        return
    for folder in git.other_worktrees():
        _add_files(found, folder / "data/features")
    locks: dict[str, set[tuple[str, str]]] = {}  # by blob: the paths of receipts and cards with their md5
    cache: Path | None = None
    for name, commit in git.states():
        for blob, path in git.files(commit):
            if path == CARD or RECEIPT.fullmatch(path):
                _take(found, path, git.bytes_of(blob), who=f"{name}: {path}")
                continue
            if blob not in locks:
                locks[blob] = _pinned(git.read("cat-file", "blob", blob), where=name)
            if locks[blob] and cache is None:
                cache = _cache_of(project)
            for pinned, md5 in sorted(locks[blob]):
                _take(found, pinned, _of_cache(cache, md5), who=f"{name}: {pinned}")


def _of_cache(cache: Path | None, md5: str) -> bytes | None:
    """What DVC's cache has under an md5; None where it has no such file, or another one in its place."""
    assert cache is not None  # noqa: S101  # asked for before
    try:
        content = (cache / "files" / "md5" / md5[:2] / md5[2:]).read_bytes()
    except OSError:
        return None
    return content if hashlib.md5(content, usedforsecurity=False).hexdigest() == md5 else None


def _take(found: Needed, path: str, content: bytes | None, *, who: str) -> None:
    try:
        found.add(path, json.loads(content or b""), who)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        found.unread.setdefault(path, set()).add(who)


def _pinned(lock: str, *, where: str) -> set[tuple[str, str]]:
    """The paths of the receipts and cards that a dvc.lock pins, with their md5."""
    try:
        stages = YAML(typ="safe").load(lock)["stages"].values()
        items = [item for stage in stages for item in (*stage.get("deps", ()), *stage.get("outs", ()))]
        return {
            (item["path"], str(item["md5"]))
            for item in items
            if item["path"] == CARD or RECEIPT.fullmatch(item["path"])
        }
    except (YAMLError, KeyError, TypeError, AttributeError):
        raise InputError(f"{where}: expected a {LOCK} that DVC wrote, got another file; mend it, {ONLY_HERE}") from None


def _cache_of(project: Path) -> Path:
    """The folder of DVC's cache, as `dvc cache dir` tells it."""
    from dvc.config import Config
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        own = Path(Repo.find_root(project), Repo.DVC_DIR)
        return Path(Config(str(own)).get("cache", {}).get("dir") or own / "cache")
    except DvcException as error:
        raise InputError(f"{project.resolve()}: no folder of DVC's cache ({error}); mend it, {ONLY_HERE}") from None


class _Git:
    """Git's plumbing on one project; it writes nothing."""

    def __init__(self, project: Path) -> None:
        self._project = project

    def read(self, *words: str) -> str:
        """What a command prints. Raises InputError where it fails."""
        return self._run(*words).decode(errors="surrogateescape")

    def bytes_of(self, blob: str) -> bytes:
        """The bytes of a file. Raises InputError where Git lacks them."""
        return self._run("cat-file", "blob", blob)

    def _run(self, *words: str) -> bytes:
        program = shutil.which("git")
        if program is None:
            raise InputError(
                f"git is not installed, so that other states of the project stay unread; install it, {ONLY_HERE}"
            )
        command = [program, "--no-optional-locks", *words]
        ran = subprocess.run(command, cwd=self._project, capture_output=True, check=False)  # noqa: S603
        if ran.returncode:
            why = " ".join(ran.stderr.decode(errors="replace").split())
            raise InputError(f"git {' '.join(words)}: {why}; mend the repository, {ONLY_HERE}")
        return ran.stdout

    def is_repository(self) -> bool:
        """Whether the project is in a repository. Raises InputError where that cannot be told."""
        above = (self._project.resolve(), *self._project.resolve().parents)
        if "GIT_DIR" not in os.environ and not any(os.path.lexists(folder / ".git") for folder in above):
            return False
        self.read("rev-parse", "--git-dir")
        return True

    def other_worktrees(self) -> Iterator[Path]:
        """The project's folder in each other worktree of the repository; it may be missing there."""
        below = self.read("rev-parse", "--show-prefix").strip()
        for line in self.read("worktree", "list", "--porcelain").splitlines():
            word, _, value = line.partition(" ")
            if word == "worktree" and (folder := Path(value, below)).resolve() != self._project.resolve():
                yield folder

    def states(self) -> Iterator[tuple[str, str]]:
        """All states of the project: a name for people, and the commit or tree."""
        for line in self.read(
            "for-each-ref", "--format=%(objecttype) %(*objecttype) %(objectname) %(refname)"
        ).splitlines():
            kinds, _, name = line.rpartition(" ")
            *kinds_only, commit = kinds.split()
            if "blob" not in kinds_only:
                yield name, commit
            if name.endswith(STASHES):
                yield from self._stashed(name, commit)
        for line in self.read("worktree", "list", "--porcelain").splitlines():
            word, _, value = line.partition(" ")
            if word == "HEAD" and set(value) != {"0"}:  # of a branch without commits
                yield "HEAD", value

    def _stashed(self, name: str, last: str) -> Iterator[tuple[str, str]]:
        """All entries of a stash, each with its parents: the index and the untracked files are among them."""
        entries = self.read("log", "-g", "--format=%H", name, "--").split()
        for i, commit in enumerate(entries or [last]):
            for one in (commit, *self.read("rev-parse", f"{commit}^@").split()):
                yield f"{name}@{{{i}}}", one

    def files(self, commit: str) -> Iterator[tuple[str, str]]:
        """Blob and path of each dvc.lock, receipt and card of a state, in the folder of the project and below."""
        for entry in self.read("ls-tree", "-r", "-z", commit).split("\0"):
            facts, _, path = entry.partition("\t")
            if path in (LOCK, CARD) or path.endswith(f"/{LOCK}") or RECEIPT.fullmatch(path):
                yield facts.split()[2], path
