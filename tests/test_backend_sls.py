from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.backends import sls
from pipeline.core.errors import InputError
from tests import backends
from tests.backends import CHANNELS, N_FRAMES, WIDTH, arrays, padded

pytestmark = pytest.mark.usefixtures("one_thread")


def make() -> sls.Backend:
    backend: sls.Backend = backends.make("sls")
    backend.norm.running_mean = torch.tensor([0.3], dtype=torch.float64)
    backend.norm.running_var = torch.tensor([1.7], dtype=torch.float64)
    return backend.eval()


def selu(x: float) -> float:
    return 1.0507009873554805 * (x if x > 0 else 1.6732632423543772 * (math.exp(x) - 1))


def naive(backend: sls.Backend, utterances: list[Any], mean: float, variance: float) -> list[Any]:
    """Embeddings of utterances (L, n, D) of any length, step by step with scalars; the normalisation is given."""
    p = arrays(backend)
    embeddings = []
    for utterance in utterances:
        fused = fuse(p, utterance)
        fields = []
        for t in range(0, backend.frames - 2, 3):
            for d in range(0, CHANNELS - 2, 3):
                best = -math.inf
                for i in range(t, t + 3):
                    for j in range(d, d + 3):
                        value = 0.0
                        if i < len(fused):
                            unit = (fused[i, j] - mean) / math.sqrt(variance + 1e-5)
                            value = selu(unit * p["norm.weight"][0] + p["norm.bias"][0])
                        best = max(best, value)
                fields.append(best)
        embeddings.append([selu(x) for x in p["project.weight"] @ np.array(fields) + p["project.bias"]])
    return embeddings


def fuse(p: dict[str, Any], utterance: Any) -> Any:
    """(L, n, D) -> (n, D)."""
    fused = np.zeros(utterance.shape[1:])
    for layer in utterance:
        score = float((p["gate.weight"] @ layer.mean(axis=0) + p["gate.bias"])[0])
        fused += layer / (1 + math.exp(-score))
    return fused


def test_it_agrees_with_a_naive_loop() -> None:
    backend, features = make(), padded(np.nan)
    utterances = [example[:, :n].numpy() for example, n in zip(features, N_FRAMES.tolist(), strict=True)]
    got = backend(features, N_FRAMES)
    assert got.shape == (3, WIDTH)
    np.testing.assert_allclose(got.detach(), naive(backend, utterances, 0.3, 1.7), rtol=0, atol=1e-12)


def test_it_agrees_with_a_naive_loop_in_training() -> None:
    backend, features = make().train(), padded(np.nan)
    utterances = [example[:, :n].numpy() for example, n in zip(features, N_FRAMES.tolist(), strict=True)]
    got = backend(features, N_FRAMES)
    p = arrays(backend)
    seen = np.concatenate([fuse(p, utterance) for utterance in utterances])  # (12, D)
    want = naive(backend, utterances, float(seen.mean()), float(seen.var()))
    np.testing.assert_allclose(got.detach(), want, rtol=0, atol=1e-12)
    assert backend.get_buffer("norm.running_mean").item() == pytest.approx(0.9 * 0.3 + 0.1 * seen.mean(), abs=1e-12)
    assert backend.get_buffer("norm.running_var").item() == pytest.approx(0.9 * 1.7 + 0.1 * seen.var(ddof=1), abs=1e-12)


def test_derived_by_hand() -> None:
    backend = sls.Backend(layers=2, channels=3, embedding_dim=1, frames=3).double().eval()
    backend.norm.eps = 0.0
    backend.gate.weight.data = torch.tensor([[1.0, 0.0, 0.0]]).double()
    backend.gate.bias.data.zero_()
    backend.project.weight.data.fill_(0.5)
    backend.project.bias.data.fill_(0.25)
    features = torch.zeros(1, 2, 3, 3).double()
    features[0, 0, :, 0] = torch.tensor([math.log(3), 0.0, 2 * math.log(3)], dtype=torch.float64)  # mean ln 3: gate 3/4
    features[0, 1, 1, 2] = 8.0  # mean of channel 0 is 0: gate 1/2
    # Sum: at most ¾ · 2 ln 3 = 1.65 in channel 0, and ½ · 8 = 4 in channel 2. SELU of 4, halved, + ¼, SELU again.
    scale = 1.0507009873554805
    got = float(backend(features, torch.tensor([3])).detach())
    assert got == pytest.approx(scale * (scale * 4 / 2 + 0.25), abs=1e-12)
    assert backend.gates(features, torch.tensor([3])).tolist()[0] == pytest.approx([0.75, 0.5], abs=1e-12)


def test_published_size() -> None:
    with torch.device("meta"):
        published = sls.Backend(layers=24, channels=1024)
    assert published.project.weight.shape == (1024, 22_847)
    assert sum(p.numel() for p in published.parameters()) == 1025 + 2 + 22_847 * 1024 + 1024


def test_a_longer_window_is_refused_with_the_value_to_set() -> None:
    with pytest.raises(InputError, match=r"at most 6 frames, got 9; set backends\.sls\.frames: 9"):
        backends.make("sls", frames=6)(padded(0.0), N_FRAMES)


@pytest.mark.parametrize("value", [0, -3])
def test_windows_and_layers_too_small_for_a_field_are_refused(value: int) -> None:
    with pytest.raises(ValueError, match=f"frames and channels.*{value} and 3"):
        sls.Backend(layers=2, channels=3, frames=value)
    with pytest.raises(ValueError, match=r"frames and channels.*201 and 2"):
        sls.Backend(layers=2, channels=2)
