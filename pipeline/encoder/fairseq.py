"""The names that fairseq gives to an encoder's weights, in terms of transformers; and what its checkpoints say.

fairseq itself is not needed. Its pretraining files (`xlsr2_300m.pt`, and those of 1 and 2 billion parameters) say how
the encoder is made. Countermeasures that contain such an encoder, and AntiDeepfake's, do not.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from typing import Any

HEADS = {768: 12, 1024: 16, 1280: 16, 1920: 16}  # by width: base, 300M, 1B, 2B; shapes of weights do not show heads
FIRST = "feature_extractor.conv_layers.0.0.weight"  # a checkpoint with this name contains an encoder

# The beginning of a name in fairseq, and what takes its place in transformers. The first that fits is taken.
NAMES = (
    (r"mask_emb$", "masked_spec_embed"),
    (r"feature_extractor\.conv_layers\.(\d+)\.0\.", r"feature_extractor.conv_layers.\1.conv."),
    (r"feature_extractor\.conv_layers\.(\d+)\.2\.(?:1\.)?", r"feature_extractor.conv_layers.\1.layer_norm."),
    (r"post_extract_proj\.", "feature_projection.projection."),
    (r"layer_norm\.", "feature_projection.layer_norm."),
    (r"encoder\.pos_conv\.0\.", "encoder.pos_conv_embed.conv."),
    # WavLM's
    (r"encoder\.layers\.(\d+)\.self_attn\.grep_linear\.", r"encoder.layers.\1.attention.gru_rel_pos_linear."),
    (r"encoder\.layers\.(\d+)\.self_attn\.grep_a$", r"encoder.layers.\1.attention.gru_rel_pos_const"),
    (r"encoder\.layers\.(\d+)\.self_attn\.relative_attention_bias\.", r"encoder.layers.\1.attention.rel_attn_embed."),
    (r"encoder\.layers\.(\d+)\.self_attn\.", r"encoder.layers.\1.attention."),
    (r"encoder\.layers\.(\d+)\.self_attn_layer_norm\.", r"encoder.layers.\1.layer_norm."),
    (r"encoder\.layers\.(\d+)\.fc1\.", r"encoder.layers.\1.feed_forward.intermediate_dense."),
    (r"encoder\.layers\.(\d+)\.fc2\.", r"encoder.layers.\1.feed_forward.output_dense."),
    (r"encoder\.layers\.(\d+)\.final_layer_norm\.", r"encoder.layers.\1.final_layer_norm."),
    (r"encoder\.layer_norm\.", "encoder.layer_norm."),
)


def renamed(name: str) -> str | None:
    """A name in transformers; None for a name that no encoder has."""
    for pattern, new in NAMES:
        if match := re.match(pattern, name):
            return match.expand(new) + name[match.end() :]
    return None


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
