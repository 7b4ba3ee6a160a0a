"""Load an encoder from a hub name, a transformers folder or a fairseq checkpoint, or make a random one; and save it."""

from __future__ import annotations

import dataclasses
import errno
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from transformers.models.auto.configuration_auto import AutoConfig
from transformers.models.hubert.modeling_hubert import HubertModel
from transformers.models.wav2vec2.configuration_wav2vec2 import Wav2Vec2Config
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2Model
from transformers.models.wavlm.modeling_wavlm import WavLMModel
from transformers.utils import logging

from pipeline.core.contracts import Tap
from pipeline.core.devices import Precision, device_of
from pipeline.core.errors import InputError, listing
from pipeline.core.files import writing
from pipeline.core.sections import EncoderParams, RandomEncoder
from pipeline.encoder import checksums, fairseq, kept
from pipeline.encoder.cards import Card, card_of
from pipeline.encoder.xlsr import Device, Encoder

NOTE_FILE = "README.txt"  # in the folder of the fine-tuned encoder
KINDS: dict[str, Any] = {"wav2vec2": Wav2Vec2Model, "hubert": HubertModel, "wavlm": WavLMModel}
# Turn off all randomness that transformers turns on by default. It stays off in fine-tuning: the configuration that
# XLSR was pretrained with has no dropout, and published countermeasures mask nothing.
_QUIET = {
    "apply_spec_augment": False,
    "layerdrop": 0.0,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
}


def load(params: EncoderParams) -> tuple[Wav2Vec2Model, Card]:
    """Load the whole encoder in eval mode, float32, on the CPU, and its card.

    Raises InputError for a source that cannot be loaded or that lacks weights of the encoder.
    """
    before = checksums.facts(_weight_files(params))
    if params.random:
        model = _random(params.random)
    elif Path(params.source).suffix in fairseq.SUFFIXES:
        model = _from_fairseq(Path(params.source))
    else:
        model = _pretrained(params.source, revision=params.revision)
    model.eval().requires_grad_(False)
    return model, card_of(model, source=params.source, normalize=params.normalize, before=before)


def load_deployed(params: EncoderParams, *, weights: Path | None) -> tuple[Wav2Vec2Model, Card]:
    """Load the encoder that computes the features, and its card: the fine-tuned encoder where fine-tuning is on.

    weights: the folder that `kept.weights_of` finds; it is read only where fine-tuning is on.

    Raises InputError as `load`, and where the folder holds no fine-tuned encoder.
    """
    if params.finetune is None:
        return load(params)
    if weights is None or not (weights / "config.json").is_file():  # else its name would be looked up on the hub
        raise InputError(f"{weights}: no fine-tuned encoder there; {kept.AGAIN}")
    model, card = load(EncoderParams(source=str(weights), normalize=params.normalize))
    return model, dataclasses.replace(card, source=f"{kept.ENCODERS}/{weights.name}")  # wherever the root is


def deployed(
    params: EncoderParams,
    taps: tuple[Tap, ...],
    *,
    weights: Path | None,
    card: Card,
    device: Device,
    precision: Precision,
) -> Encoder:
    """Load the encoder that computes the features, without the layers above its highest tap, onto its device.

    Args:
        weights: as in `load_deployed`. card: the card of the expected encoder.

    Raises InputError as `load_deployed`, where it is another encoder, or where a GPU is wanted and there is none.
    """
    model, found = load_deployed(params, weights=weights)
    if found != card:
        raise InputError(
            f"expected the encoder of the card ({_name(card)}), got {_name(found)}; run `dvc repro -f encoder`"
        )
    encoder = Encoder(model, taps=taps, normalize=card.normalize, precision=precision)
    return encoder.to(device_of(device, key="extract.device"))


def _name(card: Card) -> str:
    return f"{card.source}, normalize {card.normalize}, weights {card.weights_sha256[:16]}..."


def save(model: Wav2Vec2Model, folder: Path) -> None:
    """Write config.json and model.safetensors in the format of transformers."""
    logging.disable_progress_bar()
    with writing(folder):
        try:
            model.save_pretrained(folder)
        except SafetensorError as error:  # a full disk among others
            raise OSError(errno.EIO, str(error)) from None


def write_note(folder: Path, text: str) -> None:
    """Write a note about the contents of the encoder's folder. For a frozen encoder the note is all that it holds."""
    (folder / NOTE_FILE).write_text(text + "\n")


def _random(shape: RandomEncoder) -> Wav2Vec2Model:
    """An encoder of XLSR's structure in the given size, with random weights from the given seed."""
    config = Wav2Vec2Config(
        num_hidden_layers=shape.layers,
        hidden_size=shape.width,
        num_attention_heads=shape.heads,
        intermediate_size=shape.feedforward,
        conv_dim=(shape.conv_channels,) * 7,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        conv_bias=True,
        **_QUIET,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(shape.seed)
        return Wav2Vec2Model(config)


def _from_fairseq(path: Path) -> Wav2Vec2Model:
    if not path.is_file():
        raise InputError(f"encoder.source: expected a checkpoint of fairseq's, got no file {path}")
    found = fairseq.read(path)
    with torch.device("meta"):  # draws no random weights, because all are replaced below
        model = Wav2Vec2Model(Wav2Vec2Config(**found.config, **_QUIET))
    weights = {name: tensor.float() for name, tensor in found.weights.items()}
    unused = "masked_spec_embed"  # used only in pretraining, and missing in some countermeasures
    weights.setdefault(unused, torch.zeros(found.config["hidden_size"]))
    wanted = model.state_dict()
    wrong = [f"missing {name}" for name in wanted if name not in weights]
    wrong += [f"unexpected {name}" for name in weights if name not in wanted]
    wrong += [
        f"{name}: expected {tuple(wanted[name].shape)}, got {tuple(tensor.shape)}"
        for name, tensor in weights.items()
        if name in wanted and tensor.shape != wanted[name].shape
    ]
    if wrong:
        raise InputError(f"{path}: expected all weights of an encoder and no others, got:\n{listing(wrong)}")
    model.load_state_dict(weights, assign=True)
    return model


def _pretrained(source: str, *, revision: str | None) -> Wav2Vec2Model:
    logging.disable_progress_bar()
    try:
        # A source may contain code. It is never run: transformers would ask, and a user might say yes.
        kind = AutoConfig.from_pretrained(source, revision=revision or "main", trust_remote_code=False).model_type
        if kind not in KINDS:
            raise InputError(f"encoder.source: expected one of {', '.join(KINDS)}, got {source!r}, a {kind}")
        model, report = KINDS[kind].from_pretrained(
            source,
            revision=revision or "main",
            dtype=torch.float32,
            output_loading_info=True,
            trust_remote_code=False,
            **_QUIET,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        kind = "local folder" if Path(source).exists() else "hub name"
        raise InputError(
            f"encoder.source: expected a hub name or a folder that transformers wrote (config.json and "
            f"model.safetensors), could not load the {kind} {source!r}: {error}"
        ) from None
    missing = sorted(key for key in report["missing_keys"] if key != "masked_spec_embed")
    if missing:  # transformers has filled them with random numbers
        raise InputError(
            f"encoder.source: {source!r} lacks {len(missing)} weights of the encoder: {', '.join(missing[:10])}"
        )
    encoder: Wav2Vec2Model = model  # HuBERT and WavLM have the same interface
    return encoder


def _weight_files(params: EncoderParams) -> list[Path]:
    """The files that hold the weights; for a hub name those in transformers' cache, none where it is not there yet."""
    folder = Path(params.source)
    if params.random:
        return []
    if folder.suffix in fairseq.SUFFIXES:
        return [folder]
    if not folder.is_dir():
        found = try_to_load_from_cache(params.source, "config.json", revision=params.revision or "main")
        if not isinstance(found, str):
            return []
        folder = Path(found).parent
    return sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".bin"))
