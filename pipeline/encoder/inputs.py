"""What an encoder takes of a window: its samples, or log-mel features of them, computed as transformers does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.audio_utils import mel_filter_bank, window_function

SAMPLE_RATE = 16_000
LENGTH, HOP = 400, 160  # samples of an analysis frame, and from one to the next: 25 and 10 ms


class SampleInput(nn.Module):
    """The samples themselves, as wav2vec 2.0 and its kin take them."""

    def forward(self, samples: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What the model takes, and its attention mask.

        Args:
            samples: (B, S), zero in the padding. valid: (B,) int, the number of samples that are signal; None for all.

        Returns:
            (B, S), and (B, S) int; no mask where nothing is padding.
        """
        return samples, None if valid is None else _is_signal(valid, samples.shape[1], samples.device).long()


class FilterBankInput(nn.Module):
    """Kaldi's log-mel filter bank, each bin normalized over time, two frames side by side, for w2v-BERT 2.0.

    In float64, because rounding decides in bands without energy, such as those of telephone speech. Source:
    transformers' `SeamlessM4TFeatureExtractor`.
    """

    filters: Tensor  # (FFT / 2 + 1, bins)
    window: Tensor  # (LENGTH,)
    PREEMPHASIS, FFT, FLOOR, SCALE = 0.97, 512, 1.192092955078125e-07, 2.0**15

    def __init__(self, bins: int) -> None:
        super().__init__()
        filters = mel_filter_bank(
            num_frequency_bins=self.FFT // 2 + 1,
            num_mel_filters=bins,
            min_frequency=20,
            max_frequency=SAMPLE_RATE // 2,
            sampling_rate=SAMPLE_RATE,
            mel_scale="kaldi",
            triangularize_in_mel_space=True,
        )
        window = window_function(LENGTH, "povey", periodic=False)
        self.register_buffer("filters", torch.from_numpy(filters), persistent=False)
        self.register_buffer("window", torch.from_numpy(window), persistent=False)

    def forward(self, samples: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """As of `SampleInput`, with features (B, T, 2 · bins) and a mask (B, T)."""
        mel = self._log_mel(samples)  # (B, M, bins)
        counts = None if valid is None else (valid - LENGTH) // HOP + 1
        if counts is None:
            mean, variance = mel.mean(1, keepdim=True), mel.var(1, keepdim=True)
        else:
            signal = _is_signal(counts, mel.shape[1], mel.device)[..., None]  # (B, M, 1)
            count = signal.sum(1, keepdim=True)
            mean = (mel * signal).sum(1, keepdim=True) / count
            variance = ((mel - mean) * signal).square().sum(1, keepdim=True) / (count - 1)
        normed = ((mel - mean) / (variance + 1e-7).sqrt()).float()
        pairs = mel.shape[1] // 2
        stacked = normed[:, : 2 * pairs].reshape(len(normed), pairs, -1)
        return stacked, None if counts is None else _is_signal(counts // 2, pairs, mel.device).long()

    def _log_mel(self, samples: Tensor) -> Tensor:
        """Samples (B, S) to the logarithm of the energy in each bin, (B, M, bins) float64."""
        frames = samples.double().unfold(1, LENGTH, HOP) * self.SCALE  # (B, M, LENGTH)
        frames = frames - frames.mean(2, keepdim=True)
        before = functional.pad(frames, (1, -1))
        before[..., 0] = frames[..., 0]
        spectrum = torch.fft.rfft((frames - self.PREEMPHASIS * before) * self.window, self.FFT)
        energy: Tensor = spectrum.abs().square() @ self.filters
        return energy.clamp(min=self.FLOOR).log()


class LogMelInput(nn.Module):
    """Whisper's log-mel spectrogram of a window that is filled up with silence, to the 30 s for which it has positions.

    Source: transformers' `WhisperFeatureExtractor`.
    """

    filters: Tensor  # (LENGTH / 2 + 1, bins)
    window: Tensor  # (LENGTH,)

    def __init__(self, bins: int, positions: int) -> None:
        super().__init__()
        self.samples = 2 * HOP * positions
        filters = mel_filter_bank(
            num_frequency_bins=LENGTH // 2 + 1,
            num_mel_filters=bins,
            min_frequency=0.0,
            max_frequency=SAMPLE_RATE / 2,
            sampling_rate=SAMPLE_RATE,
            norm="slaney",
            mel_scale="slaney",
        )
        self.register_buffer("filters", torch.from_numpy(filters).float(), persistent=False)
        self.register_buffer("window", torch.hann_window(LENGTH), persistent=False)

    def forward(self, samples: Tensor, _valid: Tensor | None) -> tuple[Tensor, None]:
        """Samples (B, S) to features (B, bins, 2 · positions). Nothing is masked: Whisper attends to the silence."""
        filled = functional.pad(samples, (0, self.samples - samples.shape[1]))
        spectrum = torch.stft(filled, LENGTH, HOP, window=self.window, return_complex=True)[..., :-1]
        mel = (self.filters.T @ spectrum.abs().square()).clamp(min=1e-10).log10()
        loudest = mel.amax(dim=(1, 2), keepdim=True)
        return (torch.maximum(mel, loudest - 8.0) + 4.0) / 4.0, None


def input_of(config: Any) -> SampleInput | FilterBankInput | LogMelInput:
    """What an encoder of a configuration takes."""
    if config.model_type == "wav2vec2-bert":
        return FilterBankInput(config.feature_projection_input_dim // 2)
    if config.model_type == "whisper":
        return LogMelInput(config.num_mel_bins, config.max_source_positions)
    return SampleInput()


def _is_signal(counts: Tensor, most: int, device: torch.device) -> Tensor:
    """Which of `most` places are signal, (B, most) bool, where the first `counts` (B,) of each row are."""
    return torch.arange(most, device=device) < counts.to(device)[:, None]
