"""What keeps fine-tuning from learning its training set by heart: dropout, LayerDrop and SpecAugment in the encoder.

All draw from torch's global generator on the CPU, which `loop` seeds for each epoch, and all are off in eval mode.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.core.encoder_sections import FinetuneParams
from pipeline.encoder import xlsr

SPAN_FRAMES, SPAN_CHANNELS = 10, 64  # wav2vec 2.0's own spans of SpecAugment (arXiv 2006.11477, appendix B)


def regularize(encoder: xlsr.Encoder, params: FinetuneParams) -> None:
    """Give an encoder the dropout, LayerDrop and SpecAugment of the parameters; nothing where they are 0.

    SpecAugment (Park et al., Interspeech 2019, arXiv 1904.08779) masks frames and channels of what the first layer
    gets, as wav2vec 2.0 does in fine-tuning. LayerDrop (Fan et al., ICLR 2020, arXiv 1909.11556) passes a layer over.
    """
    model: Any = encoder.model
    if params.dropout:
        _set_dropout(model, params.dropout)
    if params.layer_drop:
        for layer in xlsr.stack_of(model).layers:
            layer.register_forward_hook(partial(_drop_layer, share=params.layer_drop), prepend=True)  # before any tap
    if params.mask_frames or params.mask_channels:
        model.feature_projection.register_forward_hook(partial(_mask, encoder, params))


def _set_dropout(model: Any, share: float) -> None:
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = share
        elif isinstance(getattr(part, "dropout", None), float):  # attention
            part.dropout = share


def _drop_layer(layer: nn.Module, inputs: tuple[Tensor, ...], output: Any, *, share: float) -> Any:
    """The output of a layer, or what it got where it is passed over. Other outputs, as positions, stay."""
    if not layer.training or torch.rand(()) >= share:
        return output
    return (inputs[0], *output[1:]) if isinstance(output, tuple) else inputs[0]


def _mask(encoder: xlsr.Encoder, params: FinetuneParams, projection: nn.Module, _inputs: Any, output: Any) -> Any:
    """What the first layer gets (B, T, D), with spans of frames and of channels masked."""
    if not projection.training:
        return output
    frames = output[0] if isinstance(output, tuple) else output
    count, length, width = frames.shape
    if params.mask_frames:
        valid = encoder.signal_frames(count, length)
        hidden = spans(valid, length, share=params.mask_frames, span=SPAN_FRAMES)  # (B, T)
        learned = getattr(encoder.model, "masked_spec_embed", None)  # of pretraining; some checkpoints lack it
        fill = frames.new_zeros(width) if learned is None else learned.to(frames.dtype)
        frames = torch.where(hidden.to(frames.device)[:, :, None], fill, frames)
    if params.mask_channels:
        widths = torch.full((count,), width)
        hidden = spans(widths, width, share=params.mask_channels, span=min(SPAN_CHANNELS, max(width // 8, 1)))  # (B, D)
        frames = frames.masked_fill(hidden.to(frames.device)[:, None], 0)
    return (frames, *output[1:]) if isinstance(output, tuple) else frames


def spans(sizes: Tensor, length: int, *, share: float, span: int) -> Tensor:
    """Which of `length` places are masked, (B, length) bool, of which the first `sizes` (B,) may be.

    Spans start at random places and may overlap. Their number is such that without overlaps they would take `share` of
    the places; a fraction of a span is drawn. Where a row is shorter than a span, nothing is masked.
    """
    hidden = torch.zeros(len(sizes), length, dtype=torch.bool)
    for row, size in enumerate(sizes.tolist()):
        count = int(share * size / span + torch.rand(()))
        if size >= span and count:
            starts = torch.randint(size - span + 1, (count,))
            hidden[row, (starts[:, None] + torch.arange(span)).flatten()] = True
    return hidden
