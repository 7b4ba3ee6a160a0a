"""FLAC files of many hours in few bytes: every frame holds one value, which no file of speech does."""

from __future__ import annotations

import functools

BLOCK = 65_535  # samples in a frame


def long_flac(*, hours: float, rate: int = 16_000, stated: bool = True) -> bytes:
    """A sound FLAC file (RFC 9639) of `hours`; with stated=False its header does not say how long it is."""
    frames = int(hours * 3600 * rate) // BLOCK
    total = frames * BLOCK if stated else 0
    sizes = BLOCK.to_bytes(2, "big") * 2 + bytes(6)
    info = sizes + ((rate << 44) | (15 << 36) | total).to_bytes(8, "big") + bytes(16)
    return b"fLaC\x80\0\0\x22" + info + b"".join(_frame(number) for number in range(frames))


def _frame(number: int) -> bytes:
    head = b"\xff\xf8\x75\x08" + chr(number).encode() + (BLOCK - 1).to_bytes(2, "big")
    frame = head + bytes([_crc(head, 8, 0x07)]) + b"\0" + (number % 1_000).to_bytes(2, "big")
    return frame + _crc(frame, 16, 0x8005).to_bytes(2, "big")


def _crc(data: bytes, bits: int, polynomial: int) -> int:
    crc, table = 0, _remainders(bits, polynomial)
    for byte in data:
        crc = (crc << 8 & (1 << bits) - 1) ^ table[crc >> bits - 8 ^ byte]
    return crc


@functools.cache
def _remainders(bits: int, polynomial: int) -> list[int]:
    """What each byte alone leaves."""
    found = []
    for byte in range(256):
        crc, top = byte << bits - 8, 1 << bits - 1
        for _ in range(8):
            crc = (crc << 1 ^ polynomial if crc & top else crc << 1) & (1 << bits) - 1
        found.append(crc)
    return found
