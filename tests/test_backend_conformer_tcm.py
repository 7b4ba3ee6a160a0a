"""Conformer-TCM against golden numbers of the published implementation, and what padding must not change."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.backends import conformer_tcm
from pipeline.backends._shared import LayerWeights
from tests.backends import (
    Arrays,
    check_each_utterance_alone,
    check_initialisation_follows_the_seed,
    check_its_input_is_left_alone,
    check_padding_is_ignored,
    compare,
    gradients,
    noise,
    randomise,
    read_golden,
    with_padding,
)

pytestmark = pytest.mark.usefixtures("one_thread")

ATOL = {
    "eval/frontend": 1e-5,
    "eval/block": 5e-5,
    "eval/embedding": 2e-5,
    "eval/scores": 2e-6,
    "eval/grad_x": 2e-5,
    "eval/grad": 2e-4,
    "train/frontend": 2e-5,
    "train/block": 5e-5,
    "train/embedding": 2e-5,
    "train/scores": 5e-6,
    "train/grad_x": 1e-4,
    "train/grad": 1e-4,
    "train/after": 2e-6,
}
MODES = ["eval", "train"]
# The reference's names, in order of replacement. Its 1×1 convolutions are linear layers here: a trailing axis less.
NAMES = [
    (r"^LL\.", "narrow."),
    (r"^first_bn\.", "norm."),
    (r"^conformer\.class_token$", "class_token"),
    (r"^conformer\.encoder_blocks\.", "blocks."),
    (r"\.ff1\.fn\.norm\.", ".feedforward_before.0."),
    (r"\.ff1\.fn\.fn\.net\.0\.", ".feedforward_before.1."),
    (r"\.ff1\.fn\.fn\.net\.3\.", ".feedforward_before.3."),
    (r"\.ff2\.fn\.norm\.", ".feedforward_after.0."),
    (r"\.ff2\.fn\.fn\.net\.0\.", ".feedforward_after.1."),
    (r"\.ff2\.fn\.fn\.net\.3\.", ".feedforward_after.3."),
    (r"\.attn\.norm\.", ".attention_norm."),
    (r"\.attn\.fn\.qkv\.", ".attention.query_key_value."),
    (r"\.attn\.fn\.proj\.", ".attention.project."),
    (r"\.attn\.fn\.ht_proj\.", ".attention.token."),
    (r"\.attn\.fn\.ht_norm\.", ".attention.token_norm."),
    (r"\.attn\.fn\.pos_embed$", ".attention.token_place"),
    (r"\.conv\.net\.0\.", ".convolution.before."),
    (r"\.conv\.net\.2\.", ".convolution.widen."),
    (r"\.conv\.net\.4\.conv\.", ".convolution.depthwise."),
    (r"\.conv\.net\.5\.", ".convolution.norm."),
    (r"\.conv\.net\.7\.", ".convolution.narrow."),
    (r"\.post_norm\.", ".norm."),
]
LAYERS, FRAMES, CHANNELS = 3, 9, 5
N_FRAMES = torch.tensor([9, 4, 1])


@pytest.fixture(scope="module")
def golden() -> Arrays:
    return read_golden("conformer_tcm")


def ours(name: str) -> str:
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def named(golden: Arrays, prefix: str) -> dict[str, Tensor]:
    """The reference's tensors under a prefix, by our names."""
    return {
        ours(key.removeprefix(prefix)): torch.from_numpy(array)
        for key, array in golden.items()
        if key.startswith(prefix) and not key.endswith(("positional_emb", "ocsoftmax.center"))
    }


def load(golden: Arrays, dtype: torch.dtype) -> conformer_tcm.Backend:
    backend = conformer_tcm.Backend(layers=1, channels=24, embedding_dim=16, heads=2, blocks=2, kernel_size=7)
    given, state = named(golden, "param/"), backend.state_dict()
    assert given.keys() == state.keys() - {"layer_weights.logits"}
    backend.load_state_dict(
        {"layer_weights.logits": torch.zeros(1)} | {k: v.view_as(state[k]) for k, v in given.items()}
    )
    return backend.to(dtype)


def run(golden: Arrays, mode: str, dtype: torch.dtype) -> tuple[conformer_tcm.Backend, dict[str, Tensor]]:
    """The backend after one forward and backward pass, and what the golden file has of it."""
    backend = load(golden, dtype).train(mode == "train")
    seen: dict[str, Tensor] = {}
    for i, block in enumerate(backend.blocks):
        block.register_forward_hook(lambda _, __, out, i=i: seen.update({f"block{i}": out}))
    backend.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.update(input=inputs[0]))
    x = torch.from_numpy(golden["x"]).to(dtype).requires_grad_()
    embedding = backend(x[:, None], torch.full((3,), 11))
    (torch.from_numpy(golden["G"]).to(dtype) * embedding).sum().backward()
    center = torch.from_numpy(golden["param/ocsoftmax.center"]).to(dtype)
    scores = torch.nn.functional.normalize(embedding) @ torch.nn.functional.normalize(center).T
    frontend = seen.pop("input")[:, 1:] - conformer_tcm.positions(11, 16)
    assert x.grad is not None
    return backend, seen | {"frontend": frontend, "embedding": embedding, "scores": scores, "grad_x": x.grad}


def test_positions_are_the_stored_table_to_the_last_bit(golden: Arrays) -> None:
    assert torch.equal(
        conformer_tcm.positions(10_000, 16), torch.from_numpy(golden["param/conformer.positional_emb"][0])
    )


@pytest.mark.parametrize("mode", MODES)
def test_it_equals_the_reference(golden: Arrays, mode: str) -> None:
    backend, got = run(golden, mode, torch.float32)
    for name, tensor in got.items():
        compare(tensor, golden[f"{mode}/{name}"], ATOL[f"{mode}/{name.rstrip('01')}"])
    gradients = named(golden, f"{mode}/grad/")
    parameters = dict(backend.named_parameters())
    assert gradients.keys() == parameters.keys() - {"layer_weights.logits"}
    for name, gradient in gradients.items():
        own = parameters[name].grad
        assert own is not None
        compare(own.view_as(gradient), gradient.numpy(), ATOL[f"{mode}/grad"])


def test_batch_norms_move_as_in_the_reference(golden: Arrays) -> None:
    backend, _ = run(golden, "train", torch.float32)
    after, state = named(golden, "train/after/"), backend.state_dict()
    assert after.keys() == {name for name, _ in backend.named_buffers()}
    for name, tensor in after.items():
        compare(state[name], tensor.numpy(), ATOL["train/after"])


@pytest.mark.parametrize("mode", MODES)
def test_it_equals_the_reference_in_float64(golden: Arrays, mode: str) -> None:
    _, got = run(golden, mode, torch.float64)
    for name in ("embedding", "scores", "grad_x"):
        want = golden[f"f64/{mode}/{name}"]
        compare(got[name], want, 1e-10 * np.abs(want).max())


@pytest.mark.parametrize(("kernel_size", "before", "after"), [(1, 0, 0), (4, 2, 1), (7, 3, 3), (31, 15, 15)])
def test_an_even_kernel_sees_one_position_more_of_the_past(kernel_size: int, before: int, after: int) -> None:
    assert conformer_tcm.Convolution(8, kernel_size=kernel_size).margin == (before, after)


def make(**changed: Any) -> conformer_tcm.Backend:
    settings = {"embedding_dim": 8, "heads": 2, "blocks": 2, "kernel_size": 4} | changed
    backend = conformer_tcm.Backend(layers=LAYERS, channels=CHANNELS, **settings)
    randomise(backend)
    for name, buffer in backend.named_buffers():
        if name.endswith("running_mean"):
            buffer.fill_(0.2)
    return backend


def padded(fill: float) -> Tensor:
    return with_padding(noise(len(N_FRAMES), LAYERS, FRAMES, CHANNELS), N_FRAMES, fill)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fill", [np.nan, 1e30])
def test_what_padding_holds_is_ignored(fill: float, mode: str) -> None:
    check_padding_is_ignored(make().train(mode == "train"), padded(fill), N_FRAMES)


def test_a_padded_batch_is_each_of_its_utterances() -> None:
    check_each_utterance_alone(make().eval(), padded(np.nan), N_FRAMES, atol=1e-11)


def test_how_much_padding_there_is_does_not_matter_in_training() -> None:
    n_frames, features = torch.tensor([5, 5, 5]), noise(3, LAYERS, FRAMES, CHANNELS)
    short, long = make().train(), make().train()
    torch.testing.assert_close(
        long(features, n_frames), short(features[:, :, :5].contiguous(), n_frames), rtol=0, atol=1e-11
    )
    for name, buffer in short.named_buffers():
        torch.testing.assert_close(long.get_buffer(name), buffer, rtol=0, atol=1e-11)
    rest = gradients(long, features, n_frames)[1:]
    for got, want in zip(rest, gradients(short, features[:, :, :5], n_frames)[1:], strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-8)


def test_the_order_of_a_padded_batch_does_not_matter_in_training() -> None:
    order, features = torch.tensor([2, 0, 1]), padded(0.0)
    got, want = make().train()(features[order], N_FRAMES[order]), make().train()(features, N_FRAMES)[order]
    torch.testing.assert_close(got, want, rtol=0, atol=1e-11)


def test_it_does_not_write_into_its_input() -> None:
    check_its_input_is_left_alone(make(), padded(np.nan), N_FRAMES)


def test_initialisation_follows_torchs_generator() -> None:
    check_initialisation_follows_the_seed(
        lambda: conformer_tcm.Backend(layers=LAYERS, channels=CHANNELS, embedding_dim=8, blocks=1)
    )


def test_what_it_reads_and_how_wide_it_is() -> None:
    assert (make().reads, make().embedding_dim) == ("frames", 8)
    assert conformer_tcm.Backend(layers=2, channels=3, blocks=1).embedding_dim == 144
    assert [type(child) for child in make().children()].count(LayerWeights) == 1


@pytest.mark.parametrize("name", ["embedding_dim", "heads", "blocks", "kernel_size"])
@pytest.mark.parametrize("value", [0, -3])
def test_senseless_widths_are_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name}.*≥ 1.*{value}"):
        make(**{name: value})


@pytest.mark.parametrize(("embedding_dim", "heads"), [(10, 4), (9, 3)])
def test_widths_that_do_not_divide_are_refused(embedding_dim: int, heads: int) -> None:
    with pytest.raises(ValueError, match=f"multiple of 2 and of heads {heads}, got {embedding_dim}"):
        make(embedding_dim=embedding_dim, heads=heads)
