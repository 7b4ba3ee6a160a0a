"""The feature store: a Zarr v3 group on a disk or an object store, written shard by shard.

`pipeline.features.reader` reads it.

    <root>/<encoder fingerprint>/<set>-<trials fingerprint>.zarr/
        zarr.json                     attributes: the format's version and the spec
        n_frames                      (N,) int32
        clean/layer_07                (N, T, D) float16, or int8
        clean/scale_07                (shards, D) float32, only with int8: the factors of each shard's values
        clean/pooled_07               (N, 2, D) float32: mean and standard deviation over the valid frames
        done/clean/00003.json         the marker of shard 3, written last: the sha256 of its files, the crc32c of their
                                      rows in order, what made them, and its own checksum

Arrays are uncompressed. Each utterance is an inner chunk with a crc32c, and a shard file holds `shard` of them. So a
shard file is rows of equal length, `row bytes | crc32c`, and then the shard index. Any Zarr reader opens it, and a
memory map of it is an array. This module makes the bytes of a shard itself, not with zarr-python, so that it can write
a file under another name and rename it when it is complete. A test compares the bytes with those of zarr-python.

The crc32c behind a row says that its bytes are whole, not that they belong there. The marker says that: a reader that
is given another row, or the file of another shard, finds another checksum than the marker has for this place.

On a disk of this machine a lock allows one extraction at a time to write a store. Object stores have no such lock:
there you must not start two.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.contracts import Tap
from pipeline.core.errors import InputError, listing
from pipeline.core.files import folder_beside, parse_json, read_json, replace_folder, write_bytes, writing
from pipeline.core.object_store import is_local, is_there, read_files, sizes_below
from pipeline.features.shard_bytes import CRC_BYTES, Block, Encode, encode_chunk, encode_shard, quantized, row_checksums
from pipeline.features.specs import (
    Spec,
    difference,
    fingerprint,
    is_spec,
    layer_array,
    plain,
    pooled_array,
    scale_array,
)
from pipeline.features.zarr_metadata import FORMAT, metadata, view_metadata

WRITERS = min(8, 2 * (os.cpu_count() or 1))  # files of a shard that are written at once
MARK = "marker"  # key of a marker's own checksum; markers of older versions do not have it
ROWS = "rows "  # before an array: key of the crc32c of its rows, in base64; markers of older versions do not have it
MADE = "made "  # before an array of frames: key of the libraries that made it, or `imported`; not of older versions
REPAIR = "delete it, if it is there, and run `dvc repro -f extract`"
OTHER_SPEC = "go back to those parameters, or move the store away and run `dvc repro extract`"


class Store:
    """An open store: writes shards, and checks which shards are complete."""

    def __init__(self, path: Path, spec: Spec) -> None:
        self.path = path
        self.spec = spec

    @staticmethod
    @contextlib.contextmanager
    def locked(path: Path) -> Iterator[None]:
        """Keep other extractions from writing this store on a disk; on an object store this does nothing.

        Raises InputError where another extraction writes it already.
        """
        if not is_local(path):
            yield
            return
        place = path.with_name(path.name + ".lock")
        with writing(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            file = place.open("w")
        with file as lock:  # the kernel releases the lock, however this process ends
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not place.exists() or not os.path.samestat(os.fstat(lock.fileno()), place.stat()):
                    raise BlockingIOError  # `cache gc` deleted it with its store after this process opened it
            except BlockingIOError:
                raise InputError(f"{path}: another extraction is writing this store; wait for it or stop it") from None
            try:
                yield
            finally:  # closing is not enough: a process that is being started may have the file open for a moment
                fcntl.flock(lock, fcntl.LOCK_UN)

    @classmethod
    def create(cls, root: Path, set_name: str, spec: Spec) -> Store:
        """Open the store of a spec, or make it where there is none; damaged metadata is written again.

        Raises InputError where its place holds a store of another spec or format.
        """
        path, files = root / spec.folder(set_name), metadata(spec)
        made = is_there(path / "zarr.json")
        if is_local(path) and path.exists() and not made:
            raise InputError(f"{path}: expected a feature store, got a folder without zarr.json; move it away")
        if not made and is_local(path):
            beside = folder_beside(path)
            _write_tree(beside, files)
            replace_folder(beside, path, mark="zarr.json")
        elif not made:
            _write_tree(path, files)
        store = cls.open(path, spec)
        store._restore(files)
        return store

    @classmethod
    def open(cls, path: Path, spec: Spec | None = None) -> Store:
        """Open an existing store. Raises InputError where it is missing, or has another spec or format."""
        if not is_there(path / "zarr.json"):
            raise InputError(f"{path}: no feature store there; run `dvc repro -f extract`")
        move = "move the store away and run `dvc repro -f extract`"
        found = read_json(path / "zarr.json", what="feature store", keys=["attributes"], remedy=move)["attributes"]
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            version = found.get("format") if isinstance(found, dict) else None
            raise InputError(f"{path}: expected store format {FORMAT}, got {version}; {move}")
        kept = found.get("spec")
        if not isinstance(kept, dict) or not is_spec(kept):
            raise InputError(f"{path}/zarr.json: expected the spec of a feature store, got another; {move}")
        if spec is not None and kept != plain(dataclasses.asdict(spec)):
            raise InputError(f"{path}: the store was made with another spec ({difference(kept, spec)}); {OTHER_SPEC}")
        return cls(path, Spec(**kept))

    # ------------------------------------------------ writing

    def add_arrays(self, view: str, layers: Iterable[Tap], *, attributes: Mapping[str, Any] | None = None) -> None:
        """Write the metadata of a view and of its layers where it is missing or damaged: the group, then the arrays.

        attributes: those of the view; None keeps those that it has.
        """
        known = self.attributes(view) if attributes is None else attributes
        self._restore(view_metadata(self.spec, view, layers, known))

    def attributes(self, view: str) -> dict[str, Any]:
        """The attributes of a view; empty where the view does not exist. Raises InputError where it is no view."""
        path = self.path / view / "zarr.json"
        if not is_there(path):
            return {}
        return dict(read_json(path, what="view of a feature store", keys=["attributes"], remedy=REPAIR)["attributes"])

    def _restore(self, files: Mapping[str, bytes]) -> None:
        """Write the files that are missing or have other bytes."""
        there = read_files([self.path / name for name in files])
        _write_tree(self.path, {name: data for name, data in files.items() if there.get(self.path / name) != data})

    def sweep(self) -> None:
        """Remove the unfinished files of killed writers. Only the holder of the lock may call it."""
        if is_local(self.path):
            for folder, _, names in os.walk(self.path):
                for name in names:
                    if name.endswith(".part"):
                        Path(folder, name).unlink(missing_ok=True)

    def missing(self, view: str, layers: Sequence[Tap], shard: int) -> tuple[Tap, ...]:
        """The layers that a shard lacks: they are not in its marker, or their files are gone."""
        return self._lacking(view, layers, shard, self.marker(view, shard), self._has)

    def incomplete(self, view: str, layers: Sequence[Tap]) -> dict[int, tuple[Tap, ...]]:
        """The shards of a view that lack layers, with those layers."""
        # One listing for an object store: a request for each name takes too long.
        has = self._has if is_local(self.path) else sizes_below(self.path).__contains__
        markers = (_sound(path, data) for path, data in self._marker_files(view))
        lacking = (self._lacking(view, layers, i, marker, has) for i, marker in enumerate(markers))
        return {shard: found for shard, found in enumerate(lacking) if found}

    def _lacking(
        self, view: str, layers: Sequence[Tap], shard: int, marker: Mapping[str, str], has: Callable[[str], bool]
    ) -> tuple[Tap, ...]:
        def there(array: str) -> bool:
            return array in marker and has(self.shard_name(array, shard))

        if not there("n_frames"):
            return tuple(layers)
        return tuple(
            layer for layer in layers if not all(there(f"{view}/{array.name}") for array in self.spec.arrays(layer))
        )

    def _has(self, name: str) -> bool:
        return is_there(self.path / name)

    def markers(self, view: str) -> list[dict[str, str]]:
        """The marker of every shard, as its file says: array -> sha256 of the shard file; empty without a marker."""
        return [_marker(path, data) for path, data in self._marker_files(view)]

    def rows(self, marker: Mapping[str, str], array: str, shard: int) -> Block | None:
        """What a marker says of the rows of an array: their crc32c (n, 4), uint8; None of an older version's shard.

        Raises InputError where it says something else.
        """
        text = marker.get(ROWS + array)
        if text is None:
            return None
        try:
            sums = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
            return sums.reshape(len(self.spec.rows(shard)), CRC_BYTES)
        except (binascii.Error, ValueError):
            path = self.shard_path(array, shard)
            raise InputError(f"{path}: its marker has other checksums than one for each row; {REPAIR}") from None

    def marker(self, view: str, shard: int) -> dict[str, str]:
        """The complete arrays of a shard: array -> sha256 of its shard file; empty without a valid marker."""
        path = self._marker_path(view, shard)
        return _sound(path, read_files([path]).get(path))

    def _marker_files(self, view: str) -> list[tuple[Path, bytes | None]]:
        paths = [self._marker_path(view, shard) for shard in range(self.spec.shards)]
        found = read_files(paths)
        return [(path, found.get(path)) for path in paths]

    def _marker_path(self, view: str, shard: int) -> Path:
        return self.path / "done" / view / f"{shard:05d}.json"

    def shard_path(self, array: str, shard: int) -> Path:
        """The file of one shard of an array."""
        return self.path / self.shard_name(array, shard)

    def shard_name(self, array: str, shard: int) -> str:
        """The path of that file in the store."""
        axes = 1 if array == "n_frames" else 2 if array.rpartition("/")[2].startswith("scale_") else 3
        return "/".join([array, "c", str(shard), *["0"] * (axes - 1)])

    def write(
        self,
        view: str,
        shard: int,
        features: Mapping[Tap, Block],
        pooled: Mapping[Tap, Block],
        n_frames: Block,
        *,
        made: str | None = None,
    ) -> None:
        """Write some layers of one shard, and then its marker.

        Args:
            features: layer -> (n, T, D) float16. pooled: layer -> (n, 2, D) float32. n_frames: (n,).
            made: by which libraries, or `imported`; None where nobody knows.

        The same blocks always give the same bytes. Each file is replaced in one step.
        """
        arrays: dict[str, tuple[Block, Encode]] = {"n_frames": (self._padded(n_frames), encode_chunk)}
        sharded = partial(encode_shard, shard=self.spec.shard)
        for layer, block in features.items():
            if self.spec.storage == "int8":
                block, scales = quantized(block)
                arrays[f"{view}/{scale_array(layer)}"] = scales, encode_chunk
            arrays[f"{view}/{layer_array(layer)}"] = block, sharded
            arrays[f"{view}/{pooled_array(layer)}"] = pooled[layer], sharded

        marker = self._without(view, shard, arrays)

        def put(name: str) -> dict[str, str]:
            block, encode = arrays[name]
            data = encode(block)
            found = {name: _put(self.shard_path(name, shard), data.data)}
            if encode is sharded:
                sums = row_checksums(data, rows=len(block), shard=self.spec.shard)
                found[ROWS + name] = base64.b64encode(sums.tobytes()).decode()
            return found

        with ThreadPoolExecutor(WRITERS) as executor:  # several at once, because each waits for the disk
            for found in executor.map(put, arrays):
                marker |= found
        if made is not None:
            marker |= {f"{MADE}{view}/{layer_array(layer)}": made for layer in features}
        self._mark(view, shard, marker)

    def _without(self, view: str, shard: int, arrays: dict[str, tuple[Block, Encode]]) -> dict[str, str]:
        """Take the arrays that will be replaced out of the marker, and return the rest of it.

        So a process that is killed while it writes leaves no marker for a mixture of old and new files. `n_frames` is
        taken out of `arrays` where the store has the same bytes already.
        """
        marker = self.marker(view, shard)
        block, encode = arrays["n_frames"]
        same = marker.get("n_frames") == hashlib.sha256(encode(block).data).hexdigest()
        if same and is_there(self.shard_path("n_frames", shard)):
            del arrays["n_frames"]
        kept = {key: value for key, value in marker.items() if key.rpartition(" ")[2] not in arrays}
        if kept != marker:
            self._mark(view, shard, kept)
        return kept

    def _mark(self, view: str, shard: int, marker: Mapping[str, str]) -> None:
        _put(self._marker_path(view, shard), _marker_bytes({**marker, MARK: fingerprint(marker)}))

    def take(self, view: str, shard: int, files: Mapping[str, bytes], facts: Mapping[str, str]) -> None:
        """Write files of another store as they are, and then the marker.

        files: array -> the bytes of its shard file. facts: what the marker of that store says of these arrays.
        """
        marker = self.marker(view, shard)
        kept = {key: value for key, value in marker.items() if key.rpartition(" ")[2] not in files}
        if kept != marker:
            self._mark(view, shard, kept)
        for array, data in files.items():
            _put(self.shard_path(array, shard), data)
        self._mark(view, shard, {**kept, **facts})

    def checksum_of_frames(self, n_frames: Block) -> str:
        """What a marker says of the counts of frames (n,) of its shard: the sha256 of their file."""
        return hashlib.sha256(encode_chunk(self._padded(n_frames)).data).hexdigest()

    def _padded(self, n_frames: Block) -> Block:
        """Fill up the last chunk: Zarr stores every chunk of an array without shards in full."""
        frames = np.full(self.spec.shard, -1, "<i4")
        frames[: len(n_frames)] = n_frames
        return frames

    # ------------------------------------------------ checking

    def digest(self, views: Sequence[str], layers: Sequence[Tap], *, pooled: bool = False) -> str:
        """The sha256 over the checksums of all shards of some views and layers. pooled: of the pooled arrays alone.

        Raises InputError where a shard is not complete.
        """
        digest = hashlib.sha256()
        for view in views:
            wanted = self.names(view, layers, pooled=pooled)
            for shard, marker in enumerate(self.markers(view)):
                for array in wanted:
                    if array not in marker:
                        raise InputError(
                            f"{self.path}: shard {shard} of {array} is missing; run `dvc repro -f extract`"
                        )
                    digest.update(f"{array} {shard} {marker[array]}\n".encode())
        return digest.hexdigest()

    def made(self, views: Sequence[str], layers: Sequence[Tap]) -> dict[tuple[str, Tap], set[str]]:
        """What made the shards of some views and layers: versions of libraries, or `imported`; empty of older ones."""
        found: dict[tuple[str, Tap], set[str]] = {}
        for view in views:
            markers = self.markers(view)
            for layer in layers:
                key = f"{MADE}{view}/{layer_array(layer)}"
                found[view, layer] = {marker[key] for marker in markers if key in marker}
        return found

    def verify(self, views: Sequence[str], layers: Sequence[Tap], *, pooled: bool = False) -> int:
        """Read every shard file, compare its sha256 with its marker, and return the number of files.

        pooled: those of the pooled arrays alone.

        Raises InputError with the files that differ or are missing.
        """
        wrong: list[str] = []
        files = 0
        for view in views:
            for shard, marker in enumerate(self.markers(view)):
                for array in self.names(view, layers, pooled=pooled):
                    files += 1
                    path, expected = self.shard_path(array, shard), marker.get(array, "no mark")
                    data = read_files([path]).get(path)
                    got = "no file" if data is None else hashlib.sha256(data).hexdigest()
                    line = f"{path}: expected sha256 {expected[:12]}..., got {got[:12]}"
                    if got != expected and line not in wrong:  # n_frames comes again with every view
                        wrong.append(line)
        if wrong:
            raise InputError(f"{len(wrong)} of {files} shard files are damaged; {REPAIR}:\n{listing(wrong)}")
        return files

    def names(self, view: str, layers: Sequence[Tap], *, pooled: bool = False) -> list[str]:
        """The names of all arrays of some layers of a view; pooled: without those of frames."""
        arrays = (array.name for layer in layers for array in self.spec.arrays(layer) if not pooled or array.is_pooled)
        return ["n_frames", *(f"{view}/{name}" for name in arrays)]


def _write_tree(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        write_bytes(folder / name, data)


def _marker(path: Path, data: bytes | None) -> dict[str, str]:
    if data is None:
        return {}
    remedy = "delete it and run `dvc repro -f extract`"
    found = parse_json(path, data, what="marker", remedy=remedy)
    if wrong := [name for name, value in found.items() if not isinstance(value, str)]:
        raise InputError(f"{path}: expected a marker of checksums, got another value of {wrong[0][:200]!r}; {remedy}")
    return found


def _sound(path: Path, data: bytes | None) -> dict[str, str]:
    """The complete arrays by a marker: none where its bytes are not exactly those that were written."""
    found = _marker(path, data)
    sums = {array: sha256 for array, sha256 in found.items() if array != MARK}
    if MARK in found:
        whole = found[MARK] == fingerprint(sums)
    else:
        whole = all(array == "n_frames" or "/" in array for array in sums)
    return sums if whole and data == _marker_bytes(found) else {}


def _marker_bytes(marker: Mapping[str, str]) -> bytes:
    return (json.dumps(marker, indent=1, sort_keys=True) + "\n").encode()


def _put(path: Path, data: bytes | memoryview) -> str:
    """Write a file in one step and return the sha256 of its bytes.

    The unfinished file has a random name, because a lost worker may still write the same file.
    """
    write_bytes(path, data, own=uuid.uuid4().hex)
    return hashlib.sha256(data).hexdigest()
