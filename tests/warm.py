"""DVC, stages and `bonafide` for tests, without the seconds that imports take.

`commands(folder)` puts `python`, `dvc` and `bonafide` into a folder, to come first in PATH. Each asks a server, which
has imported the libraries, to fork. The child takes over arguments, folder, environment and open files. It then runs
`python -m module`, `python -c code`, `python script.py`, `dvc` or `bonafide` as a new process would. It gets SIGINT and
SIGTERM from the caller. A signal that ends it ends the caller, and the end of the caller ends it. Processes that it
starts by multiprocessing begin as it does, but not those of these. The server imports no module of the project: a child
takes those of its folder. What an interpreter reads as it starts, such as PYTHONIOENCODING, is that of the server, and
what libraries do as a process ends is left out. All other uses of `python` go to the real one.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import gc
import hashlib
import importlib
import marshal
import multiprocessing
import os
import pickle
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

LIBRARIES = (
    "configobj", "distributed", "dulwich.porcelain", "dulwich.repo", "dvc.cachemgr", "dvc.cli.parser",
    "dvc.commands.repro", "dvc.data_cloud", "dvc.repo", "dvc.repo.artifacts", "dvc.repo.datasets", "dvc.repo.graph",
    "dvc.repo.index", "dvc.repo.metrics", "dvc.repo.open_repo", "dvc.repo.params", "dvc.repo.plots",
    "dvc.repo.reproduce", "dvc.repo.stage", "dvc.repo.status", "dvc.rwlock", "dvc.stage", "dvc.utils.strictyaml",
    "dvc_data.hashfile.build", "dvc_data.hashfile.status", "dvc_render", "faiss", "flufl.lock",
    "fsspec.implementations.memory", "h5py", "jinja2", "matplotlib.backends.backend_agg", "matplotlib.figure",
    "networkx", "numpy", "pydantic.dataclasses", "pydantic.fields", "pydantic.main", "pydantic.type_adapter",
    "pydantic.types", "requests", "ruamel.yaml", "safetensors.numpy", "scipy.signal", "scmrepo.git",
    "sklearn.linear_model", "sklearn.manifold", "soundfile", "soxr", "torch", "tqdm",
    "transformers.models.data2vec.modeling_data2vec_audio", "transformers.models.hubert.modeling_hubert",
    "transformers.models.sew.modeling_sew", "transformers.models.unispeech.modeling_unispeech",
    "transformers.models.unispeech_sat.modeling_unispeech_sat", "transformers.models.wav2vec2.modeling_wav2vec2",
    "transformers.models.wav2vec2_bert.modeling_wav2vec2_bert",
    "transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer", "transformers.models.wavlm.modeling_wavlm",
    "transformers.models.whisper.modeling_whisper", "zarr",
)  # fmt: skip
# It imports no Python module: those that it would need take longer than all else that it does.
SHIM = """#!{python} -IS
import _signal, _socket, _struct, marshal, posix, sys
words = sys.argv[1:]
if {name!r} != "python":
    words = ["-m", {name!r}, *words]
elif words[:1] == ["-B"]:  # so multiprocessing says it
    del words[0]
if not (words[:1] in (["-c"], ["-m"]) or words and words[0].endswith(".py")):
    posix.execv({python!r}, [{python!r}, *words])
def open_here(file):
    try:
        return bool(posix.fstat(file))
    except OSError:  # that of the folder itself
        return False
files = [file for file in map(int, posix.listdir("/proc/self/fd")) if open_here(file)]
signals = (_signal.SIGINT, _signal.SIGTERM)
ignored = [number for number in signals if _signal.getsignal(number) == _signal.SIG_IGN]
request = marshal.dumps([words, posix.getcwd(), posix.environ, files, ignored])
server = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
server.connect({address!r})
rights = _struct.pack(f"{{len(files)}}i", *files)
server.sendmsg([_struct.pack("<Q", len(request))], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
server.sendall(request)
for number in signals:  # also those that are ignored: what runs may change that
    _signal.signal(number, lambda number, _frame: server.send(bytes([number])))
answer = server.recv(2)
(code,) = _struct.unpack("<h", answer) if answer else (1,)
if code < 0:
    if code != -_signal.SIGKILL:
        _signal.signal(-code, _signal.SIG_DFL)
    posix.kill(posix.getpid(), -code)
sys.exit(code)
"""


@contextlib.contextmanager
def commands(folder: Path) -> Iterator[Path]:
    """The folder with these commands, while a server stands behind them. The folder's path must be short.

    Processes that name the same folder share the server, which ends when all have left.
    """
    folder.mkdir(exist_ok=True)
    with (folder / "users").open("w") as users, (folder / "start").open("w") as start:
        fcntl.flock(users, fcntl.LOCK_SH)
        fcntl.flock(start, fcntl.LOCK_EX)
        if not (folder / "s").exists():
            _start(folder)
        fcntl.flock(start, fcntl.LOCK_UN)
        yield folder


def _start(folder: Path) -> None:
    """Start the server, wait until it serves, and write the commands."""
    code = "import sys; from tests import warm; warm.serve(sys.argv[1])"
    root = str(Path(__file__).parents[1])
    server = subprocess.Popen([sys.executable, "-c", code, str(folder)], cwd=root, stdout=subprocess.PIPE)
    server.returncode = 0  # nobody waits for it
    assert server.stdout is not None
    with server.stdout:
        assert server.stdout.readline() == b"ready\n"
    for name in ("python", "dvc", "bonafide"):
        shim = folder / name
        shim.write_text(SHIM.format(python=sys.executable, name=name, address=str(folder / "s")))
        shim.chmod(0o755)


def serve(folder: str) -> None:
    """Import the libraries, then fork a process for each request, until nobody uses the folder."""
    import diskcache.core
    import PIL.Image
    from pydantic.plugin._loader import get_plugins

    for name in LIBRARIES:
        importlib.import_module(name)
    PIL.Image.preinit()
    get_plugins()  # else each child looks for them among all packages
    os.fsync = fsync
    diskcache.core.DEFAULT_SETTINGS["sqlite_synchronous"] = 0  # as fsync, for DVC's databases
    _read_and_write_yaml_sooner(Path(folder))
    multiprocessing.set_executable(f"{folder}/python")
    gc.collect()
    gc.freeze()  # else each child copies the memory that its search for garbage marks
    _leave_nothing_to_the_end()
    with socket.socket(socket.AF_UNIX) as listening, open(f"{folder}/users") as users:  # noqa: PTH123
        listening.bind(f"{folder}/s")
        listening.listen()
        os.write(1, b"ready\n")
        _serve(listening, users)
        os.unlink(f"{folder}/s")  # noqa: PTH108


def _serve(listening: socket.socket, users: TextIO) -> None:
    """Fork for who asks, pass signals on, and send exit codes, until nobody uses the folder and nothing runs."""
    running: dict[int, tuple[int, socket.socket]] = {}  # by the file that shows its end: a child, and who waits for it
    while running or not _unused(users):
        waiting = [asking for _, asking in running.values()]
        ready = select.select([listening, *running, *waiting], [], [], 1)[0]
        for ended, (child, asking) in list(running.items()):
            if ended in ready or (asking in ready and _signalled(child, asking)):
                _, status = os.waitpid(child, 0)
                with contextlib.suppress(OSError):  # nobody waits any more
                    asking.sendall(struct.pack("<h", os.waitstatus_to_exitcode(status)))
                asking.close()
                os.close(ended)
                del running[ended]
        if listening in ready:
            asking, _ = listening.accept()
            child = _begin(asking, [listening, users, *waiting], list(running))
            if child:
                running[os.pidfd_open(child)] = child, asking


def _unused(users: TextIO) -> bool:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _signalled(child: int, asking: socket.socket) -> bool:
    """Send the child the signal that its caller got; whether the caller has ended, and so the child."""
    number = b""
    with contextlib.suppress(ConnectionResetError):
        number = asking.recv(1)
    os.kill(child, number[0] if number else signal.SIGKILL)
    return not number


def _begin(asking: socket.socket, others: list[socket.socket | TextIO], ended: list[int]) -> int:
    """Fork for who asks; the child, or 0 where the caller ended before it had said what it wants.

    others, ended: what the server has open for others.
    """
    header, files, _, _ = socket.recv_fds(asking, 8, 250)
    size, request = struct.unpack("<Q", header)[0] if header else 1, b""
    while len(request) < size and (more := asking.recv(size - len(request))):
        request += more
    whole = len(request) == size
    child = os.fork() if whole else 0
    if whole and not child:
        for other in (asking, *others):
            other.close()
        for file in ended:
            os.close(file)
        words, place, environment, numbers, ignored = marshal.loads(request)  # noqa: S302  # of our own command
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)
        _become(words, place, environment, numbers, files)
    for file in files:
        os.close(file)
    return child


def _leave_nothing_to_the_end() -> None:
    """Take from each child what libraries do as a process ends: a table of times, and what is freed anyway."""
    import torch._dynamo.utils

    atexit.unregister(torch._dynamo.utils.dump_compile_times)
    for one in list(weakref.finalize._registry):
        one.atexit = False


def fsync(_file: int) -> None:
    """No test pulls the plug, so nothing waits for the disk."""


def _read_and_write_yaml_sooner(texts: Path) -> None:
    """Have DVC write lock files by libyaml, and parse no text twice: in Python both take half of all that DVC does.

    texts: a folder for what texts hold, by their checksum, for all processes.
    """
    from dvc.utils.serialize import _yaml
    from ruamel.yaml import YAML

    parse = _yaml.parse_yaml

    def read(text: str, path: str, typ: str = "safe") -> object:
        place = texts / hashlib.sha256(text.encode()).hexdigest()
        if typ == "safe" and place.exists():
            return pickle.loads(place.read_bytes())  # noqa: S301  # our own
        found = parse(text, path, typ)
        if typ == "safe":
            part = place.with_name(f"{place.name}.{os.getpid()}-{threading.get_ident()}")
            part.write_bytes(pickle.dumps(found))
            part.rename(place)
        return found

    def dump(data: object, stream: TextIO) -> None:
        yaml = YAML(typ="safe")
        yaml.default_flow_style, yaml.sort_base_mapping_type_on_output = False, False
        yaml.Representer.add_representer(OrderedDict, yaml.Representer.represent_dict)
        yaml.dump(data, stream)

    _yaml.parse_yaml, _yaml.parse_yaml_for_update, _yaml._dump = read, read, dump


def _run(words: list[str]) -> int:
    """Run a module or code as Python would with these words; its exit code."""
    if words[0].endswith(".py"):
        sys.argv, sys.path[0] = words, str(Path(words[0]).parent)
        runpy.run_path(words[0], run_name="__main__")
        return 0
    kind, what, *arguments = words
    if what.startswith("from multiprocessing"):
        multiprocessing.set_executable(sys.executable)  # what this one starts is to have it as parent
    sys.argv = [kind if kind == "-c" else what, *arguments]
    if kind == "-c":
        exec(compile(what, "<string>", "exec"), vars(sys.modules["__main__"]))  # noqa: S102
    elif what == "dvc":
        from dvc.cli import main

        return main(arguments)
    else:
        runpy.run_module("pipeline.commands" if what == "bonafide" else what, run_name="__main__", alter_sys=True)
    return 0


def _become(
    words: list[str], folder: str, environment: dict[bytes, bytes], numbers: list[int], files: list[int]
) -> None:
    """Run what is asked for as if this process had been started for it. numbers: those of the files at the caller."""
    code: object = 1
    try:
        moved = [fcntl.fcntl(file, fcntl.F_DUPFD, 500) for file in files]  # out of the way of the numbers
        for file in files:
            os.close(file)
        for number, file in zip(numbers, moved, strict=True):
            os.dup2(file, number)
            os.close(file)
        os.chdir(folder)
        os.environ.clear()
        os.environb.update(environment)
        sys.path[:1] = [folder, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        code = _run(words)
    except SystemExit as ended:
        code = ended.code
    except BaseException as error:
        traceback.print_exc()
        if isinstance(error, KeyboardInterrupt):
            code = -signal.SIGINT
    if code is not None and not isinstance(code, int):
        sys.stderr.write(f"{code}\n")
        code = 1
    _end(code or 0)


def _end(code: int) -> None:
    """End as an interpreter does: what runs at its exit, then an exit code, or minus the signal that ends it."""
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError):  # closed
            stream.flush()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)
