"""Conformer-TCM against golden numbers of the published implementation, and what padding must not change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.backends import conformer_tcm
from tests.backends import MODES, compare, compare_buffers, compare_gradients, load, make, named
from tests.golden import Arrays, read_golden

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
FOREIGN = r"positional_emb$|ocsoftmax\.center$"


@pytest.fixture(scope="module")
def golden() -> Arrays:
    return read_golden("conformer_tcm")


def run(golden: Arrays, mode: str, dtype: torch.dtype) -> tuple[conformer_tcm.Backend, dict[str, Tensor]]:
    """The backend after one forward and backward pass, and what the golden file has of it."""
    new = conformer_tcm.Backend(layers=1, channels=24, embedding_dim=16, heads=2, blocks=2, kernel_size=7)
    backend = load(new, named(golden, "param/", NAMES, without=FOREIGN), dtype).train(mode == "train")
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
    gradients = named(golden, f"{mode}/grad/", NAMES, without=FOREIGN)
    assert gradients.keys() == dict(backend.named_parameters()).keys() - {"layer_weights.logits"}
    compare_gradients(backend, gradients, ATOL[f"{mode}/grad"])


def test_batch_norms_move_as_in_the_reference(golden: Arrays) -> None:
    backend, _ = run(golden, "train", torch.float32)
    compare_buffers(backend, named(golden, "train/after/", NAMES), ATOL["train/after"])


@pytest.mark.parametrize("mode", MODES)
def test_it_equals_the_reference_in_float64(golden: Arrays, mode: str) -> None:
    _, got = run(golden, mode, torch.float64)
    for name in ("embedding", "scores", "grad_x"):
        want = golden[f"f64/{mode}/{name}"]
        compare(got[name], want, 1e-10 * np.abs(want).max())


@pytest.mark.parametrize(("kernel_size", "before", "after"), [(1, 0, 0), (4, 2, 1), (7, 3, 3), (31, 15, 15)])
def test_an_even_kernel_sees_one_position_more_of_the_past(kernel_size: int, before: int, after: int) -> None:
    assert conformer_tcm.Convolution(8, kernel_size=kernel_size).margin == (before, after)


@pytest.mark.parametrize(("embedding_dim", "heads"), [(10, 4), (9, 3)])
def test_widths_that_do_not_divide_are_refused(embedding_dim: int, heads: int) -> None:
    with pytest.raises(ValueError, match=f"multiple of 2 and of heads {heads}, got {embedding_dim}"):
        make("conformer_tcm", embedding_dim=embedding_dim, heads=heads)
