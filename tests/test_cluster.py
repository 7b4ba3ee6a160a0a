"""Extraction by Dask's workers: the bytes of one process, whoever dies, and clear words where nobody is there."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import soundfile
import torch
from distributed import Client, Scheduler, SpecCluster, Worker
from distributed.utils import get_mp_context

from pipeline.audio import decode
from pipeline.core import errors
from pipeline.core.contracts import CLEAN
from pipeline.core.errors import InputError
from pipeline.core.sections import ExtractParams
from pipeline.core.trial_table import to_csv
from pipeline.encoder import xlsr
from pipeline.encoder.cards import Card
from pipeline.extraction import cluster, dask_workers, identity, planning, progress
from pipeline.extraction.cluster import AHEAD, ExtractionJob, Task
from pipeline.extraction.dask_workers import Cluster
from pipeline.extraction.units import Recipe, Unit
from pipeline.features.store import Store
from tests.conftest import TINY, Corpus
from tests.test_extract import BOOSTED, PARAMS, boost, make_encoder, run
from tests.test_store import tree

pytestmark = pytest.mark.usefixtures("one_thread")


def asked(address: str, base: ExtractParams = PARAMS) -> ExtractParams:
    return base.model_copy(update={"engine": "dask", "scheduler": address})


@pytest.fixture(scope="module")
def workers(warm_processes: None) -> Iterator[Any]:
    """A client of two workers, processes of this machine; the death of one is put down to its tasks at once.

    Workers are forked from a process that has imported what they need, as imports take longer than the tests.
    """
    settings = {
        "distributed.scheduler.allowed-failures": 0,
        "distributed.worker.multiprocessing-method": "forkserver",
    }
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with dask.config.set(settings):
        get_mp_context().set_forkserver_preload(["distributed", "tests.test_extract"])
        with Cluster("local:2", "extract.scheduler").client() as client:
            torch.set_num_threads(before)
            yield client
    assert not multiprocessing.active_children()


@pytest.fixture
def address(workers: Client) -> str:
    """As `extract.scheduler` names it."""
    return workers.scheduler.address


def started(*workers: int) -> SpecCluster:
    """A scheduler and workers with as many threads each, all in this process: they start at once."""
    quiet = {"host": "127.0.0.1", "dashboard": False, "dashboard_address": "127.0.0.1:0"}
    return SpecCluster(
        workers={i: {"cls": Worker, "options": {"nthreads": count, **quiet}} for i, count in enumerate(workers)},
        worker={"cls": Worker, "options": {"nthreads": 1, **quiet}},
        scheduler={"cls": Scheduler, "options": {"port": 0, **quiet}},
        silence_logs=logging.CRITICAL,
    )


@pytest.fixture
def inside() -> Iterator[SpecCluster]:
    """A scheduler with one worker of one thread."""
    with dask.config.set({"distributed.comm.timeouts.connect": 1}), started(1) as running:
        yield running
    cluster._kept.clear()


def recipe(card: Card) -> Recipe:
    """As the stage sends it."""
    return Recipe(TINY, Path("none"), card, "cpu", "float32")


def start_of(corpus: Corpus, name: str) -> bytes:
    """The first samples of an utterance, by which an encoder knows it."""
    return decode.load(corpus[0] / f"{name}.wav")[:8].tobytes()


@dataclass(frozen=True)
class Victim:
    """Makes encoders to which something happens at one utterance; workers import it from here."""

    start: bytes

    def happens(self, features: dict, row: int) -> None:
        raise NotImplementedError

    def __call__(self, taps: tuple) -> xlsr.Encoder:
        encoder = make_encoder(taps)

        def look(_model: Any, given: tuple, found: tuple) -> None:
            for row, samples in enumerate(given[0]):
                if samples[:8].numpy().tobytes() == self.start:
                    self.happens(found[0], row)

        encoder.register_forward_hook(look)
        return encoder


@dataclass(frozen=True)
class Deadly(Victim):
    """Kills its process, as the kernel does when memory runs out; with a marker only the first one."""

    deaths: Path
    once: bool

    def happens(self, _features: dict, _row: int) -> None:
        if self.once and self.deaths.exists():
            return
        with self.deaths.open("a") as file:
            file.write(f"{os.getpid()}\n")
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Overflowing(Victim):
    """Gives features that are NaN."""

    def happens(self, features: dict, row: int) -> None:
        with torch.inference_mode():
            features[3][row] = float("nan")


@dataclass(frozen=True)
class Broken(Victim):
    """Raises what nobody expects."""

    def happens(self, _features: dict, _row: int) -> None:
        raise ZeroDivisionError("not again")


# ---------------------------------------------------------------- the same bytes


@pytest.mark.parametrize("base", [BOOSTED.model_copy(update={"storage": "int8"})], ids=["views"])
def test_two_workers_write_the_files_of_one_process(
    corpus: Corpus, tmp_path: Path, card: Card, address: str, base: ExtractParams
) -> None:
    here = boost(corpus, tmp_path / "here", card, base, encoder=recipe(card))
    there = boost(corpus, tmp_path / "there", card, asked(address, base), encoder=recipe(card))
    assert there == here
    assert tree(tmp_path / "there" / here["store"]) == tree(tmp_path / "here" / here["store"])


def test_workers_are_processes(workers: Client) -> None:
    assert len({*workers.run(os.getpid).values()} - {os.getpid()}) == 2


def test_workers_share_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four threads of this process by two workers."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr("distributed.SpecCluster", lambda workers, **_: workers)
    found = [worker["options"]["env"] for worker in Cluster("local:2", "extract.scheduler")._workers_here().values()]
    assert [env["OMP_NUM_THREADS"] for env in found] == ["2", "2"]


def test_what_is_complete_is_not_sent(corpus: Corpus, tmp_path: Path, card: Card) -> None:
    """And where all is, there need be no scheduler."""
    first = run(corpus, tmp_path, card)
    assert run(corpus, tmp_path, card, asked("tcp://nowhere.invalid:1")) == first


def test_a_worker_keeps_its_encoder_for_the_next_task(
    corpus: Corpus, tmp_path: Path, card: Card, inside: SpecCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple] = []

    def load(self: Recipe, taps: tuple) -> xlsr.Encoder:
        made.append(taps)
        return make_encoder(taps)

    monkeypatch.setattr(Recipe, "__call__", load)
    params = asked(inside.scheduler_address)
    run(corpus, tmp_path, card, params, encoder=recipe(card))
    assert made == [(1, 3)]
    run(corpus, tmp_path, card, params.model_copy(update={"layers": (1, 2, 3)}), encoder=recipe(card))
    assert made == [(1, 3), (2,)]
    run(corpus, tmp_path / "other", card, params, encoder=recipe(card))
    assert made == [(1, 3), (2,), (1, 3)]


def test_an_encoder_computes_for_one_thread_at_a_time() -> None:
    """It keeps what its layers gave until the forward pass ends: two at once would mix utterances up."""
    inside, left = threading.Event(), threading.Event()
    running: list[int] = []

    class Slow(torch.nn.Linear):
        def forward(self, windows: torch.Tensor) -> int:
            running.append(threading.get_ident())
            inside.set()
            left.wait(0.2)  # where two could be in here, the second would come by now
            return len(set(running))

    shared = cluster._Shared(Slow(2, 2))
    others = [threading.Thread(target=shared, args=(torch.zeros(2),)) for _ in range(2)]
    for other in others:
        other.start()
    inside.wait()
    assert len(running) == 1
    left.set()
    for other in others:
        other.join()
    assert len(running) == 2
    assert [p.shape for p in shared.parameters()] == [(2, 2), (2,)]


# ---------------------------------------------------------------- what goes wrong at a worker


def test_what_is_wrong_with_a_unit_is_told_as_in_one_process(
    corpus: Corpus, tmp_path: Path, card: Card, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Features that are NaN in the last shard, audio that is silent in the first; the second completes."""
    folder, trials = corpus
    soundfile.write(folder / "u1.wav", np.zeros(1_000), 16_000)
    contents = [decode.digest((folder / name).read_bytes()) for name in trials.path]
    corpus = folder, replace(trials, content=np.array(contents))
    overflowing = Overflowing(start_of(corpus, "u9"))
    told = []
    for name, params in (("here", PARAMS), ("there", asked(address))):
        with pytest.raises(SystemExit) as left:
            errors.exit_on_input_error(
                lambda name=name, params=params: run(corpus, tmp_path / name, card, params, encoder=overflowing)
            )
        assert left.value.code == 2
        told.append(capsys.readouterr().err.replace(f"{tmp_path / name}", "ROOT"))
    assert told[0] == told[1]
    assert "2 of 3 units cannot be made, the others are complete" in told[0]
    assert re.search(r"shard 0 of clean: 1 of 4 utterances .*\n.*u1\.wav: the audio is silent", told[0])
    assert re.search(r"shard 2 of clean: utterance u9: expected finite features .* in layer 3, got nan", told[0])
    assert "Traceback" not in told[0]
    place = Store(tmp_path, identity.spec_of(corpus[1], card, PARAMS)).spec.folder("dev")
    assert tree(tmp_path / "here" / place) == tree(tmp_path / "there" / place)


def test_a_worker_that_is_killed_loses_nothing(corpus: Corpus, tmp_path: Path, card: Card, address: str) -> None:
    deadly = Deadly(start_of(corpus, "u5"), tmp_path / "deaths", once=True)
    receipt = run(corpus, tmp_path / "there", card, asked(address), encoder=deadly)
    assert len(deadly.deaths.read_text().splitlines()) == 1
    here = run(corpus, tmp_path / "here", card)
    assert receipt == here
    assert tree(tmp_path / "there" / here["store"]) == tree(tmp_path / "here" / here["store"])


def test_a_shard_that_kills_whoever_makes_it_is_named_and_the_others_complete(
    corpus: Corpus, tmp_path: Path, card: Card, address: str
) -> None:
    deadly = Deadly(start_of(corpus, "u5"), tmp_path / "deaths", once=False)
    with pytest.raises(InputError) as error:
        run(corpus, tmp_path / "there", card, asked(address), encoder=deadly)
    assert len(deadly.deaths.read_text().splitlines()) == 2  # sent with others, and then alone
    assert str(error.value).splitlines() == [
        "1 of 3 units cannot be made, the others are complete; mend what is wrong with these and run the same command "
        "again:",
        "  shard 1: every worker died that made it (out of memory? see what they logged)",
    ]
    said: list[str] = []
    receipt = run(corpus, tmp_path / "there", card, say=said.append)
    assert "clean: 2 of 3 shards are complete; to do: layers 1, 3 in 1 shards" in said[0]
    here = run(corpus, tmp_path / "here", card)
    assert tree(tmp_path / "there" / receipt["store"]) == tree(tmp_path / "here" / here["store"])


def test_a_shard_that_is_sent_again_stays_as_it_is(corpus: Corpus, tmp_path: Path, card: Card) -> None:
    """Dask sends it again where its worker dies after the end was told."""
    receipt = run(corpus, tmp_path, card)
    target = Store(tmp_path / receipt["store"], identity.spec_of(corpus[1], card, PARAMS))
    before = {path: path.stat().st_mtime_ns for path in target.path.rglob("*")}
    job = ExtractionJob(target, Broken(b""), PARAMS.layers, PARAMS)
    assert cluster._make(job, Task((Unit(1, CLEAN, PARAMS.layers),), ()), Path.cwd()) == []
    assert {path: path.stat().st_mtime_ns for path in target.path.rglob("*")} == before


def test_an_error_that_nobody_expects_names_the_shard(
    corpus: Corpus, tmp_path: Path, card: Card, inside: SpecCluster
) -> None:
    with pytest.raises(InputError, match=r"1 of 3 units .*\n  shard 2: ZeroDivisionError: not again"):
        run(corpus, tmp_path, card, asked(inside.scheduler_address), encoder=Broken(start_of(corpus, "u8")))


def test_a_full_disk_stops_all(
    corpus: Corpus, tmp_path: Path, card: Card, inside: SpecCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def full(_self: Store, _view: str, shard: int, *_blocks: object, **_made: object) -> None:
        tried.append(shard)
        raise OSError(28, "No space left on device", "x.part")

    monkeypatch.setattr(Store, "write", full)
    params = asked(inside.scheduler_address).model_copy(update={"shard": 1})
    with pytest.raises(OSError, match="No space left on device"):
        run(corpus, tmp_path, card, params, encoder=make_encoder)
    assert len(tried) <= 1 + AHEAD


def test_an_encoder_that_is_another_one_there_stops_all(
    corpus: Corpus, tmp_path: Path, card: Card, inside: SpecCluster
) -> None:
    other = replace(card, weights_sha256="0" * 64)
    with pytest.raises(InputError, match=r"^expected the encoder of the card .* run `dvc repro -f encoder`"):
        run(corpus, tmp_path, card, asked(inside.scheduler_address), encoder=recipe(other))


def test_a_worker_without_the_file_system_or_of_other_code_is_told(corpus: Corpus, tmp_path: Path, card: Card) -> None:
    target = Store(tmp_path, identity.spec_of(corpus[1], card, PARAMS))
    with pytest.raises(InputError, match=r"the worker on .* runs other code than this command; restart the workers"):
        cluster._make(ExtractionJob(target, make_encoder, (1,), PARAMS, code="another"), Task((), ()), tmp_path)
    with pytest.raises(InputError, match=r"the worker on .* cannot go to .*elsewhere \(No such file or directory\)"):
        cluster._make(ExtractionJob(target, make_encoder, (1,), PARAMS), Task((), ()), tmp_path / "elsewhere")


# ---------------------------------------------------------------- schedulers


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ("local:x", "expected local:N with N workers, such as local:2, got 'local:x'"),
        ("local:0", "expected local:N with N workers, such as local:2, got 'local:0'"),
        ("local:", "expected local:N with N workers, such as local:2, got 'local:'"),
        ("local:-1", "expected local:N with N workers, such as local:2, got 'local:-1'"),
        ("somewhere", "expected the address of a Dask scheduler that runs (tcp://host:8786), or local:N for N workers"),
        ("foo://x:1", "got 'foo://x:1': unknown address scheme"),
        ("tls://127.0.0.1:9", "got 'tls://127.0.0.1:9': TLS expects"),
    ],
)
def test_an_address_of_nothing_is_refused(
    corpus: Corpus, tmp_path: Path, card: Card, scheduler: str, message: str
) -> None:
    with pytest.raises(InputError, match=r"^extract\.scheduler: .*" + re.escape(message)):
        run(corpus, tmp_path, card, asked(scheduler))


def test_a_scheduler_that_is_not_there_is_told(
    corpus: Corpus, tmp_path: Path, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_workers, "CONNECT_S", 0.5)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(InputError, match=rf"a Dask scheduler that runs .* got 'tcp://127\.0\.0\.1:{port}': Timed out"):
        run(corpus, tmp_path, card, asked(f"tcp://127.0.0.1:{port}"))


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> Iterator[SpecCluster]:
    """A scheduler without workers."""
    monkeypatch.setattr(dask_workers, "CONNECT_S", 0.5)
    with started() as running:
        yield running


NO_WORKERS = (
    r"expected workers at tcp://.*, got none in 0\.5 seconds; start some in the project's folder \(`dask worker "
)


def test_a_scheduler_without_workers_is_told(corpus: Corpus, tmp_path: Path, card: Card, idle: SpecCluster) -> None:
    with pytest.raises(InputError, match=NO_WORKERS):
        run(corpus, tmp_path, card, asked(idle.scheduler_address))


def test_workers_that_all_went_and_do_not_come_back_are_told(tmp_path: Path, card: Card, idle: SpecCluster) -> None:
    job = ExtractionJob(Store(tmp_path, None), make_encoder, (1,), asked(idle.scheduler_address))  # type: ignore[arg-type]
    with (
        Client(idle, set_as_default=False) as client,
        pytest.raises(InputError, match=NO_WORKERS),
    ):
        next(cluster._ended(client, job, iter([Task((Unit(0, CLEAN, (1,)),), ())])))


def test_a_scheduler_that_does_not_answer_is_gone_where_its_client_connects_again() -> None:
    """Dask itself would try that for 30 seconds. One that is only busy is asked once more."""

    class Slow:
        """A client whose scheduler answers the third question."""

        status, asked = "running", 0

        def nthreads(self, *, callback_timeout: float) -> dict[str, int]:
            assert callback_timeout <= 5
            self.asked += 1
            if self.asked < 3:
                raise TimeoutError
            return {"a": 2, "b": 1}

    there = Cluster("tcp://there:8786", "--scheduler")
    assert there.threads_of(Slow()) == 3
    lost = Slow()
    lost.status = "connecting"
    with pytest.raises(InputError, match=r"^--scheduler: tcp://there:8786 is gone; what is complete is kept"):
        there.threads_of(lost)
    assert lost.asked == 1


@pytest.mark.parametrize("when", ["computing", "between"])
def test_a_scheduler_that_goes_is_told_and_what_is_complete_is_kept(
    corpus: Corpus,
    tmp_path: Path,
    card: Card,
    inside: SpecCluster,
    when: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dask_workers, "CONNECT_S", 0.5)
    params = asked(inside.scheduler_address).model_copy(update={"shard": 2})
    gone = lambda *_: inside.sync(inside.scheduler.close)  # noqa: E731
    made: list[int] = []
    whole = Store.write

    def write(self: Store, view: str, shard: int, *blocks: Any, **made_by: Any) -> None:
        whole(self, view, shard, *blocks, **made_by)
        made.append(shard)
        if when == "computing" and len(made) == 2:
            gone()

    monkeypatch.setattr(Store, "write", write)
    if when == "between":
        monkeypatch.setattr(progress.tqdm, "update", gone)
    with pytest.raises(InputError, match=r"^extract\.scheduler: tcp://.* is gone; what is complete is kept: start it"):
        run(corpus, tmp_path, card, params, encoder=make_encoder)
    monkeypatch.undo()
    said: list[str] = []
    run(corpus, tmp_path, card, PARAMS.model_copy(update={"shard": 2}), say=said.append)
    done = int(re.search(r"clean: (\d) of 5 shards are complete", said[0])[1])  # type: ignore[index]
    assert 1 <= done < 5


# ---------------------------------------------------------------- what is sent, and when


def test_tasks_are_sent_a_few_ahead_and_workers_that_come_get_some(
    corpus: Corpus, tmp_path: Path, card: Card, inside: SpecCluster
) -> None:
    params = asked(inside.scheduler_address).model_copy(update={"shard": 1})
    target = Store.create(tmp_path, "dev", identity.spec_of(corpus[1], card, params))
    target.add_arrays(CLEAN, params.layers)
    sent: list[int] = []
    waiting: list[int] = []

    def clips(unit: Unit) -> list:
        sent.append(unit.shard)
        return [planning.clip_of(corpus[1], unit.shard, audio_root=corpus[0])]

    def advance(count: int) -> None:
        assert count == 1
        waiting.append(len(sent) - len(waiting))
        if len(waiting) == 3:
            inside.scale(2)
            inside.wait_for_workers(2)

    job = ExtractionJob(target, make_encoder, params.layers, params)
    assert cluster.make(planning.plan(target, (CLEAN,), params.layers), clips, job=job, advance=advance) == []
    assert sent == list(range(10))
    assert waiting == [AHEAD, AHEAD, AHEAD, *[2 * AHEAD] * 4, 3, 2, 1]
    assert not target.incomplete(CLEAN, params.layers)


# ---------------------------------------------------------------- the script of docs/cluster.md


def test_the_script_starts_workers_says_where_and_ends_with_them(
    corpus: Corpus, tmp_path: Path, card: Card, warm_env: dict[str, str]
) -> None:
    """In its local form: SLURM and GPUs are not to be had here."""
    with subprocess.Popen(
        ["python", "docs/start_cluster.py", "local", "--workers", "1", "--port", "0"],
        cwd=Path(__file__).parents[1],
        env=warm_env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout
        lines = [running.stdout.readline().strip() for _ in range(4)]
        assert lines[:3] == ["waiting for the first worker", "extract:", "engine: dask"]
        key, _, address = lines[3].partition(": ")
        assert key == "scheduler"
        try:
            there = run(corpus, tmp_path / "there", card, asked(address), encoder=recipe(card))
        finally:
            running.terminate()
        said, complained = running.communicate(timeout=60)  # waits for the worker, which holds the pipes' ends
    assert (running.returncode, said) == (0, ""), complained
    assert "Traceback" not in complained
    here = run(corpus, tmp_path / "here", card)
    assert tree(tmp_path / "there" / there["store"]) == tree(tmp_path / "here" / here["store"])


# ---------------------------------------------------------------- interruption

INTERRUPTED = """
import json, signal, sys, threading
from pathlib import Path

signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may have it ignored

class Waiting:
    def __init__(self, pipe):
        self.pipe = pipe

    def __call__(self, taps):
        self.pipe.write_text("here")
        threading.Event().wait()

if __name__ == "__main__":
    from pipeline.core import trial_table
    from pipeline.extraction import planning
    from pipeline.encoder.cards import Card
    from pipeline.core.sections import ExtractParams

    audio, table, pipe, facts = map(Path, sys.argv[1:])
    card, params = json.loads(facts.read_text())
    planning.extract(
        trial_table.read(table), set_name="dev", audio_root=audio, root=audio.parent / "cache", card=Card(**card),
        encoder=Waiting(pipe), params=ExtractParams(**params), say=lambda _: None,
    )
"""


def test_an_interruption_leaves_no_worker(corpus: Corpus, tmp_path: Path, card: Card, warm_env: dict[str, str]) -> None:
    """Even one that hangs. Ctrl-C goes to the whole group; whoever holds the ends of its pipes is waited for."""
    folder, trials = corpus
    script, table, pipe, facts = (tmp_path / name for name in ("script.py", "trials.csv", "pipe", "facts.json"))
    script.write_text(INTERRUPTED)
    table.write_text(to_csv(trials))
    facts.write_text(json.dumps([asdict(card), asked("local:1").model_dump(mode="json")]))
    os.mkfifo(pipe)
    with subprocess.Popen(
        ["python", script, folder, table, pipe, facts],
        env=warm_env | {"PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as running:
        assert pipe.read_text() == "here"  # a worker is at it
        os.killpg(running.pid, signal.SIGINT)
        said, complained = running.communicate(timeout=60)
    assert running.returncode == -signal.SIGINT, complained
    assert complained.splitlines()[-1] == "KeyboardInterrupt"
    assert complained.count("Traceback") == 1
    assert "distributed" not in re.sub(r'File ".*', "", complained)  # no log of Dask's
    assert said == ""
