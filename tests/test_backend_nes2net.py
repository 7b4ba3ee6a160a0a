"""Nes2Net-X against golden numbers of the published implementation, and what padding must not change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.backends import nes2net
from tests.backends import (
    CHANNELS,
    LAYERS,
    MODES,
    compare,
    compare_buffers,
    compare_gradients,
    load,
    make,
    named,
    noise,
    padded,
)
from tests.golden import Arrays, read_golden

pytestmark = pytest.mark.usefixtures("one_thread")

ATOL = {
    "eval/block": 5e-5,
    "eval/embedding": 5e-5,
    "eval/grad_x": 2e-5,
    "train/block": 2e-5,
    "train/embedding": 2e-5,
    "train/grad_x": 1e-5,
    "train/grad": 5e-5,
    "train/after": 5e-6,
}
SMALL = {"channels": 32, "groups": 4, "scale": 4}
CASES: dict[str, dict[str, Any]] = {
    "small_mean": SMALL | {"pooling": "mean"},
    "small_astp": SMALL | {"pooling": "astp"},
    "full": {"channels": 1024},
}
# The reference's names, in order of replacement; its tensors have trailing axes of 1 that ours do without.
NAMES = [
    (r"^bns\.", "block_norms."),
    (r"^bn\.", "norm."),
    (r"^Build_in_Res2Nets\.", "blocks."),
    (r"\.conv1\.", ".split."),
    (r"\.bn1\.", ".split_norm."),
    (r"\.convs\.", ".steps."),
    (r"\.bns\.", ".step_norms."),
    (r"\.weighted_sum\.", ".column_weights."),
    (r"\.conv3\.", ".join."),
    (r"\.bn3\.", ".join_norm."),
    (r"\.se\.se\.1\.", ".excite.squeeze."),
    (r"\.se\.se\.3\.", ".excite.excite."),
    (r"^pooling\.linear1\.", "pool.bottleneck."),
    (r"^pooling\.linear2\.", "pool.score."),
]


@pytest.fixture(scope="module")
def golden() -> Arrays:
    return read_golden("nes2net")


def run(golden: Arrays, case: str, mode: str, dtype: torch.dtype) -> tuple[nes2net.Backend, dict[str, Tensor]]:
    """The backend after one forward and, where there is a G, backward pass, and what the golden file has of it."""
    new = nes2net.Backend(layers=1, **CASES[case])
    backend = load(new, named(golden, f"{case}/param/", NAMES), dtype).train(mode == "train")
    seen: dict[str, Tensor] = {}
    for i, block in enumerate(backend.blocks):
        block.register_forward_hook(lambda _, __, out, i=i: seen.update({f"block{i}": out}))
    x = torch.from_numpy(golden[f"{case}/x"]).to(dtype).requires_grad_()
    seen["embedding"] = backend(x.transpose(1, 2)[:, None], torch.full((len(x),), x.shape[2]))
    if case != "full":
        (torch.from_numpy(golden[f"{case}/G"]).to(dtype) * seen["embedding"]).sum().backward()  # type: ignore[no-untyped-call]
        assert x.grad is not None
        seen["grad_x"] = x.grad
    return backend, seen


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", ["small_mean", "small_astp"])
def test_it_equals_the_reference(golden: Arrays, case: str, mode: str) -> None:
    _, got = run(golden, case, mode, torch.float32)
    assert len(got) == 5
    for name, tensor in got.items():
        compare(tensor, golden[f"{case}/{mode}/{name}"], ATOL[f"{mode}/{name.rstrip('012')}"])


@pytest.mark.parametrize("case", ["small_mean", "small_astp"])
def test_gradients_and_batch_norms_equal_the_reference(golden: Arrays, case: str) -> None:
    backend, _ = run(golden, case, "train", torch.float32)
    gradients = named(golden, f"{case}/train/grad/", NAMES)
    assert gradients.keys() == dict(backend.named_parameters()).keys() - {"layer_weights.logits"}
    compare_gradients(backend, gradients, ATOL["train/grad"])
    compare_buffers(backend, named(golden, f"{case}/train/after/", NAMES), ATOL["train/after"])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", ["small_mean", "small_astp"])
def test_it_equals_the_reference_in_float64(golden: Arrays, case: str, mode: str) -> None:
    _, got = run(golden, case, mode, torch.float64)
    for name in ("embedding", "grad_x"):
        want = golden[f"f64/{case}/{mode}/{name}"]
        compare(got[name], want, 1e-10 * np.abs(want).max())


def test_the_published_size_equals_the_reference(golden: Arrays) -> None:
    for mode in MODES:
        backend, got = run(golden, "full", mode, torch.float32)
        compare(got["embedding"], golden[f"full/{mode}/embedding"], ATOL[f"{mode}/embedding"])
    assert sum(p.numel() for p in backend.parameters()) == 509_989 + 1  # of them one layer weight
    want = golden["f64/full/eval/embedding"]
    compare(run(golden, "full", "eval", torch.float64)[1]["embedding"], want, 1e-10 * np.abs(want).max())


def test_deviation_of_a_channel_with_a_large_offset_is_kept() -> None:
    pool = nes2net.AttentiveStatistics(1)
    pool.score.weight.data.zero_()  # even attention
    x = (3000.0 + 0.1 * noise(1, 1, 200)).float()
    assert float(pool(x, None)[0, 1].detach()) == pytest.approx(float(x.double().std(correction=0)), rel=2e-3)


@pytest.mark.parametrize("n_frames", [[9, 9, 9], [9, 4, 1]])
def test_attentive_pooling_runs_in_mixed_precision(n_frames: list[int]) -> None:
    torch.manual_seed(0)
    backend = nes2net.Backend(layers=LAYERS, channels=CHANNELS, groups=3, scale=3, pooling="astp")
    features = padded(0.0).float()
    want = backend(features, torch.tensor(n_frames))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = backend(features, torch.tensor(n_frames))
    torch.testing.assert_close(got.float(), want, rtol=0, atol=0.2)


def test_it_begins_with_the_mean_of_the_columns() -> None:
    backend = nes2net.Backend(layers=LAYERS, channels=CHANNELS, groups=3, scale=3)
    assert dict(backend.named_parameters())["blocks.0.column_weights.1"].tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize(("name", "value"), [("groups", 1), ("scale", 1), ("dilation", 0), ("squeeze", -3)])
def test_senseless_numbers_are_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"≥ .*got.*{name} {value}"):
        make("nes2net", **{name: value})


@pytest.mark.parametrize("wrong", [{"groups": 5}, {"scale": 5}, {"squeeze": 5}])
def test_channels_that_do_not_divide_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="12 channels"):
        make("nes2net", **wrong)


def test_an_unknown_pooling_is_refused() -> None:
    with pytest.raises(ValueError, match="mean or astp, got 'max'"):
        make("nes2net", pooling="max")
