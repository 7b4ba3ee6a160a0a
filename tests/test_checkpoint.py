"""Checkpoints: what was written comes back bit by bit, for the run that wrote it, and a file is whole or not there."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.core.errors import InputError
from pipeline.training import checkpoints
from pipeline.training.checkpoints import CheckpointFolder

TENSORS = {
    "float": torch.tensor([[1.5, float("nan")], [-0.0, 1e-45]]),
    "scalar": torch.tensor(3.0),
    "count": torch.tensor(7),
    "mask": torch.tensor([True, False]),
    "half": torch.tensor([0.1], dtype=torch.bfloat16),
    "turned": torch.arange(6.0).reshape(2, 3).T,
    "empty": torch.zeros(0, 3),
}
FACTS = {"curves": [[1, 0.1 + 0.2, 1e-300]], "best": [], "name": "ä"}


def test_what_was_written_comes_back_bit_by_bit(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "c"
    shared = TENSORS | {"shared": TENSORS["float"]}
    checkpoints.write(path, shared, FACTS, run="r")
    found = checkpoints.read(path, run="r")
    assert found is not None
    tensors, facts = found
    assert facts == FACTS
    assert tensors.keys() == shared.keys()
    for name, tensor in shared.items():
        assert tensors[name].dtype == tensor.dtype
        assert tensors[name].shape == tensor.shape
        assert tensors[name].flatten().view(torch.uint8).equal(tensor.contiguous().flatten().view(torch.uint8))


def test_another_run_or_no_file_is_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoints.read(tmp_path / "c", run="r") is None
    checkpoints.write(tmp_path / "c", TENSORS, FACTS, run="r")
    assert checkpoints.read(tmp_path / "c", run="s") is None


@pytest.mark.parametrize("kind", ["empty", "pickle", "cut", "other safetensors", "text"])
def test_another_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "c"
    checkpoints.write(path, TENSORS, FACTS, run="r")
    if kind == "other safetensors":
        save_file({"w": torch.zeros(2)}, path)
    else:
        data = {"empty": b"", "pickle": b"\x80\x04K\x01.", "cut": path.read_bytes()[:-3], "text": b"thesis" * 9}
        path.write_bytes(data[kind])
    with pytest.raises(InputError, match="expected a checkpoint of a training, got another file; delete it"):
        checkpoints.read(path, run="r")


WEIGHTS = {3: {"w": torch.tensor([3.0])}, 4: {"w": torch.tensor([4.0])}}


def test_weights_of_the_epochs_that_are_kept_and_the_state_after_the_last(tmp_path: Path) -> None:
    place = CheckpointFolder(tmp_path / "c", "r")
    assert place.read() is None
    place.write(WEIGHTS, TENSORS, FACTS)
    found = place.read()
    assert found is not None
    assert found[1] == FACTS
    assert [place.weights(epoch)("w").item() for epoch in (3, 4)] == [3, 4]
    place.write({5: {"w": torch.tensor([5.0])}}, TENSORS, FACTS)
    place.keep({3, 5})
    names = ["last.safetensors", "weights_0003.safetensors", "weights_0005.safetensors"]
    assert sorted(path.name for path in place.folder.iterdir()) == names
    assert CheckpointFolder(place.folder, "other").read() is None


@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_damaged_weights_are_refused(tmp_path: Path, damage: str) -> None:
    place = CheckpointFolder(tmp_path / "c", "r")
    place.write(WEIGHTS, TENSORS, FACTS)
    path = place.folder / "weights_0004.safetensors"
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-3])
    else:
        save_file({"v": torch.zeros(1)}, path)
    with pytest.raises(InputError, match=rf"weights_0004.*: the checkpoint is damaged .*; delete {place.folder}"):
        place.weights(4)("w")


def test_delete_takes_what_a_killed_write_left(tmp_path: Path) -> None:
    checkpoints.delete(tmp_path / "c")
    CheckpointFolder(tmp_path / "c", "r").write(WEIGHTS, TENSORS, FACTS)
    for name in ("last.safetensors.part", "weights_0009.safetensors.part", "thesis.tex"):
        (tmp_path / "c" / name).write_text("")
    checkpoints.delete(tmp_path / "c")
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["thesis.tex"]
    (tmp_path / "c" / "thesis.tex").unlink()
    checkpoints.delete(tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_full_disk_says_which_file(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "last.safetensors.part").mkdir()  # cannot be written
    with pytest.raises(OSError, match=r"make room, or allow writing there, and run .*last\.safetensors"):
        CheckpointFolder(tmp_path / "c", "r").write({}, TENSORS, FACTS)


def test_fingerprint_sees_every_bit() -> None:
    seen = {checkpoints.fingerprint({"a": 1}, TENSORS), checkpoints.fingerprint({"a": 2}, TENSORS)}
    for name, tensor in TENSORS.items():
        if tensor.numel():
            flat = tensor.flatten()
            flat[0] = ~flat[0] if flat.dtype == torch.bool else flat[0] + 1
            other = flat.reshape(tensor.shape)
            seen.add(checkpoints.fingerprint({"a": 1}, TENSORS | {name: other}))
    renamed = {f"x{name}": tensor for name, tensor in TENSORS.items()}
    reshaped = TENSORS | {"turned": TENSORS["turned"].reshape(2, 3)}
    seen |= {checkpoints.fingerprint({"a": 1}, renamed), checkpoints.fingerprint({"a": 1}, reshaped)}
    assert len(seen) == 2 + 6 + 2
    assert checkpoints.fingerprint({"a": 1}, dict(reversed(TENSORS.items()))) in seen


def test_facts_hold_classes_and_plain_attributes_of_every_part() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.25))
    facts = checkpoints.facts_of(model)
    assert facts["classes"] == {
        "": "torch.nn.modules.container.Sequential",
        "0": "torch.nn.modules.linear.Linear",
        "1": "torch.nn.modules.dropout.Dropout",
    }
    assert facts["attributes"]["1"]["p"] == 0.25
    assert (facts["attributes"]["0"]["in_features"], facts["attributes"]["0"]["out_features"]) == (2, 3)
    assert checkpoints.facts_of(nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5))) != facts
    assert len(facts["code"]) == 3
    assert checkpoints.fingerprint(facts, {}) == checkpoints.fingerprint(checkpoints.facts_of(model), {})


def test_code_is_told_apart_by_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    before = checkpoints.code_of(tmp_path / "a.py")
    (tmp_path / "a.py").write_text("x = 2\n")
    assert checkpoints.code_of(tmp_path / "a.py") != before
