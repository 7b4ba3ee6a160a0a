"""What every backend keeps, whatever its architecture; `test_backend_<name>.py` has what is its own."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.backends._shared import LayerWeights
from pipeline.core.members import member
from tests.backends import (
    CHANNELS,
    FRAMES,
    LAYERS,
    MODES,
    N_FRAMES,
    NAMES,
    SETTINGS,
    WIDTH,
    features_for,
    gradients,
    make,
    noise,
    padded,
    with_padding,
)

pytestmark = pytest.mark.usefixtures("one_thread")

every_backend = pytest.mark.parametrize("name", NAMES)
in_both_modes = pytest.mark.parametrize("mode", MODES)
# A backend and settings that change what it does with frames.
POOLED = [("linear", {}), ("mlp", {}), ("per_layer", {})]
FRAMEWISE: list[tuple[str, dict[str, Any]]] = [
    ("aasist", {}),
    ("asp", {}),
    ("conformer_tcm", {}),
    ("mhfa", {}),
    ("nes2net", {"pooling": "mean"}),
    ("nes2net", {"pooling": "astp"}),
    ("sls", {}),
]
# How far rounding may go: deep networks round more often.
EXACT = {"aasist": 1e-11, "conformer_tcm": 1e-11, "nes2net": 1e-11}
# Its nodes depend on the window's length, so that padding counts as silence.
WINDOWED = "aasist"


def test_every_backend_has_a_case() -> None:
    assert sorted(SETTINGS) == NAMES == sorted({name for name, _ in POOLED + FRAMEWISE})


@pytest.mark.parametrize(
    ("name", "changed", "reads", "width", "weightings"),
    [
        ("aasist", {}, "frames", 160, 1),
        ("asp", {}, "frames", WIDTH, 1),
        ("conformer_tcm", {}, "frames", 8, 1),
        ("linear", {}, "pooled", WIDTH, 1),
        ("mhfa", {}, "frames", WIDTH, 2),
        ("mlp", {}, "pooled", WIDTH, 1),
        ("nes2net", {}, "frames", CHANNELS, 1),
        ("nes2net", {"pooling": "astp"}, "frames", 2 * CHANNELS, 1),
        ("per_layer", {}, "pooled", LAYERS * WIDTH, 0),
        ("sls", {}, "frames", WIDTH, 0),
    ],
)
def test_what_it_reads_how_wide_it_is_and_how_it_weighs_layers(
    name: str, changed: dict[str, str], reads: str, width: int, weightings: int
) -> None:
    backend = make(name, **changed)
    assert (backend.reads, backend.embedding_dim) == (reads, width)
    assert backend(features_for(backend), N_FRAMES).shape == (len(N_FRAMES), width)
    assert [type(child) for child in backend.children()].count(LayerWeights) == weightings


@pytest.mark.parametrize(
    ("name", "width"),
    [("asp", 128), ("conformer_tcm", 144), ("linear", 128), ("mhfa", 256), ("mlp", 128), ("per_layer", 128)],
)
def test_its_width_by_default(name: str, width: int) -> None:
    assert member("backends", name).Backend(layers=2, channels=3).embedding_dim == width


@every_backend
def test_initialization_follows_torchs_generator(name: str) -> None:
    sizes = {"layers": LAYERS, "channels": CHANNELS} | SETTINGS[name]

    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.detach().flatten() for p in member("backends", name).Backend(**sizes).parameters()])

    assert torch.equal(drawn(3), drawn(3))
    assert not torch.equal(drawn(3), drawn(4))


@every_backend
@in_both_modes
def test_state_dict_holds_all_that_the_embedding_needs(name: str, mode: str) -> None:
    trained, features = make(name), features_for(make(name))
    trained.train()(features, N_FRAMES)  # moves the batch norms
    fresh = member("backends", name).Backend(layers=LAYERS, channels=CHANNELS, **SETTINGS[name]).double()
    fresh.load_state_dict(trained.state_dict())
    found, want = (backend.train(mode == "train")(features, N_FRAMES) for backend in (fresh, trained))
    assert torch.equal(found, want)


@every_backend
@in_both_modes
def test_it_makes_its_tensors_where_its_input_lies(name: str, mode: str) -> None:
    backend = make(name).train(mode == "train")
    features = features_for(backend)
    want = backend(features, N_FRAMES)
    backend = make(name).train(mode == "train")
    with torch.device("meta"):  # where a tensor lands that is made without its device being said
        got = backend(features.requires_grad_(), N_FRAMES)
        got.sum().backward()
    assert torch.equal(got, want)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
@every_backend
@in_both_modes
def test_a_gpu_gives_the_same_embeddings(name: str, mode: str) -> None:
    features = features_for(make(name))
    want = make(name).train(mode == "train")(features, N_FRAMES)
    got = make(name).train(mode == "train").cuda()(features.cuda(), N_FRAMES.cuda())
    torch.testing.assert_close(got.cpu(), want, rtol=1e-9, atol=1e-9)


@every_backend
@in_both_modes
def test_the_order_of_a_batch_does_not_matter(name: str, mode: str) -> None:
    order = torch.tensor([2, 0, 1])
    features = features_for(make(name))
    got = make(name).train(mode == "train")(features[order], N_FRAMES[order])
    want = make(name).train(mode == "train")(features, N_FRAMES)[order]
    torch.testing.assert_close(got, want, rtol=0, atol=EXACT.get(name, 1e-12))


@pytest.mark.parametrize(("name", "changed"), [*POOLED, (WINDOWED, {})])
def test_an_embedding_does_not_depend_on_the_others_of_its_batch(name: str, changed: dict[str, Any]) -> None:
    backend = make(name, **changed).eval()
    features = features_for(backend)
    together = backend(features, N_FRAMES)
    for row in range(len(N_FRAMES)):
        alone = backend(features[row : row + 1], N_FRAMES[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=EXACT.get(name, 1e-12))


# Frames and padding


@pytest.mark.parametrize("fill", [np.nan, np.inf, 1e30])
@in_both_modes
@pytest.mark.parametrize(("name", "changed"), FRAMEWISE)
def test_what_padding_holds_is_ignored(name: str, changed: dict[str, Any], mode: str, fill: float) -> None:
    """Embeddings and all gradients are, bit for bit, those of padding with zeros; padding itself has none."""
    backend = make(name, **changed).train(mode == "train")
    features, zeros = padded(fill), padded(0.0)
    assert not torch.equal(features, zeros)
    assert torch.equal(backend(features, N_FRAMES), backend(zeros, N_FRAMES))
    found, want = gradients(backend, features, N_FRAMES), gradients(backend, zeros, N_FRAMES)
    assert len(found) == 1 + len(list(backend.parameters()))
    for got, expected in zip(found, want, strict=True):
        assert bool(got.isfinite().all())
        assert torch.equal(got, expected)
    assert torch.equal(with_padding(found[0], N_FRAMES, 0.0), found[0])


@pytest.mark.parametrize(("name", "changed"), [case for case in FRAMEWISE if case[0] != WINDOWED])
def test_an_utterance_in_a_padded_batch_is_the_utterance_alone(name: str, changed: dict[str, Any]) -> None:
    if name == "sls":  # of a window longer than any utterance
        changed = {"frames": FRAMES + 3}
    backend, features = make(name, **changed).eval(), padded(np.nan)
    together = backend(features, N_FRAMES)
    for row, frames in enumerate(N_FRAMES.tolist()):
        alone = backend(features[row : row + 1, :, :frames], torch.tensor([frames]))
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=EXACT.get(name, 1e-12))


@pytest.mark.parametrize(("name", "changed"), [case for case in FRAMEWISE if case[0] not in (WINDOWED, "sls")])
def test_how_much_padding_there_is_does_not_matter_in_training(name: str, changed: dict[str, Any]) -> None:
    n_frames, features = torch.tensor([5, 5, 5]), noise(3, LAYERS, FRAMES, CHANNELS)
    short, long = make(name, **changed).train(), make(name, **changed).train()
    torch.testing.assert_close(
        long(features, n_frames), short(features[:, :, :5].contiguous(), n_frames), rtol=0, atol=1e-11
    )
    for key, buffer in short.named_buffers():
        torch.testing.assert_close(long.get_buffer(key), buffer, rtol=0, atol=1e-11)
    rest = gradients(long, features, n_frames)[1:]
    for got, want in zip(rest, gradients(short, features[:, :, :5], n_frames)[1:], strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-8)


@pytest.mark.parametrize(("name", "changed"), FRAMEWISE)
def test_its_input_is_left_alone(name: str, changed: dict[str, Any]) -> None:
    features = padded(np.nan)
    make(name, **changed)(features, N_FRAMES)
    torch.testing.assert_close(features, padded(np.nan), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("name", "mode"),
    [(name, "eval") for name in ("asp", "linear", "mhfa", "mlp", "per_layer")] + [("sls", m) for m in MODES],
)
def test_gradients_are_those_of_finite_differences(name: str, mode: str) -> None:
    backend = make(name).train(mode == "train")
    features, n_frames = features_for(backend)[:2, :, :, :8].clone().requires_grad_(), N_FRAMES[:2]
    backend = make(name, channels=8).train(mode == "train")
    assert torch.autograd.gradcheck(lambda x, *_: backend(x, n_frames), (features, *backend.parameters()))


# Sizes that make no sense

SIZES = {
    "asp": ["embedding_dim", "attention_dim"],
    "conformer_tcm": ["embedding_dim", "heads", "blocks", "kernel_size"],
    "linear": ["embedding_dim"],
    "mhfa": ["embedding_dim", "heads", "compression_dim"],
    "mlp": ["embedding_dim", "hidden_dim", "hidden_layers"],
    "per_layer": ["layer_dim"],
    "sls": ["embedding_dim"],
}


@pytest.mark.parametrize(("name", "size"), [(name, size) for name, sizes in SIZES.items() for size in sizes])
@pytest.mark.parametrize("value", [0, -3])
def test_senseless_sizes_are_refused(name: str, size: str, value: int) -> None:
    values = [str(value if own == size else SETTINGS[name][own]) for own in SIZES[name]]
    names, found = (" and ".join([", ".join(words[:-1]), words[-1]]) for words in (SIZES[name], values))
    message = f"expected {names} ≥ 1, got {found}" if len(values) > 1 else f"expected {size} ≥ 1, got {value}"
    with pytest.raises(ValueError, match=re.escape(message)):
        make(name, **{size: value})
