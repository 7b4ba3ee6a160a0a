"""Read an encoder from a folder, the hub or a single file of weights, and trust nothing in it.

transformers itself would follow much of what a folder says: code, kernels, adapters, other models, files elsewhere. So
only the facts of the architecture are taken out of `config.json` (see `configuration`), and the weights are read here,
from the files that `folders` finds and no others. Where there is no `config.json` of a known kind, as around a whole
countermeasure, the architecture comes from the weights.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2Model
from transformers.utils import logging

from pipeline.core.errors import InputError, listing
from pipeline.encoder import checkpoints, configuration, folders, processors, sources, tensor_files
from pipeline.encoder.cards import FAIRSEQ_EPS, TRANSFORMERS_EPS
from pipeline.encoder.checkpoints import Inside
from pipeline.encoder.configuration import KINDS, UNUSED

NOT_USED = (UNUSED, checkpoints.COUNTER, "inv_freq")  # what folders may hold besides; the last is computed
SHARD = re.compile(r"-\d+-of-(\d+)\.")  # in the name of one of several files of weights


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
    kind, config = configuration.read(folders.find(source, folders.CONFIG, revision), source, quiet)
    try:
        files = [folders.required(source, name, revision) for name in folders.weights_of(source, revision)]
        for file in files:
            _check_kind(file, source)
        if config is not None:
            configuration.check_size(kind, config, files, source)
        state = {name: tensor for file in files for name, tensor in _read(file, source).items()}
        inside = checkpoints.inside(files[0], state, kind=kind)
    except InputError as error:
        raise (configuration.of_another_kind(source, kind, str(error)) if config is None and kind else error) from None
    model = _by_shapes(inside, quiet) if config is None else _by_config(kind, config, inside, source)
    if inside.naming.log_mel:
        return Loaded(model, False, folders.find(source, folders.CONFIG, revision), TRANSFORMERS_EPS)
    normalizes, place, eps = processors.read(lambda name: folders.optional(source, name, revision))
    return Loaded(model, normalizes, place, eps or _eps(inside))


def load_file(path: Path, **quiet: Any) -> Loaded:
    """The model in one file of weights. A `config.json` or a processor's beside it counts where the file says nothing.

    Raises InputError where the file is damaged, another kind of file or one of several, or has no encoder or several.
    """
    logging.disable_progress_bar()

    def find(name: str) -> Path | None:
        return beside if (beside := path.with_name(name)).is_file() else None

    if (shard := SHARD.search(path.name)) and int(shard[1]) > 1:
        raise InputError(
            f"{path}: expected all weights, got one of {int(shard[1])} files; give their folder, {path.parent}"
        )
    found = tensor_files.read(path)
    kind, config = configuration.read_beside(find(folders.CONFIG), path, quiet)
    inside = _inside(path, found, kind)
    by_shapes = config is None or bool(inside.said) or not configuration.is_of(config, inside)
    model = _by_shapes(inside, quiet) if by_shapes else _by_config(kind, config, inside, str(path))
    if inside.naming.log_mel:
        return Loaded(model, False, path, TRANSFORMERS_EPS)
    if inside.normalizes is not None:
        return Loaded(model, inside.normalizes, path, _eps(inside))
    normalizes, place, eps = processors.read(find)
    return Loaded(model, normalizes, place, eps or _eps(inside))


def _inside(path: Path, found: dict[str, Any], kind: str) -> Inside:
    """The encoder in one file. kind: of the configuration beside it, which may be that of something else."""
    with contextlib.suppress(InputError):
        return checkpoints.inside(path, found, kind=kind)
    return checkpoints.inside(path, found)


def _eps(inside: Inside) -> float:
    """What the code around such weights adds to the variance of a waveform: fairseq's, or transformers'."""
    return FAIRSEQ_EPS if inside.naming in (checkpoints.FAIRSEQ, checkpoints.TORCHAUDIO) else TRANSFORMERS_EPS


def _by_config(kind: str, config: Any, inside: Inside, source: str) -> Wav2Vec2Model:
    """A model of a configuration with the weights of a checkpoint."""
    state = inside.weights()
    try:
        with _quietly():
            model, report = KINDS[kind].from_pretrained(
                None,
                config=config,
                state_dict=state,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are an error below, with their names
            )
    except Exception as error:  # whatever transformers raises for weights that do not fit
        raise sources.unfit(source, error) from None
    _check_report(report, source)
    encoder: Wav2Vec2Model = model  # the other kinds have the same interface
    return encoder


def _check_report(report: Mapping[str, Any], source: str) -> None:
    """Raise InputError where the weights are not those that the configuration asks for, by transformers' report."""
    mend = "put the config.json of these weights there"
    if other := sorted(report["mismatched_keys"]):  # filled with random numbers, as missing ones are
        told = [f"{key}: expected {tuple(wanted)}, got {tuple(got)}" for key, got, wanted in other]
        raise InputError(
            f"encoder.source: {source!r} has {len(other)} weights of other shapes than its config.json says; {mend}:\n"
            f"{listing(told)}"
        )
    if missing := sorted(key for key in report["missing_keys"] if key != UNUSED):
        raise InputError(
            f"encoder.source: {source!r} lacks {len(missing)} weights of the encoder: {', '.join(missing[:10])}"
        )
    if more := sorted(key for key in report["unexpected_keys"] if not key.endswith(NOT_USED)):
        raise InputError(
            f"encoder.source: {source!r} has {len(more)} weights of the encoder that its config.json leaves out; "
            f"{mend}, also where fewer layers are wanted, as those above the highest tap are never computed:\n"
            f"{listing(more)}"
        )


def _by_shapes(inside: Inside, quiet: Mapping[str, Any]) -> Wav2Vec2Model:
    """A model whose architecture comes from its weights."""
    told = checkpoints.config_of(inside)
    made, weights = KINDS[told.pop("model_type")], inside.weights()
    try:
        with torch.device("meta"):  # draws no random weights, because all are replaced below
            silent = {key: value for key, value in quiet.items() if hasattr(made.config_class(), key)}
            model: Wav2Vec2Model = made(made.config_class(**told, **silent))
    except Exception as error:  # whatever transformers and torch raise for shapes that do not fit
        raise InputError(
            f"{inside.path}: expected the weights of an encoder that is read, got others: {error}"
        ) from None
    wanted = model.state_dict()
    if UNUSED in wanted:
        weights.setdefault(UNUSED, torch.zeros(wanted[UNUSED].shape))
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


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the report of weights that transformers prints: missing ones are an error here, others are not used."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _check_kind(path: Path, source: str) -> None:
    try:
        tensor_files.check_kind(path)
    except InputError as error:
        raise sources.unfit(source, error) from None


def _read(path: Path, source: str) -> dict[str, Tensor]:
    """The tensors of a file of weights; nothing else is unpickled."""
    try:
        return tensor_files.tensors(tensor_files.read(path))
    except InputError as error:
        raise sources.unfit(source, error) from None
