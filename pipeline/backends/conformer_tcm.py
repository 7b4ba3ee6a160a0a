"""Conformer with temporal-channel modelling: attention over frames, a class token, and one token for every head.

Truong, Tao, Nguyen, Luong, Lee, Chng: "Temporal-Channel Modeling in Multi-head Self-Attention for Synthetic Speech
Detection", Interspeech 2024, arXiv 2406.17376. The Conformer under it: Gulati et al., Interspeech 2020,
arXiv 2005.08100; with a class token for anti-spoofing: Rosello et al., Interspeech 2023.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.backends._shared import (
    BatchNorm,
    LayerWeights,
    check_sizes,
    fill_padding,
    mean_of_valid,
    normalize_valid,
    valid_frames,
)

FEEDFORWARD = 4  # width of a feed-forward module's hidden layer, in embeddings
EXPANSION = 2  # width of a convolution module's hidden layer, in embeddings
TOKEN_SCALE = 0.02  # standard deviation of the head tokens' places at the start


class Backend(nn.Module):
    """Layer-weighted frames, narrowed to E, normalized, through Conformer blocks; the class token is the embedding.

    As published (1024 → 144, 4 heads, 4 blocks, kernel 31, no dropout), with a learned sum over the tapped layers where
    the paper reads the last one. S = 1 + T below: the class token, then the frames.

    Padding frames are hidden from the attention, the means and the batch statistics, and are zeros to the convolutions,
    just as what lies beyond the end of an utterance: an utterance in a padded batch equals the utterance alone.

    Args:
        layers: number of tapped layers, L.
        channels: width of a layer, D.
        embedding_dim: width of the blocks and of the embedding, E; a multiple of 2 and of `heads`.
        heads: number of attention heads, H.
        blocks: number of Conformer blocks.
        kernel_size: frames that the depth-wise convolution sees.

    Raises:
        ValueError: a number below 1, or an embedding_dim that is no multiple of 2 and of heads.
    """

    reads: ClassVar[Literal["pooled", "frames"]] = "frames"

    def __init__(
        self,
        *,
        layers: int,
        channels: int,
        embedding_dim: int = 144,
        heads: int = 4,
        blocks: int = 4,
        kernel_size: int = 31,
    ) -> None:
        super().__init__()
        check_sizes(embedding_dim=embedding_dim, heads=heads, blocks=blocks, kernel_size=kernel_size)
        if embedding_dim % heads or embedding_dim % 2:
            raise ValueError(f"expected embedding_dim to be a multiple of 2 and of heads {heads}, got {embedding_dim}")
        self.embedding_dim = embedding_dim
        self.layer_weights = LayerWeights(layers)
        self.narrow = nn.Linear(channels, embedding_dim)
        self.norm = nn.BatchNorm1d(1)
        self.class_token = nn.Parameter(torch.rand(embedding_dim))
        self.blocks = nn.ModuleList(Block(embedding_dim, heads=heads, kernel_size=kernel_size) for _ in range(blocks))

    def forward(self, features: Tensor, n_frames: Tensor) -> Tensor:
        """Features (B, L, T, D), of which the first n_frames (B,) ≥ 1 frames are valid, to embeddings (B, E).

        What padding frames hold, NaN included, and how many there are reaches neither the embeddings, nor a gradient,
        nor the running statistics.
        """
        valid = valid_frames(features.shape[2], n_frames)  # (B, T), or None
        frames = self.frontend(fill_padding(features, valid, time=2), valid)  # (B, T, E)
        frames = frames + positions(frames.shape[1], self.embedding_dim).to(frames)
        x = torch.cat([self.class_token.to(frames).expand(len(frames), 1, -1), frames], dim=1)  # (B, S, E)
        if valid is not None:
            valid = functional.pad(valid, (1, 0), value=True)  # (B, S)
        for block in self.blocks:
            x = block(x, valid)
        return x[:, 0]

    def frontend(self, features: Tensor, valid: Tensor | None) -> Tensor:
        """Features (B, L, T, D) to frames (B, T, E); the batch norm has one mean and variance for all channels."""
        frames: Tensor = self.narrow(self.layer_weights(features))  # (B, T, E)
        if valid is None:
            return functional.selu(self.norm(frames.flatten(1)[:, None]).reshape(frames.shape))
        normalized = normalize_valid(lambda frames: self.norm(frames[:, None])[:, 0], frames, valid)  # as (M, 1, E)
        return functional.selu(normalized)


class Block(nn.Module):
    """Half a feed-forward step, attention, convolution, half a feed-forward step, each added to its input; LayerNorm.

    Everywhere x is (B, S, E), and valid (B, S) bool, or None where all positions are.
    """

    def __init__(self, width: int, *, heads: int, kernel_size: int) -> None:
        super().__init__()
        self.feedforward_before = feedforward(width)
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads=heads)
        self.convolution = Convolution(width, kernel_size=kernel_size)
        self.feedforward_after = feedforward(width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """(B, S, E) -> (B, S, E)."""
        x = x + self.feedforward_before(x) / 2
        x = x + self.attention(self.attention_norm(x), valid)
        x = x + self.convolution(x, valid)
        x = x + self.feedforward_after(x) / 2
        normalized: Tensor = self.norm(x)
        return normalized


def feedforward(width: int) -> nn.Sequential:
    """(..., E) -> (..., E) through a hidden layer of 4 E."""
    hidden = FEEDFORWARD * width
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, width))


class Attention(nn.Module):
    """Multi-head self-attention over the positions and one more token for every head.

    A head's token is made of its share of the channels, averaged over time. After the attention the class token
    takes in the mean of the head tokens and the mean of the frames, and the head tokens are dropped.
    """

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.project = nn.Linear(width, width)
        self.token = nn.Linear(width // heads, width)
        self.token_norm = nn.LayerNorm(width // heads)
        self.token_place = nn.Parameter(TOKEN_SCALE * torch.randn(heads, width))

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """(B, S, E) -> (B, S, E)."""
        length = x.shape[1]
        out = self.attend(torch.cat([x, self.head_tokens(x, valid)], dim=1), valid)  # (B, S + H, E)
        frames = mean_of_valid(out[:, 1:length], None if valid is None else valid[:, 1:], time=1)  # (B, E)
        summary = out[:, 0] + out[:, length:].mean(dim=1) + frames  # (B, E)
        return torch.cat([summary[:, None], out[:, 1:length]], dim=1)

    def head_tokens(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """(B, S, E) -> (B, H, E), from the mean over the valid positions, the class token among them."""
        pieces = mean_of_valid(x, valid, time=1).reshape(len(x), self.heads, -1)  # (B, H, E / H)
        spread = self.token(pieces).reshape(len(x), self.heads, self.heads, -1)  # (B, H, H, E / H)
        tokens: Tensor = functional.gelu(self.token_norm(spread)).flatten(2) + self.token_place
        return tokens

    def attend(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """Self-attention of (B, S + H, E), padding hidden; to the same shape."""
        batch, length, width = x.shape
        split = self.query_key_value(x).reshape(batch, length, 3, self.heads, -1)
        query, key, value = split.permute(2, 0, 3, 1, 4)  # each (B, H, S + H, E / H)
        mask = None if valid is None else functional.pad(valid, (0, self.heads), value=True)[:, None, None]
        heads = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        joined: Tensor = self.project(heads.transpose(1, 2).reshape(batch, length, width))
        return joined


class Convolution(nn.Module):
    """LayerNorm, widening, gate, depth-wise convolution over the positions, batch norm, SiLU, narrowing."""

    def __init__(self, width: int, *, kernel_size: int) -> None:
        super().__init__()
        hidden = EXPANSION * width
        self.before = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 2 * hidden)
        self.margin = (kernel_size // 2, (kernel_size - 1) // 2)  # zeros before and after
        self.depthwise = nn.Conv1d(hidden, hidden, kernel_size, groups=hidden)
        self.norm = BatchNorm(hidden)
        self.narrow = nn.Linear(hidden, width)

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """(B, S, E) -> (B, S, E)."""
        gated = fill_padding(functional.glu(self.widen(self.before(x))), valid, time=1)  # (B, S, 2E)
        convolved = self.depthwise(functional.pad(gated.transpose(1, 2), self.margin))  # (B, 2E, S)
        narrowed: Tensor = self.narrow(functional.silu(self.norm(convolved, valid).transpose(1, 2)))
        return narrowed


def positions(frames: int, width: int) -> Tensor:
    """Sine (even channels) and cosine (odd ones) of the frame's number p / 10000^(2⌊i / 2⌋ / E), (T, E) float32.

    The angles are rounded to float32 before, as in the published table.
    """
    channel = torch.arange(width, device="cpu")  # where there is float64, whatever device trains
    scale = 10000.0 ** (2 * (channel // 2).double() / width)
    angles = (torch.arange(frames, device="cpu")[:, None] / scale).float()
    return torch.where(channel % 2 == 0, angles.sin(), angles.cos())
