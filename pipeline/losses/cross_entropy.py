"""Two-class cross-entropy over a linear layer: the baseline that the one-class losses are measured against.

The class weights are as in Tak, Todisco, Wang, Jung, Yamagishi, Evans: "Automatic speaker verification spoofing and
deepfake detection using wav2vec 2.0 and data augmentation", Odyssey 2022, arXiv 2202.12233, whose 0.9 for bona fide and
0.1 for spoof are a bonafide_weight of 9.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.core.contracts import Centroids, Facts, Labels
from pipeline.losses import _ranks
from pipeline.losses._shared import at_least_float32, check_positive

SPOOF, BONAFIDE = 0, 1  # rows of the class vectors


class Loss(nn.Module):
    """Cross-entropy of logits W x + b, row 0 spoof and row 1 bona fide; the score is the difference of the logits.

    With class weights v and CE(x, y) = −log softmax(W x + b)_y the loss is Σ v_y CE(x, y) / Σ v_y over the batch. So
    a weight changes the balance of the classes but not the scale of the loss.

    Args:
        facts: the width of the embeddings, E.
        bonafide_weight: weight of a bona fide utterance; a spoof has weight 1. None is 1 for both. The training set of
            ASVspoof 2019 LA has 8.8 spoofs for each bona fide.
        label_smoothing: share ε of an utterance, from 0 to below 1, that counts half as bona fide and half as spoof:
            v_y CE(x, y) becomes (1 − ε) v_y CE(x, y) + ε / 2 · (v_0 CE(x, 0) + v_1 CE(x, 1)) (Szegedy et al., CVPR
            2016, arXiv 1512.00567, section 7).

    Raises:
        ValueError: a weight that is not positive, or a share outside 0 to 1.
    """

    quality: ClassVar[bool] = False

    def __init__(self, facts: Facts, *, bonafide_weight: float | None = None, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if bonafide_weight is not None:
            check_positive(bonafide_weight=bonafide_weight)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"expected a label_smoothing from 0 to below 1, got {label_smoothing}")
        self.bonafide_weight = bonafide_weight
        self.label_smoothing = label_smoothing
        self.classify = nn.Linear(facts.embedding_dim, 2)

    def forward(self, embeddings: Tensor, labels: Labels) -> Tensor:
        """The loss of a batch of either class or both.

        Args:
            embeddings: (B, E).
            labels: of which only is_bonafide, (B,), is read.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            logits = self.classify(at_least_float32(embeddings))  # (B, 2)
            target = labels.is_bonafide.long()  # (B,)
            weights = self._class_weights(logits)  # (2,)
            mean = functional.cross_entropy(logits, target, weight=weights, label_smoothing=self.label_smoothing)
            return _ranks.joint_part(mean, len(target) if weights is None else weights[target].sum())

    def centroids(self) -> Centroids:
        """The single vector w_bonafide − w_spoof with the bias b_bonafide − b_spoof: the score is the log-odds."""
        weight, bias = self.classify.weight.detach(), self.classify.bias.detach()  # (2, E), (2,)
        vector = weight[BONAFIDE] - weight[SPOOF]  # (E,)
        return Centroids(
            vectors=vector[None].cpu().numpy().astype(np.float32),
            normalize_query=False,
            bias=float(bias[BONAFIDE] - bias[SPOOF]),
            reduce="max",
        )

    def _class_weights(self, logits: Tensor) -> Tensor | None:
        return None if self.bonafide_weight is None else logits.new_tensor([1.0, self.bonafide_weight])
