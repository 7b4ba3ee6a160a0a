"""Errors made for people: what was expected, what came, where, and how to mend it."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Sequence

SHOWN = 10
BROKEN_PIPE = 141  # the exit code of a shell's command that SIGPIPE ends


class InputError(Exception):
    """Something the user gave is wrong; the message is all that the user needs to mend it."""


class HopelessError(InputError):
    """What is wrong with one part of the work, and would be with every other: nothing can go on."""


class UnreachableError(HopelessError):
    """An object store that does not answer, or not to us."""


def listing(problems: Sequence[str]) -> str:
    """The first ten problems, one a line, and how many more there are."""
    lines = [f"  {problem}" for problem in problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"  ... and {len(problems) - SHOWN} more")
    return "\n".join(lines)


def exit_on_input_error(main: Callable[[], None]) -> None:
    """Run a command; bad input ends it with one message on stderr and exit code 2, never a traceback."""
    try:
        main()
    except InputError as error:
        message = str(error)
    except BrokenPipeError:  # whoever read the output went away; what was to come after it was not done
        os._exit(BROKEN_PIPE)
    except OSError as error:  # no permission, no space, no such folder: the system's words say which and where
        message = f"{error.strerror or error}: {error.filename}" if error.filename else str(error)
    else:
        return
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def collect_garbage_seldom() -> None:
    """Make a process that builds large things and ends look for garbage less often.

    Importing torch makes hundreds of thousands of objects that all stay, and so does reading 600,000 trials; looking
    through them again and again takes a fifth of the one and a third of the other.
    """
    gc.set_threshold(100_000, 50, 100)


def run_command(main: Callable[[], None]) -> None:
    """Run a command as the whole process, as `exit_on_input_error` does, and end it without tearing libraries down.

    Taking torch apart again takes 0.4 s, an eighth of what a small training costs; all files are written by then.
    """

    def flushed() -> None:
        main()
        sys.stdout.flush()
        sys.stderr.flush()

    exit_on_input_error(flushed)
    os._exit(0)
