"""AASIST against golden numbers of the published implementation, and what padding must not change."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.backends import aasist
from pipeline.core.errors import InputError
from tests.backends import (
    CHANNELS,
    LAYERS,
    MODES,
    N_FRAMES,
    NO_DROPOUT,
    compare,
    compare_buffers,
    compare_gradients,
    load,
    make,
    named,
    noise,
    ours,
    padded,
)
from tests.golden import Arrays, read_golden

pytestmark = pytest.mark.usefixtures("one_thread")

ATOL = {
    "eval/encoder_out_channel_mean": 1e-5,
    "eval/attention_in_channel_mean": 5e-6,
    "eval/GAT_layer_S": 5e-5,
    "eval/pool_S": 5e-5,
    "eval/GAT_layer_T": 1e-4,
    "eval/pool_T": 1e-4,
    "eval/last_hidden": 2e-4,
    "eval/logits": 5e-5,
    "eval/grad": 5e-4,
    "eval/grad_norm": 1e-3,
    "train/encoder_out_channel_mean": 5e-6,
    "train/attention_in_channel_mean": 1e-6,
    "train/GAT_layer_S": 5e-5,
    "train/pool_S": 5e-5,
    "train/GAT_layer_T": 1e-4,
    "train/pool_T": 5e-5,
    "train/last_hidden": 5e-5,
    "train/logits": 2e-5,
    "train/grad": 1e-4,
    "train/after": 5e-5,
    "train/grad_norm": 2e-3,
}
# The reference's names, in order of replacement; its tensors may have axes of 1 that ours do without.
NAMES = [
    (r"^LL\.", "narrow."),
    (r"^first_bn\.", "image_norm."),
    (r"^first_bn1\.", "encoder_norm."),
    (r"^encoder\.(\d)\.0\.", r"encoder.\1."),
    (r"\.conv1\.", ".first."),
    (r"\.bn2\.", ".norm."),
    (r"\.conv2\.", ".second."),
    (r"\.conv_downsample\.", ".widen."),
    (r"^pos_S$", "spectral_places"),
    (r"^GAT_layer_S\.", "spectral_graph."),
    (r"^GAT_layer_T\.", "temporal_graph."),
    (r"^pool_S\.proj\.", "spectral_pool.score."),
    (r"^pool_T\.proj\.", "temporal_pool.score."),
    (r"^master1$", "branches.0.master"),
    (r"^master2$", "branches.1.master"),
    (r"^HtrgGAT_layer_ST11\.", "branches.0.first."),
    (r"^HtrgGAT_layer_ST12\.", "branches.0.second."),
    (r"^HtrgGAT_layer_ST21\.", "branches.1.first."),
    (r"^HtrgGAT_layer_ST22\.", "branches.1.second."),
    (r"^pool_hS1\.proj\.", "branches.0.spectral_pool.score."),
    (r"^pool_hT1\.proj\.", "branches.0.temporal_pool.score."),
    (r"^pool_hS2\.proj\.", "branches.1.spectral_pool.score."),
    (r"^pool_hT2\.proj\.", "branches.1.temporal_pool.score."),
    (r"\.proj_type1\.", ".temporal."),
    (r"\.proj_type2\.", ".spectral."),
    (r"\.att_proj\.", ".pair."),
    (r"\.att_projM\.", ".master_pair."),
    (r"\.att_weight$", ".score.weight"),
    (r"\.att_weight11$", ".score_temporal.weight"),
    (r"\.att_weight22$", ".score_spectral.weight"),
    (r"\.att_weight12$", ".score_mixed.weight"),
    (r"\.att_weightM$", ".master_score.weight"),
    (r"\.proj_with_att\.", ".update.attended."),
    (r"\.proj_without_att\.", ".update.own."),
    (r"\.proj_with_attM\.", ".master_attended."),
    (r"\.proj_without_attM\.", ".master_own."),
    (r"^(spectral_graph|temporal_graph|branches\.\d\.(?:first|second))\.bn\.", r"\1.update.norm."),
]
# What the reference has and we do not: its classifier, and batch norms whose result it throws away.
FOREIGN = r"out_layer|\.0\.bn1\."


@pytest.fixture(scope="module")
def golden() -> Arrays:
    return read_golden("aasist")


def run(golden: Arrays, mode: str, dtype: torch.dtype) -> tuple[aasist.Backend, dict[str, Tensor], Tensor]:
    """The backend after one forward and backward pass, what the golden file has of it, and the input's gradient."""
    new = aasist.Backend(layers=1, channels=1024, **NO_DROPOUT)
    backend = load(new, named(golden, "param/", NAMES, without=FOREIGN), dtype).train(mode == "train")
    seen: dict[str, Tensor] = {}
    watched = {
        "GAT_layer_S": backend.spectral_graph,
        "GAT_layer_T": backend.temporal_graph,
        "pool_S": backend.spectral_pool,
        "pool_T": backend.temporal_pool,
        "encoder_out_channel_mean": backend.encoder,
    }
    for name, module in watched.items():
        module.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    backend.attention.register_forward_pre_hook(lambda _, inputs: seen.update(attention_in_channel_mean=inputs[0]))
    x = torch.from_numpy(golden["x"]).to(dtype).requires_grad_()
    seen["last_hidden"] = backend(x[:, None], torch.full((2,), 60))
    weight, bias = (torch.from_numpy(golden[f"param/out_layer.{name}"]).to(dtype) for name in ("weight", "bias"))
    seen["logits"] = nn.functional.linear(seen["last_hidden"], weight, bias)
    (torch.from_numpy(golden["G"]).to(dtype) * seen["logits"]).sum().backward()  # type: ignore[no-untyped-call]
    for name in ("encoder_out_channel_mean", "attention_in_channel_mean"):
        seen[name] = seen[name].mean(dim=(0, 2, 3))
    assert x.grad is not None
    return backend, seen, x.grad


def gradient_norms(golden: Arrays, backend: aasist.Backend, grad_x: Tensor, key: str) -> tuple[Tensor, NDArray[Any]]:
    """Norms of our gradients, and the reference's, in the order of its names."""
    names, want = golden["grad_norm_names"].tolist(), golden[key]
    parameters = {"x": grad_x} | {name: p.grad for name, p in backend.named_parameters()}
    norms = {ours(name, NAMES): norm for name, norm in zip(names, want, strict=True) if not re.search(FOREIGN, name)}
    assert norms.keys() == parameters.keys() - {"layer_weights.logits"}
    found = [gradient for name in norms if (gradient := parameters[name]) is not None]
    return torch.stack([gradient.norm() for gradient in found]), np.array(list(norms.values()))


@pytest.mark.parametrize("mode", MODES)
def test_it_equals_the_reference(golden: Arrays, mode: str) -> None:
    backend, got, grad_x = run(golden, mode, torch.float32)
    assert len(got) == 8
    for name, tensor in got.items():
        compare(tensor, golden[f"{mode}/{name}"], ATOL[f"{mode}/{name}"])
    compare(*gradient_norms(golden, backend, grad_x, f"{mode}/grad_norm"), ATOL[f"{mode}/grad_norm"])
    compare_gradients(backend, named(golden, f"{mode}/grad/", NAMES, without=FOREIGN), ATOL[f"{mode}/grad"])
    if mode == "train":
        compare_buffers(backend, named(golden, "train/after/", NAMES, without=FOREIGN), ATOL["train/after"])


@pytest.mark.parametrize("mode", MODES)
def test_it_equals_the_reference_in_float64(golden: Arrays, mode: str) -> None:
    backend, got, grad_x = run(golden, mode, torch.float64)
    for name in ("last_hidden", "logits"):
        want = golden[f"f64/{mode}/{name}"]
        compare(got[name], want, 1e-10 * np.abs(want).max())
    norms, want = gradient_norms(golden, backend, grad_x, f"f64/{mode}/grad_norm")
    compare(norms, want, 1e-10 * want.max())


def test_it_has_the_published_number_of_parameters() -> None:
    own = sum(p.numel() for p in aasist.Backend(layers=1, channels=1024).parameters())
    classifier, thrown_away = 160 * 2 + 2, 2 * (32 + 32 + 64 + 64 + 64)
    assert own == 447_242 - classifier - thrown_away + 1  # one layer weight


def test_pooling_derived_by_hand() -> None:
    pool = aasist.GraphPool(1, dropout=0.0).double()
    pool.score.weight.data.fill_(np.log(3))
    pool.score.bias.data.zero_()
    nodes = torch.tensor([[[-1.0], [0.0], [2.0], [1.0], [-2.0]]], dtype=torch.float64)
    # Gates 3ˣ / (1 + 3ˣ): 1/4, 1/2, 9/10, 3/4, 1/10. Two of five are kept, the highest first.
    assert pool(nodes)[0, :, 0].tolist() == pytest.approx([2 * 0.9, 0.75], abs=1e-12)
    assert pool(nodes[:, :1])[0, :, 0].tolist() == pytest.approx([-0.25], abs=1e-12)


def test_readout_derived_by_hand() -> None:
    temporal, spectral = torch.tensor([[[-3.0], [1.0]]]), torch.tensor([[[2.0], [4.0], [0.0]]])
    assert aasist.readout(temporal, spectral, torch.tensor([[7.0]])).tolist() == [[3.0, -1.0, 4.0, 2.0, 7.0]]


@pytest.mark.parametrize("name", list(NO_DROPOUT))
def test_every_dropout_acts_in_training_only(name: str) -> None:
    features = padded(0.0)
    plain, dropping = make("aasist"), make("aasist", **{name: 0.5})
    assert torch.equal(plain.eval()(features, N_FRAMES), dropping.eval()(features, N_FRAMES))
    assert not torch.allclose(plain.train()(features, N_FRAMES), dropping.train()(features, N_FRAMES))


def test_each_kind_of_attention_drops_some_of_its_nodes() -> None:
    nodes = noise(2, 5, 6).float()

    def graph(dropout: float) -> Tensor:
        torch.manual_seed(7)
        out: Tensor = aasist.GraphAttention(6, dropout=dropout)(nodes)
        return out

    def heterogeneous(dropout: float) -> Tensor:
        torch.manual_seed(7)
        out: Tensor = aasist.HeterogeneousAttention(6, 3, dropout=dropout)(nodes, nodes, nodes[:, 0])[0]
        return out

    assert not torch.allclose(graph(0.0), graph(0.5))
    assert not torch.allclose(heterogeneous(0.0), heterogeneous(0.5))


@pytest.mark.parametrize("frames", [3, 5])
def test_the_shortest_windows_work(frames: int) -> None:
    got = make("aasist").eval()(noise(2, LAYERS, frames, CHANNELS), torch.tensor([frames, 1]))
    assert got.shape == (2, 160)
    assert bool(got.isfinite().all())


def test_too_short_a_window_is_refused() -> None:
    with pytest.raises(InputError, match="at least 3 frames, got 2"):
        make("aasist")(noise(2, LAYERS, 2, CHANNELS), torch.tensor([2, 2]))


@pytest.mark.parametrize("name", list(NO_DROPOUT))
@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_senseless_dropouts_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match="every dropout"):
        make("aasist", **{name: value})
