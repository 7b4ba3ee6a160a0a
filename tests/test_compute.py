"""Batches through the encoder: every window once and in order, however few fit into memory at a time."""

import numpy as np
import pytest
import torch

from pipeline.core.errors import InputError
from pipeline.extraction.forward import BatchSize, compute

CPU = torch.device("cpu")


class Model(torch.nn.Module):
    """One layer of one channel: the samples themselves. No more than `fits` windows at once."""

    def __init__(self, fits: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.fits = fits
        self.batches: list[int] = []

    def forward(self, samples: torch.Tensor, valid: torch.Tensor) -> tuple[dict, torch.Tensor]:
        if len(samples) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.batches.append(len(samples))
        return {1: samples[..., None]}, valid

    def n_frames(self, valid: torch.Tensor) -> torch.Tensor:
        return valid


def go(model: Model, batch: BatchSize, n: int = 11) -> tuple[np.ndarray, np.ndarray, list[int]]:
    samples, valid = np.arange(n * 3, dtype=np.float32).reshape(n, 3), np.arange(n) % 3 + 1
    done: list[int] = []
    names = [f"u{i}" for i in range(n)]
    found = compute(
        model, lambda rows: (samples[rows], valid[rows]), (1,), batch=batch, names=names, advance=done.append
    )
    frames, pooled, n_frames = found.blocks()
    np.testing.assert_array_equal(frames[1][..., 0], samples)
    np.testing.assert_array_equal(n_frames, valid)
    np.testing.assert_allclose(
        pooled[1][:, 0, 0], [row[:count].mean() for row, count in zip(samples, valid, strict=True)]
    )
    assert sum(done) == n
    return frames[1], pooled[1], done


@pytest.mark.parametrize(("fits", "batches"), [(100, [8, 3]), (7, [4, 4, 3]), (3, [2] * 5 + [1]), (1, [1] * 11)])
def test_half_as_many_where_memory_does_not_suffice(fits: int, batches: list[int]) -> None:
    model = Model(fits)
    assert go(model, BatchSize(8, grows=True))[2] == model.batches == batches


def test_fewer_stay_fewer_for_the_units_to_come() -> None:
    model, batch = Model(3), BatchSize(4, grows=True)
    go(model, batch)
    go(model, batch)
    assert model.batches == 2 * ([2] * 5 + [1])


def test_not_even_one() -> None:
    with pytest.raises(InputError, match=r"not even one utterance fits into the memory .*extract\.window\.samples"):
        go(Model(0), BatchSize(8, grows=True))


def test_it_doubles_on_a_gpu_while_half_of_the_memory_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    used = 10
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _device: used)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (0, 100))
    gpu, batch = torch.device("cuda"), BatchSize(8, grows=True)
    batch.went_well(5, gpu)  # the last, short batch of a unit says nothing
    batch.went_well(8, CPU)
    assert batch.now == 8
    batch.went_well(8, gpu)
    batch.went_well(16, gpu)
    assert batch.now == 32
    used = 50
    batch.went_well(32, gpu)
    used = 10
    batch.went_well(32, gpu)
    assert batch.now == 32
    fixed = BatchSize(8, grows=False)
    fixed.went_well(8, gpu)
    assert fixed.now == 8
    fresh = BatchSize(128, grows=True)
    for _ in range(3):
        fresh.went_well(fresh.now, gpu)
    assert fresh.now == 256
    fresh.did_not_fit(256)
    fresh.went_well(128, gpu)
    assert fresh.now == 128
