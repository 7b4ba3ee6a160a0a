"""The kinds of encoders that are read, and the facts of their architecture in a `config.json`.

Only the known keys are taken, each within its range: transformers itself would also follow code and other models that
a configuration names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from transformers import CONFIG_MAPPING
from transformers.activations import ACT2FN
from transformers.models.data2vec.modeling_data2vec_audio import Data2VecAudioModel
from transformers.models.hubert.modeling_hubert import HubertModel
from transformers.models.sew.modeling_sew import SEWModel
from transformers.models.unispeech.modeling_unispeech import UniSpeechModel
from transformers.models.unispeech_sat.modeling_unispeech_sat import UniSpeechSatModel
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2Model
from transformers.models.wav2vec2_bert.modeling_wav2vec2_bert import Wav2Vec2BertModel
from transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer import Wav2Vec2ConformerModel
from transformers.models.wavlm.modeling_wavlm import WavLMModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from pipeline.core.errors import InputError, listing
from pipeline.core.files import read_json
from pipeline.encoder import sources
from pipeline.encoder.checkpoints import Inside
from pipeline.encoder.folders import MEND, MOST_BYTES

KINDS: dict[str, Any] = {
    "wav2vec2": Wav2Vec2Model,
    "hubert": HubertModel,
    "wavlm": WavLMModel,
    "unispeech": UniSpeechModel,
    "unispeech-sat": UniSpeechSatModel,
    "data2vec-audio": Data2VecAudioModel,
    "wav2vec2-conformer": Wav2Vec2ConformerModel,
    "sew": SEWModel,
    "wav2vec2-bert": Wav2Vec2BertModel,
    "whisper": WhisperEncoder,
}
LOG_MEL = ("wav2vec2-bert", "whisper")  # kinds that take features of samples as they are
SLACK = 2**22  # bytes by which files may be too small; where less is missing, the names of the weights show it
LEAST_STRIDE = 80  # samples from frame to frame; the encoders that are published have 320
UNUSED = "masked_spec_embed"  # used only in pretraining, and missing in some checkpoints


def _known_activation(name: str) -> str:
    if name not in ACT2FN:
        raise ValueError(f"expected one of {', '.join(sorted(ACT2FN))}")
    return name


Activation = Annotated[str, AfterValidator(_known_activation)]
Width = Annotated[int, Field(ge=1, le=2**17)]
Sizes = Annotated[list[Annotated[int, Field(ge=1, le=2**14)]], Field(min_length=1, max_length=16)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Config(BaseModel):
    """The keys of a config.json that are known; all others are left out. Keys that are missing have their defaults."""

    model_config = ConfigDict(strict=True, extra="ignore")

    num_hidden_layers: Annotated[int, Field(ge=1, le=200)] = 1
    hidden_size: Width = 1
    num_attention_heads: Width = 1
    intermediate_size: Width = 1
    hidden_act: Activation = "gelu"
    layer_norm_eps: Annotated[float, Field(gt=0, le=1)] = 1e-5
    do_stable_layer_norm: bool = False
    feat_extract_norm: Literal["group", "layer"] = "group"
    feat_extract_activation: Activation = "gelu"
    feat_proj_layer_norm: bool = True
    conv_bias: bool = False
    conv_dim: Sizes = Field(default=[1])
    conv_kernel: Sizes = Field(default=[1])
    conv_stride: Sizes = Field(default=[1])
    conv_pos_batch_norm: bool = False
    num_conv_pos_embeddings: Annotated[int, Field(ge=1, le=2**14)] = 1
    num_conv_pos_embedding_groups: Width = 1
    num_buckets: Annotated[int, Field(ge=4, le=2**17)] = 4
    max_bucket_distance: Annotated[int, Field(ge=2, le=2**20)] = 2
    position_embeddings_type: Literal["relative", "rotary", "relative_key"] | None = "relative"
    rotary_embedding_base: Annotated[int, Field(ge=2, le=2**30)] = 10_000
    max_source_positions: Annotated[int, Field(ge=1, le=2**16)] = 5_000
    conv_depthwise_kernel_size: Annotated[int, Field(ge=1, le=2**10)] = 31
    conv_pos_kernel_size: Annotated[int, Field(ge=1, le=2**10)] = 19
    initializer_range: Share = 0.02
    mask_time_prob: Share = 0.0  # above 0 the model has the weight `UNUSED`
    mask_feature_prob: Share = 0.0
    adapter_attn_dim: Width | None = None
    add_adapter: Literal[False] = False  # its frames would not be those of the layers
    use_intermediate_ffn_before_adapter: Literal[False] = False
    squeeze_factor: Annotated[int, Field(ge=1, le=16)] = 2
    feature_projection_input_dim: Annotated[int, Field(ge=2, le=512, multiple_of=2)] = 160
    left_max_position_embeddings: Annotated[int, Field(ge=0, le=2**14)] = 64
    right_max_position_embeddings: Annotated[int, Field(ge=0, le=2**14)] = 8
    # Whisper's names
    encoder_layers: Annotated[int, Field(ge=1, le=200)] = 1
    d_model: Width = 2
    encoder_attention_heads: Width = 1
    encoder_ffn_dim: Width = 1
    activation_function: Activation = "gelu"
    num_mel_bins: Annotated[int, Field(ge=1, le=256)] = 80


def read(path: Path | None, source: str, quiet: dict[str, Any]) -> tuple[str, Any | None]:
    """The kind of a model, and its configuration of the known keys, by its config.json.

    The kind is empty where there is none. There is no configuration for a kind that transformers does not have, as
    around a whole countermeasure. Raises InputError for values out of range, and for other kinds of transformers'.
    """
    if path is None:
        return "", None
    found = read_json(path, what="configuration of a model", remedy=MEND, most=MOST_BYTES)
    kind = found.get("model_type", "")
    if not isinstance(kind, str):
        raise sources.unfit(source, f"{path} has no model_type")
    if kind in KINDS:
        return kind, _config(path, kind, found, quiet)
    if kind in CONFIG_MAPPING:
        raise of_another_kind(source, kind)
    return kind, None


def read_beside(path: Path | None, file: Path, quiet: dict[str, Any]) -> tuple[str, Any | None]:
    """The same of the folder of one file; no configuration where it is no good one."""
    try:
        return read(path, str(file), quiet)
    except InputError:
        return "", None


def is_of(config: Any, inside: Inside) -> bool:
    """Whether a configuration can be that of an encoder, by its width."""
    norms = (
        "encoder.layer_norm.weight",
        "layer_norm.weight",
        "encoder.layers.0.final_layer_norm.weight",
        "ln_post.weight",
    )
    norm = next((inside.own[name] for name in norms if name in inside.own), None)
    return norm is not None and tuple(norm.shape) == (config.hidden_size,)


def of_another_kind(source: str, kind: str, why: str = "") -> InputError:
    """The error for a kind of model that is not read. why: no encoder was found among its weights either."""
    told = f"encoder.source: expected one of {', '.join(KINDS)}, got {source!r}, a {kind[:100]}"
    return InputError(f"{told}, and no encoder that could be read out of it: {why}" if why else told)


def _config(path: Path, kind: str, found: dict[str, Any], quiet: dict[str, Any]) -> Any:
    """A configuration of the known keys. Raises InputError for values out of range."""
    made = KINDS[kind].config_class
    try:
        known = _Config.model_validate(found).model_dump(exclude_unset=True)
        known |= quiet | dict.fromkeys(("conformer_conv_dropout", "encoder_layerdrop", "dropout"), 0.0)
        usual = made()
        config = made(**{key: value for key, value in known.items() if hasattr(usual, key)})
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()]
        raise InputError(f"{path}: not the configuration of a {kind}; {MEND}:\n{listing(problems)}") from None
    except Exception as error:  # whatever transformers raises for values that do not fit each other
        raise InputError(f"{path}: not the configuration of a {kind}: {error}; {MEND}") from None
    whole = (
        config.hidden_size % config.num_attention_heads == 0
        and config.hidden_size % getattr(config, "num_conv_pos_embedding_groups", 1) == 0
        and len({len(getattr(config, name, ())) for name in ("conv_dim", "conv_kernel", "conv_stride")}) == 1
    )
    if not whole:
        raise InputError(
            f"{path}: expected a hidden_size that num_attention_heads and num_conv_pos_embedding_groups divide, and as "
            f"many conv_dim as conv_kernel and conv_stride; {MEND}"
        )
    stride = math.prod(getattr(config, "conv_stride", [LEAST_STRIDE]))
    if stride < LEAST_STRIDE:  # attention takes time and memory by the square of the frames
        raise InputError(f"{path}: expected conv_stride of {LEAST_STRIDE} samples or more in all, got {stride}; {MEND}")
    if kind == "wav2vec2-conformer" and config.position_embeddings_type == "relative_key":
        raise InputError(f"{path}: expected position_embeddings_type relative or rotary, got relative_key; {MEND}")
    return config


def check_size(kind: str, config: Any, files: Sequence[Path], source: str) -> None:
    """Raise InputError where the files are too small for the weights that the configuration asks for."""
    try:
        with torch.device("meta"):
            weights = sum(tensor.numel() for tensor in KINDS[kind](config).state_dict().values())
    except Exception as error:  # whatever a module raises for sizes that do not fit each other
        raise sources.unfit(source, error) from None
    there = sum(file.stat().st_size for file in files)
    if 2 * weights > there + SLACK:
        raise sources.unfit(source, f"config.json asks for {weights:,} weights, the files have {there:,} bytes")
