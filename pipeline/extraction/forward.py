"""Windows through the encoder, in batches that fit the device, to features in the type of the store, checked."""

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
    """The number of utterances that the encoder computes at once.

    grows: on a GPU, double the number while a batch leaves half of the memory free. Where a batch does not fit, the
    number is halved and does not grow again.
    """

    def __init__(self, first: int, *, grows: bool) -> None:
        self.now = first
        self._grows = grows

    def went_well(self, count: int, device: torch.device) -> None:
        """Double the number where a full batch of `count` left half of the memory free."""
        if not self._grows or count < self.now or device.type != "cuda":
            return
        used, whole = torch.cuda.max_memory_allocated(device), torch.cuda.mem_get_info(device)[1]
        self._grows = 2 * used < whole and self.now < MOST_BATCH
        if self._grows:
            self.now *= 2

    def did_not_fit(self, count: int) -> None:
        """Halve the number. Raises HopelessError where not even one utterance fits."""
        if count == 1:
            raise HopelessError(
                "not even one utterance fits into the memory of the device; take a shorter window "
                "(extract.window.samples), lower layers (extract.layers), or another device (extract.device)"
            )
        self.now, self._grows = count // 2, False


class Features:
    """The features of n utterances in the type of the store, filled batch by batch.

    From a GPU they are copied to memory while the encoder computes. names: the n utterances, for messages.
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
        """Store the features of a batch: tap -> (B, T, D), and n_frames (B,) on the CPU."""
        self._n_frames[rows] = n_frames
        if self._copies is not None:
            n_frames = n_frames.pin_memory().to(self._copies.device, non_blocking=True)
            self._copies.wait_stream(torch.cuda.current_stream(self._copies.device))
            for frames in taps.values():
                frames.record_stream(self._copies)  # keep the memory from the encoder until it is copied
        with torch.cuda.stream(self._copies):  # without a GPU this does nothing
            for i, layer in enumerate(self._layers):
                frames = taps[layer]
                stored = frames if self._copies is None else frames.half()  # half as many bytes to copy
                self._room(self._frames, layer, frames, torch.float16)[rows].copy_(stored, non_blocking=True)
                pooled = mean_and_deviation(frames, n_frames)
                self._room(self._pooled, layer, pooled, torch.float32)[rows].copy_(pooled, non_blocking=True)
                self._peaks[i, rows].copy_(frames.abs().amax(dim=(1, 2)), non_blocking=True)

    def _room(self, kind: dict[Tap, Tensor], layer: Tap, batch: Tensor, dtype: torch.dtype) -> Tensor:
        if layer not in kind:
            shape = (len(self._names), *batch.shape[1:])
            kind[layer] = torch.empty(shape, dtype=dtype, pin_memory=self._copies is not None)
        return kind[layer]

    def blocks(self) -> Blocks:
        """The features of all n utterances, after the last batch.

        Raises InputError with the utterances whose features are NaN, infinite or too large for float16.
        """
        if self._copies is not None:
            self._copies.synchronize()
        check_range(self._peaks.numpy(), names=self._names, layers=self._layers)
        frames, pooled = ({layer: t.numpy() for layer, t in kind.items()} for kind in (self._frames, self._pooled))
        return frames, pooled, self._n_frames.numpy()


@functools.cache
def _copies(device: torch.device) -> torch.cuda.Stream:
    """The stream of a GPU for copies. One stream is used for all, because each stream keeps memory of its own."""
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
    """Compute the features of n utterances.

    Args:
        windows: gives the windows of some of the n utterances. names: the n utterances, for messages.
        batch: the size of a batch, which is adapted to the memory. advance: called with the size of each batch.

    Raises InputError as `windows` does, HopelessError where not even one utterance fits into memory.
    """
    device = next(model.parameters()).device
    found = Features(names, layers, device)
    done = 0
    while done < len(names):
        rows = slice(done, min(done + batch.now, len(names)))
        samples, valid = (torch.from_numpy(array) for array in windows(rows))
        _check_frames(model, valid, names[rows])
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)  # to measure this batch alone
        try:
            # `valid` stays on the CPU: reading from a GPU waits.
            found.fill(rows, *model(_moved(samples, device), valid))
        except torch.OutOfMemoryError:
            batch.did_not_fit(len(valid))
            continue
        batch.went_well(len(valid), device)
        done = rows.stop
        advance(len(valid))
    return found


def _check_frames(model: Encoder, valid: Tensor, names: Sequence[str]) -> None:
    """Raise InputError, naming utterances, where padding leaves signal for less than one frame of the encoder."""
    short = (model.n_frames(valid) < 1).nonzero().flatten().tolist()
    if short:
        raise InputError(
            f"{len(short)} utterances are shorter than one frame of this encoder; remove the trials or set "
            f"extract.window.pad: repeat:\n{listing([f'{names[i]}: {valid[i]} samples' for i in short])}"
        )


def _moved(samples: Tensor, device: torch.device) -> Tensor:
    """Samples on the device. From pinned memory the copy waits in line for the GPU, and this process goes on."""
    return samples.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else samples


def check_range(peaks: Block, *, names: Sequence[str], layers: Sequence[Tap]) -> None:
    """Raise InputError, naming utterances, where peaks (L, n), the largest magnitudes, are not finite in float16."""
    bad = ~(peaks <= FLOAT16_MAX)  # NaN compares false
    if bad.any():
        problems = [
            f"utterance {names[i]}: expected finite features below {FLOAT16_MAX:g} in layer {layers[k]}, got "
            f"{peaks[k, i]:g}; listen to the file, remove the trial or tap another layer"
            for i, k in ((i, int(bad[:, i].argmax())) for i in np.flatnonzero(bad.any(axis=0)).tolist())
        ]
        raise InputError(problems[0] if len(problems) == 1 else f"{len(problems)} utterances:\n{listing(problems)}")


def mean_and_deviation(frames: Tensor, n_frames: Tensor) -> Tensor:
    """Mean and standard deviation (biased) over the valid frames: (B, T, D), (B,) -> (B, 2, D)."""
    mask = (torch.arange(frames.shape[1], device=frames.device) < n_frames[:, None])[..., None]  # (B, T, 1)
    count = n_frames[:, None].to(frames.dtype)
    mean = (frames * mask).sum(1) / count
    variance = ((frames - mean[:, None]) * mask).square().sum(1) / count
    return torch.stack([mean, variance.sqrt()], dim=1)
