"""The convolutions in front as matrix products: what transformers computes, for any number of samples."""

import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2Model

from pipeline.encoder import front_end, models
from pipeline.encoder.xlsr import Encoder
from tests.conftest import TINY


def layers_of(**changes: object) -> torch.nn.Module:
    config = {"feat_extract_norm": "layer", "conv_bias": True, "conv_dim": (24,) * 7, "hidden_size": 32}
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = Wav2Vec2Model(Wav2Vec2Config(**config | sizes | changes)).eval().feature_extractor
        for parameter in made.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return made


@pytest.mark.parametrize("samples", [400, 719, 720, 3_200, 16_001, 64_600])
def test_features_are_those_of_transformers(samples: int) -> None:
    model, windows = layers_of(), torch.randn(3, samples, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(windows)
        found = front_end.by_matrix_products(model.conv_layers, windows, dtype=torch.float32)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_without_a_bias_too() -> None:
    model, windows = layers_of(conv_bias=False), torch.randn(2, 3_200, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(windows)
        found = front_end.by_matrix_products(model.conv_layers, windows, dtype=torch.float32)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_what_does_not_fit_stays_as_it_is() -> None:
    assert front_end.fits(layers_of())
    assert not front_end.fits(layers_of(feat_extract_norm="group"))
    assert not front_end.fits(layers_of(conv_kernel=(10, 3, 3, 3, 3, 2, 5)))
    assert not front_end.fits(front_end.FrontEnd(layers_of()))


def test_a_cpu_computes_as_transformers_does() -> None:
    """Bit by bit, so that stores of bfloat16 that a CPU made stay what they are."""
    model, card = models.load(TINY)
    windows = torch.randn(2, 3_200, generator=torch.Generator().manual_seed(1))
    encode = Encoder(model, taps=(1,), normalize=card.normalize, precision="bfloat16")
    assert isinstance(model.feature_extractor, front_end.FrontEnd)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model.feature_extractor.model(windows)
        assert torch.equal(model.feature_extractor(windows), expected)
    assert encode.model.feature_extractor is model.feature_extractor
