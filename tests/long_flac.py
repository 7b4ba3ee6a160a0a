"""FLAC files of many hours in few bytes: every frame holds one value, which no file of speech does."""

from __future__ import annotations

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
    crc, top = 0, 1 << bits - 1
    for byte in data:
        crc ^= byte << bits - 8
        for _ in range(8):
            crc = (crc << 1 ^ polynomial if crc & top else crc << 1) & (1 << bits) - 1
    return crc
