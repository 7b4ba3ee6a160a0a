"""Log-mel features on tensors: the numbers of transformers' feature extractors."""

import numpy as np
import pytest
import torch
from scipy import signal
from transformers import SeamlessM4TFeatureExtractor, WhisperFeatureExtractor

from pipeline.encoder.inputs import FilterBankInput, LogMelInput


def clips(samples: int) -> torch.Tensor:
    """Noise, noise of telephone bandwidth, and a tone that stops halfway."""
    rng = np.random.default_rng(0)
    found = rng.normal(0, 0.1, (3, samples))
    found[1] = signal.sosfilt(signal.butter(8, 3_400, fs=16_000, output="sos"), found[1])
    found[2] = np.sin(np.arange(samples) * 0.3) * (np.arange(samples) < samples // 2)
    return torch.from_numpy(found.astype(np.float32))


@pytest.mark.parametrize("samples", [3_200, 3_360, 9_999])
def test_the_filter_bank_is_that_of_seamless(samples: int) -> None:
    windows = clips(samples)
    extractor = SeamlessM4TFeatureExtractor()
    expected = extractor(list(windows.numpy()), sampling_rate=16_000, return_tensors="pt")
    found, mask = FilterBankInput(80)(windows, None)
    frames = int(expected.attention_mask[0].sum())
    assert mask is None
    assert found.shape == (3, frames, 160)
    torch.testing.assert_close(found, expected.input_features[:, :frames].float(), rtol=0, atol=5e-5)


def test_padding_is_no_part_of_the_filter_bank() -> None:
    windows, lengths = clips(3_360), torch.tensor([1_100, 2_000, 3_360])
    for row, length in enumerate(lengths):
        windows[row, length:] = 0
    extractor = SeamlessM4TFeatureExtractor()
    cut = [row[:length].numpy() for row, length in zip(windows, lengths, strict=True)]
    expected = extractor(cut, sampling_rate=16_000, return_tensors="pt")
    found, mask = FilterBankInput(80)(windows, lengths)
    assert mask.sum(1).tolist() == expected.attention_mask.sum(1).tolist() == [2, 5, 9]
    for row, frames in enumerate(mask.sum(1).tolist()):
        wanted = expected.input_features[row, :frames].float()
        torch.testing.assert_close(found[row, :frames], wanted, rtol=0, atol=5e-5)


@pytest.mark.parametrize("bins", [80, 128])
def test_the_spectrogram_is_that_of_whisper(bins: int) -> None:
    windows = clips(9_999)
    extractor = WhisperFeatureExtractor(feature_size=bins, chunk_length=2)
    expected = extractor(list(windows.numpy()), sampling_rate=16_000, return_tensors="pt").input_features
    found, _ = LogMelInput(bins, 100)(windows, None)
    assert found.shape == (3, bins, 200)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
