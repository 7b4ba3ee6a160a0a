"""How long compressed audio is, counted from its frames and packets without decoding them.

Each format says in every frame or packet how many samples it holds: MPEG audio (ISO 11172-3, 2.4.1.3, and 13818-3),
FLAC (RFC 9639, 9.1), Opus in Ogg (RFC 6716, 3.1, and RFC 7845), AAC in ADTS (ISO 13818-7, 6.2) and AMR (RFC 4867, 5).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

ID3_HEADER = 10  # bytes of the header of an ID3v2 tag; its last four hold the size, seven bits in each


def after_id3(data: bytes, start: int = 0) -> int:
    """The offset after an ID3v2 tag at `start`, if there is one."""
    if not data.startswith(b"ID3", start):
        return start
    size = 0
    for byte in data[start + ID3_HEADER - 4 : start + ID3_HEADER]:
        size = size << 7 | byte & 0x7F
    return start + ID3_HEADER + size


# ---------------------------------------------------------------- MPEG audio (MP3)

BIT_RATES = {  # kbit/s, by MPEG 1 or later and layer; index 0 would be a free rate
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
MPEG_RATES = (44_100, 48_000, 32_000)  # Hz, of MPEG 1; half of it in MPEG 2, a quarter in MPEG 2.5


class MpegHeader(NamedTuple):
    """What the four bytes of a frame's header say. tag_at: where a frame count stands, from the start of the frame."""

    size: int
    samples: int
    rate: int
    tag_at: int


class MpegFrame(NamedTuple):
    """One whole frame. tag: it holds no audio and says how many frames follow; stated is that number, or 0."""

    place: int
    header: MpegHeader
    tag: bool
    stated: int


@functools.lru_cache(4096)
def mpeg_header(head: bytes) -> MpegHeader | None:
    """Four bytes as the header of a frame; None for other bytes and for a free bit rate."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    bits, rate, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version == 1 or layer == 4 or bits in (0, 15) or rate == 3:
        return None
    hertz = MPEG_RATES[rate] >> (3 - version if version else 2)
    first = version == 3
    samples = 384 if layer == 1 else 1152 if first or layer == 2 else 576
    rate_bits = 1000 * BIT_RATES[first, layer][bits]
    size = (12 * rate_bits // hertz + padding) * 4 if layer == 1 else samples // 8 * rate_bits // hertz + padding
    mono = head[3] >> 6 == 3
    return MpegHeader(size, samples, hertz, 4 + ((17 if mono else 32) if first else (9 if mono else 17)))


def mpeg_frames(data: bytes) -> Iterator[MpegFrame]:
    """Yield the whole frames of a file. Tags and other bytes between them are passed over."""
    place = after_id3(data)
    while True:
        header = mpeg_header(data[place : place + 4])
        if header is None or place + header.size > len(data):
            place = _next_mpeg(data, place)
            if place < 0:
                return
            continue
        at = place + header.tag_at
        tag, stated = data[at : at + 4] in (b"Xing", b"Info"), 0
        if tag and data[at + 7] & 1:
            stated = int.from_bytes(data[at + 8 : at + 12], "big")
        yield MpegFrame(place, header, tag, stated)
        place += header.size


def _next_mpeg(data: bytes, place: int) -> int:
    """The offset of the next frame that is followed by another, by a tag or by the end of the file; -1 for none."""
    behind = after_id3(data, place)
    place = behind if behind > place else place + 1
    while (place := data.find(b"\xff", place)) >= 0:
        header = mpeg_header(data[place : place + 4])
        if header:
            end = place + header.size
            follows = data[end : end + 3] in (b"", b"TAG", b"ID3", b"APE")
            if end <= len(data) and (follows or mpeg_header(data[end : end + 4])):
                return place
        place += 1
    return -1


def without_tags(data: bytes) -> bytes:
    """An MP3 file without the tags after its first frame, at which FFmpeg would stop."""
    kept, end = [], 0
    for frame in mpeg_frames(data):
        if not end or data[end : end + 3] not in (b"TAG", b"ID3", b"APE"):
            kept.append(data[end : frame.place])
        end = frame.place + frame.header.size
        kept.append(data[frame.place : end])
    return b"".join([*kept, data[end:]])


class Mpeg(NamedTuple):
    """The frames of a file: seconds of audio, the end of the frame that counts them, and that count (0: unknown)."""

    seconds: float
    frames: int
    stated: int
    after_tag: int


def mpeg(data: bytes) -> Mpeg:
    """Count the frames of an MP3 file that is one part."""
    seconds, frames, stated, after_tag = 0.0, 0, 0, 0
    for frame in mpeg_frames(data):
        if frame.tag and not frames:
            stated, after_tag = frame.stated, frame.place + frame.header.size
        else:
            frames += 1
            seconds += frame.header.samples / frame.header.rate
    return Mpeg(seconds, frames, stated, after_tag)


# ---------------------------------------------------------------- FLAC

FLAC_TAIL = 2**18  # bytes before the end of a file that are searched for the last frame
FLAC_BLOCKS = (0, 192, 576, 1152, 2304, 4608, 0, 0, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)


def flac_ends(data: bytes, stated: int) -> bool:
    """Whether the last frame of a FLAC file ends with the stated number of samples."""
    found = last_flac_frame(data, max(flac_frames(data), len(data) - FLAC_TAIL))
    return found is not None and found[1] == stated


def last_flac_frame(data: bytes, first: int) -> tuple[int, int] | None:
    """The offset of the last frame of a FLAC file, and the samples up to its end; None where none is behind `first`.

    The frame is found from behind. Bytes inside of a frame may look like another one, but hardly with a valid checksum
    and the properties of the first frame.
    """
    start = after_id3(data)
    block = int.from_bytes(data[start + 8 : start + 10], "big")
    start = flac_frames(data)
    form = _flac_form(data[start : start + 4])
    place = len(data)
    while (place := data.rfind(b"\xff", first, place)) >= 0:
        head = data[place : place + 16]
        if _flac_form(head) == form and (end := _flac_end(head, block)) is not None:
            return place, end
    return None


def flac_frames(data: bytes) -> int:
    """The offset of the first frame of a FLAC file, behind its metadata blocks."""
    place = after_id3(data) + 4
    while place + 4 <= len(data):
        last = data[place] & 0x80
        place += 4 + int.from_bytes(data[place + 1 : place + 4], "big")
        if last:
            break
    return place


def _flac_form(head: bytes) -> tuple[int, ...]:
    """What all frames of a file have in common: the first two bytes, and the codes of rate and sample size."""
    return (head[0], head[1], head[2] & 15, head[3] & 15) if len(head) >= 4 else ()


def _flac_end(head: bytes, block: int) -> int | None:
    """The number of samples up to the end of a frame, by its header. block: the samples in frames of one size."""
    if len(head) < 6:
        return None
    lead = head[4]
    more = 0 if lead < 0x80 else 8 - (lead ^ 0xFF).bit_length() - 1  # bytes that follow, as in UTF-8
    if lead >= 0x80 and not 1 <= more <= 6:
        return None
    number = lead if not more else lead & (0x3F >> more)
    for byte in head[5 : 5 + more]:
        number = number << 6 | byte & 0x3F
    code, place = head[2] >> 4, 5 + more
    size = FLAC_BLOCKS[code]
    if code in (6, 7):
        size = int.from_bytes(head[place : place + code - 5], "big") + 1
        place += code - 5
    rate = head[2] & 15
    place += 1 if rate == 12 else 2 if rate in (13, 14) else 0
    if not size or place >= len(head) or _crc8(head[:place]) != head[place]:
        return None
    return (number if head[1] & 1 else number * block) + size


def _crc8(data: bytes) -> int:
    """The checksum of a FLAC frame's header (polynomial x^8 + x^2 + x + 1)."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ 0x107) if crc & 0x80 else crc << 1
    return crc


# ---------------------------------------------------------------- Ogg


class Page(NamedTuple):
    """One whole page (RFC 3533). first: of its stream. granule: -1 where no packet ends. lacing: sizes of segments."""

    place: int
    first: bool
    granule: int
    serial: int
    body: int
    lacing: bytes
    end: int


def ogg_pages(data: bytes) -> Iterator[Page]:
    """Yield the whole pages of a file."""
    place = data.find(b"OggS")
    while place >= 0 and place + 27 <= len(data):
        body = place + 27 + data[place + 26]
        lacing = data[place + 27 : body]
        end = body + sum(lacing)
        if end > len(data):
            return
        granule = int.from_bytes(data[place + 6 : place + 14], "little", signed=True)
        serial = int.from_bytes(data[place + 14 : place + 18], "little")
        yield Page(place, bool(data[place + 5] & 2), granule, serial, body, lacing, end)
        place = end if data.startswith(b"OggS", end) else data.find(b"OggS", end)


def ogg_size(data: bytes) -> int:
    """The bytes that the pages of a file state; at least one more than it has, where the last packet is not whole."""
    end, unfinished = 0, True
    for page in ogg_pages(data):
        end, unfinished = page.end, page.lacing[-1:] == b"\xff"
    if (place := data.rfind(b"OggS")) >= end:  # a page that is cut off
        body = place + 27 + (data[place + 26] if place + 26 < len(data) else 1)
        return max(body + sum(data[place + 27 : body]), len(data) + 1)
    return len(data) + 1 if unfinished else end


class Ogg(NamedTuple):
    """Of the first stream: the last granule position, the largest one, and samples at 48 kHz by its Opus packets."""

    last: int
    largest: int
    opus: int | None


def ogg(data: bytes) -> Ogg:
    """Look through the pages of an Ogg file that is one part."""
    last, largest, total, packets, skip = 0, 0, 0, 0, 0
    serial, is_opus, open_packet = None, False, False
    for page in ogg_pages(data):
        if serial is None:
            serial = page.serial
            is_opus = data.startswith(b"OpusHead", page.body)
            skip = int.from_bytes(data[page.body + 10 : page.body + 12], "little")
        if page.serial != serial:
            continue
        if page.granule >= 0:
            last, largest = page.granule, max(largest, page.granule)
        place = page.body
        for size in page.lacing if is_opus else b"":
            if not open_packet:
                packets += 1
                total += _opus_samples(data[place : place + 2]) if packets > 2 and size else 0  # two are headers
            open_packet = size == 255
            place += size
    return Ogg(last, largest, max(0, total - skip) if is_opus else None)


def _opus_samples(head: bytes) -> int:
    """Samples at 48 kHz of a packet, by its first two bytes."""
    config, code = head[0] >> 3, head[0] & 3
    if config < 12:
        size = (480, 960, 1920, 2880)[config & 3]
    elif config < 16:
        size = (480, 960)[config & 1]
    else:
        size = 120 << (config & 3)
    frames = head[1] & 0x3F if code == 3 and len(head) > 1 else (1, 2, 2, 1)[code]
    return size * frames


# ---------------------------------------------------------------- AAC and AMR, frame by frame

FRAMES = 4  # that follow each other are no accident

AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)  # Hz
AMR_SIZES = {  # bytes of a frame of 20 ms after its first byte, by its mode
    b"#!AMR\n": (12, 13, 15, 17, 19, 20, 26, 31, 5, 0, 0, 0, 0, 0, 0, 0),
    b"#!AMR-WB\n": (17, 23, 32, 36, 40, 46, 50, 58, 60, 5, 0, 0, 0, 0, 0, 0),
}


def frames_begin(data: bytes, start: int) -> int:
    """The offset of the first of several frames of MP3 or AAC that follow each other, from `start` on; -1 for none."""
    place = start - 1
    while (place := data.find(b"\xff", place + 1)) >= 0:
        if any(_follow(data, place, size_of) for size_of in (_mpeg_size, _aac_size)):
            return place
    return -1


def _follow(data: bytes, place: int, size_of: Callable[[bytes], int]) -> bool:
    """Whether whole frames follow each other from an offset."""
    for _ in range(FRAMES):
        size = size_of(data[place : place + 7])
        if not size or place + size > len(data):
            return False
        place += size
    return True


def _mpeg_size(head: bytes) -> int:
    header = mpeg_header(head[:4])
    return header.size if header else 0


def _aac_size(head: bytes) -> int:
    """Bytes of a frame of AAC in ADTS by its header; 0 for other bytes."""
    if len(head) < 7 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0 or head[2] >> 2 & 15 >= len(AAC_RATES):
        return 0
    size = (int.from_bytes(head[3:6], "big") & 0x3FFE0) >> 5
    return size if size >= len(head) else 0


def aac_seconds(data: bytes) -> float | None:
    """Seconds of audio in the frames of AAC in ADTS; None where the frames do not reach the end of the file."""
    place, seconds = aac_frames(data)
    return seconds if place == len(data) or data[place : place + 3] in (b"TAG", b"APE", b"ID3") else None


def aac_frames(data: bytes) -> tuple[int, float]:
    """Where the frames of AAC in ADTS that follow each other end, and their seconds of audio."""
    place, seconds = after_id3(data), 0.0
    while size := _aac_size(data[place : place + 7]):
        seconds += 1024 * ((data[place + 6] & 3) + 1) / AAC_RATES[data[place + 2] >> 2 & 15]
        place += size
    return min(place, len(data)), seconds


def amr_seconds(data: bytes) -> float | None:
    """Seconds of audio in the frames of AMR; None where the frames do not reach the end of the file."""
    for opening, sizes in AMR_SIZES.items():
        if data.startswith(opening):
            place, frames = len(opening), 0
            while place < len(data):
                place += 1 + sizes[data[place] >> 3 & 15]
                frames += 1
            return frames * 0.02 if place == len(data) else None
    return None
