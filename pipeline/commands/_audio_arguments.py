"""The arguments that all commands have that hear audio with a trained system."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError

from pipeline.audio import channels
from pipeline.core.errors import InputError
from pipeline.core.sections import MEAN, Channel


def add_channel(parser: ArgumentParser) -> None:
    """Add --channel."""
    parser.add_argument(
        "--channel",
        type=_channel,
        default=MEAN,
        metavar="C",
        help="of files with several: left, right, or a number from 0; default: their mean",
    )


def add_windows(parser: ArgumentParser) -> None:
    """Add --windows. Without it the value is None."""
    parser.add_argument(
        "--windows",
        choices=("mean", "min", "first", "run"),
        help="which windows of a file are heard: all, with the mean or the lowest of their scores; the first; or those "
        "of the run's training; default: those of the calibration, of a run with several, else mean",
    )


def _channel(text: str) -> Channel:
    """A channel by its name, for argparse."""
    try:
        return channels.parse(text)
    except InputError as error:
        raise ArgumentTypeError(str(error)) from None
