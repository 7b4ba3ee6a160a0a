"""Nes2Net-X against golden numbers of the published implementation, and what padding must not change."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.backends import nes2net
from pipeline.backends._shared import LayerWeights
from tests.backends import (
    Arrays,
    check_each_utterance_alone,
    check_its_input_is_left_alone,
    check_padding_is_ignored,
    compare,
    noise,
    randomise,
    read_golden,
    with_padding,
)

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
MODES = ["eval", "train"]
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
LAYERS, FRAMES, CHANNELS = 3, 11, 12
N_FRAMES = torch.tensor([11, 5, 1])


@pytest.fixture(scope="module")
def golden() -> Arrays:
    return read_golden("nes2net")


def ours(name: str) -> str:
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def named(golden: Arrays, prefix: str) -> dict[str, Tensor]:
    """The reference's tensors under a prefix, by our names."""
    return {
        ours(key.removeprefix(prefix)): torch.from_numpy(array)
        for key, array in golden.items()
        if key.startswith(prefix)
    }


def load(golden: Arrays, case: str, dtype: torch.dtype) -> nes2net.Backend:
    backend = nes2net.Backend(layers=1, **CASES[case])
    given, state = named(golden, f"{case}/param/"), backend.state_dict()
    assert given.keys() == state.keys() - {"layer_weights.logits"}
    backend.load_state_dict(
        {"layer_weights.logits": torch.zeros(1)} | {k: v.view_as(state[k]) for k, v in given.items()}
    )
    return backend.to(dtype)


def run(golden: Arrays, case: str, mode: str, dtype: torch.dtype) -> tuple[nes2net.Backend, dict[str, Tensor]]:
    """The backend after one forward and, where there is a G, backward pass, and what the golden file has of it."""
    backend = load(golden, case, dtype).train(mode == "train")
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
    gradients, parameters = named(golden, f"{case}/train/grad/"), dict(backend.named_parameters())
    assert gradients.keys() == parameters.keys() - {"layer_weights.logits"}
    for name, gradient in gradients.items():
        own = parameters[name].grad
        assert own is not None
        compare(own.view_as(gradient), gradient.numpy(), ATOL["train/grad"])
    after, state = named(golden, f"{case}/train/after/"), backend.state_dict()
    assert after.keys() == {name for name, _ in backend.named_buffers()}
    for name, tensor in after.items():
        compare(state[name], tensor.numpy(), ATOL["train/after"])


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


def make(**changed: Any) -> nes2net.Backend:
    settings = {"layers": LAYERS, "channels": CHANNELS, "groups": 3, "scale": 3, "squeeze": 2} | changed
    backend = nes2net.Backend(**settings)
    randomise(backend)
    for name, buffer in backend.named_buffers():
        if name.endswith("running_mean"):
            buffer.fill_(0.2)
    return backend


def padded(fill: float) -> Tensor:
    return with_padding(noise(len(N_FRAMES), LAYERS, FRAMES, CHANNELS), N_FRAMES, fill)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("pooling", ["mean", "astp"])
@pytest.mark.parametrize("fill", [np.nan, 1e30])
def test_what_padding_holds_is_ignored(fill: float, pooling: str, mode: str) -> None:
    check_padding_is_ignored(make(pooling=pooling).train(mode == "train"), padded(fill), N_FRAMES)


@pytest.mark.parametrize("pooling", ["mean", "astp"])
def test_a_padded_batch_is_each_of_its_utterances(pooling: str) -> None:
    backend = make(pooling=pooling).eval()
    check_each_utterance_alone(backend, padded(np.nan), N_FRAMES, rtol=1e-11, atol=1e-11)


def test_how_much_padding_there_is_does_not_matter_in_training() -> None:
    n_frames, features = torch.tensor([5, 5, 5]), noise(3, LAYERS, FRAMES, CHANNELS)
    short, long = make().train(), make().train()
    torch.testing.assert_close(long(features, n_frames), short(features[:, :, :5], n_frames), rtol=0, atol=1e-11)
    for name, buffer in short.named_buffers():
        torch.testing.assert_close(long.get_buffer(name), buffer, rtol=1e-11, atol=1e-11)


def test_the_order_of_a_padded_batch_does_not_matter_in_training() -> None:
    order, features = torch.tensor([2, 0, 1]), padded(0.0)
    got, want = make().train()(features[order], N_FRAMES[order]), make().train()(features, N_FRAMES)[order]
    torch.testing.assert_close(got, want, rtol=0, atol=1e-11)


def test_it_does_not_write_into_its_input() -> None:
    check_its_input_is_left_alone(make(), padded(np.nan), N_FRAMES)


def test_deviation_of_a_channel_with_a_large_offset_is_kept() -> None:
    pool = nes2net.AttentiveStatistics(1)
    pool.score.weight.data.zero_()  # even attention
    x = (3000.0 + 0.1 * noise(1, 1, 200)).float()
    assert float(pool(x, None)[0, 1].detach()) == pytest.approx(float(x.double().std(correction=0)), rel=2e-3)


@pytest.mark.parametrize("n_frames", [[11, 11, 11], [11, 5, 1]])
def test_attentive_pooling_runs_in_mixed_precision(n_frames: list[int]) -> None:
    torch.manual_seed(0)
    backend = nes2net.Backend(layers=LAYERS, channels=CHANNELS, groups=3, scale=3, pooling="astp")
    features = padded(0.0).float()
    want = backend(features, torch.tensor(n_frames))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = backend(features, torch.tensor(n_frames))
    torch.testing.assert_close(got.float(), want, rtol=0, atol=0.2)


def test_initialisation_follows_torchs_generator_and_begins_with_the_mean_of_the_columns() -> None:
    def drawn(seed: int) -> nes2net.Backend:
        torch.manual_seed(seed)
        return nes2net.Backend(layers=LAYERS, channels=CHANNELS, groups=3, scale=3)

    first, again, other = ({n: p.detach() for n, p in drawn(seed).named_parameters()} for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["blocks.0.split.weight"], other["blocks.0.split.weight"])
    assert first["blocks.0.column_weights.1"].tolist() == pytest.approx([1 / 3] * 3)


def test_what_it_reads_and_how_wide_it_is() -> None:
    assert (make().reads, make().embedding_dim, make(pooling="astp").embedding_dim) == ("frames", 12, 24)
    assert [type(child) for child in make().children()].count(LayerWeights) == 1


@pytest.mark.parametrize(("name", "value"), [("groups", 1), ("scale", 1), ("dilation", 0), ("squeeze", -3)])
def test_senseless_numbers_are_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"≥ .*got.*{name} {value}"):
        make(**{name: value})


@pytest.mark.parametrize("wrong", [{"groups": 5}, {"scale": 5}, {"squeeze": 5}])
def test_channels_that_do_not_divide_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="12 channels"):
        make(**wrong)


def test_an_unknown_pooling_is_refused() -> None:
    with pytest.raises(ValueError, match="mean or astp, got 'max'"):
        make(pooling="max")
