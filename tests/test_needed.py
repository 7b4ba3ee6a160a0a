"""What other branches, tags, stashes and experiments need, in repositories that git and DVC made themselves."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.commands import cache as command
from pipeline.core.errors import InputError
from pipeline.encoder import kept, models
from pipeline.extraction import needed
from pipeline.extraction.needed import Needed
from tests.conftest import TINY
from tests.places import SETTINGS
from tests.test_cache import finetuning
from tests.test_gather import make_cache

FLOW = """stages:
  encoder:
    cmd: python -c "import shutil; shutil.copy('made/encoder.json', 'data/encoder.json')"
    deps: [made/encoder.json]
    outs: [data/encoder.json]
"""
SUBFLOW = """stages:
  extract:
    wdir: ../..
    cmd: python -c "import shutil; shutil.copy('made/dev.json', 'data/features/dev.json')"
    deps: [made/dev.json]
    outs: [data/features/dev.json]
"""


def shell(*words: str) -> str:
    who = ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL")
    environment = os.environ | dict.fromkeys(who, "somebody") | {"DVC_NO_ANALYTICS": "1"}
    ran = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert ran.returncode == 0, f"{words}: {ran.stdout} {ran.stderr}"
    return ran.stdout


def dvc(*words: str) -> str:
    return shell("dvc", *words)


def make(number: int) -> None:
    """Another state of the project: a store of the set dev and a fine-tuned encoder, their receipts tracked by DVC."""
    cache = Path("data/cache")
    one = make_cache(cache, "dev", seed=number, first=10 * number)
    folder = cache / "encoders" / (str(number) * 16)
    folder.mkdir(parents=True)
    kept.seal(folder, dataclasses.asdict(models.load(TINY)[1]), finetuning(seed=number))
    encoder = kept.find(folder)
    assert encoder is not None
    Path("made").mkdir(exist_ok=True)
    Path("made/encoder.json").write_text(json.dumps(kept.receipt_of(encoder)))
    one.receipt.rename("made/dev.json")
    dvc("repro", "-q", "-P")
    old = time.time() - 30 * 86_400
    for path in (*cache.rglob("*"), cache):
        os.utime(path, (old, old))


def commit(message: str) -> None:
    shell("git", "add", "-A")
    shell("git", "commit", "-q", "-m", message)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, warm_path: str) -> Path:
    """Five states: main (1), a branch (2), a tag (3), a stash (4) and an experiment (5); main is checked out."""
    folder = tmp_path_factory.mktemp("project")
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", warm_path)
        shell("git", "init", "-q", "-b", "main")
        dvc("init", "-q")
        Path(".gitignore").write_text("/data/\n")
        Path("params.yaml").write_text(SETTINGS.read_text())
        Path("dvc.yaml").write_text(FLOW)
        Path("flow/extract").mkdir(parents=True)
        Path("flow/extract/dvc.yaml").write_text(SUBFLOW)
        Path("data/features").mkdir(parents=True)
        make(1)
        commit("one")
        shell("git", "switch", "-q", "-c", "side/branch")
        make(2)
        commit("two")
        shell("git", "switch", "-q", "-c", "passing", "main")
        make(3)
        commit("three")
        shell("git", "tag", "-a", "v3", "-m", "annotated")
        shell("git", "switch", "-q", "main")
        shell("git", "branch", "-q", "-D", "passing")
        make(4)
        shell("git", "stash", "-q")
        Path("note").write_text("x")
        shell("git", "stash", "-q", "-u")  # another on top
        make(5)
        dvc("exp", "save", "-q", "-f", "-n", "tried")
        shell("git", "checkout", "-q", ".")
        dvc("checkout", "-q")
    return folder


@pytest.fixture
def project(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    shutil.copytree(template, folder, symlinks=True)
    monkeypatch.chdir(folder)
    return folder


def gc(*words: str) -> None:
    command.main(["gc", *words])


def there() -> dict[str, set[str]]:
    """The encoders and stores that are there."""
    cache = Path("data/cache")
    return {
        "encoders": {path.name for path in cache.glob("encoders/*")},
        "stores": {path.name for path in cache.glob("*/dev-*.zarr")},
    }


def _numbers() -> dict[str, int]:
    found = Needed()
    needed.add_elsewhere(found, Path())
    who = {"refs/heads/main": 1, "refs/heads/side/branch": 2, "refs/tags/v3": 3, "refs/stash@{1}": 4}
    numbers = {}
    for store, users in found.stores.items():
        names = {user.partition(": ")[0] for user in users}
        known = [number for name, number in who.items() if name in names and number != 4]
        numbers[store.partition("/")[2]] = known[0] if known else 4 if "refs/stash@{1}" in names else 5
    return numbers


ALL = {1, 2, 3, 4, 5}


def test_branches_tags_stashes_and_experiments_are_read(project: Path) -> None:
    found = needed.here(Path("data/features"))
    assert {user for users in found.stores.values() for user in users} == {"data/features/dev.json"}
    assert set(found.encoders) == {"1" * 16}
    needed.add_elsewhere(found, Path())
    assert not found.unread
    assert set(found.encoders) == {str(number) * 16 for number in ALL}
    assert len(found.stores) == 5
    assert "refs/heads/side/branch: data/encoder.json" in found.encoders["2" * 16]
    assert "refs/tags/v3: data/encoder.json" in found.encoders["3" * 16]
    assert "refs/stash@{1}: data/encoder.json" in found.encoders["4" * 16]
    (experiment,) = found.encoders["5" * 16]
    assert experiment.startswith("refs/exps/")


def test_gc_removes_nothing_that_another_state_needs(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = there()
    assert [len(found) for found in before.values()] == [5, 5]
    gc("--yes", "--older-than", "0")
    assert "0 stores and encoders deleted" in capsys.readouterr().out
    assert there() == before
    assert not shell("git", "status", "--porcelain")  # nothing was checked out
    assert json.loads(Path("data/encoder.json").read_text())["finetuned"]["identity"] == "1" * 16


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (2, ["git", "branch", "-D", "side/branch"]),
        (3, ["git", "tag", "-d", "v3"]),
        (4, ["git", "stash", "drop", "stash@{1}"]),
        (5, [sys.executable, "-m", "dvc", "exp", "remove", "tried"]),
    ],
)
def test_gc_removes_what_a_state_needed_that_is_gone(project: Path, number: int, words: list[str]) -> None:
    numbers = _numbers()
    shell(*words)
    gc("--yes")
    left = {int(path.name[0]) for path in Path("data/cache/encoders").glob("*")}
    stores = {numbers[path.name] for path in Path("data/cache").glob("*/dev-*.zarr")}
    assert left == stores == ALL - {number}


def test_only_here_leaves_other_states_out_of_account(project: Path) -> None:
    numbers = _numbers()
    gc("--yes", "--only-here")
    assert {int(path.name[0]) for path in Path("data/cache/encoders").glob("*")} == {1}
    assert {numbers[path.name] for path in Path("data/cache").glob("*/dev-*.zarr")} == {1}


def pinned(path: str, state: str) -> Path:
    """The file in DVC's cache that dvc.lock of a state pins."""
    lock = shell("git", "show", f"{state}:{'dvc.lock' if path == needed.CARD else 'flow/extract/dvc.lock'}")
    ((_, md5),) = needed._pinned(lock, where=state)
    place = Path(".dvc/cache/files/md5") / md5[:2] / md5[2:]
    place.chmod(0o644)
    return place


@pytest.mark.parametrize(("path", "kind"), [(needed.CARD, "encoders"), ("data/features/dev.json", "stores")])
def test_gc_keeps_all_that_a_receipt_could_stand_for_that_cannot_be_read(
    project: Path, capsys: pytest.CaptureFixture[str], path: str, kind: str
) -> None:
    numbers = _numbers()
    pinned(path, "side/branch").unlink()
    shell("git", "tag", "-d", "v3")
    other = Path("data/cache/0123456789abcdef/train-0123456789abcdef.zarr")  # of another set
    other.mkdir(parents=True)
    gc("--yes", "--older-than", "0")
    said = capsys.readouterr().out
    assert f"stays: may be needed by what cannot be read: refs/heads/side/branch: {path}" in said
    assert "`dvc fetch --all-branches --all-tags`; or give --only-here" in said
    left = {
        "encoders": {int(one.name[0]) for one in Path("data/cache/encoders").glob("*")},
        "stores": {numbers[one.name] for one in Path("data/cache").glob("*/dev-*.zarr")},
    }
    assert left == {"encoders": ALL - {3}, "stores": ALL - {3}} | {kind: ALL}
    assert not other.exists()
    command.main(["ls"])
    assert f"nobody can say what it needs: {path} of refs/heads/side/branch: {path}" in capsys.readouterr().out
    gc("--yes", "--older-than", "0", "--only-here")
    assert {int(one.name[0]) for one in Path("data/cache/encoders").glob("*")} == {1}


def test_a_damaged_receipt_in_the_cache_of_dvc_counts_as_one_that_is_missing(project: Path) -> None:
    """Its bytes are not those that dvc.lock pins; it may name another store than the one that is needed."""
    before = there()["stores"]
    place = pinned("data/features/dev.json", "side/branch")
    text = place.read_text()
    for damaged in (re.sub(r"-[0-9a-f]{16}\.zarr", f"-{'0' * 16}.zarr", text), "[" * 99_999):
        place.write_text(damaged)
        gc("--yes", "--older-than", "0")
        assert there()["stores"] == before


def test_receipts_that_git_itself_has_count(project: Path) -> None:
    """As `git add --force` and `git stash --all` bring them there; no dvc.lock stands for them."""
    numbers = _numbers()
    receipt = pinned("data/features/dev.json", "side/branch").read_text()
    shell("git", "switch", "-q", "-c", "paper")
    path = Path("data/features/dev.json")
    mine = path.read_text()
    path.unlink()  # it may be a link into the cache of DVC
    path.write_text(receipt)
    shell("git", "add", "--force", str(path))
    shell("git", "commit", "-q", "-m", "paper")
    shell("git", "switch", "-q", "main")
    path.parent.mkdir(exist_ok=True)
    path.write_text(mine)
    shell("git", "branch", "-D", "side/branch")
    gc("--yes")
    assert {numbers[name] for name in there()["stores"]} == ALL
    assert {int(name[0]) for name in there()["encoders"]} == ALL - {2}
    shell("git", "branch", "-D", "paper")
    gc("--yes")
    assert {numbers[name] for name in there()["stores"]} == ALL - {2}


def test_receipts_in_another_worktree_count_before_they_are_committed(project: Path) -> None:
    shell("git", "worktree", "add", "-q", "--detach", "../other", "main")
    receipt = Path("../other/data/features/dev.json")
    receipt.parent.mkdir(parents=True)
    shutil.copy(pinned("data/features/dev.json", "side/branch"), receipt)
    shell("git", "branch", "-D", "side/branch")
    numbers = _numbers()
    gc("--yes")
    assert len(there()["stores"]) == len(ALL)
    assert {int(name[0]) for name in there()["encoders"]} == ALL - {2}
    shell("git", "worktree", "remove", "--force", "../other")
    gc("--yes")
    assert {numbers[name] for name in there()["stores"]} == ALL - {2}


def test_a_repository_that_the_environment_names_counts(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".git").rename("../repository")
    monkeypatch.setenv("GIT_DIR", str(Path("../repository").resolve()))
    monkeypatch.setenv("GIT_WORK_TREE", str(Path().resolve()))
    found = Needed()
    needed.add_elsewhere(found, Path())
    assert set(found.encoders) == {str(number) * 16 for number in ALL}


def test_ls_says_who_needs_what(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["ls"])
    said = capsys.readouterr().out
    assert said.count("needed by: refs/tags/v3: ") == 2
    (mine,) = (line for line in said.splitlines() if line.startswith("  needed by: ") and "main: data/encoder" in line)
    assert {"data/encoder.json", "HEAD: data/encoder.json"} < set(mine.removeprefix("  needed by: ").split(", "))
    assert said.splitlines()[-1].startswith("5 stores, 5 fine-tuned encoders, ")
    command.main(["ls", "--only-here"])
    assert "refs/" not in capsys.readouterr().out


def test_a_detached_head_and_the_heads_of_worktrees_count(project: Path) -> None:
    shell("git", "worktree", "add", "-q", "--detach", "../other", "v3")
    shell("git", "tag", "-d", "v3")
    shell("git", "checkout", "-q", "--detach", "side/branch")
    shell("git", "branch", "-D", "side/branch")
    found = Needed()
    needed.add_elsewhere(found, Path())
    assert found.encoders["2" * 16] == found.encoders["3" * 16] == {"HEAD: data/encoder.json"}


def test_a_project_in_a_folder_of_a_repository(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    below = project / "below"
    below.mkdir()
    shutil.copy("dvc.lock", below)
    commit("below")
    shell("git", "branch", "keeps")
    monkeypatch.chdir(below)
    found = Needed()
    with pytest.raises(InputError, match=r"no folder of DVC's cache .*--only-here"):
        shutil.rmtree(project / ".dvc") or needed.add_elsewhere(found, Path())
    monkeypatch.chdir(project)
    shell("git", "checkout", "-q", ".dvc")
    monkeypatch.chdir(below)
    needed.add_elsewhere(found, Path())
    assert set(found.unread) == {needed.CARD}  # DVC's cache went with its folder


def test_no_repository_has_no_other_states(tmp_path: Path) -> None:
    found = Needed()
    needed.add_elsewhere(found, tmp_path)
    assert found == Needed()


def test_a_repository_without_commits_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shell("git", "init", "-q")
    found = Needed()
    needed.add_elsewhere(found, tmp_path)
    assert found == Needed()


def test_without_git_nothing_is_taken_for_unneeded(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match=r"git is not installed.*or give --only-here"):
        gc("--yes")
    gc("--only-here")


def test_a_damaged_lock_or_repository_stops_gc(project: Path) -> None:
    shell("git", "switch", "-q", "-c", "odd")
    Path("dvc.lock").write_text("<<<<<<< ours\n")
    commit("conflict")
    shell("git", "switch", "-q", "main")
    with pytest.raises(InputError, match=r"refs/heads/odd: expected a dvc\.lock that DVC wrote.*or give --only-here"):
        gc("--yes")
    shutil.rmtree(".git/objects")
    with pytest.raises(InputError, match=r"git .*; mend the repository, or give --only-here"):
        gc("--yes")


def test_receipts_of_pools_and_frozen_encoders() -> None:
    found = Needed()
    found.add("data/features/both.json", {"pool": {"a": {"store": "0/a-1.zarr"}, "b": {"store": "0/b-1.zarr"}}}, "who")
    found.add(needed.CARD, {"source": "random"}, "who")
    assert found.stores == {"0/a-1.zarr": {"who"}, "0/b-1.zarr": {"who"}}
    assert not found.encoders
