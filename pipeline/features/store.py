"""The feature store: a Zarr v3 group on a disk or an object store, written shard by shard.

`pipeline.features.reader` reads it.

    <root>/<encoder fingerprint>/<set>-<trials fingerprint>.zarr/
        zarr.json                     attributes: the format's version and the spec
        n_frames                      (N,) int32
        clean/layer_07                (N, T, D) float16, or int8
        clean/scale_07                (shards, D) float32, beside int8 alone: what a shard's values are multiplied with
        clean/pooled_07               (N, 2, D) float32: mean and standard deviation over the valid frames
        done/clean/00003.json         written last: a sha256 of every array's shard 3, and a checksum of these

Arrays are uncompressed, one utterance an inner chunk with a crc32c, `shard` utterances a shard file. So a shard file
is rows of equal length, `row bytes | crc32c`, then the shard index: any Zarr reader opens it, and a memory map of it
is an array. Shard bytes are made here rather than by zarr-python, to be written beside and renamed, and read back
nowhere in between; a test holds them equal to zarr-python's. On a disk of this machine one extraction at a time may
write a store; object stores have no locks that hold everywhere, and there it is up to you.
"""

from __future__ import annotations

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
from pipeline.features.shard_bytes import Block, Encode, encode_chunk, encode_shard, quantised
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

WRITERS = 4  # files of a shard that are written at once
MARK = "marker"  # key of a marker's own checksum; absent in those that had none


REPAIR = "delete it, if it is there, and run `dvc repro -f extract`"


# ---------------------------------------------------------------- the store


class Store:
    """One store, open for writing shards and for checking what is there."""

    def __init__(self, path: Path, spec: Spec) -> None:
        self.path = path
        self.spec = spec

    @staticmethod
    @contextlib.contextmanager
    def locked(path: Path) -> Iterator[None]:
        """Keep other extractions on this machine's disks from writing this store; nothing on an object store.

        Raises InputError where one already does.
        """
        if not is_local(path):
            yield
            return
        place = path.with_name(path.name + ".lock")
        with writing(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            file = place.open("w")
        with file as lock:  # released by the kernel, however we end
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not place.exists() or not os.path.samestat(os.fstat(lock.fileno()), place.stat()):
                    raise BlockingIOError  # it went with its store, by `cache gc`, since we opened it
            except BlockingIOError:
                raise InputError(f"{path}: another extraction is writing this store; wait for it or stop it") from None
            yield

    @classmethod
    def create(cls, root: Path, set_name: str, spec: Spec) -> Store:
        """Open the store of a spec, made now if it is not there; metadata that is damaged is made anew.

        Raises InputError where one of another spec or format lies at its place.
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
        """Open a store that is there. Raises InputError where it is missing, or of another spec or format."""
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
        """Make what a view does not have yet, or damaged: its group, with the attributes, and then arrays of layers.

        attributes: None: those that it has.
        """
        known = self.attributes(view) if attributes is None else attributes
        self._restore(view_metadata(self.spec, view, layers, known))

    def attributes(self, view: str) -> dict[str, Any]:
        """What stands with a view; nothing where it is not there. Raises InputError for a group that is none."""
        path = self.path / view / "zarr.json"
        if not is_there(path):
            return {}
        return dict(read_json(path, what="view of a feature store", keys=["attributes"], remedy=REPAIR)["attributes"])

    def _restore(self, files: Mapping[str, bytes]) -> None:
        """Write those files that are missing, or hold anything else."""
        there = read_files([self.path / name for name in files])
        _write_tree(self.path, {name: data for name, data in files.items() if there.get(self.path / name) != data})

    def sweep(self) -> None:
        """Remove what killed writers left beside their files. For who has the lock alone."""
        if is_local(self.path):
            for folder, _, names in os.walk(self.path):
                for name in names:
                    if name.endswith(".part"):
                        Path(folder, name).unlink(missing_ok=True)

    def missing(self, view: str, layers: Sequence[Tap], shard: int) -> tuple[Tap, ...]:
        """The layers that a shard does not have yet, by its marker, or no longer, by its files."""
        return self._lacking(view, layers, shard, self.marker(view, shard), self._has)

    def incomplete(self, view: str, layers: Sequence[Tap]) -> dict[int, tuple[Tap, ...]]:
        """The shards that lack layers, and which; all shards of a view at once."""
        # of an object store all names at once: asking for each takes a round trip
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
        """The marker of every shard as it stands: array -> sha256 of its shard file; empty where there is none."""
        return [_marker(path, data) for path, data in self._marker_files(view)]

    def marker(self, view: str, shard: int) -> dict[str, str]:
        """Array -> sha256 of its shard file, for all that is complete; empty where nothing is, or nobody knows."""
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
        """Where that file lies in the store."""
        axes = 1 if array == "n_frames" else 2 if array.rpartition("/")[2].startswith("scale_") else 3
        return "/".join([array, "c", str(shard), *["0"] * (axes - 1)])

    def write(
        self,
        view: str,
        shard: int,
        features: Mapping[Tap, Block],
        pooled: Mapping[Tap, Block],
        n_frames: Block,
    ) -> None:
        """Write some layers of one shard whole, and then its marker.

        Args:
            features: layer -> (n, T, D) float16. pooled: layer -> (n, 2, D) float32. n_frames: (n,).

        Idempotent: the same blocks give the same bytes, and a shard that is written again is replaced in one step.
        """
        arrays: dict[str, tuple[Block, Encode]] = {"n_frames": (self._padded(n_frames), encode_chunk)}
        sharded = partial(encode_shard, shard=self.spec.shard)
        for layer, block in features.items():
            if self.spec.storage == "int8":
                block, scales = quantised(block)
                arrays[f"{view}/{scale_array(layer)}"] = scales, encode_chunk
            arrays[f"{view}/{layer_array(layer)}"] = block, sharded
            arrays[f"{view}/{pooled_array(layer)}"] = pooled[layer], sharded

        marker = self._without(view, shard, arrays)

        def put(name: str) -> str:
            block, encode = arrays[name]
            return _put(self.shard_path(name, shard), encode(block).data)

        with ThreadPoolExecutor(WRITERS) as pool:  # side by side, as each waits for the disk
            marker |= dict(zip(arrays, pool.map(put, arrays), strict=True))
        self._mark(view, shard, marker)

    def _without(self, view: str, shard: int, arrays: dict[str, tuple[Block, Encode]]) -> dict[str, str]:
        """The marker without what is about to be replaced: killed on the way, it must not stand for a mixture.

        n_frames is taken out of `arrays` where it is there and the same.
        """
        marker = self.marker(view, shard)
        block, encode = arrays["n_frames"]
        same = marker.get("n_frames") == hashlib.sha256(encode(block).data).hexdigest()
        if same and is_there(self.shard_path("n_frames", shard)):
            del arrays["n_frames"]
        kept = {name: checksum for name, checksum in marker.items() if name not in arrays}
        if kept != marker:
            self._mark(view, shard, kept)
        return kept

    def _mark(self, view: str, shard: int, marker: Mapping[str, str]) -> None:
        _put(self._marker_path(view, shard), _marker_bytes({**marker, MARK: fingerprint(marker)}))

    def _padded(self, n_frames: Block) -> Block:
        """As Zarr stores the last chunk of an unsharded array: in full."""
        frames = np.full(self.spec.shard, -1, "<i4")
        frames[: len(n_frames)] = n_frames
        return frames

    # ------------------------------------------------ checking

    def digest(self, views: Sequence[str], layers: Sequence[Tap]) -> str:
        """sha256 over the checksums of every shard of the given views and layers.

        Raises InputError where a shard is not complete.
        """
        digest = hashlib.sha256()
        for view in views:
            wanted = self._names(view, layers)
            for shard, marker in enumerate(self.markers(view)):
                for array in wanted:
                    if array not in marker:
                        raise InputError(
                            f"{self.path}: shard {shard} of {array} is missing; run `dvc repro -f extract`"
                        )
                    digest.update(f"{array} {shard} {marker[array]}\n".encode())
        return digest.hexdigest()

    def verify(self, views: Sequence[str], layers: Sequence[Tap]) -> int:
        """Read every shard file and compare its sha256 with its marker; the number of files.

        Raises InputError naming the files that differ or are missing.
        """
        wrong: list[str] = []
        files = 0
        for view in views:
            for shard, marker in enumerate(self.markers(view)):
                for array in self._names(view, layers):
                    files += 1
                    path, expected = self.shard_path(array, shard), marker.get(array, "no mark")
                    data = read_files([path]).get(path)
                    got = "no file" if data is None else hashlib.sha256(data).hexdigest()
                    line = f"{path}: expected sha256 {expected[:12]}..., got {got[:12]}"
                    if got != expected and line not in wrong:  # every view has n_frames
                        wrong.append(line)
        if wrong:
            raise InputError(f"{len(wrong)} of {files} shard files are damaged; {REPAIR}:\n{listing(wrong)}")
        return files

    def _names(self, view: str, layers: Sequence[Tap]) -> list[str]:
        """All arrays of some layers of a view."""
        return ["n_frames", *(f"{view}/{array.name}" for layer in layers for array in self.spec.arrays(layer))]


OTHER_SPEC = "go back to those parameters, or move the store away and run `dvc repro extract`"


def _write_tree(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        write_bytes(folder / name, data)


def _marker(path: Path, data: bytes | None) -> dict[str, str]:
    if data is None:
        return {}
    return parse_json(path, data, what="marker", remedy="delete it and run `dvc repro -f extract`")


def _sound(path: Path, data: bytes | None) -> dict[str, str]:
    """What a marker says is complete: nothing, where it is not byte for byte as it was written."""
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
    """Write a file whole and give the sha256 of its bytes.

    By way of a name of its own: a worker that was given up for dead may still be writing the same file.
    """
    write_bytes(path, data, own=uuid.uuid4().hex)
    return hashlib.sha256(data).hexdigest()
