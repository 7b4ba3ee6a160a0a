"""The spec of a feature store: everything that its numbers depend on, and the fingerprint of that."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.core.contracts import Tap
from pipeline.features.shard_bytes import CRC_BYTES, INDEX_ENTRY_BYTES

VERSION_KEY = "views_version"  # in the attributes of an augmented view, and in receipts with augmented views
RECORDINGS_KEY = "recordings"  # in the attributes of a view that takes sound from some, and in receipts with such views
POOLED_PREFIX = "pooled_"  # of the names of pooled arrays
DEEPEST_LAYER = 200  # that is taken from strangers; no encoder has as many
STORAGE = "storage"  # key in `Spec.encoder`; without it frames are float16, as in all stores of older versions


@dataclass(frozen=True)
class Spec:
    """What a store holds. Its layers and views are not part of the spec, because more can be added.

    encoder: everything that the numbers depend on (encoder, window, dtype, version), ready for JSON.
    trials: fingerprint of the ordered utterances. utterances: N. frames: T. channels: D. shard: utterances in a shard.
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
        """The path of this spec's store below the root."""
        return f"{fingerprint(self.encoder)}/{set_name}-{self.trials}.zarr"

    @property
    def storage(self) -> str:
        """The type of frames in the store: float16 or int8."""
        return str(self.encoder.get(STORAGE, "float16"))

    def bytes_of(self, layers: int, *, rows: int | None = None) -> int:
        """Bytes on disk of `layers` layers of one view with their pooled arrays; rows: utterances, None for all."""
        rows = self.utterances if rows is None else rows
        frames = self.frames * self.channels * np.dtype(self.storage).itemsize + CRC_BYTES + INDEX_ENTRY_BYTES
        pooled = 2 * self.channels * 4 + CRC_BYTES + INDEX_ENTRY_BYTES
        scales = -(-rows // self.shard) * (self.channels * 4 + CRC_BYTES) if self.storage == "int8" else 0
        return layers * ((frames + pooled) * rows + scales)

    def arrays(self, layer: Tap) -> tuple[Array, ...]:
        """The arrays of one layer in a view."""
        frames = Array(layer_array(layer), (self.utterances, self.frames, self.channels), self.storage)
        pooled = Array(pooled_array(layer), (self.utterances, 2, self.channels), "float32")
        if self.storage == "float16":
            return frames, pooled
        return frames, Array(scale_array(layer), (self.shards, self.channels), "float32", of_shards=True), pooled


@dataclass(frozen=True)
class Array:
    """One array of a view. of_shards: it has a row for each shard, not for each utterance."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    of_shards: bool = False

    @property
    def is_pooled(self) -> bool:
        """Whether it holds means and standard deviations, and no frames."""
        return self.name.startswith(POOLED_PREFIX)


def fingerprint(facts: Mapping[str, Any]) -> str:
    """Sixteen hex digits of the sha256 of facts that are ready for JSON."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def layer_array(layer: Tap) -> str:
    """Array name of a layer: 7 -> layer_07, final -> layer_final."""
    return f"layer_{_suffix(layer)}"


def pooled_array(layer: Tap) -> str:
    """Array name of a layer's mean and standard deviation."""
    return f"{POOLED_PREFIX}{_suffix(layer)}"


def scale_array(layer: Tap) -> str:
    """Array name of the factors of a layer's int8 values."""
    return f"scale_{_suffix(layer)}"


def _suffix(layer: Tap) -> str:
    return layer if isinstance(layer, str) else f"{layer:02d}"


def is_spec(kept: dict[str, Any]) -> bool:
    """Whether the attributes of a store hold a spec."""
    counts = [kept.get(name) for name in ("utterances", "frames", "channels", "shard")]
    return set(kept) == {field.name for field in dataclasses.fields(Spec)} and all(
        type(count) is int and count > 0 for count in counts
    )


def plain(value: Any) -> Any:
    """The value after a way through JSON: tuples become lists."""
    return json.loads(json.dumps(value))


def difference(kept: dict[str, Any], spec: Spec) -> str:
    """The differences between the spec of a store and the wanted one, for a message."""
    wanted = plain(dataclasses.asdict(spec))
    keys = [key for key in wanted if kept.get(key) != wanted[key]]
    return ", ".join(f"{key}: the store has {kept.get(key)}, the parameters say {wanted[key]}" for key in keys)
