"""The parser of a command or stage: with its full name, and with help text that keeps its own lines."""

from __future__ import annotations

from argparse import ArgumentParser, RawDescriptionHelpFormatter

TAUGHT_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,59}"  # of a teaching, which becomes an attack
MOST_FOLDS = 100_000  # resamples of a bootstrap; more take hours and all memory, and change no digit that is shown


def parser_of(name: str, description: str, details: str = "") -> ArgumentParser:
    """A parser whose help shows `description` before the options and `details` after them, with their line breaks.

    name: as people type it, such as `bonafide plot`.
    """
    return ArgumentParser(
        prog=name, description=description, epilog=details, formatter_class=RawDescriptionHelpFormatter
    )
