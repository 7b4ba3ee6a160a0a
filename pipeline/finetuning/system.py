"""The system that fine-tuning trains: encoder, backend and loss in one module, and which of its weights learn."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.core.contracts import Labels
from pipeline.core.encoder_sections import LoraParams
from pipeline.core.errors import InputError
from pipeline.core.members import check_embeddings, check_loss
from pipeline.encoder import xlsr


class EndToEnd(nn.Module):
    """Encoder, backend and loss; windows to embeddings."""

    def __init__(
        self, encoder: xlsr.Encoder, backend: nn.Module, loss: nn.Module, *, precision: Literal["float32", "bfloat16"]
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.backend = backend
        self.loss = loss
        self.precision = precision

    def forward(self, windows: Tensor, valid: Tensor) -> Tensor:
        """Embeddings (B, E) of windows (B, S), of each of which the first `valid` (B,) samples are signal.

        In eval mode the backend sees frames as the feature store holds them, rounded to float16.
        """
        half = self.precision == "bfloat16"
        with torch.autocast(windows.device.type, dtype=torch.bfloat16, enabled=half):
            taps, n_frames = self.encoder.features(windows, valid)
        frames = torch.stack([taps[tap].float() for tap in self.encoder.taps], dim=1)  # (B, L, T, D)
        if self.backend.reads == "pooled":
            features = pool(frames, n_frames)  # (B, L, 2, D)
        else:
            features = frames if self.training else frames.half().float()
        embeddings: Tensor = self.backend(features, n_frames)
        return embeddings


class Objective(nn.Module):
    """A system with its loss, as DistributedDataParallel wants it."""

    def __init__(self, system: EndToEnd) -> None:
        super().__init__()
        self.system = system

    def forward(self, windows: Tensor, valid: Tensor, labels: Labels) -> Tensor:
        """The loss of windows (B, S), of each of which the first `valid` (B,) samples are signal."""
        embeddings = self.system(windows, valid)
        check_embeddings(self.system.backend, embeddings, count=len(windows))
        value: Tensor = self.system.loss(embeddings, labels)
        check_loss(self.system.loss, value)
        return value


def pool(frames: Tensor, n_frames: Tensor) -> Tensor:
    """Mean and standard deviation (biased) over the valid frames: (B, L, T, D), (B,) -> (B, L, 2, D).

    As `compute.pool`; where all frames are equal the gradient is 0 and not NaN.
    """
    mask = (torch.arange(frames.shape[2], device=frames.device) < n_frames[:, None])[:, None, :, None]  # (B, 1, T, 1)
    count = n_frames[:, None, None].to(frames.dtype)  # (B, 1, 1)
    mean = (frames * mask).sum(2) / count  # (B, L, D)
    centred = (frames - mean[:, :, None]) * mask
    return torch.stack([mean, torch.linalg.vector_norm(centred, dim=2) / count.sqrt()], dim=2)


def unfreeze(encoder: xlsr.Encoder, *, front_end: bool) -> None:
    """Let gradients reach all weights that the taps depend on; the convolutional front end if asked."""
    model = encoder.model
    model.requires_grad_(True)
    if not front_end:
        model.freeze_feature_encoder()
    if "final" not in encoder.taps:  # nobody reads what they give
        model.encoder.layer_norm.requires_grad_(False)
        if max(encoder.taps) == 0:
            model.encoder.layers.requires_grad_(False)
    if hasattr(model, "masked_spec_embed"):
        model.masked_spec_embed.requires_grad_(False)


def add_lora(model: Any, lora: LoraParams) -> None:
    """Let gradients reach low-rank updates of the layers' linear maps, zero at first, and nothing else of the encoder.

    Hu et al., "LoRA: Low-rank adaptation of large language models", ICLR 2022, arXiv 2106.09685. Raises InputError
    where the extra `peft` is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model  # an extra
    except ImportError:
        raise InputError(
            'encoder.finetune.lora needs PEFT, which is not installed: pip install "bonafide[peft]"'
        ) from None
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules=list(lora.targets))
    inject_adapter_in_model(config, model)


def merge_lora(model: Any) -> None:
    """Add the low-rank updates, if there are any, to their weights: the model is plain again."""
    for name, module in list(model.named_modules()):
        if hasattr(module, "get_base_layer"):  # PEFT's
            module.merge()
            model.set_submodule(name, module.get_base_layer())


def compute_twice(model: Any) -> None:
    """Gradient checkpointing: keep only what goes into each convolution and layer, compute it again going backward.

    By torch's own means: the method of transformers changes its name between 5.17 and 6.
    """
    for layer in blocks(model):
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def blocks(model: Any) -> list[Any]:
    """Convolutions and layers of an encoder."""
    return [*model.feature_extractor.conv_layers, *model.encoder.layers]
