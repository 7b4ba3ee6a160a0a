"""Windows through the encoder: batches that fit the device, features as they are stored, nothing but finite ones."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.audio.loader import Windows
from pipeline.core.contracts import Tap
from pipeline.core.errors import HopelessError, InputError, listing
from pipeline.encoder.xlsr import Encoder
from pipeline.features.shard_bytes import FLOAT16_MAX, Block

MOST_BATCH = 256  # utterances

Blocks = tuple[dict[Tap, Block], dict[Tap, Block], Block]  # layer -> (n, T, D) float16, -> (n, 2, D) float32, n_frames


class BatchSize:
    """How many utterances the encoder gets at once.

    Where it grows, it doubles on a GPU while half of the memory is free. Where memory does not suffice, half as many
    are taken, and from then on no more than that.
    """

    def __init__(self, first: int, *, grows: bool) -> None:
        self.now = first
        self._grows = grows

    def went_well(self, count: int, device: torch.device) -> None:
        """Take more from now on where `count`, as many as allowed, left half of the memory free."""
        if not self._grows or count < self.now or device.type != "cuda":
            return
        used, whole = torch.cuda.max_memory_allocated(device), torch.cuda.mem_get_info(device)[1]
        self._grows = 2 * used < whole and self.now < MOST_BATCH
        if self._grows:
            self.now *= 2

    def did_not_fit(self, count: int) -> None:
        """Take fewer than `count` from now on. Raises HopelessError where not even one fits."""
        if count == 1:
            raise HopelessError(
                "not even one utterance fits into the memory of the device; take a shorter window "
                "(extract.window.samples), lower layers (extract.layers), or another device (extract.device)"
            )
        self.now, self._grows = count // 2, False


class Features:
    """Features of n utterances as they are stored, filled batch by batch; on a GPU they are copied beside the encoder.

    names: the n utterances, for messages.
    """

    def __init__(self, names: Sequence[str], layers: Sequence[Tap], device: torch.device) -> None:
        self._names = names
        self._layers = layers
        self._frames: dict[Tap, Tensor] = {}
        self._pooled: dict[Tap, Tensor] = {}
        self._copies = _copies(device) if device.type == "cuda" else None
        self._peaks = torch.empty(len(layers), len(names), pin_memory=self._copies is not None)
        self._n_frames = torch.empty(len(names), dtype=torch.int64)

    def fill(self, rows: slice, taps: dict[Tap, Tensor], n_frames: Tensor) -> None:
        """Take over a batch: tap -> (B, T, D), and (B,) on the CPU."""
        self._n_frames[rows] = n_frames
        if self._copies is not None:
            n_frames = n_frames.pin_memory().to(self._copies.device, non_blocking=True)
            self._copies.wait_stream(torch.cuda.current_stream(self._copies.device))
            for frames in taps.values():
                frames.record_stream(self._copies)  # the encoder must not have the memory before it is copied
        with torch.cuda.stream(self._copies):  # nothing without a GPU
            for i, layer in enumerate(self._layers):
                frames = taps[layer]
                stored = frames if self._copies is None else frames.half()  # half as many bytes to copy
                self._room(self._frames, layer, frames, torch.float16)[rows].copy_(stored, non_blocking=True)
                pooled = pool(frames, n_frames)
                self._room(self._pooled, layer, pooled, torch.float32)[rows].copy_(pooled, non_blocking=True)
                self._peaks[i, rows].copy_(frames.abs().amax(dim=(1, 2)), non_blocking=True)

    def _room(self, kind: dict[Tap, Tensor], layer: Tap, batch: Tensor, dtype: torch.dtype) -> Tensor:
        if layer not in kind:
            shape = (len(self._names), *batch.shape[1:])
            kind[layer] = torch.empty(shape, dtype=dtype, pin_memory=self._copies is not None)
        return kind[layer]

    def blocks(self) -> Blocks:
        """All of them, once every batch was taken over.

        Raises InputError naming utterances whose features are NaN, infinite or beyond float16.
        """
        if self._copies is not None:
            self._copies.synchronize()
        check_range(self._peaks.numpy(), names=self._names, layers=self._layers)
        frames, pooled = ({layer: t.numpy() for layer, t in kind.items()} for kind in (self._frames, self._pooled))
        return frames, pooled, self._n_frames.numpy()


@functools.cache
def _copies(device: torch.device) -> torch.cuda.Stream:
    """The stream of a GPU that copies beside the encoder: always the same, as each keeps memory of its own."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def compute(
    model: Encoder,
    windows: Callable[[slice], Windows],
    layers: Sequence[Tap],
    *,
    batch: BatchSize,
    names: Sequence[str],
    advance: Callable[[int], object] = lambda _count: None,
) -> Features:
    """Features of n utterances.

    Args:
        windows: gives some of the n windows. names: the n utterances, for messages.
        batch: how many at once; adapted to what fits. advance: told how many more are done.

    Raises InputError as `windows` does, HopelessError where not even one utterance fits into memory.
    """
    device = next(model.parameters()).device
    found = Features(names, layers, device)
    done = 0
    while done < len(names):
        rows = slice(done, min(done + batch.now, len(names)))
        samples, valid = (torch.from_numpy(array) for array in windows(rows))
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)  # what went before says nothing of this batch
        try:
            found.fill(rows, *model(samples.to(device), valid))  # counts stay here: asking the GPU would wait for it
        except torch.OutOfMemoryError:
            batch.did_not_fit(len(valid))
            continue
        batch.went_well(len(valid), device)
        done = rows.stop
        advance(len(valid))
    return found


def check_range(peaks: Block, *, names: Sequence[str], layers: Sequence[Tap]) -> None:
    """Raise InputError, naming utterances, where the largest magnitudes (L, n) are NaN, infinite or beyond float16."""
    bad = ~(peaks <= FLOAT16_MAX)  # NaN compares false
    if bad.any():
        problems = [
            f"utterance {names[i]}: expected finite features below {FLOAT16_MAX:g} in layer {layers[k]}, got "
            f"{peaks[k, i]:g}; listen to the file, remove the trial or tap another layer"
            for i, k in ((i, int(bad[:, i].argmax())) for i in np.flatnonzero(bad.any(axis=0)).tolist())
        ]
        raise InputError(problems[0] if len(problems) == 1 else f"{len(problems)} utterances:\n{listing(problems)}")


def pool(frames: Tensor, n_frames: Tensor) -> Tensor:
    """Mean and standard deviation (biased) over the valid frames: (B, T, D), (B,) -> (B, 2, D)."""
    mask = (torch.arange(frames.shape[1], device=frames.device) < n_frames[:, None])[..., None]  # (B, T, 1)
    count = n_frames[:, None].to(frames.dtype)
    mean = (frames * mask).sum(1) / count
    variance = ((frames - mean[:, None]) * mask).square().sum(1) / count
    return torch.stack([mean, variance.sqrt()], dim=1)
