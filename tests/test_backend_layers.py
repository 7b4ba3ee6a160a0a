"""What backends share: which frames are valid, filling padding, normalizing valid frames."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pipeline.backends._shared import LayerWeights, fill_padding, normalize_valid, valid_frames
from tests.backends import noise

pytestmark = pytest.mark.usefixtures("one_thread")


def test_layer_weights_derived_by_hand() -> None:
    weigh = LayerWeights(2)
    weigh.logits.data = torch.tensor([0.0, math.log(3)])
    got = weigh(torch.tensor([[[4.0, 0.0], [8.0, -4.0]]]))
    assert got.tolist()[0] == pytest.approx([4 / 4 + 3 * 8 / 4, -3 * 4 / 4])
    assert weigh(noise(5, 2, 3, 4).float()).shape == (5, 3, 4)


def test_valid_frames_derived_by_hand() -> None:
    valid = valid_frames(3, torch.tensor([2, 3, 1]))
    assert valid is not None
    assert valid.tolist() == [[True, True, False], [True, True, True], [True, False, False]]
    assert valid_frames(3, torch.tensor([3, 3])) is None
    assert valid_frames(3, torch.tensor([3, 4])) is None


@pytest.mark.parametrize(("shape", "time"), [((2, 3), 1), ((2, 3, 3), 1), ((2, 3, 3), 2), ((2, 3, 3, 3), 3)])
def test_padding_is_filled_along_the_named_dimension(shape: tuple[int, ...], time: int) -> None:
    x, valid = noise(*shape), torch.tensor([[True, True, False], [True, False, False]])
    got = fill_padding(x, valid, 7.0, time=time)
    assert fill_padding(x, None, 7.0, time=time) is x
    for index in torch.cartesian_prod(*(torch.arange(size) for size in shape)).tolist():
        want = x[tuple(index)] if valid[index[0], index[time]] else 7.0
        assert got[tuple(index)] == want


def test_padding_is_zero_unless_told_and_stops_nan_in_the_gradient() -> None:
    x = torch.tensor([[2.0, math.nan]], requires_grad=True)
    got = fill_padding(x, torch.tensor([[True, False]]), time=1)
    assert got.tolist() == [[2.0, 0.0]]
    got.pow(2).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert x.grad.tolist() == [[4.0, 0.0]]


def test_only_valid_frames_are_normalized_and_padding_is_zero() -> None:
    x, valid = noise(2, 3, 4), torch.tensor([[True, True, False], [True, False, False]])
    norm = nn.BatchNorm1d(4).double()
    got = normalize_valid(norm, x, valid)
    rows = torch.stack([x[0, 0], x[0, 1], x[1, 0]])
    want = (rows - rows.mean(dim=0)) / (rows.var(dim=0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(torch.stack([got[0, 0], got[0, 1], got[1, 0]]), want, rtol=0, atol=1e-12)
    assert not got[~valid].any()
    torch.testing.assert_close(norm.running_mean, 0.1 * rows.mean(dim=0), rtol=0, atol=1e-12)


def test_without_padding_all_frames_are_normalized() -> None:
    x = noise(2, 3, 4)
    seen: list[Tensor] = []

    def norm(frames: Tensor) -> Tensor:
        seen.append(frames)
        return 2 * frames

    assert torch.equal(normalize_valid(norm, x, None), 2 * x)
    assert torch.equal(seen[0], torch.cat([x[0], x[1]]))
