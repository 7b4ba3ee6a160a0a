"""Speaker attractors: bona fide speech lies around one centre for each speaker, spoofs away from all of them.

Ding, Zhang, Duan: "SAMO: Speaker attractor multi-center one-class learning for voice anti-spoofing", ICASSP 2023,
arXiv 2211.02718.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.core.contracts import Centroids, Facts, Labels
from pipeline.core.errors import InputError
from pipeline.losses import _ranks
from pipeline.losses._shared import UNKNOWN, OneClassTerm, at_least_float32, check_numbers, cosine_centroids, cosines


class Loss(nn.Module):
    """Softplus loss of the cosine to the own speaker's centre for bona fide, to the nearest centre for spoof.

    With s_k = cos(x, c_k), t the cosine to the own speaker's centre and n = max_k s_k, the loss is the mean over the
    batch of softplus(α u); u = m0 − t for bona fide and n − m1 for spoof. A bona fide utterance whose speaker is
    unknown, or has no centre, takes n in place of t: the published speaker-agnostic form. The speaker of a spoof is
    not read.

    Centres are not learned. They begin as rows of the identity matrix, S orthogonal directions, and `enrol` makes each
    the mean raw embedding of its speaker's bona fide utterances. Training calls `start_epoch` before each epoch, and
    `enrol` with the trained backend before the final score.

    Args:
        facts: the width E of the embeddings and the number S of training speakers, 1 to E.
        margin_bonafide: m0, the cosine that bona fide should exceed; the script's value, the class's is 0.5.
        margin_spoof: m1, the cosine that spoof should stay below; the script's value, the class's is 0.2.
        alpha: α, the steepness of the softplus.
        update_interval: epochs between two enrolments of the training speakers.

    Raises:
        ValueError: a hyperparameter outside its range, no speaker, or more speakers than orthogonal directions.
    """

    quality: ClassVar[bool] = False
    centres: Tensor
    enrolled: Tensor

    def __init__(
        self,
        facts: Facts,
        *,
        margin_bonafide: float = 0.7,
        margin_spoof: float = 0.0,
        alpha: float = 20.0,
        update_interval: int = 3,
    ) -> None:
        super().__init__()
        _check_facts(facts)
        if update_interval < 1:
            raise ValueError(f"expected update_interval ≥ 1, got {update_interval}")
        self.one_class_term = OneClassTerm(margin_bonafide, margin_spoof, alpha)
        self.update_interval = update_interval
        self.register_buffer("centres", torch.eye(facts.speakers, facts.embedding_dim))  # (S, E), any norm
        self.register_buffer("enrolled", torch.ones(facts.speakers, dtype=torch.bool))  # (S,), who has a centre

    def forward(self, embeddings: Tensor, labels: Labels) -> Tensor:
        """The loss of a batch of either class or both, one mean over all of it; the centres stay where they are.

        Args:
            embeddings: (B, E), any norm.
            labels: is_bonafide (B,) and speaker (B,), from -1 (unknown) to S - 1.

        Raises:
            ValueError: a speaker out of range.
        """
        check_numbers("speakers", labels.speaker, len(self.centres))
        with torch.autocast(embeddings.device.type, enabled=False):
            similarities = cosines(embeddings, self.centres)  # (B, S)
            nearest = similarities.masked_fill(~self.enrolled, -math.inf).max(dim=1).values  # (B,), n
            own = self._own(similarities, nearest, labels.speaker.long())  # (B,), t
            return self.one_class_term(own, nearest, labels.is_bonafide)

    def start_epoch(self, epoch: int, enrolment: Callable[[], tuple[Tensor, Tensor]]) -> None:
        """Enrol the training speakers anew where that is due: before epochs 1 + update_interval · k, k = 1, 2, ...

        Args:
            epoch: of training, from 1.
            enrolment: the arguments of `enrol`, made only when they are needed.
        """
        if epoch > 1 and (epoch - 1) % self.update_interval == 0:
            self.enrol(*enrolment())

    @torch.no_grad()
    def enrol(self, embeddings: Tensor, speaker: Tensor) -> None:
        """Make each speaker's centre the plain mean of the speaker's raw embeddings; one without any has none.

        When training is distributed every rank calls it, with any part of the utterances or none; all get the centres
        of the whole.

        Args:
            embeddings: (M, E), of all bona fide training utterances.
            speaker: (M,) int, from -1 (unknown, left out) to S - 1.

        Raises:
            ValueError: a speaker out of range.
            InputError: no speaker is known.
        """
        check_numbers("speakers", speaker, len(self.centres))
        known = speaker != UNKNOWN  # (M,)
        with torch.autocast(embeddings.device.type, enabled=False):
            x = at_least_float32(embeddings)[known]  # (M', E)
            member = functional.one_hot(speaker[known].long(), len(self.centres)).to(x.dtype)  # (M', S)
            sums, counts = _ranks.total(member.T @ x), _ranks.total(member.sum(0))  # (S, E), (S,)
        if not counts.any():
            raise InputError(
                "no bona fide training utterance has a known speaker, so the samo loss has no centres; fill the "
                "speaker column of the training trials, or train with a loss that needs no speakers"
            )
        self.centres.copy_(sums / counts.clamp(min=1)[:, None])
        self.enrolled.copy_(counts > 0)

    def centroids(self) -> Centroids:
        """The unit centres of the enrolled training speakers; the score is the cosine to the nearest.

        This is the published score of speakers without enrolment. The other published score, for test speakers who
        enrolled with bona fide utterances of their own, is the cosine to the claimed speaker's mean embedding; it
        needs those utterances, and a centre chosen by trial, where Centroids scores every trial against all vectors.
        """
        return cosine_centroids(functional.normalize(self.centres[self.enrolled], dim=1))

    def _own(self, similarities: Tensor, nearest: Tensor, speaker: Tensor) -> Tensor:
        """Of cosines (B, S) the one to the own speaker's centre, nearest (B,) where there is none."""
        row = speaker.clamp(min=0)  # (B,)
        has_centre = (speaker != UNKNOWN) & self.enrolled[row]  # (B,)
        return torch.where(has_centre, similarities.gather(1, row[:, None])[:, 0], nearest)


def _check_facts(facts: Facts) -> None:
    if not facts.speakers:
        raise ValueError("expected training speakers, one centre each, got none; fill the speaker column of the trials")
    if facts.speakers > facts.embedding_dim:
        raise ValueError(
            f"expected an embedding_dim of at least the {facts.speakers} training speakers, whose centres begin "
            f"orthogonal, got {facts.embedding_dim}"
        )
