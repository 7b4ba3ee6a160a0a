"""Which feature stores and fine-tuned encoders are needed: by receipts and cards here, and by those of other states.

Other states of the project are its branches, tags, stashes, DVC's experiments and the heads of its worktrees. Git has
their dvc.lock, which pins each receipt by its md5; the cache of DVC on this machine has the receipts. No state is
checked out.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
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
ONLY_HERE = "or give --only-here, which leaves other branches, tags, stashes and experiments out of account"
Who = dict[str, set[str]]


@dataclass(frozen=True)
class Needed:
    """The stores and encoders that somebody needs, each with those who need it.

    stores: by their paths below the root. encoders: by their identities. unread: paths of receipts and cards that other
    states need and DVC's cache lacks.
    """

    stores: Who = field(default_factory=dict)
    encoders: Who = field(default_factory=dict)
    unread: Who = field(default_factory=dict)

    def add(self, path: str, found: Mapping[str, Any], who: str) -> None:
        """Take note of a receipt or card. path: in the project."""
        if path == CARD:
            if identity := kept.identity_of(found):
                self.encoders.setdefault(identity, set()).add(who)
            return
        for receipt in found.get("pool", {path: found}).values():
            self.stores.setdefault(str(receipt["store"]), set()).add(who)

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
    for file in sorted(receipts.glob("*.json")):
        found.add("receipt", {"pool": read_receipts(file)}, str(file))
    card = receipts.parent / "encoder.json"
    if card.is_file():
        found.add(CARD, read_json(card, what="card of an encoder", remedy="run `dvc repro encoder`"), str(card))
    return found


def add_elsewhere(found: Needed, project: Path) -> None:
    """Add what other states of a project need; nothing where it is not in a Git repository.

    Raises InputError where Git is not installed, or cannot read one of them.
    """
    git = _Git(project)
    if not git.is_repository():
        return
    locks: dict[str, set[tuple[str, str]]] = {}  # by blob: the paths of receipts and cards with their md5
    cache: Path | None = None
    for name, commit in git.states():
        for blob in git.locks(commit):
            if blob not in locks:
                locks[blob] = _pinned(git.read("cat-file", "blob", blob), where=name)
            if locks[blob] and cache is None:
                cache = _cache_of(project)
            for path, md5 in sorted(locks[blob]):
                _take(found, path, md5, cache, who=f"{name}: {path}")


def _take(found: Needed, path: str, md5: str, cache: Path | None, *, who: str) -> None:
    try:
        assert cache is not None  # noqa: S101  # asked for before
        content = json.loads((cache / "files" / "md5" / md5[:2] / md5[2:]).read_bytes())
        found.add(path, content, who)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
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
        ran = self._run(*words)
        if ran.returncode:
            raise InputError(f"git {' '.join(words)}: {ran.stderr.strip()}; mend the repository, {ONLY_HERE}")
        return ran.stdout

    def _run(self, *words: str) -> subprocess.CompletedProcess[str]:
        program = shutil.which("git")
        if program is None:
            raise InputError(
                f"git is not installed, so that other states of the project stay unread; install it, {ONLY_HERE}"
            )
        command = [program, "--no-optional-locks", *words]
        return subprocess.run(command, cwd=self._project, capture_output=True, text=True, check=False)  # noqa: S603

    def is_repository(self) -> bool:
        """Whether the project is in a repository. Raises InputError where that cannot be told."""
        if not any(
            (folder / ".git").exists() for folder in (self._project.resolve(), *self._project.resolve().parents)
        ):
            return False
        self.read("rev-parse", "--git-dir")
        return True

    def states(self) -> Iterator[tuple[str, str]]:
        """All states of the project: a name for people, and the commit or tree."""
        for line in self.read(
            "for-each-ref", "--format=%(objecttype) %(*objecttype) %(objectname) %(refname)"
        ).splitlines():
            kinds, _, name = line.rpartition(" ")
            *kinds_only, commit = kinds.split()
            if "blob" not in kinds_only:
                yield name, commit
            if name == "refs/stash" or name.endswith("/stash"):
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

    def locks(self, commit: str) -> Iterator[str]:
        """The blobs of the files dvc.lock of a state, in the project's folder and below."""
        for entry in self.read("ls-tree", "-r", "-z", commit).split("\0"):
            facts, _, path = entry.partition("\t")
            if path == LOCK or path.endswith(f"/{LOCK}"):
                yield facts.split()[2]
