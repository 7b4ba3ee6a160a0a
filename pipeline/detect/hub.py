"""Packages on the Hugging Face hub: one is uploaded by `bonafide package --push`, and found by `hub:owner/name`."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.core.errors import InputError
from pipeline.detect.package_card import CARD_FILE, MODEL_CARD_FILE

PREFIX = "hub:"
PARTS = (CARD_FILE, MODEL_CARD_FILE, "runs/*", "encoder/*", "embeddings/*", "trials/*")  # of a package, and no others
NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w.-]+))?", re.ASCII)


def check_name(name: str) -> tuple[str, str | None]:
    """The repository owner/name, and the revision after an @. Raises InputError for another name."""
    found = NAME.fullmatch(name)
    if found is None:
        raise InputError(f"expected a name on the hub, owner/name or owner/name@revision, got {name!r}")
    return found[1], found[2]


def push(folder: Path, name: str) -> str:
    """Upload a package to a repository of models, and return the commit. A repository that is new is private.

    Raises InputError where the hub cannot be reached or refuses.
    """
    import huggingface_hub

    repository, revision = check_name(name)
    if revision:
        raise InputError(f"--push: expected owner/name, got {name!r} with a revision")
    try:
        hub = huggingface_hub.HfApi()
        hub.create_repo(repository, private=True, exist_ok=True, repo_type="model")
        done = hub.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message="Package of bonafide",
            allow_patterns=list(PARTS),
            delete_patterns=list(PARTS),  # what an older package had
        )
    except Exception as error:  # whatever the hub and the network raise
        raise InputError(
            f"{PREFIX}{name}: {_short(error)}; the package is in {folder}; `hf auth login` logs in"
        ) from None
    return str(done.oid)


def fetch(name: str) -> Path:
    """The folder of a package on the hub, downloaded where it is not in the hub's cache on this machine.

    name: owner/name, or owner/name@revision. Raises InputError where it cannot be had or is no package.
    """
    import huggingface_hub

    repository, revision = check_name(name)
    try:
        found = huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=list(PARTS))
    except Exception as error:  # whatever the hub and the network raise
        raise InputError(f"{PREFIX}{name}: {_short(error)}") from None
    if not (Path(found) / CARD_FILE).is_file():
        raise InputError(
            f"{PREFIX}{name}: expected a package with {CARD_FILE}, which `bonafide package --push` uploads"
        )
    return Path(found)


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
