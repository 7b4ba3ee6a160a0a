"""What tests of several rooms ask for: a tiny encoder, corpus and project, golden arrays, one thread.

The process that deals tests out to others reads this file, too, and waits for its imports: torch and transformers are
imported where they are used.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing.spawn
import os
import shutil
import sys
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
import pytest
import soundfile
from hypothesis import settings

from pipeline.audio import decode
from pipeline.core.encoder_sections import EncoderParams, RandomEncoder
from pipeline.core.trial_table import Row, Trials, from_rows
from tests import warm
from tests.golden import Arrays, read_golden

if TYPE_CHECKING:
    from pipeline.encoder.cards import Card

TINY = EncoderParams(
    source="random",
    random=RandomEncoder(layers=3, width=32, heads=4, feedforward=48, conv_channels=16, seed=5),
    normalize="utterance",
)

settings.register_profile("tests", deadline=None, max_examples=50)  # no test fails because the machine is busy
settings.load_profile("tests")

Corpus = tuple[Path, Trials]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What the imports make stays: Python does not search it for garbage again and again."""
    gc.disable()
    yield
    gc.freeze()
    gc.enable()
    gc.set_threshold(700, 10, 100)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where there is no GPU, tests of one say so."""
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device: `make gpu` on a machine with one"))


@pytest.fixture(autouse=True, scope="session")
def no_sync() -> Iterator[None]:
    """No test pulls the plug, so nothing waits for the disk. What is to be synced first is tested by its calls."""
    with mock.patch.object(os, "fsync", return_value=None):
        yield


@pytest.fixture(autouse=True, scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Checksums are remembered in a folder of the tests' own, and no DVC of a test reports how it is used."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["DVC_NO_ANALYTICS"] = "1"


@pytest.fixture(scope="session")
def warm_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PATH by which Python, DVC and `bonafide` start at once; other commands are those of this environment."""
    folder = tmp_path_factory.getbasetemp()
    with warm.commands((folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "w") as folder:
        yield os.pathsep.join((str(folder), str(Path(sys.executable).parent), os.environ["PATH"]))


@pytest.fixture(scope="session")
def warm_env(warm_path: str) -> dict[str, str]:
    """The environment with that PATH."""
    return os.environ | {"PATH": warm_path}


@pytest.fixture(scope="module")
def warm_processes(warm_path: str) -> Iterator[None]:
    """Processes of multiprocessing start as `python` in that PATH does, the server of forks, too, until the end."""
    before = multiprocessing.spawn.get_executable()
    forkserver._forkserver._stop()
    multiprocessing.set_executable(str(Path(warm_path.partition(os.pathsep)[0]) / "python"))
    yield
    forkserver._forkserver._stop()
    multiprocessing.set_executable(before)


@pytest.fixture(scope="session")
def card() -> Card:
    """The identity of the tiny encoder."""
    from pipeline.encoder import models

    return models.load(TINY)[1]


@pytest.fixture(scope="session")
def metric_arrays() -> Arrays:
    """Scores and their metrics by the official evaluation packages."""
    return read_golden("metrics")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """On tensors as small as the backends' tests have, threads only wait for each other: up to ten times as long."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def no_trial_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints that tests make are not read in a process of its own first, as those of strangers are."""
    monkeypatch.setattr("pipeline.encoder.tensor_files._check_apart", lambda _path: None)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny project whose flow has run, made once for all tests of a process; leave it as it is, or copy it."""
    from tests import systems

    return systems.project(tmp_path_factory.getbasetemp() / "systems")


@pytest.fixture
def here(project: Path) -> Iterator[Path]:
    """The project as the current folder."""
    with contextlib.chdir(project):
        yield project


@pytest.fixture
def copied(project: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the project, to spoil, as the current folder."""
    shutil.copytree(project, tmp_path / "copy")
    with contextlib.chdir(tmp_path / "copy"):
        yield tmp_path / "copy"


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """A folder with ten utterances of 0.1 to 0.3 s of coloured noise, and their table."""
    root = tmp_path / "audio"
    root.mkdir()
    rows = []
    for i in range(10):
        rng = np.random.default_rng(i)
        samples = 0.1 * rng.normal(size=rng.integers(1_600, 4_800)).cumsum()
        soundfile.write(root / f"u{i}.wav", samples / np.abs(samples).max() / 2, 16_000)
        content = decode.digest((root / f"u{i}.wav").read_bytes())
        label = "bonafide" if i % 2 else "spoof"
        rows.append(
            Row(
                f"trials.csv:{i + 2}",
                f"u{i}",
                f"u{i}.wav",
                label,
                speaker=f"s{i % 3}",
                quality=f"{1 + i * 0.4}",
                content=content,
            )
        )
    return root, from_rows(rows, source="trials.csv")
