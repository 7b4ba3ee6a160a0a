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
from pipeline.core.members import member
from pipeline.core.sections import ViewsParams
from pipeline.training.cells import Cell, QualitySplit
from pipeline.training.selection import trained_centroids

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


def cell_of(found: Any, axis: str, text: str) -> Cell:
    """A cell of the members of the project, but for one of this text."""
    loss, backend = member("losses", "cross_entropy").Loss, member("backends", "linear").Backend
    module = found(axis, text)
    return Cell(
        backend=module.Backend if axis == "backends" else backend,
        backend_name="mine",
        backend_place="params.yaml:1: backends.mine",
        backend_parameters={},
        loss=module.Loss if axis == "losses" else loss,
        loss_name="mine",
        loss_place="params.yaml:2: losses.mine",
        loss_parameters={},
        split=QualitySplit(),
        layers=(0,),
        views=ViewsParams(draw=(), probability=0.0),
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "def __init__(self, facts)",
            "def __init__(self)",
            r"`Loss\.__init__`, a method: \(facts, \*, \.\.\.\); it does",
        ),
        ("def __init__(self, facts)", "def __init__(self, facts, more)", r"it does not take that: missing a required"),
        (
            "super().__init__()",
            "self.weight = nn.Linear(2, 2)",
            r"that calls super\(\)\.__init__\(\) first; it does not",
        ),
    ],
)
def test_a_loss_that_cannot_be_made_is_named_with_its_file(found: Any, old: str, new: str, message: str) -> None:
    assert old in LOSS
    with pytest.raises(InputError, match=rf"pipeline/losses/mine\.py: expected .*{message}"):
        cell_of(found, "losses", LOSS.replace(old, new)).make_loss(embedding_dim=2, speakers=1, layers=1)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "*, layers, channels",
            "layers",
            r"`Backend\.__init__`, a method: \(\*, layers, channels, \.\.\.\); it does not",
        ),
        (
            "super().__init__()",
            "self.weight = nn.Linear(2, 2)",
            r"that calls super\(\)\.__init__\(\) first; it does not",
        ),
    ],
)
def test_a_backend_that_cannot_be_made_is_named_with_its_file(found: Any, old: str, new: str, message: str) -> None:
    assert old in BACKEND
    with pytest.raises(InputError, match=rf"pipeline/backends/mine\.py: expected .*{message}"):
        cell_of(found, "backends", BACKEND.replace(old, new)).make_backend(layers=2, channels=3)


def test_faults_within_a_constructor_keep_their_traceback(found: Any) -> None:
    text = LOSS.replace("super().__init__()", "super().__init__(); None + 1")
    with pytest.raises(TypeError, match="unsupported operand"):
        cell_of(found, "losses", text).make_loss(embedding_dim=2, speakers=1, layers=1)


@pytest.mark.parametrize(("axis", "text"), [("losses", LOSS), ("backends", BACKEND)])
def test_a_class_that_is_no_module_of_torch_is_named(found: Any, axis: str, text: str) -> None:
    with pytest.raises(InputError, match=rf"pipeline/{axis}/mine\.py: expected `\w+\.state_dict`, .*torch\.nn\.Module"):
        found(axis, text.replace("(nn.Module)", ""))


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (None, "got NoneType"),
        (1.5, "got float"),
        (torch.zeros(3, requires_grad=True), r"got shape \(3,\)"),
        (torch.zeros(()), "depends on the embeddings, got one without a gradient"),
    ],
)
def test_a_loss_gives_a_scalar_with_a_gradient(found: Any, value: object, got: str) -> None:
    loss = found("losses", LOSS).Loss(None)
    members.check_loss(loss, torch.zeros((), requires_grad=True))
    with pytest.raises(
        InputError, match=rf"pipeline/losses/mine\.py: expected `Loss\.forward` to return a scalar.*{got}"
    ):
        members.check_loss(loss, value)


@pytest.mark.parametrize("shape", [(4, 7), (3, 6), (4,), (4, 6, 1), ()])
def test_a_backend_gives_one_embedding_for_each_utterance(found: Any, shape: tuple[int, ...]) -> None:
    backend = found("backends", BACKEND).Backend(layers=1, channels=3)  # 2 · 1 · 3 = 6 wide
    members.check_embeddings(backend, torch.zeros(4, 6), count=4)
    with pytest.raises(
        InputError, match=r"backends/mine\.py: expected `Backend\.forward` to return embeddings \(4, 6\)"
    ):
        members.check_embeddings(backend, torch.zeros(shape), count=4)


def test_a_loss_that_gives_no_centroids_is_named(found: Any) -> None:
    with pytest.raises(InputError, match=r"pipeline/losses/mine\.py: expected `Loss\.centroids` to .*, got NoneType"):
        trained_centroids(found("losses", LOSS).Loss(None), section="train")
