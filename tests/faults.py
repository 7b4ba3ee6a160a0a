"""Faults of extraction and of the feature store, and what must come of each.

A fault leaves a project with a store that something happened to. Whoever uses it next, by reading all features, by
`bonafide cache verify` or by extracting again, either refuses, in one message that says what is wrong and how to mend
it, or finds the right numbers; and after another extraction the store is, byte by byte, one that nothing happened to,
or verify says which file is not. Doing what a refusal says must mend it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import string
import traceback
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import soundfile
import torch
from ruamel.yaml import YAML

from pipeline.core import trial_table
from pipeline.core.errors import InputError
from pipeline.features import shard_bytes, zarr_metadata
from pipeline.features.dataset import open_set
from tests.places import SETTINGS
from tests.test_store import tree

ROOT = Path(__file__).parents[1]
VIEW, UTTERANCES, SHARD = "narrowband", 10, 4
VIEWS = ("clean", VIEW)
LAYERS = (1, 2)

CACHE, RECEIPT, TABLE = Path("data/cache"), Path("data/features/train.json"), Path("data/trials/train.csv")
VERIFY, EXPORT, IMPORT = (f"bonafide cache {words}" for words in ("verify", "export train train.h5", "import train.h5"))


def command(stage: str) -> str:
    """The command of a stage of dvc.yaml, of the set `train` where there is one of each set."""
    found = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"][stage]
    return str(found.get("do", found)["cmd"]).replace("${key}", "train")


PREPARE, EXTRACT = command("prepare"), command("extract")


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, or minus the signal, and what it said."""

    code: int
    said: str


class Run(Protocol):
    """Runs a command line in a folder, with a hook as its first lines of Python; see `hook`."""

    def __call__(self, folder: Path, words: str, hook: str = "") -> Ended: ...


# ---------------------------------------------------------------- a project


def without_makers(data: bytes) -> bytes:
    """A marker or receipt that does not say whether its numbers were imported; as it is where it is neither."""
    try:
        facts = json.loads(data)
    except ValueError:
        return data
    makers = {key for key in facts if key.startswith("made ") or key == "imported"}
    if not makers:
        return data
    rest = {key: value for key, value in facts.items() if key not in makers | {"marker"}}
    return (json.dumps(rest, indent=2) + "\n").encode()


class Project:
    """A folder with ten utterances of noise, a tiny random encoder and features of two layers in two views."""

    def __init__(self, folder: Path, run: Run) -> None:
        self.folder = folder
        self.run = functools.partial(run, folder)

    @property
    def store(self) -> Path:
        """The store, relative to the folder; its place, where there is none."""
        places = sorted(self.folder.glob(f"{CACHE}/*/train-*.zarr"))
        return places[0].relative_to(self.folder) if places else CACHE

    def copy(self, folder: Path) -> Project:
        """The same in another folder."""
        shutil.copytree(self.folder, folder)
        return Project(folder, self.run.func)

    def files(self) -> dict[str, bytes]:
        """What an extraction makes: the files of the store and the receipt, without who made the numbers."""
        receipt = self.folder / RECEIPT
        found = tree(self.folder / self.store) | ({"receipt": receipt.read_bytes()} if receipt.is_file() else {})
        return {
            name: without_makers(data) if name == "receipt" or "done/" in name else data for name, data in found.items()
        }

    def read(self) -> list[torch.Tensor]:
        """All that training could read. Raises InputError where it may not."""
        with contextlib.chdir(self.folder):
            table, found = trial_table.read(TABLE), []
            for reads in ("frames", "pooled"):
                data = open_set(RECEIPT, table, root=CACHE, reads=reads, views=VIEWS[1:])
                found += data.features(np.arange(len(VIEWS) * len(data)))
        return found

    def blank(self) -> None:
        """Take away what extraction made, but for the receipt, which must not make anybody read what is half there."""
        shutil.rmtree(self.folder / CACHE)


class Undisturbed(Project):
    """A project that nothing happened to, what is read of it, and the calls that its extraction made (`hook`).

    seconds: how long the shards took to write.
    """

    def __init__(self, folder: Path, run: Run, *, storage: str = "float16") -> None:
        super().__init__(folder, run)
        folder.mkdir(parents=True)
        _make_corpus(folder)
        YAML(typ="safe").dump(_settings(storage), folder / "params.yaml")
        for words, first_lines in ((PREPARE, ""), (command("encoder"), ""), (EXTRACT, hook())):
            ended = self.run(words, first_lines)
            if ended.code:
                raise RuntimeError(ended.said)
        self.calls = (folder / CALLS).read_text().splitlines()
        (folder / CALLS).unlink()
        shards = [path.stat().st_mtime for path in (folder / self.store).glob("*/*/c/*/*/0")]
        self.seconds = max(shards) - min(shards)
        self.good, self.features = self.files(), self.read()


def _make_corpus(folder: Path) -> None:
    (folder / "audio").mkdir()
    lines = ["utterance,path,label,split,quality"]
    for i in range(UTTERANCES):
        samples = np.random.default_rng(i).normal(0, 0.1, 1_600 + 300 * i)
        soundfile.write(folder / "audio" / f"u{i}.wav", samples, 16_000)
        lines.append(f"u{i},u{i}.wav,{'bonafide' if i % 2 else 'spoof'},train,3")
    (folder / "mine.csv").write_text("\n".join(lines) + "\n")


def _settings(storage: str) -> dict[str, Any]:
    settings: dict[str, Any] = YAML(typ="safe").load(SETTINGS)
    corpus = {"corpus": "manifest", "protocol": "mine.csv", "root": "audio", "quality": "column"}
    settings["sets"] = {name: {**corpus, "split": name} for name in ("train", "dev")}
    settings["encoder"]["random"] |= {"layers": 2, "width": 32, "feedforward": 32, "conv_channels": 16}
    settings["extract"] |= {
        "layers": list(LAYERS),
        "views": [VIEW],
        "shard": SHARD,
        "storage": storage,
        "device": "cpu",
    }
    settings["extract"]["window"] = {"samples": 3_200, "pad": "repeat"}
    settings["layers"] = {"all": list(LAYERS)}
    settings["evaluate"] |= {"sets": ["dev"]}
    settings["analyse"] |= {"backend": []}
    settings["report"] = {"sort_by": "dev"}
    return settings


# ---------------------------------------------------------------- what happens at a call of an extraction

CALLS = "calls"  # the file that the calls are listed in, as they come
HOOK = string.Template("""
import errno, io, itertools, os, signal, subprocess, sys
os.environ.pop("PYTHONPATH", None)
count, calls = itertools.count(1), os.open("calls", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def watched(real):
    def call(*args):
        where = os.readlink(f"/proc/self/fd/{args[0]}") if len(args) == 1 else args[1]
        event(f"before {real.__name__} of {os.path.relpath(where)}")
        real(*args)
        event(f"after {real.__name__} of {os.path.relpath(where)}")
    return call

def event(name):
    os.write(calls, f"{name}\\n".encode())
    if next(count) == $at:
        $act

os.fsync, os.replace = watched(os.fsync), watched(os.replace)
""")


def hook(at: int = 0, act: str = "pass") -> str:
    """Python that lists all that happens to files, before and after it does, and acts at one of these calls."""
    return HOOK.substitute(at=at, act=act)


KILL = "os.kill(os.getpid(), signal.SIGKILL)"
KILL_HALFWAY = """
        class Half:
            def __init__(self, file):
                self.file = file
            def __enter__(self):
                return self
            def __exit__(self, *_):
                pass
            def write(self, data):
                self.file.write(data[: len(data) // 2])
                self.file.flush()
                event("halfway through " + os.path.relpath(self.file.name))
                os.kill(os.getpid(), signal.SIGKILL)
        real = io.open
        io.open = lambda file, *how: (Half if "{what}" in str(file) else lambda it: it)(real(file, *how))"""
NO_SPACE = 'raise OSError(errno.ENOSPC, "No space left on device")'  # as fsync does where writing only reserves
# as the kernel says it, to everything that is written from now on
FULL = 'real = io.open; io.open = lambda file, mode="r", *how: real("/dev/full" if "w" in mode else file, mode, *how)'
READ_ONLY = """
        def denied(file, mode="r", *how, real=io.open):
            if "w" in mode:
                raise OSError(errno.EROFS, "Read-only file system", str(file))
            return real(file, mode, *how)
        io.open = denied"""
START = """
        path = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
        ended = subprocess.run("{second}".split(), env=os.environ | {{"PATH": path}}, capture_output=True, text=True)
        open("second", "w").write(f"{{ended.returncode}} {{ended.stderr}}")"""


# ---------------------------------------------------------------- faults

Make = Callable[[Undisturbed, Project, np.random.Generator], "Made"]


@dataclass(frozen=True)
class Made:
    """What a fault did.

    where: the path that a message may name. said: while it happened, where that matters. note: when it happened.
    """

    where: Path
    said: Sequence[Ended] = ()
    note: str = ""


@dataclass(frozen=True)
class Fault:
    """Something that happens to a store.

    make: does it to a copy of an undisturbed project. storage: of that project. heals: the next extraction has to make
    it good, and may not refuse it. refused: who has to refuse it, whatever the numbers are.
    """

    name: str
    make: Make
    storage: str = "float16"
    heals: bool = False
    refused: tuple[str, ...] = ()


KINDS = {
    "zarr.json of the store": "zarr.json",
    "zarr.json of n_frames": "n_frames/zarr.json",
    "zarr.json of all markers": "done/zarr.json",
    "zarr.json of a view": "{view}/zarr.json",
    "zarr.json of a view's markers": "done/{view}/zarr.json",
    "zarr.json of a layer": "{view}/layer_{layer:02d}/zarr.json",
    "shard of a layer": "{view}/layer_{layer:02d}/c/{shard}/0/0",
    "shard of means": "{view}/pooled_{layer:02d}/c/{shard}/0/0",
    "shard of scales": "{view}/scale_{layer:02d}/c/{shard}/0",
    "shard of n_frames": "n_frames/c/{shard}",
    "marker": "done/{view}/{shard:05d}.json",
    "receipt": "",
}


def place(kind: str, project: Project, rng: np.random.Generator) -> Path:
    """A file of a kind, relative to the project."""
    if kind == "receipt":
        return RECEIPT
    view, layer, shard = rng.choice(VIEWS), rng.choice(LAYERS), rng.integers(-(-UTTERANCES // SHARD))
    return project.store / KINDS[kind].format(view=view, layer=layer, shard=shard)


PARTS = ("a row", "a row's checksum", "the index", "the index's checksum")


def part(path: Path, name: str) -> range:
    """Where a part of a shard file lies; of the rows it is the last one."""
    size = path.stat().st_size
    rows = UTTERANCES % SHARD if path.parts[-3] == str(UTTERANCES // SHARD) else SHARD
    index = size - shard_bytes.CRC_BYTES - SHARD * shard_bytes.INDEX_ENTRY_BYTES
    ends = (index - index // rows, index - shard_bytes.CRC_BYTES, index, size - shard_bytes.CRC_BYTES, size)
    start = PARTS.index(name)
    return range(ends[start], ends[start + 1])


def flipped(kind: str, within: str | None = None) -> Make:
    """One byte of a file becomes another one."""

    def make(_good: Undisturbed, project: Project, rng: np.random.Generator) -> Made:
        where = place(kind, project, rng)
        data = bytearray((project.folder / where).read_bytes())
        spread = range(len(data)) if within is None else part(project.folder / where, within)
        data[rng.choice(spread)] ^= int(rng.integers(1, 256))
        (project.folder / where).write_bytes(data)
        return Made(where)

    return make


def resized(kind: str, size: Callable[[int], int]) -> Make:
    """A file is cut off, or goes on with zeros."""

    def make(_good: Undisturbed, project: Project, rng: np.random.Generator) -> Made:
        where = place(kind, project, rng)
        os.truncate(project.folder / where, size((project.folder / where).stat().st_size))
        return Made(where)

    return make


def deleted(kind: str) -> Make:
    """A file goes."""

    def make(_good: Undisturbed, project: Project, rng: np.random.Generator) -> Made:
        where = place(kind, project, rng)
        (project.folder / where).unlink()
        return Made(where)

    return make


def without(pattern: str) -> Make:
    """Everything in the store goes that a pattern finds."""

    def make(_good: Undisturbed, project: Project, _rng: np.random.Generator) -> Made:
        for path in list((project.folder / project.store).glob(pattern)):
            shutil.rmtree(path)
        return Made(project.store)

    return make


def of_format(kind: str, step: int) -> Make:
    """Something that another version wrote."""

    def make(_good: Undisturbed, project: Project, rng: np.random.Generator) -> Made:
        where = place(kind, project, rng)
        text = (project.folder / where).read_text()
        other = text.replace(f'"format": {zarr_metadata.FORMAT}', f'"format": {zarr_metadata.FORMAT + step}')
        assert other != text
        (project.folder / where).write_text(other)
        return Made(where)

    return make


def stale(_good: Undisturbed, project: Project, _rng: np.random.Generator) -> Made:
    """The receipt stands for other bytes."""
    receipt = json.loads((project.folder / RECEIPT).read_text())
    (project.folder / RECEIPT).write_text(json.dumps(receipt | {"digest": "0" * 64}))
    return Made(RECEIPT)


def at_time(seconds: float) -> Make:
    """The clock was wrong when everything was written."""

    def make(_good: Undisturbed, project: Project, _rng: np.random.Generator) -> Made:
        for path in [project.folder, *project.folder.rglob("*")]:
            os.utime(path, (seconds, seconds))
        return Made(project.store)

    return make


def other_audio(*, todo: bool) -> Make:
    """A file of audio becomes another one of the same size and time; todo: it has to be read again."""

    def make(_good: Undisturbed, project: Project, _rng: np.random.Generator) -> Made:
        where = Path("audio/u5.wav")
        path = project.folder / where
        before = path.stat()
        samples, rate = soundfile.read(path)
        soundfile.write(path, samples[::-1], rate)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert path.stat().st_size == before.st_size
        if todo:
            (project.folder / project.store / "done/clean/00001.json").unlink()
        return Made(where)

    return make


def calls_of(good: Undisturbed, stage: str) -> list[int]:
    """The numbers of the calls that match a regular expression."""
    return [i for i, call in enumerate(good.calls, 1) if re.search(stage, call)]


def killed(stage: str, act: str = KILL) -> Make:
    """Extraction, from nothing, is killed at one of the calls of a stage, or soon after."""

    def make(good: Undisturbed, project: Project, rng: np.random.Generator) -> Made:
        project.blank()
        return _killed(project, hook(int(rng.choice(calls_of(good, stage))), act))

    return make


def killed_by_the_clock(good: Undisturbed, project: Project, rng: np.random.Generator) -> Made:
    """Extraction is killed at a random moment while it writes shards, by a timer of the kernel's."""
    first, seconds = calls_of(good, "/c/")[0], good.seconds
    while True:
        project.blank()
        seconds = rng.uniform(1e-4, seconds)
        made = _killed(project, hook(first, f"signal.setitimer(signal.ITIMER_REAL, {seconds})"), sure=False)
        if not made.said:  # it was not faster
            return made


def killed_growing(good: Undisturbed, project: Project, rng: np.random.Generator) -> Made:
    """Extraction is killed while it adds a layer to a complete store of another one."""
    project.blank()
    whole = (project.folder / "params.yaml").read_text()
    settings = YAML(typ="safe").load(whole)
    settings["extract"]["layers"] = settings["layers"]["all"] = list(LAYERS[1:])
    YAML(typ="safe").dump(settings, project.folder / "params.yaml")
    first = project.run(EXTRACT)
    (project.folder / "params.yaml").write_text(whole)
    shutil.copy(good.folder / RECEIPT, project.folder / RECEIPT)
    assert first.code == 0, first
    return _killed(project, hook(int(rng.integers(1, len(good.calls) // 2)), KILL))


def _killed(project: Project, first_lines: str, *, sure: bool = True) -> Made:
    """Run an extraction that is killed. sure: it is; else what it said, where it was not."""
    (project.folder / CALLS).unlink(missing_ok=True)
    ended = project.run(EXTRACT, first_lines)
    assert ended.code < 0 or not sure, ended
    last = (project.folder / CALLS).read_text().splitlines()[-1]
    return Made(project.store, [] if ended.code < 0 else [ended], note=last.replace(f"{project.store}/", ""))


def disturbed(stage: str, act: str) -> Make:
    """Extraction, from nothing, meets with something at one of the calls of a stage, and says so."""

    def make(good: Undisturbed, project: Project, rng: np.random.Generator) -> Made:
        project.blank()
        return Made(project.store, [project.run(EXTRACT, hook(int(rng.choice(calls_of(good, stage))), act))])

    return make


def two_at_once(second: str) -> Make:
    """While an extraction writes, another command starts that writes, too."""

    def make(good: Undisturbed, project: Project, rng: np.random.Generator) -> Made:
        exported = project.run(EXPORT)
        assert exported.code == 0, exported
        project.blank()
        at = int(rng.choice(calls_of(good, str(CACHE))[:-1]))  # the receipt needs no lock
        first = project.run(EXTRACT, hook(at, START.format(second=second)))
        assert first.code == 0, first
        code, _, said = (project.folder / "second").read_text().partition(" ")
        return Made(project.store, [Ended(int(code), said)])

    return make


def brought_back(_good: Undisturbed, project: Project, _rng: np.random.Generator) -> Made:
    """The store is lost, but for an exported file."""
    exported = project.run(EXPORT)
    project.blank()
    imported = project.run(IMPORT)
    assert exported.code == imported.code == 0, (exported, imported)
    return Made(project.store)


SHARDS = ("shard of a layer", "shard of means", "shard of n_frames")
SMALL = tuple(kind for kind in KINDS if kind not in (*SHARDS[:2], "shard of scales"))
SIZES: dict[str, Callable[[int], int]] = {
    "cut to nothing": lambda _size: 0,
    "cut off": lambda size: size // 2,
    "longer": lambda size: size + 5_000,
}
STAGES = {
    "making the store": r"\.zarr\.part|of [^ ]*\.zarr$",
    "making arrays": r"\.zarr/.*zarr\.json",
    "writing a shard": r"/c(/|$)",
    "writing a marker": r"/done/.*\d\.json|/done/[^/]*$",
    "writing the receipt": "data/features",
}

TOLD = ("zarr.json of the store", "zarr.json of a view")  # of which version the rest is, only they tell

READERS = ("reading", "verify")

DAMAGE = (
    *(Fault(f"a flipped byte, {kind}", flipped(kind)) for kind in SMALL),
    *(
        Fault(f"a flipped byte, {kind}, {within}", flipped(kind, within), refused=READERS)
        for kind in SHARDS[:2]
        for within in PARTS
    ),
    Fault("a flipped byte, shard of scales", flipped("shard of scales"), storage="int8"),
    *(
        Fault(f"{how}, {kind}", resized(kind, size))
        for kind in (*SHARDS, "marker", "zarr.json of the store", "receipt")
        for how, size in SIZES.items()
    ),
    Fault("cut off, shard of scales", resized("shard of scales", SIZES["cut off"]), storage="int8"),
    *(Fault(f"deleted, {kind}", deleted(kind)) for kind in TOLD),
    Fault("a store of an older format", of_format("zarr.json of the store", -1), refused=(*READERS, "extraction")),
    Fault("a store of a newer format", of_format("zarr.json of the store", 1), refused=(*READERS, "extraction")),
    Fault("other audio, a shard to extract", other_audio(todo=True)),
)
LOSSES = (
    *(Fault(f"deleted, {kind}", deleted(kind), heals=True) for kind in KINDS if kind not in (*TOLD, "shard of scales")),
    Fault("deleted, shard of scales", deleted("shard of scales"), storage="int8", heals=True),
    Fault("markers without data", without("[!d]*/*/c"), heals=True),
    Fault("data without markers", without("done"), heals=True),
    Fault("a view deleted", without(VIEW), heals=True),
    Fault("everything deleted", without("*/"), heals=True),
    Fault("a receipt of an older format", of_format("receipt", -1), heals=True, refused=READERS),
    Fault("a receipt of a newer format", of_format("receipt", 1), heals=True, refused=READERS),
    Fault("a receipt of other bytes", stale, heals=True, refused=READERS),
    Fault("all times long ago", at_time(0), heals=True),
    Fault("all times in the future", at_time(4e9), heals=True),
    Fault("other audio, all extracted", other_audio(todo=False), heals=True),
    Fault("imported after the store was lost", brought_back, heals=True),
)
DISTURBANCES = (
    *(Fault(f"killed {name}", killed(stage), heals=True) for name, stage in STAGES.items()),
    Fault("killed halfway through a shard", killed("before.*zarr.json", KILL_HALFWAY.format(what="/c/")), heals=True),
    Fault("killed halfway through a marker", killed("/c/0", KILL_HALFWAY.format(what="/done/")), heals=True),
    Fault("killed at some moment", killed_by_the_clock, heals=True),
    Fault("killed adding a layer", killed_growing, heals=True),
    *(
        Fault(f"a full disk, {name}", disturbed(f"before fsync.*({stage})", NO_SPACE), heals=True)
        for name, stage in STAGES.items()
    ),
    Fault("a full disk from some moment on", disturbed("zarr", FULL), heals=True),
    Fault("a read-only folder from some moment on", disturbed("zarr", READ_ONLY), heals=True),
    Fault("two extractions at once", two_at_once(EXTRACT), heals=True),
    Fault("an extraction and an import at once", two_at_once(IMPORT), heals=True),
)
FAULTS = (*DAMAGE, *LOSSES, *DISTURBANCES)


# ---------------------------------------------------------------- what comes of them


@dataclass
class Outcome:
    """What came of a fault.

    refusals: who refused it, and how. identical: another extraction made it good. wrong: what is neither a refusal nor
    as if nothing had happened.
    """

    note: str
    refusals: dict[str, str] = field(default_factory=dict)
    identical: bool = False
    wrong: list[str] = field(default_factory=list)

    def refused(self, who: str, ended: Ended, made: Made, *, must: bool = False) -> None:
        """Take a refusal down, or what is wrong with it."""
        if ended.code == 0:
            self.wrong += [f"{who}: expected a refusal, got none"] if must else []
        elif flaw := flaw_of(ended, made):
            self.wrong.append(f"{who}: {flaw}: {ended.said.strip()}")
        else:
            self.refusals[who] = ended.said

    def __str__(self) -> str:
        if self.wrong:
            return "NEITHER: " + "; ".join(self.wrong)
        parts = ["identical" if self.identical else "mended as told", *([self.note] if self.note else [])]
        if self.refusals:
            first = next(iter(self.refusals.values())).partition("error: ")[2]
            parts.append(f"refused by {', '.join(self.refusals)}: {' '.join(first.split())}")
        return "; ".join(parts)


REMEDY = r"`dvc repro|run the same command again|move it away|wait for it|run from the project's folder"


def flaw_of(ended: Ended, made: Made) -> str | None:
    """What a refusal lacks."""
    _, *messages = re.split("^error: ", ended.said, flags=re.MULTILINE)
    if ended.code != 2 or len(messages) != 1 or "Traceback" in ended.said:
        return f"exit code {ended.code}, {len(messages)} messages"
    near = [] if "/c/" in str(made.where) else [CACHE, RECEIPT.parent]  # of a shard file nothing less than its name
    if not any(str(path) in messages[0] for path in [made.where, *near]):
        return f"{made.where} is not named"
    return None if re.search(REMEDY, messages[0]) else "it does not say how to mend it"


def judge(fault: Fault, good: Undisturbed, folder: Path, *, seed: int) -> Outcome:
    """Make a fault in a copy of a project, in an empty place, and see what comes of it."""
    project = good.copy(folder / "project")
    made = fault.make(good, project, np.random.default_rng((seed, zlib.crc32(fault.name.encode()))))
    outcome = Outcome(made.note)
    for ended in made.said:
        outcome.refused("the command itself", ended, made, must=True)
    outcome.refused("reading", read(project, good), made)
    outcome.refused("verify", project.run(VERIFY), made)
    again = project.copy(folder / "again")
    ended = again.run(EXTRACT)
    outcome.identical = ended.code == 0 and again.files() == good.good
    if fault.heals and not outcome.identical:
        outcome.wrong.append(f"another extraction does not make it good: {ended.said.strip()}")
    outcome.refused("extraction", ended, made)
    outcome.wrong += [f"{who}: expected a refusal, got none" for who in fault.refused if who not in outcome.refusals]
    if ended.code == 0 and not outcome.identical:
        outcome.refused("verify after another extraction", again.run(VERIFY), made, must=True)
    if outcome.identical and (after := read(again, good)).code:
        outcome.wrong.append(f"reading after another extraction: {after.said}")
    advice = {advised(said) for said in outcome.refusals.values()}
    for i, actions in enumerate(advice - {frozenset()} if outcome.identical else advice):
        mended = project.copy(folder / f"mended{i}")
        if (flaw := mend(mended, good, actions)) is not None:
            outcome.wrong.append(f"what a refusal says does not mend it: {flaw}")
    return outcome


def read(project: Project, good: Undisturbed) -> Ended:
    """How reading ends, wrong numbers being an error."""
    try:
        found = project.read()
    except InputError as error:
        return Ended(2, f"error: {error}")
    except Exception:
        return Ended(1, traceback.format_exc())
    same = len(found) == len(good.features) and all(map(torch.equal, found, good.features))
    return Ended(0, "") if same else Ended(1, "wrong numbers were read")


Action = tuple[str, Path]


def advised(said: str) -> frozenset[Action]:
    """What a message says to do before extracting again, each with a path."""
    paths = [Path(found) for found in re.findall(r"data/[^\s:;,]+", said)]
    if re.search("move (it|the store) away", said):
        return frozenset({("move", next(path for path in (paths[0], *paths[0].parents) if path.suffix == ".zarr"))})
    if "delete that folder" in said:
        return frozenset({("delete", next(path for path in (paths[0], *paths[0].parents) if path.suffix != ".json"))})
    if "delete it" in said:
        return frozenset(("delete", path) for path in paths)
    return frozenset(("put back", Path(found)) for found in re.findall(r"audio/\S+\.wav", said))


def mend(project: Project, good: Undisturbed, actions: frozenset[Action]) -> str | None:
    """Do what was advised, extract, do what that says; what is then not as if nothing had happened."""
    for _ in range(3):
        for act, path in actions:
            where = project.folder / path
            if act == "move":
                where.rename(where.with_suffix(".away"))
            elif act == "put back":
                shutil.copy(good.folder / path, where)
            elif where.is_dir():
                shutil.rmtree(where)
            else:
                where.unlink(missing_ok=True)
        ended = project.run(EXTRACT)
        if ended.code == 0:
            break
        actions = advised(ended.said)
    if ended.code or project.files() != good.good:
        return ended.said or "the store has other bytes"
    found = read(project, good), project.run(VERIFY)
    return next((ended.said for ended in found if ended.code), None)
