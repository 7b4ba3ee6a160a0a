"""AASIST on layer features: graph attention over time and over channels, then over both together.

Jung, Heo, Tak, Shim, Chung, Lee, Yu, Evans: "AASIST: Audio Anti-Spoofing using Integrated Spectro-Temporal Graph
Attention Networks", ICASSP 2022, arXiv 2110.01200; on XLSR: Tak, Todisco, Wang, Jung, Yamagishi, Evans: "Automatic
Speaker Verification Spoofing and Deepfake Detection Using Wav2vec 2.0 and Data Augmentation", Odyssey 2022,
arXiv 2202.12233.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.backends._shared import LayerWeights, fill_padding, valid_frames
from pipeline.core.errors import InputError

HEIGHT = 128  # channels that the input is narrowed to: the height of the image
POOL = 3  # frames, and narrowed channels, of one field of the max pooling
SPECTRAL = HEIGHT // POOL  # number of spectral nodes, S
BLOCKS = ((1, 32), (32, 32), (32, 64), (64, 64), (64, 64), (64, 64))  # channels in and out of the residual blocks
WIDTH = 64  # of a node, C; half of it after a heterogeneous layer
KEPT = 0.5  # share of the nodes that a pooling keeps
TEMPERATURE = 2.0  # of the softmax of the first graph attention
MIXED_TEMPERATURE = 100.0  # of the softmaxes of the heterogeneous ones


class Backend(nn.Module):
    """Layer-weighted frames as an image, residual convolutions, graph attention; the graphs' summary is the embedding.

    As published, but with a learned sum over the tapped layers in place of the last layer. The embedding is the 160
    numbers that the published model's last linear layer reads. Five residual blocks of the published code have one more
    batch norm without any effect; it is left out.

    The architecture has no masks: number and order of the temporal nodes depend on the window. Padding frames become
    zeros in all tapped layers, so an utterance's embedding depends on the length of the window.

    Args:
        layers: number of tapped layers, L.
        channels: width of a layer, D.
        attention_dropout: share of the numbers of the nodes dropped before each attention, in training.
        pooling_dropout: the same before a pooling scores the nodes.
        branch_dropout: the same for the output of each branch.
        embedding_dropout: the same for the embedding.

    Raises:
        ValueError: a dropout outside [0, 1).
    """

    reads: ClassVar[Literal["pooled", "frames"]] = "frames"

    def __init__(
        self,
        *,
        layers: int,
        channels: int,
        attention_dropout: float = 0.2,
        pooling_dropout: float = 0.3,
        branch_dropout: float = 0.2,
        embedding_dropout: float = 0.5,
    ) -> None:
        super().__init__()
        dropouts = (attention_dropout, pooling_dropout, branch_dropout, embedding_dropout)
        if not all(0 <= dropout < 1 for dropout in dropouts):
            raise ValueError(f"expected every dropout in [0, 1), got {', '.join(map(str, dropouts))}")
        self.embedding_dim = 5 * WIDTH // 2
        self.layer_weights = LayerWeights(layers)
        self.narrow = nn.Linear(channels, HEIGHT)
        self.image_norm = nn.BatchNorm2d(1)
        self.encoder = nn.Sequential(*(ResidualBlock(before, after) for before, after in BLOCKS))
        self.encoder_norm = nn.BatchNorm2d(WIDTH)
        self.attention = nn.Sequential(
            nn.Conv2d(WIDTH, 2 * WIDTH, 1), nn.SELU(), nn.BatchNorm2d(2 * WIDTH), nn.Conv2d(2 * WIDTH, WIDTH, 1)
        )
        self.spectral_places = nn.Parameter(torch.randn(SPECTRAL, WIDTH))
        self.spectral_graph = GraphAttention(WIDTH, dropout=attention_dropout)
        self.temporal_graph = GraphAttention(WIDTH, dropout=attention_dropout)
        self.spectral_pool = GraphPool(WIDTH, dropout=pooling_dropout)
        self.temporal_pool = GraphPool(WIDTH, dropout=pooling_dropout)
        self.branches = nn.ModuleList(
            Branch(attention_dropout=attention_dropout, pooling_dropout=pooling_dropout) for _ in range(2)
        )
        self.branch_dropout = nn.Dropout(branch_dropout)
        self.embedding_dropout = nn.Dropout(embedding_dropout)

    def forward(self, features: Tensor, n_frames: Tensor) -> Tensor:
        """Features (B, L, T, D), of which the first n_frames (B,) ≥ 1 frames are valid, to embeddings (B, 160).

        What padding frames hold, NaN included, reaches neither the embeddings nor a gradient; how many there are does.
        Raises InputError for T below 3.
        """
        frames = features.shape[2]
        if frames < POOL:
            raise InputError(f"expected at least {POOL} frames, got {frames}; take a longer window")
        features = fill_padding(features, valid_frames(frames, n_frames), time=2)
        image = self.encode(self.layer_weights(features))  # (B, C, S, T / 3)
        temporal, spectral = self.graphs(image)  # (B, T / 6, C), (B, S / 2, C)
        first, second = (branch(temporal, spectral) for branch in self.branches)
        merged = [
            torch.maximum(self.branch_dropout(a), self.branch_dropout(b)) for a, b in zip(first, second, strict=True)
        ]
        embeddings: Tensor = self.embedding_dropout(readout(*merged))
        return embeddings

    def encode(self, frames: Tensor) -> Tensor:
        """Frames (B, T, D) to an image (B, C, S, T // 3)."""
        image = self.narrow(frames).transpose(1, 2)[:, None]  # (B, 1, 128, T)
        image = functional.selu(self.image_norm(functional.max_pool2d(image, POOL)))  # (B, 1, S, T // 3)
        return functional.selu(self.encoder_norm(self.encoder(image)))

    def graphs(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Temporal nodes and spectral nodes, each after graph attention and pooling, of an image (B, C, S, T // 3)."""
        scores = self.attention(image)  # (B, C, S, T // 3)
        spectral = (image * scores.softmax(dim=3)).sum(dim=3).transpose(1, 2) + self.spectral_places  # (B, S, C)
        temporal = (image * scores.softmax(dim=2)).sum(dim=2).transpose(1, 2)  # (B, T // 3, C)
        return self.temporal_pool(self.temporal_graph(temporal)), self.spectral_pool(self.spectral_graph(spectral))


def readout(temporal: Tensor, spectral: Tensor, master: Tensor) -> Tensor:
    """Nodes (B, N, C) of both kinds and the master (B, C) to (B, 5 C): greatest magnitudes and means over the nodes."""
    parts = [temporal.abs().amax(dim=1), temporal.mean(dim=1), spectral.abs().amax(dim=1), spectral.mean(dim=1), master]
    return torch.cat(parts, dim=1)


class ResidualBlock(nn.Module):
    """Two convolutions of 2 × 3, a batch norm and SELU between them, added to the input."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, (2, 3), padding=1)  # one row more
        self.norm = nn.BatchNorm2d(after)
        self.second = nn.Conv2d(after, after, (2, 3), padding=(0, 1))  # and one less
        self.widen = nn.Identity() if before == after else nn.Conv2d(before, after, (1, 3), padding=(0, 1))

    def forward(self, image: Tensor) -> Tensor:
        """(B, before, S, T) -> (B, after, S, T)."""
        added: Tensor = self.second(functional.selu(self.norm(self.first(image)))) + self.widen(image)
        return added


class GraphAttention(nn.Module):
    """Attention in a graph where every two nodes are neighbours; a pair's score comes from the product of its nodes."""

    def __init__(self, width: int, *, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.pair = nn.Linear(width, width)
        self.score = scorer(width)
        self.update = NodeUpdate(width, width)

    def forward(self, nodes: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        nodes = self.dropout(nodes)
        scores = self.score(self.pair(products(nodes)).tanh())[..., 0] / TEMPERATURE  # (B, N, N)
        updated: Tensor = self.update(nodes, scores.softmax(dim=2))
        return updated


class NodeUpdate(nn.Module):
    """A linear map of the attended nodes plus one of the node itself; then batch norm over all nodes and SELU."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.attended = nn.Linear(before, after)
        self.own = nn.Linear(before, after)
        self.norm = nn.BatchNorm1d(after)

    def forward(self, nodes: Tensor, attention: Tensor) -> Tensor:
        """Nodes (B, N, before), attention (B, N, N) whose rows sum to 1, to (B, N, after)."""
        added = self.attended(attention @ nodes) + self.own(nodes)  # (B, N, after)
        return functional.selu(self.norm(added.transpose(1, 2)).transpose(1, 2))


class GraphPool(nn.Module):
    """Half of the nodes, those of the highest gate, in falling order of it, each multiplied by its gate."""

    def __init__(self, width: int, *, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.score = nn.Linear(width, 1)

    def forward(self, nodes: Tensor) -> Tensor:
        """(B, N, C) -> (B, max(N // 2, 1), C)."""
        gates = self.score(self.dropout(nodes)).sigmoid()  # (B, N, 1)
        kept = gates.topk(max(int(nodes.shape[1] * KEPT), 1), dim=1).indices  # (B, K, 1)
        pooled: Tensor = (nodes * gates).gather(1, kept.expand(-1, -1, nodes.shape[2]))
        return pooled


class HeterogeneousAttention(nn.Module):
    """Attention among temporal and spectral nodes together, with a score of its own for each kind of pair.

    A master token attends to all nodes, and no node to it.
    """

    def __init__(self, before: int, after: int, *, dropout: float) -> None:
        super().__init__()
        self.temporal = nn.Linear(before, before)
        self.spectral = nn.Linear(before, before)
        self.dropout = nn.Dropout(dropout)
        self.pair = nn.Linear(before, after)
        self.score_temporal, self.score_spectral, self.score_mixed = (scorer(after) for _ in range(3))
        self.update = NodeUpdate(before, after)
        self.master_pair = nn.Linear(before, after)
        self.master_score = scorer(after)
        self.master_attended = nn.Linear(before, after)
        self.master_own = nn.Linear(before, after)

    def forward(self, temporal: Tensor, spectral: Tensor, master: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Nodes (B, N_t, before) and (B, N_s, before), master (B, before), to the same with `after` channels."""
        count = temporal.shape[1]
        nodes = self.dropout(torch.cat([self.temporal(temporal), self.spectral(spectral)], dim=1))  # (B, N, before)
        updated = self.update(nodes, self.node_attention(nodes, count))  # (B, N, after)
        master = self.master_attended(self.master_attention(nodes, master) @ nodes)[:, 0] + self.master_own(master)
        return updated[:, :count], updated[:, count:], master

    def node_attention(self, nodes: Tensor, count: int) -> Tensor:
        """Attention (B, N, N) among nodes (B, N, before), of which the first `count` are temporal."""
        hidden = self.pair(products(nodes)).tanh()  # (B, N, N, after)
        temporal = torch.arange(nodes.shape[1], device=nodes.device) < count  # (N,)
        within_temporal, within_spectral = temporal[:, None] & temporal, ~(temporal[:, None] | temporal)  # (N, N)
        scores = self.score_mixed(hidden)[..., 0]  # (B, N, N)
        scores = torch.where(within_temporal, self.score_temporal(hidden)[..., 0], scores)
        scores = torch.where(within_spectral, self.score_spectral(hidden)[..., 0], scores)
        return (scores / MIXED_TEMPERATURE).softmax(dim=2)

    def master_attention(self, nodes: Tensor, master: Tensor) -> Tensor:
        """Attention (B, 1, N) of the master (B, before) to nodes (B, N, before)."""
        scores: Tensor = self.master_score(self.master_pair(nodes * master[:, None]).tanh())  # (B, N, 1)
        return (scores / MIXED_TEMPERATURE).softmax(dim=1).transpose(1, 2)


class Branch(nn.Module):
    """Two heterogeneous layers with a pooling between them, the second one residual, and a master token."""

    def __init__(self, *, attention_dropout: float, pooling_dropout: float) -> None:
        super().__init__()
        self.master = nn.Parameter(torch.randn(WIDTH))
        self.first = HeterogeneousAttention(WIDTH, WIDTH // 2, dropout=attention_dropout)
        self.temporal_pool = GraphPool(WIDTH // 2, dropout=pooling_dropout)
        self.spectral_pool = GraphPool(WIDTH // 2, dropout=pooling_dropout)
        self.second = HeterogeneousAttention(WIDTH // 2, WIDTH // 2, dropout=attention_dropout)

    def forward(self, temporal: Tensor, spectral: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Nodes (B, N_t, C), (B, N_s, C) to (B, N_t / 2, C / 2), (B, N_s / 2, C / 2), and the master (B, C / 2)."""
        temporal, spectral, master = self.first(temporal, spectral, self.master.expand(len(temporal), -1))
        temporal, spectral = self.temporal_pool(temporal), self.spectral_pool(spectral)
        more_temporal, more_spectral, more_master = self.second(temporal, spectral, master)
        return temporal + more_temporal, spectral + more_spectral, master + more_master


def scorer(width: int) -> nn.Linear:
    """(..., width) -> (..., 1): the product with one vector, drawn as Glorot and Bengio have it for a matrix."""
    linear = nn.Linear(width, 1, bias=False)
    nn.init.normal_(linear.weight, std=math.sqrt(2 / (width + 1)))
    return linear


def products(nodes: Tensor) -> Tensor:
    """The element-wise product of every two nodes, (B, N, C) -> (B, N, N, C)."""
    return nodes[:, :, None] * nodes[:, None]
