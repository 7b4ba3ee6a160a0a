"""The feature store: a Zarr v3 group on disk, written shard by shard; `pipeline.reader` reads it.

    <root>/<encoder fingerprint>/<set>-<trials fingerprint>.zarr/
        zarr.json                     attributes: the format's version and the spec
        n_frames                      (N,) int32
        clean/layer_07                (N, T, D) float16
        clean/pooled_07               (N, 2, D) float32: mean and standard deviation over the valid frames
        done/clean/00003.json         written last: a sha256 of every array's shard 3

Arrays are uncompressed, one utterance an inner chunk with a crc32c, `shard` utterances a shard file. So a shard file
is rows of equal length, `row bytes | crc32c`, then the shard index: any Zarr reader opens it, and a memory map of it
is an array. Shard bytes are made here rather than by zarr-python, to be written beside and renamed, and read back
nowhere in between; a test holds them equal to zarr-python's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from pipeline.contracts import Tap
from pipeline.errors import InputError, listing
from pipeline.files import folder_beside, read_json, replace_folder, write_bytes

FORMAT = 1  # raised when stores written by an older version can no longer be read
CRC_BYTES = 4
INDEX_ENTRY_BYTES = 16  # offset and length, two uint64
CLEAN = "clean"  # the view without augmentation
FLOAT16_MAX = 65_504.0

Block = NDArray[Any]


@dataclass(frozen=True)
class Spec:
    """What a store holds, except for its layers and views, which may grow.

    encoder: everything that the numbers depend on (card, window, dtype, version), JSON-ready.
    trials: fingerprint of the ordered utterances. utterances N, frames T, channels D, shard: utterances a shard.
    """

    encoder: dict[str, Any]
    trials: str
    utterances: int
    frames: int
    channels: int
    shard: int

    @property
    def shards(self) -> int:
        """Number of shards, the last of which may be short."""
        return -(-self.utterances // self.shard)

    def rows(self, shard: int) -> range:
        """The utterances of one shard."""
        return range(shard * self.shard, min((shard + 1) * self.shard, self.utterances))

    def folder(self, set_name: str) -> str:
        """Where the store of this spec lies below the root."""
        return f"{fingerprint(self.encoder)}/{set_name}-{self.trials}.zarr"

    def bytes_of(self, layers: int, *, rows: int | None = None) -> int:
        """Bytes on disk of `layers` layers of one view with their pooled arrays, for all or `rows` utterances."""
        frames = self.frames * self.channels * 2 + CRC_BYTES + INDEX_ENTRY_BYTES
        pooled = 2 * self.channels * 4 + CRC_BYTES + INDEX_ENTRY_BYTES
        return layers * (frames + pooled) * (self.utterances if rows is None else rows)


def fingerprint(facts: Mapping[str, Any]) -> str:
    """Sixteen hex digits of a JSON-ready mapping."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def layer_array(layer: Tap) -> str:
    """Array name of a layer: 7 -> layer_07, final -> layer_final."""
    return f"layer_{_suffix(layer)}"


def pooled_array(layer: Tap) -> str:
    """Array name of a layer's mean and standard deviation."""
    return f"pooled_{_suffix(layer)}"


def _suffix(layer: Tap) -> str:
    return layer if isinstance(layer, str) else f"{layer:02d}"


# ---------------------------------------------------------------- bytes of a shard


def encode_shard(block: Block, *, shard: int) -> bytes:
    """The bytes of one shard file: a block (n, ...) as n chunks with crc32c, and the index of `shard` entries."""
    n = len(block)
    rows = np.ascontiguousarray(block).reshape(n, -1).view(np.uint8)  # (n, row bytes)
    length = rows.shape[1] + CRC_BYTES
    data = np.empty((n, length), np.uint8)
    data[:, :-CRC_BYTES] = rows
    for i in range(n):
        data[i, -CRC_BYTES:] = crc32c(rows[i])
    index = np.full((shard, 2), np.iinfo(np.uint64).max, dtype="<u8")  # all ones: no such chunk
    index[:n, 0] = np.arange(n) * length
    index[:n, 1] = length
    tail = index.view(np.uint8).ravel()
    return b"".join((data.tobytes(), tail.tobytes(), crc32c(tail).tobytes()))


def crc32c(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The checksum of some bytes, as four of them."""
    return np.array([google_crc32c.value(data.tobytes())], dtype="<u4").view(np.uint8)


REPAIR = "delete it, if it is there, and run `dvc repro -f extract`"


# ---------------------------------------------------------------- the store


class Store:
    """One store on a local disk, open for writing shards and for checking what is there."""

    def __init__(self, path: Path, spec: Spec) -> None:
        self.path = path
        self.spec = spec

    @staticmethod
    @contextlib.contextmanager
    def locked(path: Path) -> Iterator[None]:
        """Keep other extractions from writing this store. Raises InputError where one already does."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_name(path.name + ".lock").open("w") as lock:  # released by the kernel, however we end
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"{path}: another extraction is writing this store; wait for it or stop it") from None
            yield

    @classmethod
    def create(cls, root: Path, set_name: str, spec: Spec) -> Store:
        """Open the store of a spec, made now if it is not there.

        Raises InputError where one of another spec or format lies at its place.
        """
        import zarr  # readers go without it, and start a little faster for that

        path = root / spec.folder(set_name)
        if path.exists() and not (path / "zarr.json").is_file():
            raise InputError(f"{path}: expected a feature store, got a folder without zarr.json; move it away")
        if not path.exists():
            beside = folder_beside(path)
            group = zarr.create_group(beside, attributes={"format": FORMAT, "spec": dataclasses.asdict(spec)})
            group.create_array("n_frames", **_array(spec, (), "int32", -1))
            group.create_group("done")
            replace_folder(beside, path, mark="zarr.json")
        return cls.open(path, spec)

    @classmethod
    def open(cls, path: Path, spec: Spec | None = None) -> Store:
        """Open a store that is there. Raises InputError where it is missing, or of another spec or format."""
        if not (path / "zarr.json").is_file():
            raise InputError(f"{path}: no feature store there; run `dvc repro -f extract`")
        move = "move the store away and run `dvc repro -f extract`"
        found = read_json(path / "zarr.json", what="feature store", keys=["attributes"], remedy=move)["attributes"]
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            version = found.get("format") if isinstance(found, dict) else None
            raise InputError(f"{path}: expected store format {FORMAT}, got {version}; {move}")
        kept = found.get("spec")
        if not isinstance(kept, dict) or set(kept) != {field.name for field in dataclasses.fields(Spec)}:
            raise InputError(f"{path}/zarr.json: expected the spec of a feature store, got another; {move}")
        if spec is not None and kept != _plain(dataclasses.asdict(spec)):
            raise InputError(f"{path}: the store was made with another spec ({_difference(kept, spec)}); {OTHER_SPEC}")
        return cls(path, Spec(**kept))

    # ------------------------------------------------ writing

    def add_arrays(self, view: str, layers: Iterable[Tap]) -> None:
        """Make the arrays of layers that the view does not have yet."""
        import zarr

        zarr.open_group(self.path).require_group(f"done/{view}")
        group = zarr.open_group(self.path).require_group(view)
        for layer in layers:
            for name, row, dtype in self._arrays(layer):
                if name not in group:
                    group.create_array(name, **_array(self.spec, row, dtype, float("nan")))

    def _arrays(self, layer: Tap) -> tuple[tuple[str, tuple[int, ...], str], ...]:
        spec = self.spec
        return (
            (layer_array(layer), (spec.frames, spec.channels), "float16"),
            (pooled_array(layer), (2, spec.channels), "float32"),
        )

    def missing(self, view: str, layers: Sequence[Tap], shard: int) -> tuple[Tap, ...]:
        """The layers that a shard does not have yet, by its marker, or no longer, by its files."""
        marker = self.marker(view, shard)

        def there(array: str) -> bool:
            return array in marker and self.shard_path(array, shard).is_file()

        if not there("n_frames"):
            return tuple(layers)
        return tuple(
            layer for layer in layers if not all(there(f"{view}/{name}") for name, _, _ in self._arrays(layer))
        )

    def marker(self, view: str, shard: int) -> dict[str, str]:
        """Array -> sha256 of its shard file, for all that is complete; empty where nothing is."""
        path = self._marker_path(view, shard)
        if not path.exists():
            return {}
        return read_json(path, what="marker", remedy="delete it and run `dvc repro -f extract`")

    def _marker_path(self, view: str, shard: int) -> Path:
        return self.path / "done" / view / f"{shard:05d}.json"

    def shard_path(self, array: str, shard: int) -> Path:
        """The file of one shard of an array."""
        axes = 1 if array == "n_frames" else 3
        return self.path.joinpath(array, "c", str(shard), *["0"] * (axes - 1))

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
        blocks = {f"{view}/{layer_array(layer)}": block for layer, block in features.items()}
        blocks |= {f"{view}/{pooled_array(layer)}": block for layer, block in pooled.items()}
        marker = self.marker(view, shard)
        for array, block in blocks.items():
            marker[array] = _put(self.shard_path(array, shard), encode_shard(block, shard=self.spec.shard))
        frames = np.full(self.spec.shard, -1, "<i4")  # Zarr stores the last chunk of an unsharded array in full
        frames[: len(n_frames)] = n_frames
        marker["n_frames"] = _put(
            self.shard_path("n_frames", shard), frames.tobytes() + crc32c(frames.view(np.uint8)).tobytes()
        )
        _put(self._marker_path(view, shard), (json.dumps(marker, indent=1, sort_keys=True) + "\n").encode())

    # ------------------------------------------------ checking

    def digest(self, views: Sequence[str], layers: Sequence[Tap]) -> str:
        """sha256 over the checksums of every shard of the given views and layers.

        Raises InputError where a shard is not complete.
        """
        digest = hashlib.sha256()
        for view in views:
            wanted = ["n_frames"]
            wanted += [f"{view}/{name}" for layer in layers for name, _, _ in self._arrays(layer)]
            for shard in range(self.spec.shards):
                marker = self.marker(view, shard)
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
        wanted = {"n_frames"} | {f"{v}/{name}" for v in views for layer in layers for name, _, _ in self._arrays(layer)}
        for view in views:
            for shard in range(self.spec.shards):
                for array, expected in self.marker(view, shard).items():
                    if array in wanted:
                        files += 1
                        path = self.shard_path(array, shard)
                        got = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
                        if got != expected:
                            wrong.append(f"{path}: expected sha256 {expected[:12]}..., got {got[:12]}")
        if wrong:
            raise InputError(f"{len(wrong)} of {files} shard files are damaged; {REPAIR}:\n{listing(wrong)}")
        return files


OTHER_SPEC = "go back to those parameters, or move the store away and run `dvc repro extract`"


def _plain(value: Any) -> Any:
    """As JSON would give it back."""
    return json.loads(json.dumps(value))


def _difference(kept: dict[str, Any], spec: Spec) -> str:
    wanted = _plain(dataclasses.asdict(spec))
    keys = [key for key in wanted if kept.get(key) != wanted[key]]
    return ", ".join(f"{key}: the store has {kept.get(key)}, the parameters say {wanted[key]}" for key in keys)


def _array(spec: Spec, row: tuple[int, ...], dtype: str, fill: float) -> dict[str, Any]:
    """Arguments of zarr's create_array for one array of the store."""
    from zarr.codecs import BytesCodec, Crc32cCodec

    shape = (spec.utterances, *row)
    chunks = (1, *row) if row else (spec.shard,)
    return {
        "shape": shape,
        "chunks": chunks,
        "shards": (spec.shard, *row) if row else None,
        "dtype": dtype,
        "fill_value": fill,
        "serializer": BytesCodec(endian="little"),
        "filters": None,
        "compressors": [Crc32cCodec()],
    }


def _put(path: Path, data: bytes) -> str:
    """Write a file whole and give the sha256 of its bytes."""
    write_bytes(path, data)
    return hashlib.sha256(data).hexdigest()


# ---------------------------------------------------------------- receipts

RECEIPT = ("store", "encoder", "trials", "utterances", "frames", "channels", "layers", "views", "digest")


AGAIN = "run `dvc repro -f extract`"


def read_receipts(path: Path) -> dict[str, dict[str, Any]]:
    """The receipt of a set by the set's name, or those that the receipt of a pool holds.

    Raises InputError where the file is missing or something else.
    """
    found = read_json(path, what="receipt", remedy=AGAIN)
    receipts = found.get("pool", {path.stem: found})
    for receipt in receipts.values():
        if missing := [key for key in ("format", *RECEIPT) if key not in receipt]:
            raise InputError(f"{path}: expected a receipt, got JSON without {', '.join(missing)}; {AGAIN}")
        if receipt["format"] != FORMAT:
            raise InputError(f"{path}: expected store format {FORMAT}, got {receipt['format']}; {AGAIN}")
        if not re.fullmatch(r"[0-9a-f]{16}/[a-z][a-z0-9_]*-[0-9a-f]{16}\.zarr", str(receipt["store"])):
            raise InputError(f"{path}: expected a store below the root of features, got {receipt['store']!r}; {AGAIN}")
    return dict(receipts)


def open_receipts(path: Path, *, root: Path) -> dict[str, tuple[Store, dict[str, Any]]]:
    """The stores that a receipt stands for, one of a set and several of a pool, with the receipt of each, by set.

    Raises InputError where the receipt is missing or something else, or a store is missing, incomplete, of another
    spec, or holds other bytes.
    """
    found = {}
    for name, receipt in read_receipts(path).items():
        store = Store.open(root / receipt["store"])
        if any(receipt[name] != value for name, value in dataclasses.asdict(store.spec).items() if name != "shard"):
            raise InputError(f"{store.path}: the store has another spec than {path} says; {OTHER_SPEC}")
        if store.digest(receipt["views"], receipt["layers"]) != receipt["digest"]:
            raise InputError(f"{store.path}: expected the bytes that {path} stands for, got others; {AGAIN}")
        found[name] = store, receipt
    return found
