"""Find the encoder among the tensors of a checkpoint, name its weights as transformers does, and tell how it is made.

The weights may be fairseq's, transformers' or torchaudio's, or OpenAI's of Whisper, below any prefix, such as
`state_dict.module.ssl_model.model.`. What stands beside the encoder, such as a countermeasure's back end, is left out.
Where no configuration is there, the architecture comes from the shapes of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.core.errors import InputError, listing
from pipeline.encoder import fairseq, names, tensor_files

KERNELS, STRIDES = (
    (10, 3, 3, 3, 3, 2, 2),
    (5, 2, 2, 2, 2, 2, 2),
)  # of every wav2vec 2.0; the shapes of weights do not show strides
# What torch.compile and the wrappers of distributed training put into names.
WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module"}
COUNTER = "num_batches_tracked"  # of a batch norm, the only weight of an encoder that is a whole number
ADAPTER = "lora_"  # in the names of low-rank adapters (LoRA)
WRAPPINGS = ("model", "state_dict", "model_state_dict")  # where several encoders lie, the first of these is taken
SPELLINGS = ((".weight_g", ".parametrizations.weight.original0"), (".weight_v", ".parametrizations.weight.original1"))


@dataclass(frozen=True)
class Naming:
    """How weights are named. parts: how the names of the encoder's own weights begin. renamed: to transformers.

    besides: more weights, where others may have the name of `first`, too. log_mel: whether the encoder takes log-mel
    features. The others are weights that show the architecture, where it is read from their shapes.
    """

    first: str
    parts: tuple[str, ...]
    renamed: Callable[[str], str | None]
    besides: tuple[str, ...] = ()
    log_mel: bool = False
    convolution: str = ""
    layer_norm: str = ""
    projection: str = ""
    feedforward: str = ""
    positional: str = ""
    attention: str = ""


FAIRSEQ = Naming(
    first=fairseq.FIRST,
    parts=("feature_extractor.", "post_extract_proj.", "layer_norm.", "encoder.", "mask_emb"),
    convolution="feature_extractor.conv_layers.{}.0",
    layer_norm="feature_extractor.conv_layers.1.2.1.weight",
    projection="post_extract_proj.weight",
    feedforward="encoder.layers.0.fc1.weight",
    positional="encoder.pos_conv.0",
    attention="encoder.layers.0.self_attn.relative_attention_bias.weight",
    renamed=names.of_fairseq,
)
TRANSFORMERS = Naming(
    first="feature_extractor.conv_layers.0.conv.weight",
    parts=("feature_extractor.", "feature_projection.", "encoder.", "masked_spec_embed"),
    convolution="feature_extractor.conv_layers.{}.conv",
    layer_norm="feature_extractor.conv_layers.1.layer_norm.weight",
    projection="feature_projection.projection.weight",
    feedforward="encoder.layers.0.feed_forward.intermediate_dense.weight",
    positional="encoder.pos_conv_embed.conv",
    attention="encoder.layers.0.attention.rel_attn_embed.weight",
    renamed=lambda name: name,
)
TORCHAUDIO = Naming(
    first=TRANSFORMERS.first,
    parts=("feature_extractor.", "encoder.feature_projection.", "encoder.transformer."),
    besides=("encoder.feature_projection.projection.weight",),
    convolution=TRANSFORMERS.convolution,
    layer_norm=TRANSFORMERS.layer_norm,
    projection="encoder.feature_projection.projection.weight",
    feedforward="encoder.transformer.layers.0.feed_forward.intermediate_dense.weight",
    positional="encoder.transformer.pos_conv_embed.conv",
    renamed=names.of_torchaudio,
)
W2V_BERT = Naming(
    first="feature_projection.projection.weight",
    parts=TRANSFORMERS.parts,
    renamed=TRANSFORMERS.renamed,
    besides=("encoder.layers.0.conv_module.depthwise_conv.weight",),
    log_mel=True,
    projection="feature_projection.projection.weight",
    feedforward="encoder.layers.0.ffn1.intermediate_dense.weight",
    positional="encoder.layers.0.self_attn.distance_embedding.weight",
)
WHISPER = Naming(
    first="conv1.weight",
    parts=("conv1.", "conv2.", "embed_positions.", "layers.", "layer_norm."),
    renamed=TRANSFORMERS.renamed,
    besides=("conv2.weight", "embed_positions.weight", "layers.0.fc1.weight"),
    log_mel=True,
    projection="conv2.weight",
    feedforward="layers.0.fc1.weight",
    positional="embed_positions.weight",
)
OPENAI = Naming(  # Whisper's encoder by the names of its authors
    first=WHISPER.first,
    parts=("conv1.", "conv2.", "positional_embedding", "blocks.", "ln_post."),
    renamed=names.of_openai,
    besides=("conv2.weight", "positional_embedding", "blocks.0.mlp.0.weight"),
    log_mel=True,
    projection=WHISPER.projection,
    feedforward="blocks.0.mlp.0.weight",
    positional="positional_embedding",
)
# In this order, as transformers' names fit what torchaudio names too, and w2v-BERT's fit a conformer.
NAMINGS = (FAIRSEQ, TORCHAUDIO, TRANSFORMERS, W2V_BERT, WHISPER, OPENAI)
BY_KIND = {
    "sew": Naming(TRANSFORMERS.first, (*TRANSFORMERS.parts, "layer_norm."), TRANSFORMERS.renamed),
    "wav2vec2-bert": W2V_BERT,
    "whisper": WHISPER,
}
OF_SEW = "encoder.upsample.projection.weight"
DISTANCES = 64, 8  # frames to the left and right that w2v-BERT 2.0 tells apart
WHISPER_HEAD = 64  # channels of an attention head of every published Whisper
CONFIG_BESIDE = "put the config.json of transformers beside the file"


@dataclass(frozen=True)
class Inside:
    """The encoder in a checkpoint: its weights by their names in the file, below `prefix`, and how they are named.

    said: the configuration that the checkpoint itself holds. normalizes: whether it was trained on normalized
    waveforms; None where it does not say.
    """

    path: Path
    prefix: str
    naming: Naming
    own: dict[str, Tensor]
    said: dict[str, Any]
    normalizes: bool | None

    def weights(self) -> dict[str, Tensor]:
        """The weights by their names in transformers, float32.

        Raises InputError for weights that no encoder has, adapters, types other than floating point, and NaN.
        """
        if unmerged := sorted(name for name in self.own if ADAPTER in name.lower()):
            raise InputError(
                f"{self.path}: expected the weights of an encoder, got {len(unmerged)} of an adapter among them; merge "
                f"it into the weights (peft: merge_and_unload) and save the model again:\n{listing(unmerged)}"
            )
        new = {name: self.naming.renamed(name) for name in self.own}
        if unknown := sorted(name for name in new if new[name] is None):
            raise InputError(
                f"{self.path}: expected an encoder below {self.prefix!r}, got {len(unknown)} weights that it has none "
                f"of:\n{listing(unknown)}"
            )
        if wrong := [name for name, value in self.own.items() if not _is_plain(value)]:
            raise InputError(
                f"{self.path}: expected weights as plain tensors of the CPU, got others; save these:\n{listing(wrong)}"
            )
        others = {name: value for name, value in self.own.items() if not value.is_floating_point()}
        if wrong := [f"{name}: {value.dtype}" for name, value in others.items() if not name.endswith(COUNTER)]:
            raise InputError(f"{self.path}: expected weights in floating point, got:\n{listing(wrong)}")
        found = {name: value if name in others else value.float() for name, value in self.own.items()}
        if wrong := [name for name, value in found.items() if not value.isfinite().all()]:
            raise InputError(
                f"{self.path}: expected finite weights, got NaN or infinity, as of a training that diverged; take "
                f"another checkpoint:\n{listing(wrong)}"
            )
        return {str(new[name]): value for name, value in found.items()}


def inside(path: Path, found: Mapping[str, Any], *, kind: str = "") -> Inside:
    """The encoder in the content of a checkpoint, as `tensor_files.read` gives it. kind: of its configuration, if any.

    Raises InputError where there is none, or where there are several that differ.
    """
    state = _state(path, found)
    namings = (BY_KIND[kind],) if kind in BY_KIND else NAMINGS
    candidates = _candidates(state, namings)
    if not candidates:
        wanted = dict.fromkeys(repr(naming.first) for naming in namings)
        adapter = any(ADAPTER in name.lower() for name in state)
        hint = "; it is an adapter (LoRA) alone: merge it into its model, and save that" if adapter else ""
        raise InputError(
            f"{path}: expected an encoder, got no weight {' or '.join(wanted)} under any prefix; the file has "
            f"{len(state)} weights, such as {', '.join(list(state)[:3])[:300]}{hint}"
        )
    every = [
        Inside(path, *one, _own(state, *one), fairseq.said(found), fairseq.normalizes(found)) for one in candidates
    ]
    return _one(path, every, wrappings=[name for name in WRAPPINGS if isinstance(found.get(name), Mapping)])


def _candidates(state: Mapping[str, Tensor], namings: tuple[Naming, ...]) -> list[tuple[str, Naming]]:
    """The prefixes below which an encoder may lie, each with the first naming that fits."""
    ends = [(name.removesuffix(one.first), one) for one in namings for name in state if name.endswith(one.first)]
    found: dict[str, Naming] = {}
    for prefix, one in ends:
        if all(f"{prefix}{name}" in state for name in one.besides):
            found.setdefault(prefix, one)
    return list(found.items())


def config_of(encoder: Inside) -> dict[str, Any]:
    """Arguments for the configuration of transformers, from the shapes of the weights and what the checkpoint says.

    Raises InputError where weights are missing or no wav2vec 2.0 has such shapes.
    """
    naming, path, own, said = encoder.naming, encoder.path, encoder.own, encoder.said
    if naming.log_mel:
        return _of_w2v_bert(encoder) if naming is W2V_BERT else _of_whisper(encoder)
    if OF_SEW in own:
        raise InputError(f"{path}: the weights of a sew do not show its architecture; {CONFIG_BESIDE}")
    convolutions = [_weight(encoder, f"{naming.convolution.format(i)}.weight", 3) for i in range(len(KERNELS))]
    width = len(_weight(encoder, naming.projection, 2))
    feedforward = len(_weight(encoder, naming.feedforward, 2))
    positional = _weight(encoder, naming.positional + SPELLINGS[1][1], 3)
    kernels = tuple(weight.shape[2] for weight in convolutions)
    if kernels != KERNELS:
        raise InputError(f"{path}: expected convolutions of {KERNELS} samples, as wav2vec 2.0 has them, got {kernels}")
    if said.get("activation_fn", "gelu") != "gelu":
        raise InputError(f"{path}: expected the activation gelu, got {said['activation_fn']}")
    by_layer = naming.layer_norm in own
    return _of_kind(encoder) | {
        "num_hidden_layers": _layers(encoder),
        "hidden_size": width,
        "num_attention_heads": _heads(encoder, width),
        "intermediate_size": feedforward,
        "conv_dim": tuple(len(weight) for weight in convolutions),
        "conv_kernel": KERNELS,
        "conv_stride": STRIDES,
        "conv_bias": f"{naming.convolution.format(0)}.bias" in own,
        "feat_extract_norm": "layer" if by_layer else "group",
        "do_stable_layer_norm": bool(said.get("layer_norm_first", by_layer)),
        "num_conv_pos_embeddings": positional.shape[2],
        "num_conv_pos_embedding_groups": width // positional.shape[1],
    }


def _state(path: Path, found: Mapping[str, Any]) -> dict[str, Tensor]:
    """All tensors by their names without wrappers, and with one spelling of weight norm."""
    state: dict[str, Tensor] = {}
    for name, tensor in tensor_files.tensors(found).items():
        plain = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        for old, new in SPELLINGS:
            plain = plain.removesuffix(old) + new if plain.endswith(old) else plain
        if plain in state and not _equal(state[plain], tensor):
            raise InputError(f"{path}: expected one weight {plain}, got two that differ, one of them {name}")
        state[plain] = tensor
    if not state:
        told = ", ".join(map(str, found))[:200]
        raise InputError(f"{path}: expected weights, or `model` or `state_dict` with weights, got {told}")
    return state


def _own(state: Mapping[str, Tensor], prefix: str, naming: Naming) -> dict[str, Tensor]:
    below = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    return {name: tensor for name, tensor in below.items() if name.startswith(naming.parts)}


def _one(path: Path, every: list[Inside], *, wrappings: list[str]) -> Inside:
    """The encoder of a checkpoint. Where it lies there twice, as a part that has two names, the first of them."""
    first = every[0]
    if all(one.own.keys() == first.own.keys() and all(map(_equal, one.own.values(), _as(first, one))) for one in every):
        return first
    for wrapping in wrappings:
        within = [one for one in every if one.prefix.startswith(f"{wrapping}.")]
        if 0 < len(within) < len(every):
            return _one(path, within, wrappings=[])
    prefixes = sorted(one.prefix for one in every)
    raise InputError(
        f"{path}: expected one encoder, got {len(every)}, below {', '.join(map(repr, prefixes))}; torch.save the "
        "weights of the one that is meant"
    )


def _as(one: Inside, other: Inside) -> list[Tensor]:
    return [one.own[name] for name in other.own]


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized


def _equal(one: Tensor, other: Tensor) -> bool:
    same = _is_plain(one) and _is_plain(other) and one.dtype == other.dtype
    return one is other or (same and torch.equal(one, other))


def _weight(encoder: Inside, name: str, dimensions: int) -> Tensor:
    """A weight by its name. Raises InputError where it is missing, empty, or has other dimensions."""
    own, path = encoder.own, encoder.path
    if name not in own:
        raise InputError(f"{path}: the encoder lacks the weight {name!r}")
    if own[name].ndim != dimensions or not own[name].numel():
        raise InputError(f"{path}: expected {name} of {dimensions} dimensions, got {tuple(own[name].shape)}")
    return own[name]


def _layers(encoder: Inside) -> int:
    below = encoder.naming.feedforward.partition("0.")[0]  # what stands before the number of a layer
    layers = {name.removeprefix(below).split(".")[0] for name in encoder.own if name.startswith(below)}
    if layers != {str(number) for number in range(len(layers))}:
        told = ", ".join(sorted(layers))[:200]
        raise InputError(f"{encoder.path}: expected the layers 0 to {len(layers) - 1}, got {told}")
    return len(layers)


def _heads(encoder: Inside, width: int) -> int:
    """The number of attention heads: WavLM's weights show it; of the others the checkpoint says it, or the width."""
    if encoder.naming.attention in encoder.own:
        return int(_weight(encoder, encoder.naming.attention, 2).shape[1])
    heads = encoder.said.get("encoder_attention_heads", fairseq.HEADS.get(width))
    if type(heads) is not int or heads < 1 or width % heads:
        raise InputError(
            f"{encoder.path}: expected a checkpoint with its number of attention heads, or one of width "
            f"{', '.join(map(str, fairseq.HEADS))}, got one of width {width}; {CONFIG_BESIDE}"
        )
    return heads


def _of_kind(encoder: Inside) -> dict[str, Any]:
    """The kind of encoder, and what only WavLM has. HuBERT computes as wav2vec 2.0 does, by the same names."""
    if encoder.naming.attention not in encoder.own:
        return {"model_type": "wav2vec2"}
    buckets = len(_weight(encoder, encoder.naming.attention, 2))
    distance = encoder.said.get("max_distance", 800)  # that of every published WavLM
    if type(distance) is not int or distance < 2:
        raise InputError(f"{encoder.path}: expected max_distance of at least 2, got {distance!r}")
    return {"model_type": "wavlm", "num_buckets": buckets, "max_bucket_distance": distance}


def _of_w2v_bert(encoder: Inside) -> dict[str, Any]:
    """The architecture of w2v-BERT 2.0: its attention tells distances apart as the published model does."""
    width, features = _weight(encoder, W2V_BERT.projection, 2).shape
    distances, head = _weight(encoder, W2V_BERT.positional, 2).shape
    if distances != sum(DISTANCES) + 1 or width % head:
        raise InputError(
            f"{encoder.path}: expected the distances of w2v-BERT 2.0, {sum(DISTANCES) + 1} in heads that divide "
            f"{width} channels, got {distances} in heads of {head}; {CONFIG_BESIDE}"
        )
    return {
        "model_type": "wav2vec2-bert",
        "num_hidden_layers": _layers(encoder),
        "hidden_size": width,
        "num_attention_heads": width // head,
        "intermediate_size": len(_weight(encoder, W2V_BERT.feedforward, 2)),
        "feature_projection_input_dim": features,
        "conv_depthwise_kernel_size": _weight(encoder, W2V_BERT.besides[0], 3).shape[2],
        "left_max_position_embeddings": DISTANCES[0],
        "right_max_position_embeddings": DISTANCES[1],
    }


def _of_whisper(encoder: Inside) -> dict[str, Any]:
    """The architecture of Whisper's encoder."""
    naming = encoder.naming
    width = len(_weight(encoder, naming.projection, 3))
    if width % WHISPER_HEAD:
        raise InputError(
            f"{encoder.path}: expected a Whisper of {WHISPER_HEAD} channels a head, got one of width {width}; "
            f"{CONFIG_BESIDE}"
        )
    return {
        "model_type": "whisper",
        "encoder_layers": _layers(encoder),
        "d_model": width,
        "encoder_attention_heads": width // WHISPER_HEAD,
        "encoder_ffn_dim": len(_weight(encoder, naming.feedforward, 2)),
        "num_mel_bins": _weight(encoder, naming.first, 3).shape[1],
        "max_source_positions": len(_weight(encoder, naming.positional, 2)),
    }
