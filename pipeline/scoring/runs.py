"""A trained system on disk: weights as safetensors, centroids as a FAISS index, all else as JSON; nothing pickled."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save as save_arrays

from pipeline.core import members
from pipeline.core.contracts import Centroids
from pipeline.core.errors import InputError, listing
from pipeline.core.files import folder_beside, read_json, replace_folder, writing
from pipeline.core.sections import ONE_WINDOW, Layers, Name, WindowsParams
from pipeline.scoring.centroids import CentroidIndex, build, read_index, write_index

BACKEND_FILE = "backend.safetensors"
CENTROIDS_FILE = "centroids.faiss"
PATH_FILE = "path.safetensors"
CARD_FILE = "run.json"
KEYS = ("backend", "backend_parameters", "kind", "reads", "scoring")  # what is read of it again
AGAIN = "run `dvc repro`"
MOST_BYTES = 16 * 2**20  # of a card; that of a long fine-tuning, with its curves, has 100 kB
GREATEST = 2**31  # of a number among the parameters of a backend


def _modest(value: Any) -> Any:
    """A JSON value. Raises ValueError for a number in it that is not finite or too large for any parameter."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in parts:
        _modest(part)
    if isinstance(value, int | float) and not abs(value) <= GREATEST:
        raise ValueError(f"expected numbers up to {GREATEST}, got {value}")
    return value


class _Kind(BaseModel, extra="allow"):
    model_config = ConfigDict(strict=True)

    layers: Annotated[Layers, Field(max_length=1_000)]
    channels: Annotated[int, Field(ge=1, le=2**20)]
    encoder: str | None = None
    windows: WindowsParams = ONE_WINDOW


class _Train(BaseModel, extra="allow"):
    set: Name


class _RunCard(BaseModel, extra="allow"):
    """What is read again of a run's card. `scoring` is checked by `read_index`, as it describes the index."""

    model_config = ConfigDict(strict=True)

    backend: Name
    backend_parameters: Annotated[dict[str, Any], AfterValidator(_modest)]
    kind: _Kind
    reads: Literal["pooled", "frames"]
    scoring: dict[str, Any]
    train: _Train | None = None
    features: dict[str, str] | None = None
    dev_threshold: FiniteFloat | None = None


def save(
    folder: Path,
    *,
    weights: dict[str, Any],
    centroids: Centroids,
    card: dict[str, Any],
    path: NDArray[np.float32] | None = None,
) -> None:
    """Write a run into a folder that appears only when it is whole.

    Args:
        weights: name -> array, the backend's state. card: JSON-ready; must have what `backend` reads of it.
        path: (epochs, K, E), the centroids after each epoch of training, where that is known.
    """
    beside = folder_beside(folder)
    plain = {name: np.asarray(array, order="C") for name, array in weights.items()}
    with writing(folder):
        (beside / BACKEND_FILE).write_bytes(save_arrays(plain))
        if path is not None:
            (beside / PATH_FILE).write_bytes(save_arrays({"vectors": path}))
        scoring = write_index(build(centroids), beside / CENTROIDS_FILE)
        (beside / CARD_FILE).write_text(json.dumps(card | {"scoring": scoring}, indent=2) + "\n")
    replace_folder(beside, folder, mark=CARD_FILE)


def card(folder: Path) -> dict[str, Any]:
    """The run's JSON card.

    Raises InputError where there is no run, or where a value that is read again has another type or is out of range.
    """
    path = folder / CARD_FILE
    found = read_json(path, what="trained run", keys=KEYS, remedy=AGAIN, most=MOST_BYTES)
    try:
        _RunCard.model_validate(found)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()]
        raise InputError(f"{path}: not the card of a trained run; {AGAIN}:\n{listing(problems)}") from None
    return found


def fingerprint(folder: Path) -> str:
    """Sixteen hex digits of the run's weights and centroids."""
    digest = hashlib.sha256()
    for name in (BACKEND_FILE, CENTROIDS_FILE):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:16]


def index(folder: Path) -> CentroidIndex:
    """The index of the run's centroids; needs no torch. Raises InputError where it is not what the card says."""
    return read_index(folder / CENTROIDS_FILE, card(folder)["scoring"])


def centroids(folder: Path) -> Centroids:
    """The run's centroids."""
    return index(folder).centroids()


def path(folder: Path) -> NDArray[np.float32] | None:
    """The centroids (epochs, K, E) after each epoch of the run's training, where they were kept."""
    file = folder / PATH_FILE
    if not file.is_file():
        return None
    vectors = _arrays(file).get("vectors")
    if vectors is None or vectors.ndim != 3:
        raise InputError(f"{file}: expected the centroids of every epoch, got other arrays; {AGAIN}")
    return np.asarray(vectors, dtype=np.float32)


def backend(folder: Path) -> Any:
    """The run's backend with its trained weights, in eval mode, an `nn.Module`.

    Raises InputError where the weights are damaged, or are not those of the backend of the card. Shapes are compared
    before anything of their size is made: a card from elsewhere may ask for more than there is memory.
    """
    import torch

    from pipeline.scoring.attention import over_windows

    facts = card(folder)
    kind = facts["kind"]
    windows = WindowsParams.of(kind)
    weights = {name: torch.from_numpy(array) for name, array in _arrays(folder / BACKEND_FILE).items()}
    made = members.member("backends", facts["backend"]).Backend
    try:
        make = partial(made, layers=len(kind["layers"]), channels=kind["channels"], **facts["backend_parameters"])
        with torch.device("meta"), _at_most(len(weights)):
            wanted = {name: tuple(tensor.shape) for name, tensor in over_windows(make(), windows).state_dict().items()}
        if wrong := _misfits(wanted, {name: tuple(tensor.shape) for name, tensor in weights.items()}):
            raise ValueError("\n" + listing(wrong))
        module = over_windows(make(), windows)
        module.load_state_dict(weights)
    except Exception as error:  # whatever a backend raises for parameters that it does not expect
        raise InputError(f"{folder}: weights and card do not fit; {AGAIN}: {error}") from None
    if module.reads != facts["reads"]:
        raise InputError(f"{folder}: expected a backend that reads {facts['reads']}, got {facts['backend']}; {AGAIN}")
    return module.eval()


@contextlib.contextmanager
def _at_most(count: int) -> Iterator[None]:
    """Stop a module that makes more parameters than a file of weights has: a card may ask for a million blocks."""
    from torch.nn.modules import module

    made = itertools.count(1)

    def note(_module: Any, _name: str, parameter: Any) -> None:
        if parameter is not None and next(made) > count:
            raise ValueError(f"expected a backend of {count} weights, as the file has, got one of more")

    hook = module.register_module_parameter_registration_hook(note)
    try:
        yield
    finally:
        hook.remove()


def _misfits(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """What differs between the shapes of the weights that a backend has and those of a file, by name."""
    return [
        f"{name}: expected {wanted.get(name, 'none')}, got {found.get(name, 'none')}"
        for name in {**wanted, **found}
        if wanted.get(name) != found.get(name)
    ]


def _arrays(path: Path) -> dict[str, Any]:
    if not path.is_file():  # a pipe would be waited for
        raise InputError(f"{path}: no weights there; {AGAIN}")
    try:
        arrays: dict[str, Any] = load_arrays(path)
    except Exception as error:  # a damaged header gives errors of many kinds
        raise InputError(f"{path}: not weights that this project wrote ({error}); {AGAIN}") from None
    return arrays
