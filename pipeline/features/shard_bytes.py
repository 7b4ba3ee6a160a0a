"""The bytes of a shard file: one chunk for each utterance, each with its crc32c, and an index of the chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

CRC_BYTES = 4
INDEX_ENTRY_BYTES = 16  # offset and length, two uint64
FLOAT16_MAX = 65_504.0
INT8_MAX = 127

Block = NDArray[Any]
Encode = Callable[[Block], NDArray[np.uint8]]


def encode_shard(block: Block, *, shard: int) -> NDArray[np.uint8]:
    """Encode a block (n, ...) as the bytes of a shard file: n chunks with crc32c, and an index of `shard` entries."""
    n = len(block)
    rows = np.ascontiguousarray(block).reshape(n, -1).view(np.uint8)  # (n, row bytes)
    length = rows.shape[1] + CRC_BYTES
    data = np.empty(n * length + shard * INDEX_ENTRY_BYTES + CRC_BYTES, np.uint8)
    chunks = data[: n * length].reshape(n, length)
    chunks[:, :-CRC_BYTES] = rows
    for i in range(n):
        chunks[i, -CRC_BYTES:] = crc32c(rows[i])
    index = data[n * length : -CRC_BYTES].view("<u1").reshape(shard, INDEX_ENTRY_BYTES)
    index[:] = 0xFF  # all ones mean: no such chunk
    index[:n] = np.stack([np.arange(n) * length, np.full(n, length)], axis=1).astype("<u8").view(np.uint8)
    data[-CRC_BYTES:] = crc32c(index)
    return data


def row_checksums(data: NDArray[np.uint8], *, rows: int, shard: int) -> NDArray[np.uint8]:
    """The crc32c of each row (rows, 4), from the bytes of a shard file with an index of `shard` entries."""
    chunks = data[: len(data) - shard * INDEX_ENTRY_BYTES - CRC_BYTES].reshape(rows, -1)
    return chunks[:, -CRC_BYTES:]


def encode_chunk(block: Block) -> NDArray[np.uint8]:
    """Encode the chunk of an array without shards: its values and their crc32c."""
    values = np.ascontiguousarray(block).reshape(-1).view(np.uint8)
    return np.concatenate([values, crc32c(values)])


def crc32c(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The crc32c of some bytes, as four bytes."""
    read_only = np.ascontiguousarray(data).view()
    read_only.flags.writeable = False  # the library copies no bytes that cannot change
    return np.array([google_crc32c.value(read_only)], dtype="<u4").view(np.uint8)


def quantized(frames: Block) -> tuple[Block, Block]:
    """Convert frames (n, T, D) float16 to int8, with one factor for each channel, (D,) float32, to multiply by.

    The largest magnitude of a channel in these n utterances becomes 127. The error is at most half a step, which is
    that magnitude / 254.
    """
    scales = np.abs(frames).max(axis=(0, 1)).astype(np.float32) / INT8_MAX
    steps = frames.astype(np.float32) / np.where(scales > 0, scales, 1)
    return np.rint(steps).astype(np.int8), scales
