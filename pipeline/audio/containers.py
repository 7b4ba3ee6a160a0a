"""What the bytes of an audio file say before they are decoded: its kind, and where its chunks or boxes end.

A header may state a length that is too small. Decoders then stop early and say nothing. So the length is also counted
from the chunks of the file here, and from its frames or packets in `counting`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from pipeline.audio.counting import after_id3

UNKNOWN_BYTES = 0x7FFF_0000  # a WAV file that was written to a pipe states a size above this, as nobody filled it in
MPEG_SYNC, MPEG_LAYER = 0xFFE0, 0x0006  # in the first two bytes of an MPEG frame: eleven bits that are set, and a layer
MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")  # one of these begins an MP4 or MOV file
EBML, ASF = b"\x1aE\xdf\xa3", b"0&\xb2u\x8ef\xcf\x11\xa6\xd9\x00\xaa\x00b\xcel"
ASF_PROPERTIES = b"\xa1\xdc\xab\x8cG\xa9\xcf\x11\x8e\xe4\x00\xc0\x0c Se"
SEGMENT, CLUSTER = b"\x18S\x80g", b"\x1fC\xb6u"
ELEMENTS = (  # of a Matroska segment (RFC 9559, 5): its own, and those of a cluster
    *(CLUSTER, b"\x11M\x9bt", b"\x15I\xa9f", b"\x16T\xaek", b"\x1cS\xbbk", b"\x12T\xc3g", b"\x10C\xa7p", b"\x19A\xa4i"),
    *(b"\xec", b"\xbf", b"\xe7", b"\xa3", b"\xa0", b"\xa7", b"\xab", b"X\x54"),
)
OPENINGS = {  # FFmpeg's names of the kinds
    b"fLaC": "flac",
    b"OggS": "ogg",
    EBML: "matroska",
    ASF: "asf",
    b"#!AMR": "amr",
    b"caff": "caf",
    b".snd": "au",
}
NOT_READ = {
    b"wvpk": "WavPack",
    b"MAC ": "Monkey's Audio",
    b"TTA1": "True Audio",
    b"MPCK": "Musepack",
    b"MP+": "Musepack",
    b".RMF": "RealMedia",
    b"DSD ": "DSD",
    b"FRM8": "DSD",
    b"FLV\x01": "Flash video",
    b"#!SILK": "SILK",
    b"\x02#!SILK": "SILK",
    b"\x0b\x77": "AC-3",
    b"MThd": "MIDI",
}


def kind(data: bytes) -> str | None:
    """The kind of a file by its first bytes, as FFmpeg names it; None for other kinds."""
    start = after_id3(data)
    head = data[start : start + 16]
    for opening, name in OPENINGS.items():
        if head.startswith(opening):
            return name
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and head[8:12] == b"WAVE":
        return "wav"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "aiff"
    if head[4:8] in MP4_BOXES:
        return "mp4"
    first = int.from_bytes(head[:2], "big")
    if first & 0xFFF6 == 0xFFF0:
        return "aac"
    return "mp3" if start or (first & MPEG_SYNC == MPEG_SYNC and first & MPEG_LAYER) else None


def not_read(data: bytes) -> str | None:
    """The name of a kind of audio or film that is not read; None for everything else."""
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "AVI"
    return next((name for opening, name in NOT_READ.items() if data.startswith(opening)), None)


# ---------------------------------------------------------------- MP4


def boxes(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Yield the top-level boxes of an MP4 file: offset, type and stated size (ISO 14496-12, 4.2)."""
    place = 0
    while place + 8 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        if size == 1:  # the size follows the type
            size = int.from_bytes(data[place + 8 : place + 16], "big")
        if size < 8:  # 0 means: up to the end of the file; other values are no box
            break
        yield place, data[place + 4 : place + 8], size
        place += size


def end_of_boxes(data: bytes) -> int:
    """The offset at which the last top-level MP4 box of a file should end."""
    return max((place + size for place, _, size in boxes(data)), default=0)


def bytes_of_media(data: bytes) -> int:
    """The bytes of sound and pictures in an MP4 file."""
    return sum(max(0, min(size, len(data) - place) - 8) for place, name, size in boxes(data) if name == b"mdat")


def end_of_segment(data: bytes) -> int:
    """The offset at which the segment of a Matroska file should end; 0 where it does not say."""
    size, place = _ebml_size(data, len(EBML))
    if data[place + size : place + size + 4] != SEGMENT or size < 0:
        return 0
    length, body = _ebml_size(data, place + size + 4)
    return 0 if length < 0 else body + length


def end_of_elements(data: bytes) -> int:
    """The offset at which the elements of a Matroska segment that states no size end, as those of a live stream."""
    size, place = _ebml_size(data, len(EBML))
    place = _ebml_size(data, place + size + 4)[1]
    while name := next((name for name in ELEMENTS if data.startswith(name, place)), b""):
        size, body = _ebml_size(data, place + len(name))
        if size < 0 and name != CLUSTER:
            break
        place = body + max(size, 0)  # into a cluster that states no size, too
    return min(place, len(data))


def asf_states_length(data: bytes) -> bool:
    """Whether a WMA file states how long it plays, beyond its preroll; one that was written to a pipe does not."""
    place = data.find(ASF_PROPERTIES)
    plays, preroll = (int.from_bytes(data[at : at + 8], "little") for at in (place + 64, place + 80))
    return place >= 0 and plays > 10_000 * preroll  # in 100 ns and in ms


def _ebml_size(data: bytes, place: int) -> tuple[int, int]:
    """A size of one to eight bytes (RFC 8794, 4), -1 where it is unknown, and the offset after it."""
    first = data[place] if place < len(data) else 0
    width = 9 - first.bit_length() if first else 8
    size = int.from_bytes(data[place : place + width], "big") & ((1 << 7 * width) - 1)
    return -1 if size == (1 << 7 * width) - 1 else size, place + width


# ---------------------------------------------------------------- CAF


def caf_with_size(data: bytes) -> bytes:
    """A CAF file with the size of its samples, where its header has -1: up to the end of the file, as of a recorder."""
    place = 8
    while place + 12 <= len(data):
        size = int.from_bytes(data[place + 4 : place + 12], "big", signed=True)
        if data[place : place + 4] == b"data" and size == -1:
            return data[: place + 4] + (len(data) - place - 12).to_bytes(8, "big") + data[place + 12 :]
        if size < 0:
            break
        place += 12 + size
    return data


# ---------------------------------------------------------------- WAV and AIFF


class Chunks(NamedTuple):
    """The chunk of samples in a WAV or AIFF file.

    start: the offset of the samples. size: their bytes by the header. codec: the format tag of WAV. rate: bytes in a
    second, 0 for AIFF. unheard: bytes after the samples that are neither chunks nor zeros.
    """

    start: int
    size: int
    codec: int
    rate: int
    unheard: int


def chunks(data: bytes) -> Chunks | None:
    """Walk the chunks of a WAV or AIFF file; None where there are no samples."""
    order: Literal["little", "big"] = "little" if data[:4] in (b"RIFF", b"RF64", b"BW64") else "big"
    samples = b"SSND" if data[:4] == b"FORM" else b"data"
    place, start, size, codec, rate, long = 12, 0, 0, 0, 0, 0
    while is_chunk(data, place):
        name, stated = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], order)
        body = place + 8
        if start and (name == samples or body + stated > len(data) + 1):
            break  # samples that no decoder reads, or samples that look like a chunk
        if name == b"ds64":
            long = int.from_bytes(data[body + 8 : body + 16], order)
        elif name == b"fmt ":
            codec = int.from_bytes(data[body : body + 2], order)
            rate = int.from_bytes(data[body + 8 : body + 12], order)
        elif name == samples:
            start, size = body, stated
            stated = size = long if stated == 0xFFFF_FFFF and long else stated
        place = body + stated + (stated & 1 and not is_chunk(data, body + stated))
    if not start:
        return None
    rest = data[start + size :] if place + 8 < len(data) else b""
    return Chunks(start, size, codec, rate, len(rest.rstrip(b"\0")))


def is_chunk(data: bytes, place: int) -> bool:
    """Whether the name of a chunk may stand at an offset. Another file that follows is no chunk."""
    name = data[place : place + 4]
    printable = len(name) == 4 and all(32 <= byte < 127 for byte in name)
    return printable and place + 8 <= len(data) and name not in (b"RIFF", b"RIFX", b"RF64", b"FORM")


def with_size(data: bytes, found: Chunks) -> bytes:
    """Return a WAV file with sizes in its header that reach to the end of the file."""
    size = (len(data) - found.start).to_bytes(4, "little")
    whole = (len(data) - 8).to_bytes(4, "little")
    return data[:4] + whole + data[8 : found.start - 4] + size + data[found.start :]
