"""Which channel of a file is heard: the mean of all, or one of them.

A trial table holds the choice beside the digest of the file's bytes: `<digest>` for the mean, `<digest>:left` for one
channel. So whatever is made of a trial knows it, and another choice gives another store of features.
"""

from __future__ import annotations

import re

import numpy as np

from pipeline.audio.windowing import Samples
from pipeline.core.errors import InputError
from pipeline.core.sections import MEAN, Channel

SIDES = ("left", "right")  # channels 0 and 1


def content_of(digest: str, channel: Channel) -> str:
    """What a trial table says of a file: its digest, and which channel is heard unless it is the mean."""
    if channel == MEAN:
        return digest
    return f"{digest}:{name_of(channel)}"


def name_of(channel: Channel) -> str:
    """The one name of a channel: channel 0 is left, channel 1 is right. `parse` reads it."""
    return str(channel) if isinstance(channel, str) or channel > 1 else SIDES[channel]


def of_content(content: str) -> tuple[str, Channel]:
    """The digest and the channel. The inverse of `content_of`. Raises InputError for another name of a channel."""
    digest, one, name = content.partition(":")
    return digest, parse(name) if one else MEAN


def parse(name: str) -> Channel:
    """The channel of a name: mean, left, right, or a number from 0. Raises InputError for another name."""
    named: dict[str, Channel] = {"mean": MEAN, "left": "left", "right": "right"}
    if name in named:
        return named[name]
    if re.fullmatch("[0-9]{1,3}", name):
        return int(name)
    raise InputError(f"expected a channel (mean, left, right, or a number from 0), got {name!r}")


def mono(block: Samples, channel: Channel, *, name: str) -> tuple[Samples, Samples]:
    """The channels of a block (n, channels) that are heard, (n, heard), and what is heard of them, (n,).

    Raises InputError, which starts with the name, where the file has no such channel.
    """
    if channel != MEAN:
        number = SIDES.index(channel) if isinstance(channel, str) else channel
        if number >= block.shape[1]:
            raise InputError(
                f"{name}: expected a file with the channel {channel} (counted from 0), got {block.shape[1]} "
                f"channel{'s' * (block.shape[1] > 1)}; name another channel, or hear the mean"
            )
        block = block[:, number : number + 1]
    heard: Samples = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32)
    return block, heard
