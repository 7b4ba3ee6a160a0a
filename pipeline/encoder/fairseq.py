"""What the checkpoints of fairseq say of an encoder besides its weights.

fairseq itself is not needed. Its pretraining files (`xlsr2_300m.pt`, and those of 1 and 2 billion parameters) say how
the encoder is made. Countermeasures that contain such an encoder, and AntiDeepfake's, do not.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

HEADS = {768: 12, 1024: 16, 1280: 16, 1920: 16}  # by width: base, 300M, 1B, 2B; shapes of weights do not show heads
FIRST = "feature_extractor.conv_layers.0.0.weight"  # a checkpoint with this name contains an encoder


def said(found: Mapping[str, Any]) -> dict[str, Any]:
    """The model's configuration in a checkpoint, in its `cfg` or, in older ones, its `args`; empty for others.

    In a checkpoint that was fine-tuned for recognition, it is that of the encoder within.
    """
    cfg, args = found.get("cfg"), found.get("args")
    told = _plain(cfg.get("model", cfg) if isinstance(cfg, Mapping) else args)  # WavLM's cfg has no sections
    within = _plain(told.get("w2v_args"))
    return told | _plain(within.get("model", within))


def normalizes(found: Mapping[str, Any]) -> bool | None:
    """Whether a checkpoint was trained on normalized waveforms; None where it does not say."""
    cfg = found.get("cfg")
    task = _plain(cfg.get("task", cfg)) if isinstance(cfg, Mapping) else {}
    for told in (task, _plain(found.get("args"))):
        if isinstance(told.get("normalize"), bool):
            return bool(told["normalize"])
    return None


def _plain(told: Any) -> dict[str, Any]:
    if isinstance(told, argparse.Namespace):
        return vars(told)
    return dict(told) if isinstance(told, Mapping) else {}
