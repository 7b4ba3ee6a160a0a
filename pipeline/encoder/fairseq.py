"""Read the encoder of a fairseq checkpoint without fairseq, and give its weights the names of transformers.

There are two kinds of checkpoints: fairseq's pretraining files (`xlsr2_300m.pt`, and those of 1 and 2 billion
parameters), and countermeasures that contain such an encoder. In the second kind the names of the weights have a prefix
such as `module.ssl_model.model.`. No code of a file is run: only tensors, plain containers and `argparse.Namespace`,
which older files use, are unpickled.
"""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.core.errors import InputError, listing

SUFFIXES = (".pt", ".pth")
KERNELS, STRIDES = (
    (10, 3, 3, 3, 3, 2, 2),
    (5, 2, 2, 2, 2, 2, 2),
)  # of every wav2vec 2.0; the shapes of weights do not show strides
HEADS = {768: 12, 1024: 16, 1280: 16, 1920: 16}  # by width: base, 300M, 1B, 2B; shapes do not show heads either
FIRST = "feature_extractor.conv_layers.0.0.weight"  # a checkpoint with this name contains an encoder
PRETRAINING = ("quantizer.", "project_q.", "final_proj.", "label_embs_concat")  # used only in pretraining

# The beginning of a name in fairseq, and what takes its place in transformers.
NAMES = (
    (r"mask_emb$", "masked_spec_embed"),
    (r"feature_extractor\.conv_layers\.(\d+)\.0\.", r"feature_extractor.conv_layers.\1.conv."),
    (r"feature_extractor\.conv_layers\.(\d+)\.2\.(?:1\.)?", r"feature_extractor.conv_layers.\1.layer_norm."),
    (r"post_extract_proj\.", "feature_projection.projection."),
    (r"layer_norm\.", "feature_projection.layer_norm."),
    (r"encoder\.pos_conv\.0\.weight_g$", "encoder.pos_conv_embed.conv.parametrizations.weight.original0"),
    (r"encoder\.pos_conv\.0\.weight_v$", "encoder.pos_conv_embed.conv.parametrizations.weight.original1"),
    (r"encoder\.pos_conv\.0\.", "encoder.pos_conv_embed.conv."),
    (r"encoder\.layers\.(\d+)\.self_attn\.", r"encoder.layers.\1.attention."),
    (r"encoder\.layers\.(\d+)\.self_attn_layer_norm\.", r"encoder.layers.\1.layer_norm."),
    (r"encoder\.layers\.(\d+)\.fc1\.", r"encoder.layers.\1.feed_forward.intermediate_dense."),
    (r"encoder\.layers\.(\d+)\.fc2\.", r"encoder.layers.\1.feed_forward.output_dense."),
    (r"encoder\.layers\.(\d+)\.final_layer_norm\.", r"encoder.layers.\1.final_layer_norm."),
    (r"encoder\.layer_norm\.", "encoder.layer_norm."),
)


@dataclass(frozen=True)
class FairseqEncoder:
    """The weights of an encoder by their names in transformers, and arguments for `Wav2Vec2Config`."""

    weights: dict[str, Tensor]
    config: dict[str, Any]


def read(path: Path) -> FairseqEncoder:
    """Read the encoder in a checkpoint.

    Raises InputError for a file that is no checkpoint, that holds more than tensors and plain values, that holds no
    encoder or several, or whose encoder has names or shapes that no wav2vec 2.0 has.
    """
    found = _unpickled(path)
    state = _state(path, found)
    prefix = _prefix(path, state)
    own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    own = {name: tensor for name, tensor in own.items() if not name.startswith(PRETRAINING)}
    config = _config(path, own, _said(found))
    renamed = {name: _renamed(name) for name in own}
    if unknown := sorted(name for name, new in renamed.items() if new is None):
        raise InputError(
            f"{path}: expected an encoder of wav2vec 2.0 below {prefix!r}, got {len(unknown)} weights that it has none "
            f"of:\n{listing(unknown)}"
        )
    return FairseqEncoder({str(renamed[name]): tensor for name, tensor in own.items()}, config)


def _unpickled(path: Path) -> dict[str, Any]:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        others = ", ".join(re.findall(r"GLOBAL ([\w.]+)", str(error))) or "what torch does not unpickle safely"
        raise InputError(
            f"{path}: expected a checkpoint of tensors and plain values, got one with {others}; it is not loaded, as "
            "unpickling that could run anything. Take its state_dict out where you trust it, and torch.save that"
        ) from None
    except Exception as error:  # a damaged file gives errors of many kinds
        why = str(error) or type(error).__name__
        raise InputError(f"{path}: not a checkpoint that torch.load reads: {why}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected a checkpoint, a dict of tensors, got a {type(found).__name__}")
    return found


def _state(path: Path, found: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict: below `model`, below `state_dict`, or the whole file."""
    for place in (found.get("model"), found.get("state_dict"), found):
        if isinstance(place, Mapping):
            state = {str(name): value for name, value in place.items() if isinstance(value, Tensor)}
            if state:
                return state
    raise InputError(f"{path}: expected weights, or `model` or `state_dict` with weights, got {', '.join(found)[:200]}")


def _prefix(path: Path, state: Mapping[str, Tensor]) -> str:
    """The prefix of the encoder's names."""
    prefixes = [name.removesuffix(FIRST) for name in state if name.endswith(FIRST)]
    if len(prefixes) == 1:
        return prefixes[0]
    if not prefixes:
        raise InputError(f"{path}: expected an encoder of fairseq's, got no weight {FIRST!r} under any prefix")
    raise InputError(
        f"{path}: expected one encoder, got {len(prefixes)}, below {', '.join(map(repr, sorted(prefixes)))}"
    )


def _renamed(name: str) -> str | None:
    for pattern, new in NAMES:
        if match := re.match(pattern, name):
            return match.expand(new) + name[match.end() :]
    return None


def _said(found: Mapping[str, Any]) -> dict[str, Any]:
    """The model's configuration from `cfg`, or from `args` in older checkpoints; empty for countermeasures."""
    cfg, args = found.get("cfg"), found.get("args")
    if isinstance(cfg, Mapping) and isinstance(cfg.get("model"), Mapping):
        return dict(cfg["model"])
    return vars(args) if isinstance(args, argparse.Namespace) else {}


def _weight(path: Path, own: Mapping[str, Tensor], name: str, dimensions: int) -> Tensor:
    """A weight by its name. Raises InputError where it is missing, empty, or has other dimensions."""
    if name not in own:
        raise InputError(f"{path}: the encoder lacks the weight {name!r}")
    if own[name].ndim != dimensions or not own[name].numel():
        raise InputError(f"{path}: expected {name} of {dimensions} dimensions, got {tuple(own[name].shape)}")
    return own[name]


def _config(path: Path, own: Mapping[str, Tensor], said: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for `Wav2Vec2Config`, from the shapes of the weights and the checkpoint's configuration."""
    convolutions = [_weight(path, own, f"feature_extractor.conv_layers.{i}.0.weight", 3) for i in range(len(KERNELS))]
    width = len(_weight(path, own, "post_extract_proj.weight", 2))
    feedforward = len(_weight(path, own, "encoder.layers.0.fc1.weight", 2))
    positional = _weight(path, own, "encoder.pos_conv.0.weight_v", 3)
    kernels = tuple(weight.shape[2] for weight in convolutions)
    if kernels != KERNELS:
        raise InputError(f"{path}: expected convolutions of {KERNELS} samples, as wav2vec 2.0 has them, got {kernels}")
    if said.get("activation_fn", "gelu") != "gelu":
        raise InputError(f"{path}: expected the activation gelu, got {said['activation_fn']}")
    heads = said.get("encoder_attention_heads", HEADS.get(width))
    if type(heads) is not int or heads < 1 or width % heads:
        raise InputError(
            f"{path}: expected a checkpoint with its number of attention heads, or one of width "
            f"{', '.join(map(str, HEADS))}, got one of width {width}"
        )
    by_layer = "feature_extractor.conv_layers.1.2.1.weight" in own
    layers = {name.split(".")[2] for name in own if name.startswith("encoder.layers.")}
    if layers != {str(number) for number in range(len(layers))}:
        raise InputError(f"{path}: expected the layers 0 to {len(layers) - 1}, got {', '.join(sorted(layers))[:200]}")
    return {
        "num_hidden_layers": len(layers),
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": feedforward,
        "conv_dim": tuple(len(weight) for weight in convolutions),
        "conv_kernel": KERNELS,
        "conv_stride": STRIDES,
        "conv_bias": "feature_extractor.conv_layers.0.0.bias" in own,
        "feat_extract_norm": "layer" if by_layer else "group",
        "do_stable_layer_norm": bool(said.get("layer_norm_first", by_layer)),
        "num_conv_pos_embeddings": positional.shape[2],
        "num_conv_pos_embedding_groups": width // positional.shape[1],
    }
