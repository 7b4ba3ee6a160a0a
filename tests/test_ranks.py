from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor

from pipeline.losses import _ranks
from tests.two_ranks import CASES, RUNS, STEPS, State, train

ROOT = Path(__file__).parents[1]
OF_THE_LARGEST = {torch.float32: 2e-6, torch.float64: 1e-12}
Ranks = tuple[State, State]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, warm_env: dict[str, str]) -> Ranks:
    """What two processes find that train every case together."""
    folder = tmp_path_factory.mktemp("ranks")
    processes = [
        subprocess.Popen(
            ["python", "-m", "tests.two_ranks", str(rank), str(folder)],
            cwd=ROOT,
            env=warm_env | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        complaints = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(complaints)
    return load_file(folder / "0.safetensors"), load_file(folder / "1.safetensors")


def close(got: Tensor, want: Tensor, key: str) -> None:
    atol = OF_THE_LARGEST.get(want.dtype, 0) * max(1.0, float(want.double().abs().max()))
    torch.testing.assert_close(got, want, rtol=0, atol=atol, msg=lambda message: f"{key}: {message}")


@pytest.mark.parametrize(("case", "dtype", "sync"), RUNS)
def test_two_ranks_train_as_one_process(both: Ranks, case: str, dtype: torch.dtype, sync: bool) -> None:
    joint = train(case, dtype, None)
    first, second = ({key: found.get(f"{case}/{dtype}/{sync}/{key}") for key in joint} for found in both)
    assert sum(key.endswith(" value") for key in joint) == len(STEPS)
    for key, want in joint.items():
        got, other = first[key], second[key]
        assert got is not None
        if key == "alone":
            close(got, want, key)
            continue
        assert other is not None
        if key.endswith(" value"):  # a rank tells its part
            close((got + other) / 2, want, key)
        else:
            assert torch.equal(got, other), key
            close(got, want, key)


def test_every_loss_is_among_the_cases() -> None:
    files = {path.stem for path in (ROOT / "pipeline/losses").glob("[!_]*.py")}
    assert {name for name, _ in CASES.values()} == files


def test_a_rank_tells_its_part_alone(both: Ranks) -> None:
    # Step 5 has nothing on the first rank: all of the joint loss, times 2, is the second's.
    values = [float(found["oc_softmax/torch.float64/False/5 value"]) for found in both]
    assert values[0] == 0
    assert values[1] == pytest.approx(2 * float(train("oc_softmax", torch.float64, None)["5 value"]), rel=1e-12)


def test_enrolment_without_any_known_speaker_ends_on_every_rank(both: Ranks) -> None:
    assert [bool(found["refuses"]) for found in both] == [True, True]


class Peer:
    """A second rank whose part of every sum is known."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *parts: float) -> None:
        self.parts = list(parts)
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_world_size", lambda: 2)
        monkeypatch.setattr(dist, "all_reduce", self.add)

    def add(self, x: Tensor) -> None:
        x += self.parts.pop(0)


def test_in_a_single_process_nothing_changes() -> None:
    x = torch.tensor(0.1, requires_grad=True)
    assert _ranks.total(x) is x
    assert _ranks.joint_part(x, 3) is x


def test_total_adds_the_other_rank_outside_of_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    Peer(monkeypatch, 2.0)
    x = torch.tensor([1.0, 5.0], requires_grad=True)
    found = _ranks.total(x)
    assert found.tolist() == [3.0, 7.0]
    assert not found.requires_grad
    assert x.tolist() == [1.0, 5.0]


@pytest.mark.parametrize(
    ("mean", "weight", "other", "part", "slope"),
    [
        (4.0, 3, 1.0, 4.0 * 3 * 2 / 4, 1.5),
        (4.0, 0.25, 0.0, 8.0, 2.0),  # all the weight is here, and less than 1
        (4.0, 0, 5.0, 0.0, 0.0),
        (4.0, 0, 0.0, 0.0, 0.0),
        (float("nan"), 0, 5.0, 0.0, 0.0),
        (float("nan"), 0, 0.0, 0.0, 0.0),
    ],
)
def test_parts_derived_by_hand(
    monkeypatch: pytest.MonkeyPatch, mean: float, weight: float, other: float, part: float, slope: float
) -> None:
    Peer(monkeypatch, other)
    value = torch.tensor(mean, requires_grad=True)
    found = _ranks.joint_part(value, weight)
    found.backward()
    assert value.grad is not None
    assert (float(found.detach()), float(value.grad)) == pytest.approx((part, slope), abs=1e-6)


def test_without_gradients_no_rank_waits_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    Peer(monkeypatch)  # a call would find no part
    mean = torch.tensor(4.0)
    with torch.no_grad():
        assert _ranks.joint_part(mean, 3) is mean
