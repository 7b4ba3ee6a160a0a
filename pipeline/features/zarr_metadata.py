"""The Zarr v3 metadata of a store."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pipeline.core.contracts import Tap
from pipeline.features.specs import Array, Spec

FORMAT = 1  # raise it when this code can no longer read older stores


def metadata(spec: Spec) -> dict[str, bytes]:
    """The metadata files of a store without views. The last one, zarr.json, marks the folder as a store."""

    def fill(group: Any) -> None:
        group.attrs.update({"format": FORMAT, "spec": dataclasses.asdict(spec)})
        array = Array("n_frames", (spec.utterances,), "int32")
        group.create_array("n_frames", **_settings(array, (spec.shard,), None, -1))
        group.create_group("done")

    files = _zarr_files(fill)
    files["zarr.json"] = files.pop("zarr.json")
    return files


def view_metadata(spec: Spec, view: str, layers: Iterable[Tap], attributes: Mapping[str, Any]) -> dict[str, bytes]:
    """The metadata files of one view: first the group's, then those of its arrays."""

    def fill(root: Any) -> None:
        root.create_group(f"done/{view}")
        group = root.create_group(view, attributes=dict(attributes))
        for layer in layers:
            for array in spec.arrays(layer):
                chunks = (1, *array.shape[1:])
                shards = None if array.of_shards else (spec.shard, *array.shape[1:])
                group.create_array(array.name, **_settings(array, chunks, shards, float("nan")))

    files = _zarr_files(fill)
    return {name: files[name] for name in sorted(files, key=len) if name.startswith((f"{view}/", f"done/{view}/"))}


def _settings(array: Array, chunks: tuple[int, ...], shards: tuple[int, ...] | None, fill: float) -> dict[str, Any]:
    """Arguments of zarr's create_array for one array of the store."""
    from zarr.codecs import BytesCodec, Crc32cCodec

    return {
        "shape": array.shape,
        "chunks": chunks,
        "shards": shards,
        "dtype": array.dtype,
        "fill_value": 0 if array.dtype == "int8" else fill,
        "serializer": BytesCodec(endian="little"),
        "filters": None,
        "compressors": [Crc32cCodec()],
    }


def _zarr_files(fill: Callable[[Any], None]) -> dict[str, bytes]:
    """The metadata files that zarr-python writes for a group."""
    import zarr  # here, so that programs that only read start faster

    memory: dict[str, Any] = {}
    fill(zarr.create_group(zarr.storage.MemoryStore(memory)))
    return {name: data.to_bytes() for name, data in memory.items()}
