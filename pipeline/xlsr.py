"""XLSR: windows of samples to the features of chosen layers.

Loads wav2vec 2.0 and its kin of the same structure (HuBERT, WavLM) by hub name or from a local folder through
transformers, or from a checkpoint of fairseq's, or builds a small one with random weights. Whatever the source, the
weights are named by a sha256 over their tensors.

Layer k is the output after k transformer layers, 0 is the input of the first: the residual stream, without the
encoder's final LayerNorm. `final` is the last layer after that LayerNorm.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers.models.auto.configuration_auto import AutoConfig
from transformers.models.hubert.modeling_hubert import HubertModel
from transformers.models.wav2vec2.configuration_wav2vec2 import Wav2Vec2Config
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2Model
from transformers.models.wavlm.modeling_wavlm import WavLMModel
from transformers.utils import logging

from pipeline import fairseq, remembered
from pipeline.contracts import Card, Tap
from pipeline.devices import Precision, device_of
from pipeline.errors import InputError, listing
from pipeline.params import EncoderParams, RandomEncoder

Device = Literal["auto", "cpu", "cuda"]

NAMING = 1  # raise it when loading a file gives its tensors other names or bytes
NOTE_FILE = "README.txt"  # in the folder of the fine-tuned encoder
NORMALIZE_EPS = 1e-7  # as transformers' feature extractor; added to the variance

# What the weights' shapes do not tell of the arithmetic.
_ARCHITECTURE = (
    "model_type",
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "layer_norm_eps",
    "do_stable_layer_norm",
    "feat_extract_norm",
    "feat_extract_activation",
    "conv_bias",
    "conv_dim",
    "conv_kernel",
    "conv_stride",
    "num_conv_pos_embeddings",
    "num_conv_pos_embedding_groups",
    # of one kind alone
    "feat_proj_layer_norm",
    "num_buckets",
    "max_bucket_distance",
)
KINDS: dict[str, Any] = {"wav2vec2": Wav2Vec2Model, "hubert": HubertModel, "wavlm": WavLMModel}
# Everything random that transformers switches on by default. Fine-tuning keeps it off, too: fairseq's large
# configuration, which XLSR was pretrained with, has no dropout, and published countermeasures mask nothing.
_QUIET = {
    "apply_spec_augment": False,
    "layerdrop": 0.0,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
}


def load(params: EncoderParams) -> tuple[Wav2Vec2Model, Card]:
    """The whole encoder in eval mode, float32, on the CPU, and its card.

    Raises InputError for a source that cannot be loaded or lacks weights of the encoder.
    """
    before = remembered.facts(_weight_files(params))
    if params.random:
        model = _random(params.random)
    elif Path(params.source).suffix in fairseq.SUFFIXES:
        model = _from_fairseq(Path(params.source))
    else:
        model = _pretrained(params.source, revision=params.revision)
    model.eval().requires_grad_(False)
    return model, card_of(model, source=params.source, normalize=params.normalize, before=before)


def load_deployed(params: EncoderParams, *, weights: Path) -> tuple[Wav2Vec2Model, Card]:
    """The encoder that features come from, and its card: the fine-tuned one where the parameters ask for it.

    Args:
        weights: the folder that the stage `encoder` wrote; read only where fine-tuning is on.

    Raises InputError as `load`, and where the folder holds no fine-tuned encoder.
    """
    if params.finetune is None:
        return load(params)
    if not (weights / "config.json").is_file():  # else its name would be looked up on the hub
        raise InputError(f"{weights}: no fine-tuned encoder there; run `dvc repro -f encoder`")
    return load(EncoderParams(source=str(weights), normalize=params.normalize))


def deployed(
    params: EncoderParams, taps: tuple[Tap, ...], *, weights: Path, card: Card, device: Device, precision: Precision
) -> Encoder:
    """The encoder that features come from, cut above its highest tap, on its device.

    Args:
        weights: as `load_deployed` takes it. card: of the encoder that is expected.

    Raises InputError as `load_deployed`, where it is another encoder, or where there is no such device.
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
    """Write config.json and model.safetensors as transformers does, and loads them."""
    logging.disable_progress_bar()
    model.save_pretrained(folder)


def write_note(folder: Path, text: str) -> None:
    """Say in the folder of the fine-tuned encoder what it holds; a frozen one has no more than that."""
    (folder / NOTE_FILE).write_text(text + "\n")


def card_of(
    model: Wav2Vec2Model,
    *,
    source: str,
    normalize: Literal["utterance", "none"],
    before: remembered.Facts = (),
) -> Card:
    """The card of a model that has all its layers. before: of the files that it was read from, before it was."""
    by = f"naming {NAMING}, transformers {transformers.__version__}"
    config = model.config.to_dict()
    return Card(
        source=source,
        weights_sha256=remembered.checksum(before, by=by, compute=lambda: weights_sha256(model)),
        architecture={name: _plain(config[name]) for name in _ARCHITECTURE if name in config},
        normalize=normalize,
    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _random(shape: RandomEncoder) -> Wav2Vec2Model:
    """XLSR's structure in the given size, weights drawn from the shape's own seed."""
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
    with torch.device("meta"):  # no weights are drawn that are then replaced
        model = Wav2Vec2Model(Wav2Vec2Config(**found.config, **_QUIET))
    weights = {name: tensor.float() for name, tensor in found.weights.items()}
    unused = "masked_spec_embed"  # of the pretraining task, and not in every countermeasure
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
        # A source may bring code of its own, which is never run: transformers would ask, and somebody say yes.
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
    if missing:  # transformers would fill them with random numbers
        raise InputError(
            f"encoder.source: {source!r} lacks {len(missing)} weights of the encoder: {', '.join(missing[:10])}"
        )
    encoder: Wav2Vec2Model = model  # or one of its kin, which are used alike
    return encoder


def _weight_files(params: EncoderParams) -> list[Path]:
    """The files that weights are read from; of a hub name those in transformers' cache, if they are there already."""
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


def weights_sha256(model: nn.Module) -> str:
    """sha256 over the names, shapes and float32 bytes of all weights, whatever file they came in."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().float().contiguous().numpy().data)
    return digest.hexdigest()


class Encoder(nn.Module):
    """An encoder cut above its highest tap.

    Takes windows and gives the features of each tap; nothing above the highest tap is kept or computed. In bfloat16
    linear maps and convolutions compute, and their weights are kept so; normalisations and the residual stream between
    the layers, which grows large, stay float32.
    """

    def __init__(
        self,
        model: Wav2Vec2Model,
        *,
        taps: tuple[Tap, ...],
        normalize: Literal["utterance", "none"],
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        self.model = model
        self.taps = taps
        self.normalize = normalize
        self.precision = precision
        self._caught: dict[Tap, Tensor] = {}
        if "final" not in taps:
            highest = max(int(tap) for tap in taps)
            # transformers needs one layer; with only layer 0 tapped its output is dropped
            model.encoder.layers = model.encoder.layers[: max(highest, 1)]
        if precision == "float32":  # on a GPU convolutions take the shorter TF32 unless told not to
            torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
        else:  # once, and not by autocast for every batch
            for part in model.modules():
                if isinstance(part, nn.Linear | nn.Conv1d) and not parametrize.is_parametrized(part):
                    part.bfloat16()
        model.encoder.layers[0].register_forward_pre_hook(_widen)
        for tap in taps:
            if tap == 0:
                model.encoder.layers[0].register_forward_pre_hook(self._catch_input)
            elif tap != "final":
                model.encoder.layers[int(tap) - 1].register_forward_hook(self._catch_output(tap))

    def _catch_input(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._caught[0] = inputs[0]

    def _catch_output(self, tap: Tap) -> Callable[[nn.Module, Any, Any], None]:
        def catch(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self._caught[tap] = output[0] if isinstance(output, tuple) else output

        return catch

    @torch.inference_mode()
    def forward(self, windows: Tensor, valid: Tensor) -> tuple[dict[Tap, Tensor], Tensor]:
        """Features of every tap for a batch of windows, outside any graph. See `features`."""
        return self.features(windows, valid)

    def features(self, windows: Tensor, valid: Tensor) -> tuple[dict[Tap, Tensor], Tensor]:
        """Features of every tap for a batch of windows; differentiable where the weights are.

        Args:
            windows: (B, S) float32 samples at 16 kHz.
            valid: (B,) int, how many samples of each window are signal; the rest is padding. Best on the CPU: asking a
                GPU for it waits for all that it was given before.

        Returns:
            tap -> (B, T, D) float32, and n_frames (B,), where `valid` is: how many frames of each are signal.
        """
        whole = bool((valid >= windows.shape[1]).all())
        mask = torch.arange(windows.shape[1], device=windows.device) < valid.to(windows.device)[:, None]  # (B, S)
        samples = normalized(windows, mask) if self.normalize == "utterance" else windows
        padded = None if whole else mask.long()
        half = torch.autocast(windows.device.type, torch.bfloat16) if self.precision == "bfloat16" else nullcontext()
        try:
            with half:
                output = self.model(samples * mask, attention_mask=padded)
        finally:
            caught, self._caught = self._caught, {}
        if "final" in self.taps:
            caught["final"] = output.last_hidden_state
        n_frames = self.model._get_feat_extract_output_lengths(valid)
        return {tap: caught[tap] for tap in self.taps}, n_frames


def _widen(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The input of the first layer as float32; sums with what layers give, in whatever precision, then stay it."""
    return inputs[0].float(), *inputs[1:]


def normalized(windows: Tensor, mask: Tensor) -> Tensor:
    """Each window (B, S) to zero mean and unit variance over its valid samples."""
    count = mask.sum(1, keepdim=True)  # (B, 1)
    mean = (windows * mask).sum(1, keepdim=True) / count
    centred = (windows - mean) * mask
    variance = centred.square().sum(1, keepdim=True) / count
    return centred / (variance + NORMALIZE_EPS).sqrt()
