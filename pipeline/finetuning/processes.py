"""The processes of a fine-tuning: how they start, meet and end.

`torchrun` starts them, on one machine or several, or `start` does, on this one, in the same way: each has its number in
RANK, that on its machine in LOCAL_RANK, and finds the others by MASTER_ADDR and MASTER_PORT. A process that ends with
an error ends all of them. torchrun sees to that, or `start`. Of what goes wrong one message is printed: by the first
process that says it, and by `start` where a process was killed and can say nothing.
"""

from __future__ import annotations

import datetime
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Literal, NoReturn

import torch
import torch.distributed as dist

from pipeline.core.errors import InputError, exit_on_input_error

WAITS = datetime.timedelta(minutes=30)  # at most, for another process: it may be writing to a slow disk
GRACE = 15.0  # seconds in which a process that has nothing to say is ended by who started it
LOOK = 0.1  # seconds between two looks at the processes
AGAIN = "run the same command again: it goes on after the last epoch that was saved"


def started() -> bool:
    """Whether torchrun or `start` started this process, among others or alone."""
    return all(name in os.environ for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def leads() -> bool:
    """Whether this process writes files: the first, or the only one."""
    return not started() or os.environ["RANK"] == "0"


def join(device: Literal["auto", "cpu", "cuda"]) -> None:
    """Meet the other processes, each on a device of its own; nothing in a single process.

    Raises InputError where this machine has too few GPUs.
    """
    if not started():
        return
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        check_gpus(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=WAITS)


def check_gpus(processes: int) -> None:
    """Raise InputError where this machine has fewer GPUs than processes."""
    there = torch.cuda.device_count()
    if processes > there:
        raise InputError(
            f"encoder.finetune.processes: expected at most {there}, one for each GPU of this machine, got {processes}; "
            "lower it, or the number that torchrun gets"
        )


def together(work: Callable[[], None]) -> NoReturn:
    """Do the work of one of several processes, and end this process.

    Bad input is said by one of them alone. A process that has lost another one waits to be ended.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # else it would come between two steps alone
    threading.Thread(target=_end_with, args=[os.getppid()], daemon=True).start()
    if not leads():
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  # the first process says it all
    code: str | int | None = 0
    try:
        exit_on_input_error(lambda: _said_once(work))
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
        code = 1
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code if isinstance(code, int) else 0)  # libraries would wait for the others


def _said_once(work: Callable[[], None]) -> None:
    store, _, _ = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
    try:
        work()
    except Exception as error:
        lost = _is_loss(error)
        if lost:
            time.sleep(GRACE)
        if store.add("failed", 1) > 1:
            time.sleep(GRACE)
            raise SystemExit(2) from None
        if lost:
            raise InputError(f"another process of the fine-tuning ended; {AGAIN}") from None
        raise


def _is_loss(error: Exception) -> bool:
    """Whether an error says that another process has gone."""
    words = ("gloo", "NCCL", "Connection closed", "Connection reset")
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def _end_with(parent: int) -> None:
    """End this process when the one that started it is no more."""
    while os.getppid() == parent:
        time.sleep(LOOK)
    os._exit(2)


# ---------------------------------------------------------------- starting them


def start(words: Sequence[str], processes: int) -> None:
    """Run `python <words>` as processes that train together on this machine, and wait for their end.

    When one of them fails, or this process is interrupted or killed, all end. Raises SystemExit with the exit code of
    the one that failed, which has said why, and InputError where it was killed.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    threads = max(len(os.sched_getaffinity(0)) // processes, 1)
    meeting = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is in this process, as it is in that of torchrun
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
    }
    common = {"OMP_NUM_THREADS": str(threads)} | dict(os.environ) | meeting
    children: list[subprocess.Popen[bytes]] = []
    try:
        for number in range(processes):
            child = subprocess.Popen(  # noqa: S603
                [sys.executable, *words],
                env=common | {"RANK": str(number), "LOCAL_RANK": str(number)},
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C comes to this process alone
            )
            children.append(child)
        _wait(children)
    finally:
        _end(children)


def _wait(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait until all have ended well, or one has not; one that has said why counts before those that were killed."""
    while True:
        codes = [child.poll() for child in children]
        for code in codes:
            if code and code > 0:
                raise SystemExit(code)
        for number, code in enumerate(codes):
            if code:
                name = signal.Signals(-code).name
                raise InputError(f"process {number + 1} of {len(codes)} was ended by {name}; {AGAIN}")
        if None not in codes:
            return
        time.sleep(LOOK)


def _end(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """End those that run: at once, or by force after some seconds."""
    for child in children:
        child.terminate()
    for child in children:
        try:
            child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
