"""Members of the axes: what their files must define, said in one message with file and attribute."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from pipeline.core import members
from pipeline.core.errors import InputError

ROOT = Path(__file__).parents[1]
LOSS = """
from torch import nn

class Loss(nn.Module):
    quality = False

    def __init__(self, facts):
        super().__init__()

    def forward(self, embeddings, labels):
        return embeddings.sum()

    def centroids(self):
        return None
"""
BACKEND = """
from torch import nn

class Backend(nn.Module):
    reads = "pooled"

    def __init__(self, *, layers, channels):
        super().__init__()
        self.embedding_dim = 2 * layers * channels

    def forward(self, features, n_frames):
        return features.flatten(1)
"""
FILES = {
    "losses": LOSS,
    "backends": BACKEND,
    "corpora": "def trials(root, protocol, split): ...",
    "quality": "def estimate(samples): ...\ndef identity(): ...",
}


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """(axis, text) -> the member `mine` of a pipeline whose axis holds a file of that text."""

    def find(axis: str, text: str) -> ModuleType:
        (tmp_path / "pipeline" / axis).mkdir(parents=True)
        (tmp_path / "pipeline" / axis / "mine.py").write_text(text)
        monkeypatch.setattr(members, "__file__", str(tmp_path / "pipeline" / "core" / "members.py"))
        package = sys.modules.get(f"pipeline.{axis}") or __import__(f"pipeline.{axis}", fromlist=["x"])
        monkeypatch.setattr(package, "__path__", [str(tmp_path / "pipeline" / axis)])
        monkeypatch.delitem(sys.modules, f"pipeline.{axis}.mine", raising=False)
        try:
            return members.member(axis, "mine")
        finally:
            sys.modules.pop(f"pipeline.{axis}.mine", None)

    return find


@pytest.mark.parametrize("axis", FILES)
def test_a_whole_member_is_found(found: Any, axis: str) -> None:
    assert found(axis, FILES[axis]).__name__ == f"pipeline.{axis}.mine"


def test_a_corpus_that_gives_the_mos_needs_no_identity(found: Any) -> None:
    assert found("quality", "estimate = None").estimate is None


@pytest.mark.parametrize("axis", members.CONTRACTS)
def test_all_members_of_the_project_are_whole(axis: str) -> None:
    names = [path.stem for path in (ROOT / "pipeline" / axis).glob("[!_]*.py")]
    assert names
    for name in names:
        members.member(axis, name)


@pytest.mark.parametrize(
    ("axis", "old", "new", "message"),
    [
        (
            "losses",
            "class Loss(",
            "class Lost(",
            r"losses/mine\.py: expected `Loss`, the class of the loss.*there is none",
        ),
        (
            "losses",
            "    quality = False\n",
            "",
            r"losses/mine\.py: expected `Loss\.quality`.*reads quality levels.*there is none",
        ),
        ("losses", "quality = False", 'quality = "no"', r"expected `Loss\.quality`, .*; got 'no'"),
        ("losses", "quality = False", "quality = 1", r"expected `Loss\.quality`, .*; got 1"),
        (
            "losses",
            "quality = False",
            "quality = property(len)",
            r"expected `Loss\.quality`, a class attribute.*there is none",
        ),
        (
            "losses",
            "def centroids",
            "def centers",
            r"expected `Loss\.centroids`, a method that returns .*Centroids; there is none",
        ),
        (
            "losses",
            "def forward",
            "def backward",
            r"expected `Loss\.forward`, a method: \(embeddings, labels\).*there is none",
        ),
        ("backends", "class Backend(", "class Back(", r"backends/mine\.py: expected `Backend`, the class"),
        (
            "backends",
            '    reads = "pooled"\n',
            "",
            r"expected `Backend\.reads`, .*the word pooled or frames; there is none",
        ),
        ("backends", '"pooled"', '"pool"', r"expected `Backend\.reads`, .*; got 'pool'"),
        ("backends", "def forward", "def embed", r"expected `Backend\.forward`, a method: \(features, n_frames\)"),
        (
            "corpora",
            "def trials",
            "def rows",
            r"corpora/mine\.py: expected `trials`, a function: \(root, protocol, split\)",
        ),
        ("quality", "estimate", "mos", r"quality/mine\.py: expected `estimate`, a function"),
        ("quality", "identity", "name", r"quality/mine\.py: expected `identity`, a function"),
    ],
)
def test_what_a_member_lacks_is_said_with_its_file(found: Any, axis: str, old: str, new: str, message: str) -> None:
    assert old in FILES[axis]
    with pytest.raises(InputError, match=message):
        found(axis, FILES[axis].replace(old, new))


@pytest.mark.parametrize("width", [None, 0, -1, 2.0, True, "128"])
def test_a_backend_says_how_wide_its_embeddings_are(found: Any, width: object) -> None:
    backend = found("backends", BACKEND).Backend(layers=2, channels=3)
    members.check_backend(backend, "mine")
    if width is None:
        del backend.embedding_dim
    else:
        backend.embedding_dim = width
    with pytest.raises(InputError, match=r"backends/mine\.py: expected `self\.embedding_dim`, an int ≥ 1"):
        members.check_backend(backend, "mine")
    assert isinstance(backend, torch.nn.Module)
