"""The parts of an audio file: several files that were joined to one, of one kind or of several.

Decoders hear the first part of such a file and say nothing of the others. A part of the same kind begins where its
opening stands. Parts of other kinds are looked for where the frames, pages or boxes of a part end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

from pipeline.audio import containers, counting
from pipeline.audio.counting import after_id3


def parts(data: bytes) -> list[bytes]:
    """The files that were joined to this one, in order; mostly one."""
    found: list[bytes] = []
    for part in _of_one_kind(data):
        end = _other_kind(part)
        found += [part[:end], *(parts(part[end:]) if end < len(part) else [])]
    return found


def _of_one_kind(data: bytes) -> list[bytes]:
    begins = _BEGINS[name](data) if (name := containers.kind(data)) in _BEGINS else []
    ends = [0, *sorted(begin for begin in begins if begin > after_id3(data)), len(data)]
    return [data[start:end] for start, end in pairwise(ends)]


def _other_kind(data: bytes) -> int:
    """Where a part of another kind begins, or the end of the file.

    Only kinds whose decoders pass over what follows are searched. MP3 and AAC have no opening: frames that follow each
    other show them.
    """
    name = containers.kind(data)
    if name not in _ENDS:
        return len(data)
    first, end = _ENDS[name](data)
    found = [counting.frames_begin(data, end)]
    before = max(first - 1, 0)
    behind = data[before:]  # no opening is looked for at the start
    for other, openings in _OPENINGS.items():
        found += [before + at for at in openings(behind)] if other != name else []
    return min((at for at in found if at > 0), default=len(data))


# ---------------------------------------------------------------- parts of the same kind


def _found(data: bytes, opening: bytes) -> Iterator[int]:
    """Yield the offsets of some bytes, the last one first, as Python searches faster from the end. 0 is left out."""
    place = data.rfind(opening, 1)
    while place >= 0:
        yield place
        place = data.rfind(opening, 1, place)


def _flac_begins(data: bytes) -> list[int]:
    return [at for at in _found(data, b"fLaC") if data[at + 4 : at + 8] in (b"\0\0\0\x22", b"\x80\0\0\x22")]


def _ebml_begins(data: bytes) -> list[int]:
    places = _found(data, containers.EBML)
    return [at for at in places if any(name in data[at : at + 64] for name in (b"webm", b"matroska"))]


def _wav_begins(data: bytes) -> list[int]:
    """A WAV file with nothing behind its chunks is not searched."""
    found = containers.chunks(data)
    if found is None or not (found.unheard or found.size == 0 or found.size >= containers.UNKNOWN_BYTES):
        return []
    return _wav_openings(data)


def _wav_openings(data: bytes) -> list[int]:
    places = _found(data, b"RIFF")
    return [at for at in places if data[at + 8 : at + 12] == b"WAVE" and containers.is_chunk(data, at + 12)]


def _aiff_begins(data: bytes) -> list[int]:
    return [at for at in _found(data, b"FORM") if data[at + 8 : at + 16] in (b"AIFFCOMM", b"AIFCFVER", b"AIFCCOMM")]


def _mp3_begins(data: bytes) -> list[int]:
    """The offsets at which another MP3 file begins: at a frame that says how many follow, or at the tag before it."""
    found, end = [], 0
    for frame in counting.mpeg_frames(data):
        if frame.tag and end:
            found.append(end if data.startswith(b"ID3", end) else frame.place)
        end = frame.place + frame.header.size
    return found


def _ogg_begins(data: bytes) -> list[int]:
    """The offsets of pages that open a stream after a page that opens none."""
    found, before = [], True
    for page in counting.ogg_pages(data):
        if page.first and not before:
            found.append(page.place)
        before = page.first
    return found


def _mp4_begins(data: bytes) -> list[int]:
    return [place for place, name, _ in containers.boxes(data) if name == b"ftyp"]


def _mp4_openings(data: bytes) -> list[int]:
    return [at - 4 for at in _found(data, b"ftyp") if at > 4 and data[at - 4 : at - 1] == bytes(3)]


_BEGINS: dict[str, Callable[[bytes], list[int]]] = {
    "aiff": _aiff_begins,
    "amr": lambda data: list(_found(data, b"#!AMR\n")) + list(_found(data, b"#!AMR-WB\n")),
    "asf": lambda data: list(_found(data, containers.ASF)),
    "caf": lambda data: list(_found(data, b"caff\0\1\0\0desc")),
    "flac": _flac_begins,
    "matroska": _ebml_begins,
    "mp3": _mp3_begins,
    "mp4": _mp4_begins,
    "ogg": _ogg_begins,
    "wav": _wav_begins,
}


# ---------------------------------------------------------------- parts of another kind

_OPENINGS: dict[str, Callable[[bytes], list[int]]] = {
    **{kind: _BEGINS[kind] for kind in ("aiff", "amr", "asf", "caf", "flac", "matroska")},
    "mp4": _mp4_openings,
    "ogg": lambda data: list(_found(data, b"OggS\0\2")),
    "wav": _wav_openings,
}


def _flac_ends(data: bytes) -> tuple[int, int]:
    first = counting.flac_frames(data)
    last = counting.last_flac_frame(data, first)
    end = last[0] + 2 if last else first  # in the last frame, which does not say where it ends
    return end, end


def _mp3_ends(data: bytes) -> tuple[int, int]:
    end = after_id3(data)
    for frame in counting.mpeg_frames(data):
        end = frame.place + frame.header.size
    return after_id3(data), end


def _ogg_ends(data: bytes) -> tuple[int, int]:
    end = max((page.end for page in counting.ogg_pages(data)), default=0)
    return end, end


def _matroska_ends(data: bytes) -> tuple[int, int]:
    end = containers.end_of_segment(data) or containers.end_of_elements(data)
    return end, end


def _aac_ends(data: bytes) -> tuple[int, int]:
    end, _ = counting.aac_frames(data)
    return end, end


# From where on a part of another kind may begin, and where the last frame, page or segment ends.
_ENDS: dict[str, Callable[[bytes], tuple[int, int]]] = {
    "aac": _aac_ends,
    "flac": _flac_ends,
    "matroska": _matroska_ends,
    "mp3": _mp3_ends,
    "ogg": _ogg_ends,
}
