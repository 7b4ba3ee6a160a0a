"""Read an encoder from a folder, the hub or a single file of weights, and trust nothing in it.

transformers itself would follow much of what a folder says: code, kernels, adapters, other models, files elsewhere. So
only the facts of the architecture are taken out of `config.json`, and the weights are read here, from the files that
`files_of` lists and no others. Where there is no `config.json` of a known kind, as around a whole countermeasure, the
architecture comes from the weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import torch
from huggingface_hub import try_to_load_from_cache
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor
from transformers import CONFIG_MAPPING
from transformers.activations import ACT2FN
from transformers.models.data2vec.modeling_data2vec_audio import Data2VecAudioModel
from transformers.models.hubert.modeling_hubert import HubertModel
from transformers.models.unispeech.modeling_unispeech import UniSpeechModel
from transformers.models.unispeech_sat.modeling_unispeech_sat import UniSpeechSatModel
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2Model
from transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer import Wav2Vec2ConformerModel
from transformers.models.wavlm.modeling_wavlm import WavLMModel
from transformers.utils import logging
from transformers.utils.hub import cached_file

from pipeline.core.errors import InputError, listing
from pipeline.core.files import read_json
from pipeline.encoder import checkpoints, sources, tensor_files
from pipeline.encoder.cards import FAIRSEQ_EPS, TRANSFORMERS_EPS
from pipeline.encoder.checkpoints import Inside

KINDS: dict[str, Any] = {
    "wav2vec2": Wav2Vec2Model,
    "hubert": HubertModel,
    "wavlm": WavLMModel,
    "unispeech": UniSpeechModel,
    "unispeech-sat": UniSpeechSatModel,
    "data2vec-audio": Data2VecAudioModel,
    "wav2vec2-conformer": Wav2Vec2ConformerModel,
}
CONFIG = "config.json"
WEIGHTS = (  # in the order in which they are looked for
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
INDEX = ".index.json"
PROCESSORS = ("preprocessor_config.json", "processor_config.json")  # how waveforms are prepared; newer ones are nested
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
    position_embeddings_type: Literal["relative", "rotary"] | None = "relative"
    rotary_embedding_base: Annotated[int, Field(ge=2, le=2**30)] = 10_000
    max_source_positions: Annotated[int, Field(ge=1, le=2**16)] = 5_000
    conv_depthwise_kernel_size: Annotated[int, Field(ge=1, le=2**10)] = 31
    conv_pos_kernel_size: Annotated[int, Field(ge=1, le=2**10)] = 19
    initializer_range: Share = 0.02
    mask_time_prob: Share = 0.0  # above 0 the model has the weight `UNUSED`
    mask_feature_prob: Share = 0.0
    adapter_attn_dim: Width | None = None
    add_adapter: Literal[False] = False  # its frames would not be those of the layers


@dataclass(frozen=True)
class Loaded:
    """A model, and how its waveforms were normalized in training.

    normalizes: None where nothing says it. place: the file that says it. eps: what is added to the variance.
    """

    model: Wav2Vec2Model
    normalizes: bool | None
    place: Path | None
    eps: float


def load(source: str, *, revision: str | None, **quiet: Any) -> Loaded:
    """The model in a folder, or of a name on the hub. quiet: arguments of its configuration that are set here.

    Raises InputError where files are missing or damaged, lead out of the folder, or are not those of such a model.
    """
    logging.disable_progress_bar()

    def find(name: str) -> Path | None:
        return _found(source, name, revision)

    kind, config = _config_of(find(CONFIG), source, quiet)
    try:
        files = [_place(source, name, revision) for name in _weights_of(source, revision)]
        for file in files:
            _check_kind(file, source)
        if config is not None:
            _check_size(kind, config, files, source)
        state = {name: tensor for file in files for name, tensor in _read(file, source).items()}
        inside = checkpoints.inside(files[0], state)
    except InputError as error:
        raise (_of_another_kind(source, kind, str(error)) if config is None and kind else error) from None
    model = _by_shapes(inside, quiet) if config is None else _by_config(kind, config, inside, source)
    normalizes, place, eps = _processing(_asked(source, revision))
    return Loaded(model, normalizes, place, eps or _eps(inside))


def load_file(path: Path, **quiet: Any) -> Loaded:
    """The model in one file of weights. A `config.json` or a processor's beside it counts where the file says nothing.

    Raises InputError where the file is damaged or another kind of file, or holds no encoder or several.
    """
    logging.disable_progress_bar()

    def find(name: str) -> Path | None:
        return beside if (beside := path.with_name(name)).is_file() else None

    found = tensor_files.read(path)
    inside = checkpoints.inside(path, found)
    kind, config = ("", None) if inside.said else _config_beside(find(CONFIG), inside, quiet)
    model = _by_shapes(inside, quiet) if config is None else _by_config(kind, config, inside, str(path))
    if inside.normalizes is not None:
        return Loaded(model, inside.normalizes, path, _eps(inside))
    normalizes, place, eps = _processing(find)
    return Loaded(model, normalizes, place, eps or _eps(inside))


def _eps(inside: Inside) -> float:
    """What the code around such weights adds to the variance of a waveform: fairseq's, or transformers'."""
    return FAIRSEQ_EPS if inside.naming is checkpoints.FAIRSEQ else TRANSFORMERS_EPS


def _by_config(kind: str, config: Any, inside: Inside, source: str) -> Wav2Vec2Model:
    """A model of a configuration with the weights of a checkpoint."""
    state = inside.weights()
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
    encoder: Wav2Vec2Model = model  # the other kinds have the same interface
    return encoder


def _by_shapes(inside: Inside, quiet: Mapping[str, Any]) -> Wav2Vec2Model:
    """A model whose architecture comes from its weights."""
    told = checkpoints.config_of(inside)
    made, weights = KINDS[told.pop("model_type")], inside.weights()
    try:
        with torch.device("meta"):  # draws no random weights, because all are replaced below
            model: Wav2Vec2Model = made(made.config_class(**told, **quiet))
    except Exception as error:  # whatever transformers and torch raise for shapes that do not fit
        raise InputError(
            f"{inside.path}: expected the weights of an encoder of wav2vec 2.0, got others: {error}"
        ) from None
    weights.setdefault(UNUSED, torch.zeros(told["hidden_size"]))
    wanted = model.state_dict()
    wrong = [f"missing {name}" for name in wanted if name not in weights]
    wrong += [f"unexpected {name}" for name in weights if name not in wanted]
    wrong += [
        f"{name}: expected {tuple(wanted[name].shape)}, got {tuple(tensor.shape)}"
        for name, tensor in weights.items()
        if name in wanted and tensor.shape != wanted[name].shape
    ]
    if wrong:
        raise InputError(f"{inside.path}: expected all weights of an encoder and no others, got:\n{listing(wrong)}")
    model.load_state_dict(weights, assign=True)
    return model


def _processing(find: Callable[[str], Path | None]) -> tuple[bool | None, Path | None, float | None]:
    """Whether waveforms are normalized as the processor beside the weights says; where it says it; and its epsilon.

    `normalize_eps` is a key of this project's own: transformers always adds the same.
    """
    for name in PROCESSORS:
        place = find(name)
        if place is None:
            continue
        told = read_json(place, what="configuration of a processor", remedy=MEND, most=MOST_BYTES)
        told = told["feature_extractor"] if isinstance(told.get("feature_extractor"), dict) else told
        normalizes, eps = told.get("do_normalize"), told.get("normalize_eps")
        if normalizes is None:
            continue
        if not isinstance(normalizes, bool):
            raise InputError(f"{place}: expected do_normalize true or false, got {str(normalizes)[:100]!r}; {MEND}")
        if eps not in (None, FAIRSEQ_EPS, TRANSFORMERS_EPS):
            raise InputError(
                f"{place}: expected normalize_eps {FAIRSEQ_EPS} or {TRANSFORMERS_EPS}, got {str(eps)[:100]}"
            )
        return normalizes, place, eps
    return None, None, None


def _asked(source: str, revision: str | None) -> Callable[[str], Path | None]:
    """Finds files that need not be there; of the hub also where it is not reached."""

    def find(name: str) -> Path | None:
        with contextlib.suppress(InputError):
            return _found(source, name, revision)
        return None

    return find


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
        if not found:
            raise InputError(f"{place}: expected files of weights below its folder, got none; {MEND}")
        if Path(source).is_dir():
            _check_links(Path(source), found, place)
        return found
    why = f"no file {' or '.join(name for name in WEIGHTS if not name.endswith(INDEX))}"
    if not Path(source).is_dir():
        why = f"there is no such model, or it cannot be reached from here and is not in the cache: {why}"
    else:
        others = sorted(path.name for path in Path(source).iterdir() if path.suffix.lower() in sources.SUFFIXES)
        why += f"; it has {', '.join(others[:3])}; give the path of that file" if others else ""
    raise _unfit(source, why)


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


def _config_of(path: Path | None, source: str, quiet: dict[str, Any]) -> tuple[str, Any | None]:
    """The kind of a model, and its configuration of the known keys, by its config.json.

    The kind is empty where there is none. There is no configuration for a kind that transformers does not have, as
    around a whole countermeasure. Raises InputError for values out of range, and for other kinds of transformers'.
    """
    if path is None:
        return "", None
    found = read_json(path, what="configuration of a model", remedy=MEND, most=MOST_BYTES)
    kind = found.get("model_type", "")
    if not isinstance(kind, str):
        raise _unfit(source, f"{path} has no model_type")
    if kind in KINDS:
        return kind, _config(path, kind, found, quiet)
    if kind in CONFIG_MAPPING:
        raise _of_another_kind(source, kind)
    return kind, None


def _of_another_kind(source: str, kind: str, why: str = "") -> InputError:
    told = f"encoder.source: expected one of {', '.join(KINDS)}, got {source!r}, a {kind[:100]}"
    return InputError(f"{told}, and no encoder that could be read out of it: {why}" if why else told)


def _config_beside(path: Path | None, inside: Inside, quiet: dict[str, Any]) -> tuple[str, Any | None]:
    """The same of the folder of one file; no configuration where it is that of something else."""
    try:
        kind, config = _config_of(path, str(inside.path), quiet)
    except InputError:
        return "", None
    norm = inside.own.get("encoder.layer_norm.weight")
    fits = config is not None and norm is not None and tuple(norm.shape) == (config.hidden_size,)
    return kind, config if fits else None


def _config(path: Path, kind: str, found: dict[str, Any], quiet: dict[str, Any]) -> Any:
    """A configuration of the known keys. Raises InputError for values out of range."""
    made = KINDS[kind].config_class
    try:
        known = _Config.model_validate(found).model_dump(exclude_unset=True)
        quiet = quiet | {key: 0.0 for key in ("conformer_conv_dropout",) if hasattr(made(), key)}
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
    return config


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


def _check_kind(path: Path, source: str) -> None:
    try:
        tensor_files.check_kind(path)
    except InputError as error:
        raise _unfit(source, error) from None


def _read(path: Path, source: str) -> dict[str, Tensor]:
    """The tensors of a file of weights; nothing else is unpickled."""
    try:
        return tensor_files.tensors(tensor_files.read(path))
    except InputError as error:
        raise _unfit(source, error) from None


def _unfit(source: str, why: object) -> InputError:
    told = " ".join(str(why).split("\n"))[:800]
    if Path(source).exists():
        return InputError(
            "encoder.source: expected a hub name or a folder that transformers wrote (config.json and "
            f"model.safetensors), or a file of weights, could not load the local folder {source!r}: {told}"
        )
    return InputError(
        f"encoder.source: could not load the hub name {source!r}: {told}; as a path: {sources.missing(source)}"
    )
