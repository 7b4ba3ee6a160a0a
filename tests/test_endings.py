"""How a command ends: one message and the right exit code, whatever its output goes to and its files are."""

from __future__ import annotations

import os
import re
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.analysis import embedding_index
from pipeline.commands import embed
from pipeline.core import errors, files
from pipeline.core.contracts import Centroids
from pipeline.core.errors import InputError, exit_on_input_error, printable
from pipeline.corpora import demo
from pipeline.encoder import models
from pipeline.scoring import runs
from pipeline.training import checkpoints
from tests import full_disk
from tests.conftest import TINY

SCORES = "u1 A1 spoof -1\nu2 - bonafide 2\n"
BONAFIDE = f"{sys.executable} -m pipeline.commands"
MARKS = "a\x1b[2Jb\u202ec\x00d\x9be\u2028f"
ROOM = errors.MAKE_ROOM
DATABASE = "expected to write a database of DVC"
MEMORY = "there is not enough memory: run the same command again with less at once, or on a larger machine"
ESCAPED = r"a\x1b[2Jb\u202ec\x00d\x9be\u2028f"


@pytest.fixture
def shell(tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """Run a line of bash in a folder with a score file: exit code, stdout, stderr."""
    (tmp_path / "s.txt").write_text(SCORES)

    def run(line: str, **environment: str) -> tuple[int, str, str]:
        root = str(Path(__file__).parents[1])
        found = subprocess.run(
            ["bash", "-o", "pipefail", "-c", line],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": root} | environment,
            capture_output=True,
            text=True,
            timeout=100,
        )
        return found.returncode, found.stdout, found.stderr

    return run


@pytest.mark.parametrize("words", ["metrics s.txt", "--help", "metrics --help", "metrics s.txt --json"])
def test_nobody_reads_the_output(shell: Callable[..., tuple[int, str, str]], words: str) -> None:
    code, _, said = shell(f"( {BONAFIDE} {words}; echo $? >code ) | head -c0; cat code")
    assert said == ""
    assert code in (0, 141)
    assert shell("cat code")[1] in ("0\n", "141\n")  # 0 where all was written before the reader ended


@pytest.mark.parametrize("closed", [">&-", "2>&- >/dev/null", ">&- 2>&-"])
def test_a_closed_output_is_no_failure(shell: Callable[..., tuple[int, str, str]], closed: str) -> None:
    assert shell(f"{BONAFIDE} metrics s.txt {closed}") == (0, "", "")


@pytest.mark.parametrize(("words", "unbuffered"), [("metrics s.txt", ""), ("--help", ""), ("--help", "1")])
def test_a_full_output_is_one_message(shell: Callable[..., tuple[int, str, str]], words: str, unbuffered: str) -> None:
    code, _, said = shell(f"{BONAFIDE} {words} >/dev/full", PYTHONUNBUFFERED=unbuffered)
    assert (code, said) == (2, f"error: [Errno 28] No space left on device; {ROOM}\n")


def test_of_two_failures_the_first_is_told(shell: Callable[..., tuple[int, str, str]]) -> None:
    main = "def main():\n    print('x', end='')\n    raise errors.InputError('first')\n"
    line = f'{sys.executable} -c "$CODE" >/dev/full'
    code = f"from pipeline.core import errors\n{main}errors.run_command(main)"
    environment = {"CODE": code, "PYTHONUNBUFFERED": ""}
    assert shell(line, **environment) == (2, "", "error: first\n")
    assert shell(f"{line} 2>/dev/full", **environment) == (2, "", "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_an_output_that_lacks_a_character_gets_an_escape(
    shell: Callable[..., tuple[int, str, str]], tmp_path: Path, encoding: str
) -> None:
    (tmp_path / "s.txt").write_text(SCORES.replace("A1", "A漢"), encoding="utf-8")
    code, told, said = shell(f"{BONAFIDE} metrics s.txt", PYTHONIOENCODING=encoding)
    assert (code, said) == (0, "")
    assert r"  A\u6f22 (1 spoof) " in told


def test_a_terminal_gets_no_control_characters(shell: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    (tmp_path / "key.csv").write_text("utterance,path,label,split\nu1,a,spoof,x\nu2,b,bonafide,x\n")
    (tmp_path / "s.txt").write_text("u1 -1\nu2 1\nx\x1b[2J\u202e 0\n")
    code, told, said = shell(f"{BONAFIDE} metrics s.txt --key key.csv")
    assert (code, told) == (2, "")
    assert re.search(
        r"s\.txt:3: expected the name of an utterance, without control .* got 'x\\x1b\[2J\\u202e'\n$", said
    )
    code, told, said = shell(f"{BONAFIDE} metrics $'no\\e[2Jne'")
    assert (code, told, said) == (2, "", "error: no\\x1b[2Jne: no score file there\n")


def test_a_command_by_its_module(shell: Callable[..., tuple[int, str, str]]) -> None:
    code, told, said = shell(f"{sys.executable} -m pipeline.commands.metrics s.txt")
    assert (code, said) == (0, "")
    assert told == shell(f"{BONAFIDE} metrics s.txt")[1]


@pytest.mark.parametrize("line", ["metrics loop/x", "metrics loop", "plot s.txt --out loop", "metrics s.txt s.txt/x"])
def test_paths_that_lead_nowhere(shell: Callable[..., tuple[int, str, str]], tmp_path: Path, line: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    code, _, said = shell(f"{BONAFIDE} {line}")
    assert code == 2
    assert said.startswith("error: ")
    assert "Traceback" not in said


WAITING = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
def wait():
    print("ready", flush=True)
    for _ in range(600):  # a signal before a sleep begins is seen after it
        time.sleep(0.1)
def swallow():
    try:
        wait()
    except KeyboardInterrupt:
        raise AttributeError("as an import of numpy does") from None
"""


@pytest.mark.parametrize(
    "code",
    [
        f"from pipeline.core.errors import run_command{WAITING}run_command(wait)",
        f"{WAITING}import sys; sys.argv[0] = '-m'; import stages; swallow()",
        f"from pipeline.core.errors import importing{WAITING}\nwith importing(): swallow()",
    ],
    ids=["in a command", "during the imports of a stage", "during those of a command"],
)
def test_an_interruption_is_one_word(code: str) -> None:
    root = str(Path(__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": root}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, said) == (130, "interrupted\n")


# ---------------------------------------------------------------- in this process


def ended(raised: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    def main() -> None:
        raise raised

    with pytest.raises(SystemExit) as found:
        exit_on_input_error(main)
    return int(found.value.code or 0), capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InputError(MARKS), 2, f"error: {ESCAPED}\n"),
        (OSError(28, "No space left on device", "a\x1bb"), 2, f"error: No space left on device; {ROOM}: a\\x1bb\n"),
        (OSError(122, "Disk quota exceeded"), 2, f"error: [Errno 122] Disk quota exceeded; {ROOM}\n"),
        (OSError(28, f"No space; {ROOM}", "a"), 2, f"error: No space; {ROOM}: a\n"),
        (OSError(13, "Permission denied", "a"), 2, "error: Permission denied: a\n"),
        (sqlite3.OperationalError("disk I/O error"), 2, f"error: disk I/O error: {DATABASE}; {ROOM}\n"),
        (MemoryError(), 2, f"error: {MEMORY}\n"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 2, f"error: {MEMORY}\n"),
        (OSError("said plainly"), 2, "error: said plainly\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_what_is_said_of_an_error(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, said: str
) -> None:
    assert ended(error, capsys) == (code, said)


LOOKS: list[Callable[[Path], object]] = [lambda p: (p / "a\0b").open()]
if sys.version_info < (3, 13):  # later Pythons resolve a loop without an error
    LOOKS.append(lambda p: (p / "loop").resolve(strict=False))


@pytest.mark.parametrize("look", LOOKS)
def test_errors_of_python_for_impossible_paths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], look: Callable[[Path], object]
) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises((ValueError, RuntimeError)) as raised:
        look(tmp_path)
    code, said = ended(raised.value, capsys)
    assert (code, said.count("\n")) == (2, 1)
    assert "expected the path of a file or folder" in said


@pytest.mark.parametrize("error", [ValueError("a fault of ours"), RuntimeError("another"), TypeError("a third")])
def test_other_errors_keep_their_traceback(error: Exception) -> None:
    def main() -> None:
        raise error

    with pytest.raises(type(error), match=str(error)):
        exit_on_input_error(main)


def test_what_a_terminal_may_get() -> None:
    assert printable(MARKS) == ESCAPED
    assert printable("one\ttwo\nthree é漢字 \u200d") == "one\ttwo\nthree é漢字 \u200d"
    bar = "\r 50%\x1b[A"
    assert printable(bar, errors.ON_STDERR) == bar
    assert printable("\x1b[2J\x1b]0;title\x07", errors.ON_STDERR) == "\\x1b[2J\\x1b]0;title\\x07"


# ---------------------------------------------------------------- a full disk


@pytest.fixture
def no_room() -> Iterator[Callable[[int], None]]:
    """Let no file become larger than this many bytes: what is written then fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


CENTRES = Centroids(np.ones((3, 400), np.float32), normalize_query=True, bias=0.0, reduce="max")


class Embedded:
    """Embeddings of a thousand utterances."""

    vectors = np.ones((1_000, 64), np.float32)


WRITES: dict[str, Callable[[Path], object]] = {
    "weights": lambda p: runs.save(p, weights={"w": np.ones((9, 999))}, centroids=CENTRES, card={}),
    "centroids": lambda p: runs.save(p, weights={"w": np.ones(2)}, centroids=CENTRES, card={}),
    "checkpoint": lambda p: checkpoints.write(p, {"a": torch.ones(10_000)}, {}, run="x"),
    "index": lambda p: embedding_index._write_index(
        embedding_index._index(np.ones((500, 64), np.float32), "flat", normalize=False), p
    ),
    "vectors": lambda p: embedding_index.build(
        p, iter([np.ones((500, 64), np.float32)]), list(map(str, range(500))), normalize=False, facts={}
    ),
    "encoder": lambda p: models.save(models.load(TINY)[0], p),
    "npz": lambda p: embed._write_npz(p, {}, Embedded),  # type: ignore[arg-type]
    "projector": lambda p: embed._write_projector(p, {}, Embedded, name="x"),  # type: ignore[arg-type]
    "text": lambda p: files.write_text(p, "x" * 9_000),
    "demo": lambda p: demo.trials(p, Path("demo.py"), "dev"),
}


@pytest.mark.parametrize("what", WRITES)
def test_a_full_disk_is_one_message_with_path_and_remedy(
    tmp_path: Path, no_room: Callable[[int], None], capsys: pytest.CaptureFixture[str], what: str
) -> None:
    place = tmp_path / "place"
    if what == "encoder":
        place.mkdir()
    no_room(2_000)
    with pytest.raises(SystemExit) as found:
        exit_on_input_error(lambda: WRITES[what](place) and None)
    said = capsys.readouterr().err
    assert found.value.code == 2
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert "make room, or allow writing there, and run the same command again: " in said
    assert str(place) in said
    assert what == "index" or not place.is_file()  # an index is written into a folder that is not moved then
    assert not (place / "run.json").exists()


def test_a_command_whose_disk_is_full(tmp_path: Path) -> None:
    ((_, count, wrong),) = full_disk.tried(tmp_path, full_disk.STEPS[:1], most=2)
    assert (count, wrong) == (1, [])
