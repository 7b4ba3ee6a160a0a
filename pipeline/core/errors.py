"""Errors for people. Their message says where the problem is, the expected value, the actual value, and a remedy."""

from __future__ import annotations

import errno
import gc
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn, TextIO

SHOWN = 10
INTERRUPTED = 130  # the exit code of a command that Ctrl-C ended
MAKE_ROOM = "make room, or allow writing there, and run the same command again"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors of a full disk, a used-up quota and a file that may not grow
BROKEN_PIPE = 141  # the exit code of a command that SIGPIPE ended
# What no name may have and no terminal gets: control characters, line and paragraph separators, marks that turn the
# direction of text, byte order marks, and halves of characters (surrogates).
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
ON_STDOUT = re.compile(f"(?![\\n\\t]){UNPRINTABLE.pattern}")
ON_STDERR = re.compile(rf"(?![\n\t\r]|\x1b\[A){UNPRINTABLE.pattern}")  # progress bars go back in the line, and up


class InputError(Exception):
    """An input of the user is wrong. The message has everything that the user needs to correct it."""


class HopelessError(InputError):
    """An error that would come again with every other part of the work, so the whole work stops."""


class UnreachableError(HopelessError):
    """An object store does not answer, or refuses access."""


def listing(problems: Sequence[str]) -> str:
    """The first ten problems, one in each line, and the number of the others."""
    lines = [f"  {problem}" for problem in problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"  ... and {len(problems) - SHOWN} more")
    return "\n".join(lines)


def printable(text: str, escaped: re.Pattern[str] = ON_STDOUT) -> str:
    """Text for a terminal: what could move its cursor or turn the text becomes an escape such as \\x1b."""
    return escaped.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def in_one_line(name: object) -> str:
    """A name or path without the tabs and line ends that would make other cells and lines of it."""
    return str(name).replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")


def exit_on_input_error(main: Callable[[], None]) -> None:
    """Run a command. Bad input ends it with one message on stderr and exit code 2, without a traceback.

    Ctrl-C ends it with exit code 130.
    """
    try:
        main()
    except InputError as error:
        message = str(error)
    except BrokenPipeError:  # the reader of the output has ended, so the command did not finish its work
        os._exit(BROKEN_PIPE)
    except OSError as error:  # no permission, no space, no such folder: the system's own words say it
        message = _of_the_system(error)
    except Exception as error:
        if (found := _known(error)) is None:
            raise
        message = found
    except KeyboardInterrupt:
        _say("interrupted")
        raise SystemExit(INTERRUPTED) from None
    else:
        return
    _say(f"error: {printable(message)}")
    raise SystemExit(2)


def _of_the_system(error: OSError) -> str:
    """The system's own words for an error, the path where it names one, and a remedy where a disk is full."""
    words = (error.strerror or str(error)) if error.filename else str(error)
    if error.errno in FULL and MAKE_ROOM not in words:
        words = f"{words}; {MAKE_ROOM}"
    return f"{words}: {error.filename}" if error.filename else words


def _known(error: Exception) -> str | None:
    """A message for an error of Python and of libraries that is no fault of the program; None for any other."""
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error)):
        return "there is not enough memory: run the same command again with less at once, or on a larger machine"
    if isinstance(error, ValueError | RuntimeError) and str(error).startswith(("embedded null", "Symlink loop")):
        return f"{error}: expected the path of a file or folder; mend the path or the link"
    if f"{type(error).__module__}.{type(error).__name__}" == "sqlite3.OperationalError":  # DVC keeps databases
        return f"{error}: expected to write a database of DVC; {MAKE_ROOM}"
    return None


def _say(line: str) -> None:
    """Print a line on stderr, if anything can be written there."""
    with suppress(OSError):
        print(line, file=sys.stderr)


def collect_garbage_seldom() -> None:
    """Make Python look for garbage less often, in a process that builds large objects and then ends.

    Importing torch, or reading 600,000 trials, makes hundreds of thousands of objects that all stay. Python's repeated
    search through them takes a fifth of the time of such an import, and a third of the time of such a reading.
    """
    gc.set_threshold(100_000, 50, 100)


class PlainStream(io.TextIOWrapper):
    """A stream for people. Characters that it cannot encode, or that no terminal gets, are written as escapes.

    failed: the error of the last write that failed. argparse ignores it when it prints help.
    """

    escaped = ON_STDOUT
    failed: OSError | None = None

    def write(self, text: str) -> int:
        """Write text; returns the number of characters of `text`."""
        try:
            super().write(printable(text, self.escaped))
        except OSError as error:
            self.failed = error
            raise
        return len(text)


class PlainErrors(PlainStream):
    """The same for stderr, where progress bars move the cursor."""

    escaped = ON_STDERR


def plain_streams() -> None:
    """Make stdout and stderr such streams; one that was closed before the command began takes everything."""
    for name, kind in (("stdout", PlainStream), ("stderr", PlainErrors)):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, io.TextIOWrapper(io.FileIO(os.devnull, "w"), encoding="utf-8", write_through=True))
        elif isinstance(stream, io.TextIOWrapper) and not isinstance(stream, PlainStream):
            stream.flush()
            plain = kind(
                stream.buffer,
                encoding=stream.encoding,
                errors="backslashreplace",
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, name, plain)


def end_at_interruptions() -> None:
    """Let Ctrl-C end this process at once, with one word and exit code 130, until its command begins.

    While libraries are imported an exception is no way to end: torch aborts at it, and others go on half imported.
    Where Ctrl-C is ignored, as below `nohup`, it stays so.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()  # no other may set this
    if in_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def _end(_number: int, _frame: FrameType | None) -> None:
    with suppress(OSError):
        os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)


def _raise_at_interruptions() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again, so that a command cleans up."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def importing() -> Iterator[None]:
    """The same while a command imports large libraries late."""
    end_at_interruptions()
    try:
        yield
    finally:
        _raise_at_interruptions()


def run_command(main: Callable[[], None]) -> None:
    """Run a command as the whole process, as `exit_on_input_error` does, and end it without closing libraries.

    Closing torch takes 0.4 s, an eighth of the time of a small training. All files are written before.
    """
    plain_streams()
    _raise_at_interruptions()
    try:
        exit_on_input_error(main)
        code: str | int | None = 0
    except SystemExit as ended:
        code = ended.code
    try:
        _finish(sys.stdout)
    except OSError as error:
        _end_unwritten(error, code)
    try:
        sys.stderr.flush()
    except OSError:
        os._exit(code if isinstance(code, int) else 2)
    if code in (0, None):
        os._exit(0)
    raise SystemExit(code)


def _finish(stream: TextIO) -> None:
    """Write what stands in the buffer of a stream. Raises OSError where this, or a write before, failed."""
    stream.flush()
    if isinstance(stream, PlainStream) and stream.failed is not None:
        raise stream.failed


def _end_unwritten(error: OSError, code: str | int | None) -> NoReturn:
    """End this process, whose stdout did not take all. A command that has failed, with 2 or more, has said why.

    What stands in the buffer can never be written, and at the usual end Python would try again.
    """
    if code in (0, 1, None):
        code = BROKEN_PIPE if isinstance(error, BrokenPipeError) else 2
        if code == 2:
            _say(f"error: {printable(_of_the_system(error))}")
    with suppress(OSError):
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 2)
