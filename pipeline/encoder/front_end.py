"""The convolutions in front of a wav2vec 2.0 encoder, for a GPU in bfloat16: as matrix products.

transformers keeps channels before frames. So each layer norm turns its input twice, and cuDNN turns it twice more: on
an H100 turning takes longer than the seven convolutions. Here frames come before channels, and nothing is turned.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class FrontEnd(nn.Module):
    """The convolutions of a model, by matrix products where they run on a GPU without gradients.

    On a CPU and in training they run as transformers has them. model: the model's `feature_extractor`.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, windows: Tensor) -> Tensor:
        """Samples (B, S) to features (B, C, T)."""
        if windows.is_cuda and not torch.is_grad_enabled():
            return by_matrix_products(self.model.conv_layers, windows)
        out: Tensor = self.model(windows)
        return out


def fits(model: Any) -> bool:
    """Whether every layer has a layer norm and a kernel of one to two strides, as XLSR's have."""
    return hasattr(model, "conv_layers") and all(
        isinstance(getattr(layer, "layer_norm", None), nn.LayerNorm)
        and layer.conv.stride[0] <= layer.conv.kernel_size[0] <= 2 * layer.conv.stride[0]
        for layer in model.conv_layers
    )


def by_matrix_products(layers: Any, windows: Tensor, *, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Samples (B, S) to features (B, C, T) of a type, that of the convolutions' weights.

    Norms and activations compute in float32 and round once each.

    All windows lie end to end in one long row of frames, (B · T', C). Each window is filled up with zeros to a multiple
    of all strides, so that it begins on a multiple of each stride. The last frames of a window are computed from that
    filling and from the next window; they are cut off at the end.
    """
    whole = math.prod(layer.conv.stride[0] for layer in layers)
    batch, samples = windows.shape
    length = samples
    for layer in layers:
        length = (length - layer.conv.kernel_size[0]) // layer.conv.stride[0] + 1
    filled = functional.pad(windows, (0, -samples % whole)).to(dtype)
    frames = filled.reshape(-1, 1)
    with torch.autocast(windows.device.type, enabled=False):
        for layer in layers:
            norm = layer.layer_norm
            frames = _convolved(frames, layer.conv)
            weight, bias = norm.weight.to(dtype), norm.bias.to(dtype)
            frames = layer.activation(functional.layer_norm(frames, norm.normalized_shape, weight, bias, norm.eps))
    return frames.reshape(batch, -1, frames.shape[1])[:, :length].transpose(1, 2)


def _convolved(frames: Tensor, conv: nn.Conv1d) -> Tensor:
    """A convolution of one long row of frames: (T, C) to (T / stride, C'). The last frame lacks what follows it.

    `stride` frames at a time are one row of a matrix, (T / stride, stride · C), and the kernel spans a row and a part
    of the next one.
    """
    stride, rest = conv.stride[0], conv.kernel_size[0] - conv.stride[0]
    rows = frames.reshape(len(frames) // stride, -1)
    kernel = conv.weight.transpose(1, 2).flatten(1)  # (C', kernel · C)
    if frames.shape[1] == 1:  # samples: so few that both parts are copied side by side, and filled up for the GPU
        both = torch.cat([rows, functional.pad(rows[1:, :rest], (0, 0, 0, 1))], dim=1)
        more = -both.shape[1] % 8
        return functional.linear(functional.pad(both, (0, more)), functional.pad(kernel, (0, more)), conv.bias)
    first, second = kernel[:, : rows.shape[1]], kernel[:, rows.shape[1] :]
    out = functional.linear(rows, first, conv.bias)
    if rest:
        out[:-1].addmm_(rows[1:, : second.shape[1]], second.T)
    return out
