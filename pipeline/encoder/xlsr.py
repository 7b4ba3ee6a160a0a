"""XLSR, or an encoder of another kind (`configuration.KINDS`): windows to features of chosen layers.

Layer k is the output after k transformer layers, and layer 0 is the input of the first one. Both are the residual
stream, without the encoder's final LayerNorm. `final` is the last layer after that LayerNorm.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2Model

from pipeline.core.contracts import Tap
from pipeline.core.devices import Precision, exact_convolutions
from pipeline.encoder import front_end
from pipeline.encoder.cards import TRANSFORMERS_EPS, architecture_of, frames_of
from pipeline.encoder.inputs import input_of

Device = Literal["auto", "cpu", "cuda"]
# Channels in a group of a convolution. With fewer, oneDNN's bfloat16 (3.12, in torch 2.13) gives wrong sums on CPUs
# with AMX; the error is larger than the sum. XLSR has 64 channels in a group, encoders of tests have fewer than 16.
FEW_CHANNELS = 16
# Kinds with convolutions that transformers does not keep from padding: each layer of a conformer has one, and data2vec
# adds positions by several, one after another.
SPREADING = {"wav2vec2-conformer", "data2vec-audio"}


class Encoder(nn.Module):
    """An encoder without the layers above its highest tap: windows to the features of each tap.

    With precision bfloat16, linear maps and convolutions compute in bfloat16, and their weights are stored so. Three
    things stay float32: normalizations (on a GPU without those between the convolutions, see `front_end`), the residual
    stream between the layers, which grows large, and convolutions with few channels in a group.
    """

    def __init__(
        self,
        model: Wav2Vec2Model,
        *,
        taps: tuple[Tap, ...],
        normalize: Literal["utterance", "none"],
        normalize_eps: float = TRANSFORMERS_EPS,
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        self.model = model
        self.taps = taps
        self.normalize = normalize
        self.normalize_eps = normalize_eps
        self.precision = precision
        self._caught: dict[Tap, Tensor] = {}
        self._n_frames: Tensor | None = None  # (B,) of a batch with padding
        self._architecture = architecture_of(model)
        self.input = input_of(model.config)
        stack = stack_of(model)
        if "final" not in taps:
            highest = max(int(tap) for tap in taps)
            # transformers needs at least one layer. Where only layer 0 is tapped, the output of layer 1 is not used.
            stack.layers = stack.layers[: max(highest, 1)]
        if precision == "float32":
            exact_convolutions()
        else:  # convert weights once; autocast would convert them for every batch
            for part in model.modules():
                narrow = parametrize.is_parametrized(part) or _has_few_channels(part)
                if isinstance(part, nn.Linear | nn.Conv1d) and not narrow:
                    part.bfloat16()
            if front_end.fits(getattr(model, "feature_extractor", None)):
                model.feature_extractor = front_end.FrontEnd(model.feature_extractor)
        for part in model.modules():
            if _has_few_channels(part):
                part.register_forward_pre_hook(_enter_float32)
                part.register_forward_hook(_leave_float32, always_call=True)
        self._keep_from_padding(model)
        stack.layers[0].register_forward_pre_hook(_widen)
        for tap in taps:
            if tap == 0:
                stack.layers[0].register_forward_pre_hook(self._catch_input)
            elif tap != "final":
                stack.layers[int(tap) - 1].register_forward_hook(self._catch_output(tap))

    def _keep_from_padding(self, model: Any) -> None:
        """Mask the padding where transformers does not."""
        kind, stack = model.config.model_type, stack_of(model)
        for part in stack.modules() if kind in SPREADING else ():
            if isinstance(part, nn.Conv1d) and part.kernel_size[0] > 1:
                part.register_forward_pre_hook(self._mask_frames)
        for layer in stack.layers if kind == "sew" else ():
            layer.register_forward_pre_hook(self._mask_attention, with_kwargs=True)

    def _mask_frames(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Set the frames (B, D, T) of padding to zero, as they are beyond the end of a batch without padding."""
        frames = inputs[0]
        if self._n_frames is None:
            return inputs
        signal = torch.arange(frames.shape[2], device=frames.device) < self._n_frames.to(frames.device)[:, None]
        return (frames * signal[:, None],)

    def _mask_attention(
        self, _module: nn.Module, inputs: tuple[Tensor, ...], arguments: dict[str, Any]
    ) -> tuple[tuple[Tensor, ...], dict[str, Any]] | None:
        """Let a layer of SEW attend to whole frames only. transformers lets it attend to one that is half padding."""
        if self._n_frames is None:
            return None
        count, length, _ = inputs[0].shape
        signal = torch.arange(length, device=inputs[0].device) < self._n_frames.to(inputs[0].device)[:, None]  # (B, T)
        return inputs, arguments | {"attention_mask": signal[:, None, None].expand(count, 1, length, length)}

    def _catch_input(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._caught[0] = inputs[0]

    def _catch_output(self, tap: Tap) -> Callable[[nn.Module, Any, Any], None]:
        def catch(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self._caught[tap] = output[0] if isinstance(output, tuple) else output

        return catch

    @torch.inference_mode()
    def forward(self, windows: Tensor, valid: Tensor) -> tuple[dict[Tap, Tensor], Tensor]:
        """The features of every tap for a batch of windows, without gradients. See `features`."""
        return self.features(windows, valid)

    def features(self, windows: Tensor, valid: Tensor) -> tuple[dict[Tap, Tensor], Tensor]:
        """The features of every tap for a batch of windows, with gradients where the weights have them.

        Args:
            windows: (B, S) float32 samples at 16 kHz.
            valid: (B,) int, the number of samples of each window that are signal; the rest is padding. Keep it on the
                CPU: reading it from a GPU waits for all work of the GPU.

        Returns:
            tap -> (B, T, D) float32; and n_frames (B,), the number of frames that are signal, on the device of `valid`.
        """
        whole = bool((valid >= windows.shape[1]).all())
        mask = torch.arange(windows.shape[1], device=windows.device) < valid.to(windows.device)[:, None]  # (B, S)
        samples = normalized(windows, mask, eps=self.normalize_eps) if self.normalize == "utterance" else windows
        taken, padding = self.input(samples * mask, None if whole else valid)
        n_frames = self.n_frames(valid)
        self._n_frames = None if whole else n_frames
        half = torch.autocast(windows.device.type, torch.bfloat16) if self.precision == "bfloat16" else nullcontext()
        try:
            with half:
                output = self.model(taken, attention_mask=padding)
        finally:
            caught, self._caught = self._caught, {}
        if "final" in self.taps:
            caught["final"] = output.last_hidden_state
        most = frames_of(self._architecture, windows.shape[1])  # of Whisper's, those beyond are silence
        return {tap: caught[tap][:, :most] for tap in self.taps}, n_frames

    def signal_frames(self, count: int, length: int) -> Tensor:
        """The number of frames (B,) that are signal in the batch at work, of B = `count` windows of `length` frames."""
        return torch.full((count,), length) if self._n_frames is None else self._n_frames

    def n_frames(self, valid: Tensor) -> Tensor:
        """The number of frames (B,) that are signal, of windows with `valid` (B,) samples of signal."""
        return frames_of(self._architecture, valid)


def stack_of(model: Any) -> Any:
    """The part of a model that has its transformer layers."""
    return model if model.config.model_type == "whisper" else model.encoder


def _has_few_channels(part: nn.Module) -> bool:
    return isinstance(part, nn.Conv1d) and part.groups > 1 and part.in_channels < FEW_CHANNELS * part.groups


def _widen(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Convert the input of the first layer to float32. The layers add to it, so the residual stream stays float32."""
    return inputs[0].float(), *inputs[1:]


def _enter_float32(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    outside = torch.autocast(inputs[0].device.type, enabled=False)
    outside.__enter__()  # type: ignore[no-untyped-call]
    module.__dict__.setdefault("outside", []).append(outside)  # a list, because two encoders may share one model
    return tuple(x.float() for x in inputs)


def _leave_float32(module: nn.Module, _inputs: tuple[Tensor, ...], _output: Any) -> None:
    module.__dict__["outside"].pop().__exit__(None, None, None)


def normalized(windows: Tensor, mask: Tensor, *, eps: float = TRANSFORMERS_EPS) -> Tensor:
    """Normalize each window (B, S) to zero mean and unit variance over its valid samples. eps: added to the latter."""
    count = mask.sum(1, keepdim=True)  # (B, 1)
    mean = (windows * mask).sum(1, keepdim=True) / count
    centred = (windows - mean) * mask
    variance = centred.square().sum(1, keepdim=True) / count
    return centred / (variance + eps).sqrt()
