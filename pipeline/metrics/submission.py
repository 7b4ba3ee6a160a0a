"""A submission to the Speech Anti-Spoofing Arena: the scores of one set and the two records that go with them.

    .eval_results/<dataset>/scores.txt     `utterance score`, for the submitter's own model repository on the hub
    .eval_results/<dataset>/result.yaml    beside the scores, for a badge: schema version 1
    submissions/<slug>.yaml                a pull request on the dataset: schema version 4

A person writes what no score file says (`About`). Everything is checked before anything is written.
"""

from __future__ import annotations

import datetime
import hashlib
import io
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.core import files, trial_table
from pipeline.core.errors import InputError, listing
from pipeline.core.trial_table import Trials
from pipeline.metrics import scorefile
from pipeline.metrics.det import det_points
from pipeline.metrics.eer import interpolated_eer

SUBMISSION_VERSION, RESULT_VERSION = 4, 1  # of the Arena's schemas
QUOTES = "; write what looks like a number, such as an arXiv number or a commit, in quotes"


def _as_text(value: Any) -> Any:
    return value.isoformat() if type(value) is datetime.date else value  # YAML reads 2026-11-26 as a date


Text = Annotated[str, Field(min_length=1)]
Url = Annotated[str, Field(pattern=r"^https?://\S+$")]
SecureUrl = Annotated[str, Field(pattern=r"^https://\S+$")]
Date = Annotated[str, BeforeValidator(_as_text), Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class Paper(_Strict):
    """The paper of a system, which the Arena wants for a rank."""

    arxiv_id: Text
    url: Url
    bibtex: Text


class SubmittedSystem(_Strict):
    """The system. slug: its name in file names and addresses."""

    name: Text
    slug: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    description: str
    code: Url
    checkpoint: Url
    paper: Paper | None = None
    params_millions: Annotated[float, Field(ge=0)] | None = None


class ArenaDataset(_Strict):
    """A dataset of the Arena. revision: the commit of it that was scored."""

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")]
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{7,40}$")]
    split: Text = "test"


class Artifact(_Strict):
    """Where scores.txt lies, at a commit; None before it is uploaded. bench_version: of the Arena's package."""

    scores_url: (
        Annotated[str, Field(pattern=r"^https://huggingface\.co/[^/\s]+/[^/\s]+/resolve/[0-9a-f]{7,40}/\S+$")] | None
    ) = None
    bench_version: Text


class Submitter(_Strict):
    """Who submits."""

    hf_username: Text
    contact: Text


class Board(_Strict):
    """The addresses of the Arena and of the system there, which result.yaml names."""

    url: SecureUrl
    system_url: SecureUrl


class About(_Strict):
    """What a person says of a submission."""

    system: SubmittedSystem
    dataset: ArenaDataset
    artifact: Artifact
    submitter: Submitter
    submitted_at: Date
    notes: str | None = None
    arena: Board | None = None


def read_about(path: Path) -> About:
    """What a YAML file says of a submission. Raises InputError, with the keys, for one that the Arena would refuse."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; docs/arena.md shows one to start from")
    try:
        told = YAML(typ="safe").load(trial_table.read_text(path))
    except YAMLError as error:
        raise InputError(f"{path}: expected YAML: {' '.join(str(error).split())}") from None
    try:
        return About.model_validate(told)
    except ValidationError as error:
        wrong = [
            f"{'.'.join(map(str, one['loc'])) or 'the file'}: {one['msg']}, got {str(one['input'])[:100]!r}"
            for one in error.errors()
        ]
        raise InputError(
            f"{path}: {len(wrong)} keys are not as the Arena wants them{QUOTES}:\n{listing(wrong)}"
        ) from None


def place_of_scores(folder: Path, about: About) -> Path:
    """Where the scores of a submission stand below a folder."""
    return folder / ".eval_results" / about.dataset.id / "scores.txt"


def write(folder: Path, about: About, trials: Trials, scores: NDArray[np.float64]) -> tuple[list[Path], float]:
    """Write the scores (N,) of N trials, and the records where it is known where the scores lie.

    Returns the files, and the EER in percent in the Arena's definition, in full: a difference of 1e-6 is refused there.
    """
    place = place_of_scores(folder, about)
    scorefile.write(place, trials, scores, layout="2021")
    sha256 = hashlib.sha256(place.read_bytes()).hexdigest()
    eer = 100 * interpolated_eer(det_points(scores[trials.is_bonafide], scores[~trials.is_bonafide]))
    values = {"eer_percent": eer, "n_trials": len(trials), "n_skipped": 0}
    written = [place]
    if about.artifact.scores_url is not None:
        written.append(folder / "submissions" / f"{about.system.slug}.yaml")
        _write_yaml(written[-1], _submission(about, values, sha256))
        if about.arena and about.system.paper:
            written.append(place.with_name("result.yaml"))
            _write_yaml(written[-1], _result(about, values))
    return written, eer


def _submission(about: About, values: dict[str, Any], sha256: str) -> dict[str, Any]:
    told = about.model_dump(exclude_none=True, exclude={"arena"})
    artifact = told["artifact"] | {"scores_sha256": sha256}
    return {"schema_version": SUBMISSION_VERSION} | told | {"scores": values, "artifact": artifact}


def _result(about: About, values: dict[str, Any]) -> dict[str, Any]:
    told = about.model_dump(exclude_none=True)
    system = told["system"]
    return {
        "schema_version": RESULT_VERSION,
        "system": {name: system[name] for name in ("name", "slug")}
        | {"paper": {"arxiv_id": system["paper"]["arxiv_id"]}},
        "dataset": told["dataset"],
        "scores": values,
        "arena": told["arena"],
        "artifact": {"scores_url": told["artifact"]["scores_url"]},
    }


def _write_yaml(path: Path, content: dict[str, Any]) -> None:
    yaml, text = YAML(typ="safe"), io.StringIO()
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.allow_unicode = True
    yaml.dump(content, text)
    files.write_text(path, text.getvalue())
