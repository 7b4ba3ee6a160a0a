"""Every backend in bfloat16 autocast and in float64, on features as the store gives them: float16 made wider."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.core.members import member
from tests.backends import NAMES, noise, with_padding

pytestmark = pytest.mark.usefixtures("one_thread")

BATCH, LAYERS, FRAMES, CHANNELS = 6, 3, 30, 256
N_FRAMES = {"full": [FRAMES] * BATCH, "padded": [30, 11, 1, 20, 25, 7]}
# Of the norm of a batch's embeddings; bfloat16 has a precision of 0.004. AASIST keeps the nodes that rank highest, and
# which those are hangs on rounding: features rounded to bfloat16 move it by as much in float32.
TOLERANCE = {"aasist": 0.3}
USUAL_TOLERANCE = 0.02


def make(name: str, *, training: bool) -> Any:
    """A backend at the constructor's own sizes, without dropout, whose draws would hide what rounding does."""
    torch.manual_seed(0)
    backend = member("backends", name).Backend(layers=LAYERS, channels=CHANNELS)
    for module in backend.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return backend.train(training)


def stored(backend: Any, n_frames: Tensor) -> Tensor:
    """Float32 features of utterances that differ and change slowly, rounded to float16; NaN is padding."""
    drift = noise(BATCH, LAYERS, FRAMES, CHANNELS, seed=2).cumsum(dim=2) / 3
    frames = (noise(BATCH, 1, 1, CHANNELS, seed=1) + drift).half().float()
    if backend.reads == "pooled":
        return torch.stack([frames.mean(dim=2), frames.std(dim=2)], dim=2)
    return with_padding(frames, n_frames, np.nan)


def step(backend: Any, features: Tensor, n_frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings (B, E), the gradient of all parameters (P,) and that of the features, as one flat tensor."""
    features = features.clone().requires_grad_()
    backend.zero_grad()
    embeddings = backend(features, n_frames)
    (embeddings * noise(*embeddings.shape, seed=3).to(embeddings)).sum().backward()
    assert features.grad is not None
    own = torch.cat([p.grad.flatten() for p in backend.parameters() if p.grad is not None])
    return embeddings.detach(), own, features.grad


@pytest.mark.parametrize("window", list(N_FRAMES))
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_near_float32(name: str, training: bool, window: str) -> None:
    n_frames = torch.tensor(N_FRAMES[window])
    exact, rounded = make(name, training=training), make(name, training=training)
    features = stored(exact, n_frames)
    want, gradient, _ = step(exact, features, n_frames)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, rounded_gradient, to_features = step(rounded, features, n_frames)
    assert not torch.equal(got.float(), want)  # autocast was on
    assert float((got.float() - want).norm() / want.norm()) < TOLERANCE.get(name, USUAL_TOLERANCE)
    assert all(bool(x.isfinite().all()) for x in (got, rounded_gradient, to_features, *rounded.buffers()))
    if not training:  # in training, the batch norms of Nes2Net's thin parts magnify rounding in the gradient
        assert float(torch.cosine_similarity(rounded_gradient, gradient, dim=0)) > 0.9


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_float64_is_float64_throughout(name: str, training: bool) -> None:
    n_frames = torch.tensor(N_FRAMES["padded"])
    backend = make(name, training=training)
    features = stored(backend, n_frames)
    single, _, _ = step(backend, features, n_frames)
    backend = make(name, training=training).double()
    features = features.double()
    before, own, to_features = step(backend, features, n_frames)
    assert before.dtype == own.dtype == to_features.dtype == torch.float64
    assert float((before.float() - single).norm() / single.norm()) < 1e-3
    # A step so small that float32 anywhere on the way would round it off does what the gradient says.
    move = 1e-9 * noise(*features.shape, seed=4)
    after = backend(features + move, n_frames).detach()
    along = noise(*before.shape, seed=3)
    expected = float((to_features * move.masked_fill(features.isnan(), 0)).sum())
    assert float(((after - before) * along).sum()) == pytest.approx(expected, rel=0.01)
