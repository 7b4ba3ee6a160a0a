"""Errors for people. Their message says where the problem is, the expected value, the actual value, and a remedy."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Sequence

SHOWN = 10
BROKEN_PIPE = 141  # the exit code of a command that SIGPIPE ended


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


def exit_on_input_error(main: Callable[[], None]) -> None:
    """Run a command. Bad input ends it with one message on stderr and exit code 2, without a traceback."""
    try:
        main()
    except InputError as error:
        message = str(error)
    except BrokenPipeError:  # the reader of the output has ended, so the command did not finish its work
        os._exit(BROKEN_PIPE)
    except OSError as error:  # no permission, no space, no such folder: the system's own words say it
        message = f"{error.strerror or error}: {error.filename}" if error.filename else str(error)
    else:
        return
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def collect_garbage_seldom() -> None:
    """Make Python look for garbage less often, in a process that builds large objects and then ends.

    Importing torch, or reading 600,000 trials, makes hundreds of thousands of objects that all stay. Python's repeated
    search through them takes a fifth of the time of such an import, and a third of the time of such a reading.
    """
    gc.set_threshold(100_000, 50, 100)


def run_command(main: Callable[[], None]) -> None:
    """Run a command as the whole process, as `exit_on_input_error` does, and end it without closing libraries.

    Closing torch takes 0.4 s, an eighth of the time of a small training. All files are written before.
    """

    def flushed() -> None:
        main()
        sys.stdout.flush()
        sys.stderr.flush()

    exit_on_input_error(flushed)
    os._exit(0)
