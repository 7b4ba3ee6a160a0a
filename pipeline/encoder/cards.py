"""The encoder's identity card: source, architecture, normalization and the sha256 of its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pipeline.core.contracts import Tap
from pipeline.core.errors import InputError
from pipeline.encoder import checksums

if TYPE_CHECKING:  # a card is read where no model is needed, and torch takes a second to import
    from torch import Tensor, nn
    from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2Model


# What is added to the variance of a waveform where it is normalized. It counts in very quiet audio.
TRANSFORMERS_EPS = 1e-7
FAIRSEQ_EPS = 1e-5
FRAME = 320  # samples from one frame to the next, 20 ms, of Whisper
Count = TypeVar("Count", int, "Tensor")


@dataclass(frozen=True)
class Card:
    """The identity of an encoder: its source, its architecture, and a sha256 over its weights.

    The architecture holds `normalize_eps` where waveforms are normalized with another epsilon than transformers'.
    """

    source: str
    weights_sha256: str
    architecture: dict[str, Any]
    normalize: Literal["utterance", "none"]

    @property
    def layers(self) -> int:
        """Number of transformer layers."""
        return int(self.architecture["num_hidden_layers"])

    @property
    def channels(self) -> int:
        """Width D of every layer."""
        return int(self.architecture["hidden_size"])

    @property
    def normalize_eps(self) -> float:
        """What is added to the variance of a waveform where it is normalized."""
        return float(self.architecture.get("normalize_eps", TRANSFORMERS_EPS))

    def frames(self, samples: int) -> int:
        """Number of frames that `samples` samples give.

        Raises InputError for more samples than the encoder has positions for.
        """
        most = self.architecture.get("max_source_positions", samples) * FRAME
        if samples > most:
            raise InputError(
                f"extract.window.samples: expected at most {most}, the length that {self.source} takes, got {samples}"
            )
        return max(frames_of(self.architecture, samples), 0)

    def check_taps(self, taps: Sequence[Tap]) -> None:
        """Raise InputError for a layer that the encoder does not have."""
        if "final" in taps and self.architecture.get("squeeze_factor"):
            raise InputError(
                f"extract.layers: expected 0 to {self.layers}, as the output of this kind of encoder (sew) has more "
                "frames than its layers, got 'final'"
            )
        for tap in taps:
            if tap != "final" and not 0 <= tap <= self.layers:
                raise InputError(f"extract.layers: expected 0 to {self.layers} or final, got {tap!r}")


def frames_of(architecture: dict[str, Any], samples: Count) -> Count:
    """Number of frames that samples give, a number or (B,); not positive for fewer than one frame takes.

    Whisper's output has a frame for every 20 ms; those that lie within the audio are counted.
    """
    kind = architecture.get("model_type")
    if kind == "whisper":
        return samples // FRAME
    if kind == "wav2vec2-bert":  # pairs of frames of 25 ms, one every 10 ms
        return ((samples - 400) // 160 + 1) // 2
    for kernel, stride in zip(architecture["conv_kernel"], architecture["conv_stride"], strict=True):
        samples = (samples - kernel) // stride + 1
    squeeze: int = architecture.get("squeeze_factor", 1)
    return samples // squeeze


NAMING = 1  # raise it when a change of the code gives the tensors of a file other names or bytes

# The facts of the configuration that the arithmetic depends on and the shapes of the weights do not show.
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
    # only some kinds of encoders have these
    "feat_proj_layer_norm",
    "num_buckets",
    "max_bucket_distance",
    "position_embeddings_type",
    "rotary_embedding_base",
    "conv_depthwise_kernel_size",
    "conv_pos_kernel_size",
)
_OF_KIND = {  # what else decides for some kinds
    "sew": ("squeeze_factor",),
    "wav2vec2-bert": ("left_max_position_embeddings", "right_max_position_embeddings"),
    "whisper": ("activation_function", "num_mel_bins", "max_source_positions"),
}


def card_of(
    model: Wav2Vec2Model,
    *,
    source: str,
    normalize: Literal["utterance", "none"],
    eps: float = TRANSFORMERS_EPS,
    before: checksums.FileFacts = (),
) -> Card:
    """The card of a model with all its layers.

    eps: see `normalize_eps`. before: the facts of the model's files, from before they were read.
    """
    by = f"naming {NAMING}, transformers {version('transformers')}"
    other_eps = {"normalize_eps": eps} if normalize == "utterance" and eps != TRANSFORMERS_EPS else {}
    return Card(
        source=source,
        weights_sha256=checksums.checksum(before, by=by, compute=lambda: weights_sha256(model)),
        architecture=architecture_of(model) | other_eps,
        normalize=normalize,
    )


def architecture_of(model: Any) -> dict[str, Any]:
    """The facts of a model's configuration that its numbers depend on."""
    config = model.config.to_dict()
    if model.config.model_type == "whisper":  # which has its own names for these
        config |= {"num_hidden_layers": model.config.num_hidden_layers, "hidden_size": model.config.hidden_size}
        config |= {"num_attention_heads": model.config.num_attention_heads}
    names = _ARCHITECTURE + _OF_KIND.get(model.config.model_type, ())
    return {name: _plain(config[name]) for name in names if name in config}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def weights_sha256(model: nn.Module) -> str:
    """The sha256 over the names, shapes and float32 bytes of all weights. The format of the file does not matter."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().float().contiguous().numpy().data)
    return digest.hexdigest()
