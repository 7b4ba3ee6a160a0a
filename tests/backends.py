"""What the backend tests share: a small backend of every kind, features with padding, checks, and golden numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.core.members import member
from tests.golden import Arrays

ROOT = Path(__file__).parents[1]
NAMES = sorted(path.stem for path in (ROOT / "pipeline" / "backends").glob("[!_]*.py"))
MODES = ["eval", "train"]
LAYERS, FRAMES, CHANNELS, WIDTH = 3, 9, 12, 5
N_FRAMES = torch.tensor([9, 4, 1])
NO_DROPOUT = {f"{name}_dropout": 0.0 for name in ("attention", "pooling", "branch", "embedding")}
# Sizes that make a backend small, and what it does not draw in training.
SETTINGS: dict[str, dict[str, Any]] = {
    "aasist": NO_DROPOUT,
    "asp": {"embedding_dim": WIDTH, "attention_dim": 6},
    "conformer_tcm": {"embedding_dim": 8, "heads": 2, "blocks": 2, "kernel_size": 4},
    "linear": {"embedding_dim": WIDTH},
    "mhfa": {"embedding_dim": WIDTH, "heads": 2, "compression_dim": 6},
    "mlp": {"embedding_dim": WIDTH, "hidden_dim": 6, "hidden_layers": 2, "dropout": 0.0},
    "nes2net": {"groups": 3, "scale": 3, "squeeze": 2},
    "per_layer": {"layer_dim": WIDTH},
    "sls": {"embedding_dim": WIDTH, "frames": FRAMES},
}


def make(name: str, **changed: Any) -> Any:
    """A small backend in float64, with noise for every parameter: at their usual starts many terms are 0 or alike."""
    torch.manual_seed(7)
    settings = {"layers": LAYERS, "channels": CHANNELS} | SETTINGS[name] | changed
    backend = member("backends", name).Backend(**settings).double()
    if name == "aasist":  # keeps the nodes that rank highest, and noise makes them almost alike
        return backend
    for seed, parameter in enumerate(backend.parameters()):
        parameter.data = noise(*parameter.shape, seed=100 + seed)
    for key, buffer in backend.named_buffers():
        if key.endswith("running_mean"):
            buffer.fill_(0.2)
    return backend


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def padded(fill: float) -> Tensor:
    """Frames (3, L, T, D) with `fill` after the first N_FRAMES."""
    return with_padding(noise(len(N_FRAMES), LAYERS, FRAMES, CHANNELS), N_FRAMES, fill)


def features_for(backend: Any) -> Tensor:
    """What a backend reads of three utterances, without padding's NaN: (3, L, T, D) or (3, L, 2, D)."""
    return noise(len(N_FRAMES), LAYERS, 2, CHANNELS) if backend.reads == "pooled" else padded(0.0)


def arrays(backend: nn.Module) -> dict[str, NDArray[np.float64]]:
    """The parameters by name."""
    return {name: parameter.detach().numpy() for name, parameter in backend.named_parameters()}


def weigh(features: NDArray[Any], logits: NDArray[Any]) -> NDArray[Any]:
    """Layers (L, ...) to their sum under the softmax of the logits (L,), layer after layer."""
    weights = np.exp(logits) / np.exp(logits).sum()
    out: NDArray[Any] = sum(weight * layer for weight, layer in zip(weights, features, strict=True))
    return out


def layer_norm(x: NDArray[Any], weight: NDArray[Any] | float = 1.0, bias: NDArray[Any] | float = 0.0) -> NDArray[Any]:
    """Of one vector (D,)."""
    out: NDArray[Any] = (x - x.mean()) / np.sqrt(x.var() + 1e-5) * weight + bias
    return out


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


# Golden numbers


def named(golden: Arrays, prefix: str, rules: Sequence[tuple[str, str]], *, without: str = "$^") -> dict[str, Tensor]:
    """The reference's tensors under a prefix by our names, but for those whose names hold the pattern `without`."""
    names = {key: key.removeprefix(prefix) for key in golden if key.startswith(prefix)}
    return {
        ours(name, rules): torch.from_numpy(golden[key]) for key, name in names.items() if not re.search(without, name)
    }


def ours(name: str, rules: Sequence[tuple[str, str]]) -> str:
    """Our name of a reference's tensor; the rules are applied one after the other."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def load(backend: Any, given: Mapping[str, Tensor], dtype: torch.dtype) -> Any:
    """A backend of one layer with the reference's parameters, which may have axes of 1 that ours do without."""
    state = backend.state_dict()
    assert given.keys() == state.keys() - {"layer_weights.logits"}
    backend.load_state_dict(
        {"layer_weights.logits": torch.zeros(1)} | {k: v.view_as(state[k]) for k, v in given.items()}
    )
    return backend.to(dtype)


def compare(got: Tensor, want: NDArray[Any], atol: float) -> None:
    """Within atol of golden numbers."""
    np.testing.assert_allclose(got.detach().numpy(), want, rtol=0, atol=atol)


def compare_gradients(backend: nn.Module, want: Mapping[str, Tensor], atol: float) -> None:
    """The gradients of these parameters."""
    parameters = dict(backend.named_parameters())
    for name, gradient in want.items():
        own = parameters[name].grad
        assert own is not None
        compare(own.view_as(gradient), gradient.numpy(), atol)


def compare_buffers(backend: nn.Module, want: Mapping[str, Tensor], atol: float) -> None:
    """All buffers, such as the running statistics of batch norms."""
    state = backend.state_dict()
    assert want.keys() == {name for name, _ in backend.named_buffers()}
    for name, tensor in want.items():
        compare(state[name], tensor.numpy(), atol)
