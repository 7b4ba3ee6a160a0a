"""Load an encoder from a hub name, a folder or a checkpoint, or make a random one; and save it."""

from __future__ import annotations

import dataclasses
import errno
import json
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from transformers.models.wav2vec2.configuration_wav2vec2 import Wav2Vec2Config
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2Model
from transformers.utils import logging

from pipeline.core.contracts import Tap
from pipeline.core.devices import Precision, device_of
from pipeline.core.encoder_sections import EncoderParams, RandomEncoder
from pipeline.core.errors import InputError
from pipeline.core.files import write_text, writing
from pipeline.encoder import checksums, configuration, folders, kept, pretrained, processors, sources
from pipeline.encoder.cards import TRANSFORMERS_EPS, Card, card_of
from pipeline.encoder.xlsr import Device, Encoder

NOTE_FILE = "README.txt"  # in the folder of the fine-tuned encoder
# Turn off all randomness that transformers turns on by default. In fine-tuning the parameters alone turn some on: the
# configuration that XLSR was pretrained with has no dropout, and published countermeasures mask nothing.
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

    Raises InputError for a source that cannot be loaded or that lacks weights of the encoder, and where a frozen
    encoder says that it was trained on waveforms normalized in another way than the parameters say.
    """
    before = checksums.facts(_weight_files(params))
    loaded = _loaded(params)
    told, kind = _told(loaded), loaded.model.config.model_type
    if params.finetune is not None and kind in ("sew", *configuration.LOG_MEL):
        raise InputError(f"encoder.finetune: expected an encoder like XLSR, got {params.source!r}, a {kind}; freeze it")
    if params.finetune is None and params.normalize != "auto" and told not in (None, params.normalize):
        raise InputError(
            f"encoder.normalize: expected {told}, as {loaded.place} says of the waveforms that this encoder was "
            f"trained on, got {params.normalize}; write `normalize: auto`, which takes what the checkpoint says"
        )
    return loaded.model, _card(params, loaded, before)


def load_deployed(params: EncoderParams, *, weights: Path | None) -> tuple[Wav2Vec2Model, Card]:
    """Load the encoder that computes the features, and its card: the fine-tuned encoder where fine-tuning is on.

    weights: the folder that `kept.weights_of` finds; it is read only where fine-tuning is on. The normalization is that
    of the parameters, because runs were trained with it.

    Raises InputError for a source that cannot be loaded, and where the folder holds no fine-tuned encoder.
    """
    if params.finetune is None:
        before = checksums.facts(_weight_files(params))
        loaded = _loaded(params)
        return loaded.model, _card(params, loaded, before)
    if weights is None or not (weights / "config.json").is_file():  # else its name would be looked up on the hub
        raise InputError(f"{weights}: no fine-tuned encoder there; {kept.AGAIN}")
    model, card = load(EncoderParams(source=str(weights), normalize=params.normalize))
    return model, dataclasses.replace(card, source=f"{kept.ENCODERS}/{weights.name}")  # wherever the root is


def _loaded(params: EncoderParams) -> pretrained.Loaded:
    """The whole encoder of the parameters, and what its source says."""
    if params.random:
        loaded = pretrained.Loaded(_random(params.random), None, None, TRANSFORMERS_EPS)
    elif (place := sources.place_of(params.source)) is None or place.is_dir():
        loaded = pretrained.load(str(place or params.source), revision=params.revision, **_QUIET)
    elif place.is_file():
        loaded = pretrained.load_file(place, **_QUIET)
    else:
        raise InputError(f"encoder.source: expected a file or folder, got {place}, which is neither")
    loaded.model.config.apply_spec_augment = False  # transformers masks where a kind's configuration lacks this
    loaded.model.eval().requires_grad_(False)
    return loaded


def _told(loaded: pretrained.Loaded) -> Literal["utterance", "none"] | None:
    if loaded.normalizes is None:
        return None
    return "utterance" if loaded.normalizes else "none"


def _card(params: EncoderParams, loaded: pretrained.Loaded, before: checksums.FileFacts) -> Card:
    normalize = _told(loaded) if params.normalize == "auto" else params.normalize
    if normalize is None:
        raise InputError(
            f"encoder.normalize: expected utterance or none, as {params.source!r} does not say how the waveforms of "
            "its training were normalized, got auto. XLSR itself expects utterance, most countermeasures none"
        )
    return card_of(loaded.model, source=params.source, normalize=normalize, eps=loaded.eps, before=before)


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
            f"expected the encoder of the card ({_name(card)}), got {_name(found)}; put those weights back, or "
            "run `dvc repro -f encoder`, which takes these as another encoder with features of its own"
        )
    encoder = Encoder(model, taps=taps, normalize=card.normalize, normalize_eps=card.normalize_eps, precision=precision)
    return encoder.to(device_of(device, key="extract.device"))


def _name(card: Card) -> str:
    return f"{card.source}, normalize {card.normalize}, weights {card.weights_sha256[:16]}..."


def save(model: Wav2Vec2Model, folder: Path, *, card: Card | None = None) -> None:
    """Write config.json and model.safetensors in the format of transformers.

    card: how waveforms are normalized is then written, too, as a processor of transformers that `load` reads.
    """
    logging.disable_progress_bar()
    with writing(folder):
        try:
            model.save_pretrained(folder)
        except SafetensorError as error:  # a full disk among others
            raise OSError(errno.EIO, str(error)) from None
    if card is not None:
        write_text(folder / processors.PROCESSORS[0], json.dumps(processors.of_card(card), indent=2) + "\n")


def write_note(folder: Path, text: str) -> None:
    """Write a note about the contents of the encoder's folder. For a frozen encoder the note is all that it holds."""
    write_text(folder / NOTE_FILE, text + "\n")


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


def _weight_files(params: EncoderParams) -> list[Path]:
    """The files that hold the weights; for a hub name those in transformers' cache, none where it is not there yet."""
    if params.random:
        return []
    place = sources.place_of(params.source)
    if place is not None and not place.is_dir():
        return [place]
    return folders.files_of(str(place or params.source), revision=params.revision)
