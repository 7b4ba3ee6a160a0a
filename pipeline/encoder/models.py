"""Load an encoder from a hub name, a transformers folder or a fairseq checkpoint, or make a random one; and save it."""

from __future__ import annotations

import dataclasses
import errno
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers.models.wav2vec2.configuration_wav2vec2 import Wav2Vec2Config
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2Model
from transformers.utils import logging

from pipeline.core.contracts import Tap
from pipeline.core.devices import Precision, device_of
from pipeline.core.errors import InputError, listing
from pipeline.core.files import writing
from pipeline.core.sections import EncoderParams, RandomEncoder
from pipeline.encoder import checksums, fairseq, kept, pretrained
from pipeline.encoder.cards import Card, card_of
from pipeline.encoder.xlsr import Device, Encoder

NOTE_FILE = "README.txt"  # in the folder of the fine-tuned encoder
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
        model = pretrained.load(params.source, revision=params.revision, **_QUIET)
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
            f"expected the encoder of the card ({_name(card)}), got {_name(found)}; put those weights back, or "
            "run `dvc repro -f encoder`, which takes these as another encoder with features of its own"
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
    try:
        with torch.device("meta"):  # draws no random weights, because all are replaced below
            model = Wav2Vec2Model(Wav2Vec2Config(**found.config, **_QUIET))
        weights = {name: tensor.float() for name, tensor in found.weights.items()}
    except Exception as error:  # whatever transformers and torch raise for shapes and types that do not fit
        raise InputError(f"{path}: expected the weights of an encoder of wav2vec 2.0, got others: {error}") from None
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


def _weight_files(params: EncoderParams) -> list[Path]:
    """The files that hold the weights; for a hub name those in transformers' cache, none where it is not there yet."""
    if params.random:
        return []
    if Path(params.source).suffix in fairseq.SUFFIXES:
        return [Path(params.source)]
    return pretrained.files_of(params.source, revision=params.revision)
