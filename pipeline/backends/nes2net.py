"""Nes2Net-X: groups of channels one after the other, each through a block that is itself such a chain.

Liu, Truong, Das, Lee, Li: "Nes2Net: A Lightweight Nested Architecture for Foundation Model Driven Speech
Anti-spoofing", IEEE Transactions on Information Forensics and Security 2025, arXiv 2504.05657.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from pipeline.backends._shared import BatchNorm, LayerWeights, fill_padding, mean_of_valid, valid_frames

KERNEL = 3  # frames that one convolution sees, `dilation` apart
BOTTLENECK = 128  # width of the attention in the pooling astp
VARIANCE_FLOOR = 1e-10  # as published


class Backend(nn.Module):
    """Layer-weighted frames in G groups of channels, chained through nested blocks, then pooled over time.

    With the channels in groups g_1 … g_G: y_1 = N_1(g_1) and y_i = N_i(y_(i-1) + g_i), where N_i is a nested block,
    then ReLU and batch norm; the last group passes untouched. Nothing narrows the input: the embedding has its width D
    (mean pooling), or 2 D (attentive mean and deviation). As published for XLSR (D 1024, 8 groups, scale 8, dilation 2,
    mean pooling), with a learned sum over the tapped layers where the paper reads the last one.

    Padding frames are left out of the means, the attention and the batch statistics, and are zeros to the convolutions,
    just as what lies beyond the end of an utterance: an utterance in a padded batch equals the utterance alone.

    Args:
        layers: number of tapped layers, L.
        channels: width of a layer, D; a multiple of `groups`.
        groups: groups of channels, G; each has c = D / G.
        scale: parts of a nested block, K; each has ⌊c / K⌋ channels.
        dilation: frames between the taps of a convolution.
        squeeze: by how much the squeeze-and-excitation narrows.
        pooling: over time: `mean`, or `astp`, attentive statistics with weights for every channel.

    Raises:
        ValueError: groups or scale below 2, another number below 1, channels that are no multiple of groups, or too few
            for a part or the squeeze to have one; an unknown pooling.
    """

    reads: ClassVar[Literal["pooled", "frames"]] = "frames"

    def __init__(
        self,
        *,
        layers: int,
        channels: int,
        groups: int = 8,
        scale: int = 8,
        dilation: int = 2,
        squeeze: int = 1,
        pooling: Literal["mean", "astp"] = "mean",
    ) -> None:
        super().__init__()
        _check(channels, groups=groups, scale=scale, dilation=dilation, squeeze=squeeze)
        if pooling not in ("mean", "astp"):
            raise ValueError(f"expected pooling to be mean or astp, got {pooling!r}")
        self.groups = groups
        self.layer_weights = LayerWeights(layers)
        width = channels // groups
        self.blocks = nn.ModuleList(
            NestedBlock(width, scale=scale, dilation=dilation, squeeze=squeeze) for _ in range(groups - 1)
        )
        self.block_norms = nn.ModuleList(BatchNorm(width) for _ in range(groups - 1))
        self.norm = BatchNorm(channels)
        self.pool = MeanPooling() if pooling == "mean" else AttentiveStatistics(channels)
        self.embedding_dim = channels if pooling == "mean" else 2 * channels

    def forward(self, features: Tensor, n_frames: Tensor) -> Tensor:
        """Features (B, L, T, D), of which the first n_frames (B,) ≥ 1 frames are valid, to embeddings (B, E).

        What padding frames hold, NaN included, and how many there are reaches neither the embeddings, nor a gradient,
        nor the running statistics.
        """
        valid = valid_frames(features.shape[2], n_frames)  # (B, T), or None
        frames = self.layer_weights(fill_padding(features, valid, time=2)).transpose(1, 2)  # (B, D, T)
        groups = frames.chunk(self.groups, dim=1)  # G of (B, c, T)
        outputs: list[Tensor] = []
        for group, block, norm in zip(groups, self.blocks, self.block_norms, strict=False):
            chained = outputs[-1] + group if outputs else group
            outputs.append(norm(block(chained, valid).relu(), valid))
        joined = self.norm(torch.cat([*outputs, groups[-1]], dim=1), valid).relu()  # (B, D, T)
        embeddings: Tensor = self.pool(joined, valid)
        return embeddings


class NestedBlock(nn.Module):
    """A pointwise convolution, a chain of dilated ones over parts of the channels, a pointwise one; residual.

    With parts p_0 … p_m (m = K - 1): a stack of columns begins with p_m alone. Step j appends p_j, sends every column
    through one shared convolution, ReLU and batch norm, and gives out the columns' weighted sum; the columns themselves
    go on to the next step.
    """

    def __init__(self, width: int, *, scale: int, dilation: int, squeeze: int) -> None:
        super().__init__()
        part = width // scale
        self.scale = scale
        self.split = nn.Conv1d(width, scale * part, 1)
        self.split_norm = BatchNorm(scale * part)
        self.steps = nn.ModuleList(
            nn.Conv1d(part, part, KERNEL, padding=dilation, dilation=dilation) for _ in range(scale - 1)
        )
        self.step_norms = nn.ModuleList(BatchNorm(part) for _ in range(scale - 1))
        self.column_weights = nn.ParameterList(torch.full((j + 2,), 1 / (j + 2)) for j in range(scale - 1))
        self.join = nn.Conv1d(scale * part, width, 1)
        self.join_norm = BatchNorm(width)
        self.excite = SqueezeExcitation(width, squeeze)

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """(B, c, T) -> (B, c, T); valid (B, T) bool, or None where all frames are."""
        parts = self.split_norm(self.split(x).relu(), valid).chunk(self.scale, dim=1)  # K of (B, v, T)
        columns = parts[-1][:, None]  # (B, 1, v, T)
        outputs = []
        for j, part in enumerate(parts[:-1]):
            columns = self.step(j, torch.cat([columns, part[:, None]], dim=1), valid)  # (B, j + 2, v, T)
            outputs.append((self.column_weights[j][:, None, None] * columns).sum(dim=1))
        joined = self.join(torch.cat([*outputs, parts[-1]], dim=1)).relu()  # (B, c, T)
        excited: Tensor = self.excite(self.join_norm(joined, valid), valid)
        return excited + x

    def step(self, j: int, columns: Tensor, valid: Tensor | None) -> Tensor:
        """Convolution, ReLU and batch norm j on each of the columns (B, n, v, T); to the same shape."""
        columns = fill_padding(columns, valid, time=3)
        if valid is not None:
            valid = valid.repeat_interleave(columns.shape[1], dim=0)  # (B · n, T)
        flat = self.step_norms[j](self.steps[j](columns.flatten(0, 1)).relu(), valid)  # (B · n, v, T)
        return flat.reshape(columns.shape)  # type: ignore[no-any-return]


class SqueezeExcitation(nn.Module):
    """Each channel scaled by a factor in 0..1 that the means of all channels over time decide."""

    def __init__(self, width: int, squeeze: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(width, width // squeeze)
        self.excite = nn.Linear(width // squeeze, width)

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """(B, c, T) -> (B, c, T)."""
        factors = self.excite(self.squeeze(mean_of_valid(x, valid, time=2)).relu()).sigmoid()  # (B, c)
        return x * factors[..., None]  # type: ignore[no-any-return]


class MeanPooling(nn.Module):
    """The mean over the valid frames."""

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """(B, D, T) -> (B, D)."""
        return mean_of_valid(x, valid, time=2)


class AttentiveStatistics(nn.Module):
    """Mean and standard deviation under attention over time that every channel has of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bottleneck = nn.Conv1d(width, BOTTLENECK, 1)
        self.score = nn.Conv1d(BOTTLENECK, width, 1)

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """(B, D, T) -> (B, 2D)."""
        scores = self.score(self.bottleneck(x).tanh())  # (B, D, T)
        attention = fill_padding(scores, valid, -torch.inf, time=2).softmax(dim=2)
        mean = (attention * x).sum(dim=2)  # (B, D)
        # The published E[o²] - mean² in its centred form, which does not cancel.
        variance = (attention * (x - mean[..., None]).pow(2)).sum(dim=2)
        return torch.cat([mean, variance.clamp(min=VARIANCE_FLOOR).sqrt()], dim=1)


def _check(channels: int, *, groups: int, scale: int, dilation: int, squeeze: int) -> None:
    if min(groups, scale) < 2 or min(dilation, squeeze) < 1:
        raise ValueError(
            "expected groups and scale ≥ 2, dilation and squeeze ≥ 1, "
            f"got groups {groups}, scale {scale}, dilation {dilation} and squeeze {squeeze}"
        )
    width, rest = divmod(channels, groups)
    if rest or width < max(scale, squeeze):
        raise ValueError(
            f"expected channels to be a multiple of groups, with at least scale and squeeze channels a group, "
            f"got {channels} channels in {groups} groups, scale {scale} and squeeze {squeeze}"
        )
