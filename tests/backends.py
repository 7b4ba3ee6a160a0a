"""What the backend tests share: noise, features with padding, golden numbers, and checks that several backends pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
NAMES = sorted(path.stem for path in (ROOT / "pipeline" / "backends").glob("[!_]*.py"))
Arrays = Mapping[str, NDArray[Any]]


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def randomise(backend: nn.Module) -> None:
    """Noise for every parameter, in float64: at their usual starts many terms are 0 or alike."""
    backend.double()
    for seed, parameter in enumerate(backend.parameters()):
        parameter.data = noise(*parameter.shape, seed=100 + seed)


def with_padding(features: Tensor, n_frames: Tensor, fill: float) -> Tensor:
    """A copy of frames (B, L, T, D) with `fill` after the first n_frames (B,)."""
    features = features.clone()
    for row, frames in enumerate(n_frames.tolist()):
        features[row, :, frames:] = fill
    return features


def gradients(backend: nn.Module, features: Tensor, n_frames: Tensor) -> list[Tensor]:
    """Those of the features and of every parameter that has one."""
    features = features.clone().requires_grad_()
    backend.zero_grad()
    backend(features, n_frames).pow(2).sum().backward()
    found = [tensor.grad for tensor in (features, *backend.parameters())]
    return [gradient for gradient in found if gradient is not None]


def check_padding_is_ignored(backend: nn.Module, features: Tensor, n_frames: Tensor) -> None:
    """Embeddings and all gradients are, bit for bit, those of padding with zeros; padding itself has none."""
    zeros = with_padding(features, n_frames, 0.0)
    assert not torch.equal(features, zeros)
    assert torch.equal(backend(features, n_frames), backend(zeros, n_frames))
    found, want = gradients(backend, features, n_frames), gradients(backend, zeros, n_frames)
    assert len(found) == 1 + len(list(backend.parameters()))
    for got, expected in zip(found, want, strict=True):
        assert bool(got.isfinite().all())
        assert torch.equal(got, expected)
    assert torch.equal(with_padding(found[0], n_frames, 0.0), found[0])


def check_each_utterance_alone(
    backend: nn.Module, features: Tensor, n_frames: Tensor, *, rtol: float = 0.0, atol: float
) -> None:
    """A padded batch gives what each of its utterances gives alone and without padding."""
    together = backend(features, n_frames)
    for row, frames in enumerate(n_frames.tolist()):
        alone = backend(features[row : row + 1, :, :frames], torch.tensor([frames]))
        torch.testing.assert_close(together[row : row + 1], alone, rtol=rtol, atol=atol)


def check_its_input_is_left_alone(backend: nn.Module, features: Tensor, n_frames: Tensor) -> None:
    """Features, NaN in the padding included, are the same after a forward pass."""
    before = features.clone()
    backend(features, n_frames)
    torch.testing.assert_close(features, before, rtol=0, atol=0, equal_nan=True)


def check_initialisation_follows_the_seed(make: Callable[[], nn.Module]) -> None:
    """Every draw of a new backend comes from torch's generator."""

    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.detach().flatten() for p in make().parameters()])

    assert torch.equal(drawn(3), drawn(3))
    assert not torch.equal(drawn(3), drawn(4))


def read_golden(name: str) -> Arrays:
    """The golden numbers of a published implementation; skips the test where they are absent."""
    path = ROOT / ".." / "shared" / "golden" / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"no golden numbers at {path}")
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def compare(got: Tensor, want: NDArray[Any], atol: float) -> None:
    """Within atol of golden numbers."""
    np.testing.assert_allclose(got.detach().numpy(), want, rtol=0, atol=atol)
