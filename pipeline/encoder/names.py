"""The names that others give to the weights of an encoder, in terms of transformers.

Sources: fairseq's `wav2vec2.py` and WavLM's `WavLM.py`; `import_huggingface.py` of torchaudio; `whisper/model.py` of
https://github.com/openai/whisper.
"""

from __future__ import annotations

import re

Table = tuple[tuple[str, str], ...]  # the beginning of a name, and what takes its place; the first that fits is taken

FAIRSEQ: Table = (
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
TORCHAUDIO: Table = (
    (r"feature_extractor\.", "feature_extractor."),
    (r"encoder\.feature_projection\.", "feature_projection."),
    (r"encoder\.transformer\.", "encoder."),
)
OPENAI: Table = (  # of Whisper's encoder
    (r"(conv[12])\.", r"\1."),
    (r"positional_embedding$", "embed_positions.weight"),
    (r"blocks\.(\d+)\.attn\.query\.", r"layers.\1.self_attn.q_proj."),
    (r"blocks\.(\d+)\.attn\.key\.", r"layers.\1.self_attn.k_proj."),
    (r"blocks\.(\d+)\.attn\.value\.", r"layers.\1.self_attn.v_proj."),
    (r"blocks\.(\d+)\.attn\.out\.", r"layers.\1.self_attn.out_proj."),
    (r"blocks\.(\d+)\.attn_ln\.", r"layers.\1.self_attn_layer_norm."),
    (r"blocks\.(\d+)\.mlp\.0\.", r"layers.\1.fc1."),
    (r"blocks\.(\d+)\.mlp\.2\.", r"layers.\1.fc2."),
    (r"blocks\.(\d+)\.mlp_ln\.", r"layers.\1.final_layer_norm."),
    (r"ln_post\.", "layer_norm."),
)


def of_fairseq(name: str) -> str | None:
    """A name of fairseq in transformers; None for a name that no encoder has."""
    return _renamed(name, FAIRSEQ)


def of_torchaudio(name: str) -> str | None:
    """A name of torchaudio in transformers; None for a name that no encoder has."""
    return _renamed(name, TORCHAUDIO)


def of_openai(name: str) -> str | None:
    """A name of OpenAI's Whisper in transformers; None for a name that no encoder has."""
    return _renamed(name, OPENAI)


def _renamed(name: str, table: Table) -> str | None:
    for pattern, new in table:
        if match := re.match(pattern, name):
            return match.expand(new) + name[match.end() :]
    return None
