"""Read an encoder in the format of transformers, from a folder or the hub, and trust nothing in it.

transformers itself would follow much of what a folder says: code, kernels, adapters, other models, files elsewhere. So
only the facts of the architecture are taken out of `config.json`, and the weights are read here, from the files that
`files_of` lists and no others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import torch
from huggingface_hub import try_to_load_from_cache
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load_file
from torch import Tensor
from transformers.activations import ACT2FN
from transformers.models.hubert.modeling_hubert import HubertModel
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2Model
from transformers.models.wavlm.modeling_wavlm import WavLMModel
from transformers.utils import logging
from transformers.utils.hub import cached_file

from pipeline.core.errors import InputError, listing
from pipeline.core.files import read_json

KINDS: dict[str, Any] = {"wav2vec2": Wav2Vec2Model, "hubert": HubertModel, "wavlm": WavLMModel}
CONFIG = "config.json"
WEIGHTS = (  # in the order in which they are looked for
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
INDEX = ".index.json"
MOST_BYTES = 64 * 2**20  # of a configuration or an index
SLACK = 2**22  # bytes that files may be too small; smaller gaps are told by the names of weights
UNUSED = "masked_spec_embed"  # used only in pretraining, and missing in some checkpoints
MEND = "take it from where it was published, or write the folder anew with transformers' save_pretrained"


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
    initializer_range: Share = 0.02
    mask_time_prob: Share = 0.0  # above 0 the model has the weight `UNUSED`
    mask_feature_prob: Share = 0.0
    adapter_attn_dim: Width | None = None
    add_adapter: Literal[False] = False  # its frames would not be those of the layers


def load(source: str, *, revision: str | None, **quiet: Any) -> Wav2Vec2Model:
    """The model in a folder, or of a name on the hub. quiet: arguments of its configuration that are set here.

    Raises InputError where files are missing or damaged, lead out of the folder, or are not those of such a model.
    """
    logging.disable_progress_bar()
    kind, config = _config(_place(source, CONFIG, revision), source, quiet)
    files = [_place(source, name, revision) for name in _weights_of(source, revision)]
    _check_size(kind, config, files, source)
    state = {name: tensor for file in files for name, tensor in _read(file, source).items()}
    try:
        with _quietly():
            model, report = KINDS[kind].from_pretrained(
                None, config=config, state_dict=state, dtype=torch.float32, output_loading_info=True
            )
    except Exception as error:  # whatever transformers raises for weights that do not fit
        raise _unfit(source, error) from None
    if missing := sorted(key for key in report["missing_keys"] if key != UNUSED):  # filled with random numbers
        raise InputError(
            f"encoder.source: {source!r} lacks {len(missing)} weights of the encoder: {', '.join(missing[:10])}"
        )
    encoder: Wav2Vec2Model = model  # HuBERT and WavLM have the same interface
    return encoder


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the report of weights that transformers prints: missing ones are an error here, others are not used."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def files_of(source: str, *, revision: str | None) -> list[Path]:
    """The files that `load` reads; of a name on the hub those in transformers' cache.

    Empty where one of them is not there, or `load` would refuse them.
    """
    folder = Path(source)
    if not folder.is_dir():
        found = try_to_load_from_cache(source, CONFIG, revision=revision or "main")
        if not isinstance(found, str):
            return []
        folder = Path(found).parent
    try:
        return [folder / name for name in (CONFIG, *_weights_of(str(folder), None))]
    except InputError:
        return []


def _weights_of(source: str, revision: str | None) -> list[str]:
    """The names of the files of weights, below the folder. Raises InputError where there are none."""
    for name in WEIGHTS:
        if (place := _found(source, name, revision)) is None:
            continue
        if not name.endswith(INDEX):
            return [name]
        told = read_json(place, what="index of weights", keys=("weight_map",), remedy=MEND, most=MOST_BYTES)
        names = told["weight_map"].values() if isinstance(told["weight_map"], dict) else [None]
        if wrong := [repr(one)[:200] for one in names if not _is_below(one)]:
            raise InputError(
                f"{place}: expected files of weights below its folder, got {len(wrong)} others; {MEND}:\n"
                f"{listing(wrong)}"
            )
        found = sorted(set(names))
        if Path(source).is_dir():
            _check_links(Path(source), found, place)
        return found
    raise _unfit(source, f"no file {' or '.join(name for name in WEIGHTS if not name.endswith(INDEX))}")


def _is_below(name: Any) -> bool:
    """Whether an entry of an index is the name of a file of weights below the folder."""
    if not isinstance(name, str) or not name or len(name) > 500 or "\0" in name or "\\" in name:
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and path.suffix in (".safetensors", ".bin")


def _check_links(folder: Path, names: Sequence[str], index: Path) -> None:
    """Raise InputError for a link out of the folder; that of a snapshot in the hub's cache may lead to its blobs."""
    root = folder.resolve()
    roots = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
    for name in names:
        try:
            place = (folder / name).resolve(strict=True)
        except (OSError, RuntimeError) as error:
            raise InputError(f"{index}: names {name!r}, which cannot be read ({error}); {MEND}") from None
        if not any(place.is_relative_to(one) for one in roots):
            raise InputError(f"{index}: expected files of weights below its folder, got {name!r}, a link out of it")


def _place(source: str, name: str, revision: str | None) -> Path:
    place = _found(source, name, revision)
    if place is None:
        raise _unfit(source, f"no file {name}")
    return place


def _found(source: str, name: str, revision: str | None) -> Path | None:
    """A file of a folder, or of the hub, where it is fetched; None where there is none."""
    if Path(source).is_dir():
        return Path(source, name) if Path(source, name).is_file() else None
    try:
        found = cached_file(source, name, revision=revision or "main", _raise_exceptions_for_missing_entries=False)
    except Exception as error:  # whatever the hub and the network raise
        raise _unfit(source, error) from None
    return Path(found) if found else None


def _config(path: Path, source: str, quiet: dict[str, Any]) -> tuple[str, Any]:
    """The kind of a model, and its configuration of the known keys. Raises InputError for values out of range."""
    found = read_json(path, what="configuration of a model", remedy=MEND, most=MOST_BYTES)
    kind = found.get("model_type")
    if not isinstance(kind, str):
        raise _unfit(source, f"{path} has no model_type")
    if kind not in KINDS:
        raise InputError(f"encoder.source: expected one of {', '.join(KINDS)}, got {source!r}, a {kind[:100]}")
    made = KINDS[kind].config_class
    try:
        known = _Config.model_validate(found).model_dump(exclude_unset=True)
        config = made(**{key: value for key, value in known.items() if hasattr(made(), key)}, **quiet)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()]
        raise InputError(f"{path}: not the configuration of a {kind}; {MEND}:\n{listing(problems)}") from None
    except Exception as error:  # whatever transformers raises for values that do not fit each other
        raise InputError(f"{path}: not the configuration of a {kind}: {error}; {MEND}") from None
    whole = (
        config.hidden_size % config.num_attention_heads == 0
        and config.hidden_size % config.num_conv_pos_embedding_groups == 0
        and len(config.conv_dim) == len(config.conv_kernel) == len(config.conv_stride)
    )
    if not whole:
        raise InputError(
            f"{path}: expected a hidden_size that num_attention_heads and num_conv_pos_embedding_groups divide, and as "
            f"many conv_dim as conv_kernel and conv_stride; {MEND}"
        )
    return kind, config


def _check_size(kind: str, config: Any, files: Sequence[Path], source: str) -> None:
    """Raise InputError where the files are too small for the weights that the configuration asks for."""
    try:
        with torch.device("meta"):
            weights = sum(tensor.numel() for tensor in KINDS[kind](config).state_dict().values())
    except Exception as error:  # whatever a module raises for sizes that do not fit each other
        raise _unfit(source, error) from None
    there = sum(file.stat().st_size for file in files)
    if 2 * weights > there + SLACK:
        raise _unfit(source, f"config.json asks for {weights:,} weights, the files have {there:,} bytes")


def _read(path: Path, source: str) -> dict[str, Tensor]:
    """The tensors of a file of weights; nothing else is unpickled."""
    try:
        if path.suffix == ".safetensors":
            found = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
        if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in found.items()):
            raise ValueError("it holds more than tensors")
        return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in found.items()}
    except Exception as error:  # a damaged file gives errors of many kinds
        raise _unfit(source, f"{path.name}: {_first_line(error)}") from None


def _unfit(source: str, why: object) -> InputError:
    kind = "local folder" if Path(source).exists() else "hub name"
    return InputError(
        f"encoder.source: expected a hub name or a folder that transformers wrote (config.json and model.safetensors), "
        f"could not load the {kind} {source!r}: {why}"
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
