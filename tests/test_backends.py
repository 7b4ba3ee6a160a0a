from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.backends import asp, linear
from pipeline.backends._shared import LayerWeights
from tests.backends import (
    check_each_utterance_alone,
    check_its_input_is_left_alone,
    check_padding_is_ignored,
    gradients,
    noise,
    randomise,
    with_padding,
)

pytestmark = pytest.mark.usefixtures("one_thread")

Array = NDArray[np.float64]
LAYERS, FRAMES, CHANNELS, WIDTH = 3, 7, 4, 5
N_FRAMES = torch.tensor([7, 4, 1])


def make_asp() -> asp.Backend:
    backend = asp.Backend(layers=LAYERS, channels=CHANNELS, embedding_dim=WIDTH, attention_dim=6)
    randomise(backend)
    return backend


def make_linear() -> linear.Backend:
    backend = linear.Backend(layers=LAYERS, channels=CHANNELS, embedding_dim=WIDTH)
    randomise(backend)
    return backend


def padded(fill: float) -> Tensor:
    return with_padding(noise(len(N_FRAMES), LAYERS, FRAMES, CHANNELS), N_FRAMES, fill)


def arrays(module: nn.Module) -> dict[str, Array]:
    return {name: parameter.detach().numpy() for name, parameter in module.named_parameters()}


def weigh(features: Array, logits: Array) -> Array:
    weights = np.exp(logits) / np.exp(logits).sum()
    out: Array = sum(weight * layer for weight, layer in zip(weights, features, strict=True))
    return out


def layer_norm(x: Array, weight: Array, bias: Array) -> Array:
    out: Array = (x - x.mean()) / np.sqrt(x.var() + 1e-5) * weight + bias
    return out


def test_linear_agrees_with_a_naive_loop() -> None:
    backend, features = make_linear(), noise(2, LAYERS, 2, CHANNELS)
    p = arrays(backend)
    got = backend(features, torch.tensor([7, 3])).detach().numpy()
    assert got.shape == (2, WIDTH)
    for row, example in zip(got, features.numpy(), strict=True):
        pooled = weigh(example, p["layer_weights.logits"]).reshape(-1)
        want = p["project.weight"] @ layer_norm(pooled, p["norm.weight"], p["norm.bias"]) + p["project.bias"]
        np.testing.assert_allclose(row, want, rtol=0, atol=1e-12)


def test_linear_is_the_mean_over_layers_at_the_start() -> None:
    backend = linear.Backend(layers=LAYERS, channels=CHANNELS, embedding_dim=WIDTH).double()
    features = noise(2, LAYERS, 2, CHANNELS)
    alike = features.mean(dim=1, keepdim=True).expand(-1, LAYERS, -1, -1)
    n_frames = torch.tensor([7, 3])
    torch.testing.assert_close(backend(features, n_frames), backend(alike, n_frames), rtol=0, atol=1e-12)


def test_linear_does_not_depend_on_the_scale_of_the_stream() -> None:
    backend, features = make_linear(), 100 * noise(2, LAYERS, 2, CHANNELS)
    n_frames = torch.tensor([7, 3])
    torch.testing.assert_close(backend(features, n_frames), backend(30 * features, n_frames), rtol=0, atol=1e-6)


def test_asp_agrees_with_a_naive_loop() -> None:
    backend, features = make_asp(), padded(np.nan)
    p = arrays(backend)
    got = backend(features, N_FRAMES).detach().numpy()
    assert got.shape == (3, WIDTH)
    for row, example, frames in zip(got, features.numpy(), N_FRAMES.tolist(), strict=True):
        stream = weigh(example[:, :frames], p["layer_weights.logits"])  # (T, D)
        stream = np.stack([layer_norm(frame, p["norm.weight"], p["norm.bias"]) for frame in stream])
        hidden = [np.tanh(p["bottleneck.weight"] @ frame + p["bottleneck.bias"]) for frame in stream]
        scores = np.exp([float((p["score.weight"] @ h).item()) for h in hidden])
        attention = scores / scores.sum()
        mean = sum(a * frame for a, frame in zip(attention, stream, strict=True))
        variance = sum(a * frame**2 for a, frame in zip(attention, stream, strict=True)) - mean**2
        pooled = np.concatenate([mean, np.sqrt(np.maximum(variance, asp.VARIANCE_FLOOR))])
        np.testing.assert_allclose(row, p["project.weight"] @ pooled + p["project.bias"], rtol=0, atol=1e-10)


def test_asp_statistics_derived_by_hand() -> None:
    frames = torch.tensor([[[1.0, 5.0], [3.0, 5.0], [9.0, 9.0]]])
    # Weights ½, ½, 0: mean (2, 5); deviation 1, and the floor where nothing varies.
    got = asp.attentive_statistics(frames, torch.tensor([[0.5, 0.5, 0.0]]))
    assert got.tolist()[0] == pytest.approx([2.0, 5.0, 1.0, asp.VARIANCE_FLOOR**0.5])


def test_asp_keeps_the_deviation_of_a_channel_with_a_large_offset() -> None:
    frames = 3000.0 + 0.1 * noise(1, 200, 1)
    got = asp.attentive_statistics(frames.float(), torch.full((1, 200), 1 / 200))
    assert float(got[0, 1]) == pytest.approx(float(frames.std(correction=0)), rel=2e-3)


def test_asp_with_uniform_attention_is_plain_mean_and_deviation() -> None:
    backend, features = make_asp(), padded(np.nan)
    backend.score.weight.data.zero_()
    seen: list[Tensor] = []
    backend.project.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    backend(features, N_FRAMES)
    for pooled, example, frames in zip(seen[0], features, N_FRAMES.tolist(), strict=True):
        stream = backend.norm(backend.layer_weights(example[None, :, :frames]))[0]  # (T, D)
        deviation = stream.std(dim=0, correction=0).clamp(min=asp.VARIANCE_FLOOR**0.5)
        torch.testing.assert_close(pooled, torch.cat([stream.mean(dim=0), deviation]), rtol=0, atol=1e-12)


def test_asp_attention_sums_to_one_over_the_valid_frames() -> None:
    backend = make_asp()
    valid = torch.arange(FRAMES) < N_FRAMES[:, None]
    attention = backend.attention(noise(3, FRAMES, CHANNELS), valid)
    assert torch.equal(attention > 0, valid)
    torch.testing.assert_close(attention.sum(dim=1), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("fill", [np.nan, np.inf, 1e30])
def test_asp_ignores_what_padding_holds(fill: float) -> None:
    check_padding_is_ignored(make_asp(), padded(fill), N_FRAMES)


def test_asp_of_a_padded_batch_is_asp_of_each_utterance() -> None:
    check_each_utterance_alone(make_asp(), padded(np.nan), N_FRAMES, atol=1e-12)


def test_asp_does_not_write_into_its_input() -> None:
    check_its_input_is_left_alone(make_asp(), padded(np.nan), N_FRAMES)


def test_asp_gradient_is_finite_for_constant_and_single_frames() -> None:
    features = noise(2, LAYERS, 1, CHANNELS).expand(-1, -1, FRAMES, -1)
    for gradient in gradients(make_asp(), features, torch.tensor([FRAMES, 1])):
        assert bool(gradient.isfinite().all())


def test_gradcheck() -> None:
    pooler, reader = make_asp(), make_linear()
    frames, pooled = padded(0.0)[:2].requires_grad_(), noise(2, LAYERS, 2, CHANNELS).requires_grad_()
    n_frames = N_FRAMES[:2]
    assert torch.autograd.gradcheck(lambda x, *_: pooler(x, n_frames), (frames, *pooler.parameters()))
    assert torch.autograd.gradcheck(lambda x, *_: reader(x, n_frames), (pooled, *reader.parameters()))


def test_the_order_of_a_batch_does_not_matter() -> None:
    order = torch.tensor([2, 0, 1])
    pooler, frames = make_asp(), padded(0.0)
    torch.testing.assert_close(
        pooler(frames[order], N_FRAMES[order]), pooler(frames, N_FRAMES)[order], rtol=0, atol=1e-12
    )
    reader, pooled = make_linear(), noise(3, LAYERS, 2, CHANNELS)
    torch.testing.assert_close(
        reader(pooled[order], N_FRAMES[order]), reader(pooled, N_FRAMES)[order], rtol=0, atol=1e-12
    )


def test_each_backend_says_what_it_reads_and_how_wide_it_is() -> None:
    for backend, reads in ((make_linear(), "pooled"), (make_asp(), "frames")):
        assert (backend.reads, backend.embedding_dim) == (reads, WIDTH)
        assert [type(child) for child in backend.children()].count(LayerWeights) == 1
    assert linear.Backend(layers=2, channels=3).embedding_dim == asp.Backend(layers=2, channels=3).embedding_dim == 128


@pytest.mark.parametrize("embedding_dim", [0, -3])
def test_senseless_widths_are_refused(embedding_dim: int) -> None:
    with pytest.raises(ValueError, match="embedding_dim"):
        linear.Backend(layers=2, channels=3, embedding_dim=embedding_dim)
    with pytest.raises(ValueError, match="embedding_dim and attention_dim"):
        asp.Backend(layers=2, channels=3, embedding_dim=embedding_dim)
    with pytest.raises(ValueError, match="embedding_dim and attention_dim"):
        asp.Backend(layers=2, channels=3, attention_dim=embedding_dim)
