"""Files mutated at random: each is read as an independent reader reads it, or refused in one message.

A kind of file has sound examples, a way to read one, and an oracle. A case is an example with a few random changes,
drawn by the seed, the kind and the number of the case. It is read in a worker process. What may come of it: fine (it
is read, and the oracle agrees) or refused (InputError). The defects are a traceback, a hang, a crash of the process,
and a misread, where the oracle does not agree. A hang is a case that takes more than `PATIENCE_S` of processor time,
its own and that of its child processes, or that gives no answer in `WAITS` times as long: other work on the machine
alone makes no hang.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import shutil
import tempfile
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.core.errors import InputError, printable

PATIENCE_S = 10.0
WAITS = 6  # of a case that waits for the processor, and of one that waits for ever
ADDRESSES = 12 * 2**30  # bytes of a worker
FINE, REFUSED = "fine", "refused"
TEXT = [
    b"\t",
    b" ",
    b'"',
    b"'",
    b",",
    b"\n",
    b"\r",
    b"\0",
    b"nan",
    b"inf",
    b"1e999",
    b"-",
    b"=",
    b"#",
    b":",
    b"{",
    b"[",
]
TEXT += [
    b"*a ",
    b"&a ",
    b"!!x ",
    b"\xe2\x80\xa8",
    b"\xc2\xa0",
    b"\xef\xbb\xbf",
    b"\x1b[2J",
    b"\xff",
    b"\xd9\xa3",
    b"1_0",
]
NUMBERS = [bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80", bytes(8), b"\xff" * 8]


class MisreadError(Exception):
    """A file was read as something that it does not hold."""


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    examples: sound files. check: reads a mutated file of an example; raises InputError where it is refused,
    MisreadError where an oracle does not agree. text: whether words are put into it, too.
    """

    name: str
    examples: Sequence[bytes]
    check: Callable[[bytes, int], None]
    text: bool = False


@dataclass
class Tried:
    """What came of the cases of a kind: how often each outcome, and what defects were."""

    outcomes: Counter[str] = field(default_factory=Counter)
    defects: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return ", ".join(f"{count:,} {outcome}" for outcome, count in self.outcomes.most_common())


def mutated(rng: random.Random, kind: Kind) -> tuple[bytes, int]:
    """An example with a few changes, and its number."""
    which = rng.randrange(len(kind.examples))
    data = bytearray(kind.examples[which])
    if rng.random() < 0.25:  # one letter or digit, so that many files stay sound
        data[rng.randrange(len(data))] = rng.choice(b"0123456789abcdefghijklmnopqrstuvwxyzA_ ")
        return bytes(data), which
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        place = rng.randrange(min(len(data), rng.choice([16, 64, 300, 3_000, len(data)])) or 1)
        change = rng.random()
        if kind.text and change < 0.35:
            data[place : place + rng.choice([0, 0, 1, 3])] = rng.choice(TEXT)
        elif change < 0.6:
            data[place : place + 1] = bytes([rng.choice([0, 1, 255, 127, 128, rng.randrange(256)])])
        elif change < 0.7:
            del data[place : place + rng.choice([1, rng.randrange(1, 64), rng.randrange(1, 2_000)])]
        elif change < 0.8:
            data[place:place] = rng.randbytes(rng.choice([1, 4, rng.randrange(1, 64)]))
        elif change < 0.9:
            number = rng.choice(NUMBERS)
            data[place : place + len(number)] = number
        elif change < 0.95:
            data = data[: rng.randrange(len(data) + 1)]
        else:  # a piece of another example, or of the same
            other = rng.choice(kind.examples)
            start = rng.randrange(len(other) + 1)
            data[place:place] = other[start : start + rng.randrange(1, 2_000)]
    return bytes(data), which


def case(kind: Kind, number: int, *, seed: int) -> tuple[bytes, int]:
    """The bytes of a case, and the number of its example."""
    return mutated(random.Random(f"{seed} {kind.name} {number}"), kind)  # noqa: S311


def outcome(kind: Kind, number: int, *, seed: int) -> str:
    """What comes of a case, in this process; of a defect also what it is."""
    data, which = case(kind, number, seed=seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind.check(data, which)
    except InputError as error:
        message = str(error)
        if not message.strip() or len(message) > 20_000:
            return f"misread: case {number}: a message of {len(message)} characters"
        printable(message)
        return REFUSED
    except MisreadError as error:
        return f"misread: case {number}, example {which}: {error}"
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        return f"traceback: case {number}, example {which}: {type(error).__name__} at {where}: {str(error)[:200]}"
    return FINE


def tried(kind: Kind, cases: range, *, seed: int, patience: float = PATIENCE_S) -> Tried:
    """Try cases in worker processes; one that crashes or takes too long is a defect, and the next goes on after it."""
    found = Tried()
    start = cases.start
    while start < cases.stop:
        start = _until_lost(kind, range(start, cases.stop), found, seed=seed, patience=patience)
    return found


def _until_lost(kind: Kind, cases: range, found: Tried, *, seed: int, patience: float) -> int:
    """Try cases in one process up to where it is lost; returns the number of the next case."""
    forked = multiprocessing.get_context("fork")
    here, there = forked.Pipe(duplex=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
        child = forked.Process(target=_work, args=(kind, cases, seed, there))
        child.start()
    there.close()
    number = cases.start
    try:
        while number < cases.stop:
            if not here.poll(WAITS * patience):
                said = f"hang: case {number}: no answer in {WAITS * patience:g} s"
            else:
                try:
                    said, seconds = here.recv()
                    said = said if seconds <= patience else f"hang: case {number}: {seconds:.1f} s of processor time"
                except EOFError:
                    child.join()
                    said = f"crash: case {number}: the process ended with {child.exitcode}"
            found.outcomes[said.partition(":")[0]] += 1
            if ":" in said:
                found.defects.append(f"{kind.name}: {said}")
            number += 1
            if said.startswith(("hang", "crash")):
                break
    finally:
        child.kill()
        child.join()
        here.close()
    return number


def _work(kind: Kind, cases: range, seed: int, parent: Any) -> None:
    """In a worker: try cases, and send what came of each and the processor time that it took."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    os.environ["TQDM_DISABLE"] = "1"
    silent = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # libraries write there, too
        os.dup2(silent, stream)
    folder = Path(tempfile.mkdtemp(prefix="fuzz"))
    os.chdir(folder)
    try:
        for number in cases:
            before = sum(os.times()[:4])
            said = outcome(kind, number, seed=seed)
            parent.send((said, sum(os.times()[:4]) - before))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def seeded(name: str, number: int) -> random.Random:
    """A generator of a part of a case that is not its bytes."""
    return random.Random(zlib.crc32(f"{name} {number}".encode()))  # noqa: S311
