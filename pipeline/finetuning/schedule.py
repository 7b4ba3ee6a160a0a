"""How the learning rates of fine-tuning change from step to step: warm-up, then constant or falling to 0."""

from __future__ import annotations

import math

from pipeline.core.encoder_sections import FinetuneParams


def rate(params: FinetuneParams, *, done: float) -> float:
    """The factor from 0 to 1 on all learning rates of the step after which `done` epochs are done, a fraction.

    It rises linearly for `warm_up` epochs. Then it stays 1, or falls to 0 at the end of the last epoch: linearly, or
    as half a cosine (Loshchilov and Hutter, ICLR 2017, arXiv 1608.03983, without restarts).
    """
    if done <= params.warm_up:
        return done / params.warm_up
    left = (params.epochs - done) / (params.epochs - params.warm_up)  # from 1 to 0
    if params.schedule == "linear":
        return left
    return 0.5 * (1 - math.cos(math.pi * left)) if params.schedule == "cosine" else 1.0
