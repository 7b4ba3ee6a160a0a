"""The section `encoder` of `params.yaml`: where the encoder comes from, and how it is fine-tuned."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    model_validator,
)

from pipeline.core.sections import (
    Dropped,
    Layers,
    LearningRates,
    Name,
    Positive,
    Rate,
    Section,
    Seed,
    ViewsParams,
    distinct,
)


class RandomEncoder(Section):
    """Size and seed of a random encoder with XLSR's structure."""

    layers: Positive
    width: Positive
    heads: Positive
    feedforward: Positive
    conv_channels: Positive
    seed: Seed

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.width % self.heads or self.width % 16:
            raise ValueError(
                f"expected a width divisible by 16 and by heads, got width {self.width}, heads {self.heads}"
            )
        return self


class EncoderParams(Section):
    """The source of the encoder, and how it is fine-tuned.

    source: a hub name, a local folder, a checkpoint, or `random`, which needs the section `random`. normalize: auto
    takes what the checkpoint says. finetune: None for a frozen encoder; a section with `on: false` becomes None.
    """

    source: str
    revision: str | None = None
    random: RandomEncoder | None = None
    normalize: Literal["auto", "utterance", "none"] = "auto"
    finetune: FinetuneParams | None = None

    _finetune_set: str | None = PrivateAttr(default=None)

    @property
    def finetune_set(self) -> str | None:
        """The set of `finetune`, also where it is off, because `dvc.yaml` names it; None without the section."""
        return self._finetune_set

    @model_validator(mode="wrap")
    @classmethod
    def _frozen_unless_on(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        found = handler(data)
        if found.finetune:
            found._finetune_set = found.finetune.set
        return found if not found.finetune or found.finetune.on else found.model_copy(update={"finetune": None})

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.source == "random") != (self.random is not None):
            raise ValueError("expected the section `random` with source: random, and only then")
        if self.revision is not None and (self.random is not None or Path(self.source).exists()):
            raise ValueError("expected a revision with a hub name alone; files and random weights have none")
        return self


class FinetuneRates(LearningRates):
    """The learning rates of fine-tuning: one more, for the encoder."""

    encoder: Rate


class LoraParams(Section):
    """Low-rank updates of the named linear maps: fine-tuning trains A and B of W + alpha / rank · B A, and not W."""

    rank: Positive
    alpha: Rate
    targets: Annotated[
        tuple[Literal["q_proj", "k_proj", "v_proj", "out_proj", "intermediate_dense", "output_dense"], ...],
        Field(min_length=1, strict=False),
        AfterValidator(distinct),
    ]


# Parameters of fine-tuning that came later.
LATER = ("warm_up", "schedule", "clip_gradient", "crop", "dropout", "layer_drop", "mask_frames", "mask_channels")


class FinetuneParams(Section):
    """How the encoder is trained end to end with a backend and a loss, which have their own sections.

    on: false freezes the encoder. set: the training set. layers: those that the backend reads. views: augmented views,
    computed during training. accumulate: a step of the optimizer takes accumulate × batch_size utterances, of which
    batch_size are in the device's memory at once. freeze_front_end: do not train the convolutions.
    gradient_checkpointing: compute layers twice to save memory. lora: train low-rank updates, and none of the encoder's
    own weights; without it all of them are trained. warm_up: epochs in which learning rates rise. schedule: what they
    do after that. clip_gradient: the largest norm of all gradients together, which are scaled down to it; null: any.
    crop: where the window of a longer utterance begins in training. dropout and the next three regularize the encoder,
    see `finetuning.regularization`; they are shares of what is dropped or masked. processes: how many train together on
    this machine, each on a GPU of its own; they share out each batch, and come to the numbers of one but for the last
    bits. tensorboard: whether the curves are written for TensorBoard, too.
    """

    on: bool = True
    set: Name = "train"
    backend: Name
    loss: Name
    layers: Layers
    views: ViewsParams
    seed: Seed
    epochs: Positive
    batch_size: Annotated[int, Field(ge=2)]
    accumulate: Positive
    learning_rate: FinetuneRates
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    patience: Positive
    average_best: Positive
    freeze_front_end: bool
    gradient_checkpointing: bool
    precision: Literal["float32", "bfloat16"]
    lora: LoraParams | None = None
    warm_up: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    clip_gradient: Rate | None = None
    crop: Literal["start", "random"] = "start"
    dropout: Dropped = 0.0
    layer_drop: Dropped = 0.0
    mask_frames: Dropped = 0.0
    mask_channels: Dropped = 0.0
    processes: Positive = 1
    tensorboard: bool = False

    @property
    def facts(self) -> dict[str, Any]:
        """What decides a training, JSON-ready; of `LATER` only what changes something, so older encoders are found."""
        values = self.model_dump(mode="json", exclude={"on", "processes", "tensorboard"})
        fields = type(self).model_fields
        return {name: value for name, value in values.items() if name not in LATER or value != fields[name].default}

    @model_validator(mode="after")
    def _warm_up_ends(self) -> Self:
        if self.warm_up >= self.epochs:
            raise ValueError(f"expected a warm_up of fewer than the {self.epochs} epochs, got {self.warm_up:g}")
        return self

    @model_validator(mode="after")
    def _each_process_has_an_utterance(self) -> Self:
        if self.processes > self.batch_size:
            raise ValueError(f"expected processes of at most batch_size, {self.batch_size}, got {self.processes}")
        return self

    @model_validator(mode="after")
    def _lora_freezes(self) -> Self:
        if self.lora and not self.freeze_front_end:
            raise ValueError("expected freeze_front_end: true with lora, which trains no convolution, got false")
        return self
