from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.core.contracts import Facts, Labels
from pipeline.core.errors import InputError
from pipeline.losses import samo
from tests.golden import Arrays, read_golden
from tests.losses import DTYPES, label, meets, number, random_case, restored, scores, softplus, value_and_gradients

ATOL = {"loss": 1e-5, "grad_x": 1e-6, "score": 1e-6}
SETTINGS: dict[str, dict[str, float]] = {"main": {}, "default": {"margin_bonafide": 0.5, "margin_spoof": 0.2}}
CASES = [(case, setting) for case in ("train", "max", "infer_attractor", "infer_max") for setting in SETTINGS]
CASES.append(("onehot", "main"))


@pytest.fixture(scope="module")
def golden() -> Arrays:
    return read_golden("samo")


def make(centres: Tensor, enrolled: list[bool] | None = None, **hyperparameters: Any) -> samo.Loss:
    facts = Facts(embedding_dim=centres.shape[1], levels=1, speakers=len(centres))
    flags = torch.tensor([True] * len(centres) if enrolled is None else enrolled)
    loss: samo.Loss = restored("samo", facts, {"centres": centres, "enrolled": flags}, **hyperparameters)
    return loss


def reference_case(golden: Arrays, case: str, setting: str, dtype: torch.dtype) -> tuple[samo.Loss, Labels]:
    """The reference's case, said in our words: a speaker without enrolment is one unknown."""
    centres = torch.empty(5, 16, dtype=dtype)
    centres[golden["center_speaker"]] = torch.tensor(golden["centers"], dtype=dtype)
    speaker = torch.tensor(golden["speaker"])
    enrolled = torch.tensor(golden["enrolled"])[speaker]
    speaker = {"train": speaker, "infer_attractor": torch.where(enrolled, speaker, -1)}.get(
        case, torch.full_like(speaker, -1)
    )
    start = torch.eye(5, 16, dtype=dtype) if case == "onehot" else centres
    return make(start, **SETTINGS[setting]), label(golden["is_bonafide"], speaker=speaker)


@pytest.mark.parametrize(("case", "setting"), CASES)
@DTYPES
def test_meets_the_reference(golden: Arrays, case: str, setting: str, dtype: torch.dtype, prefix: str) -> None:
    loss, labels = reference_case(golden, case, setting, dtype)
    for got, key in zip(value_and_gradients(loss, golden["x"], labels), ("loss", "grad_x"), strict=True):
        meets(got, golden[f"{prefix}{case}/{setting}/{key}"], ATOL[key], key)


@pytest.mark.parametrize("case", ["max", "infer_max", "onehot"])
def test_scores_as_the_reference_without_enrolment(golden: Arrays, case: str) -> None:
    found = scores(reference_case(golden, case, "main", torch.float32)[0], torch.tensor(golden["x"]))
    for prefix in ("", "f64/"):
        np.testing.assert_allclose(found, golden[f"{prefix}{case}/score"], rtol=0, atol=ATOL["score"])


def test_the_own_centres_row_gives_the_score_with_enrolment(golden: Arrays) -> None:
    vectors = reference_case(golden, "train", "main", torch.float32)[0].centroids().vectors
    query = golden["x"] / np.linalg.norm(golden["x"], axis=1, keepdims=True)
    found = (vectors[golden["speaker"]] * query).sum(axis=1)
    np.testing.assert_allclose(found, golden["train/score"], rtol=0, atol=ATOL["score"])


def test_enrolment_meets_the_centres_of_the_reference(golden: Arrays) -> None:
    loss = samo.Loss(Facts(embedding_dim=16, levels=1, speakers=5))
    loss.enrol(torch.tensor(golden["enroll/x"]), torch.tensor(golden["enroll/speaker"]))
    np.testing.assert_allclose(loss.centres[golden["center_speaker"]].numpy(), golden["centers"], rtol=0, atol=1e-6)
    assert loss.enrolled.all()
    value = number(loss(torch.tensor(golden["x"]), label(golden["is_bonafide"], speaker=golden["speaker"])))
    assert value == pytest.approx(float(golden["train/main/loss"]), abs=ATOL["loss"])


def test_centres_begin_orthogonal() -> None:
    loss = samo.Loss(Facts(embedding_dim=4, levels=1, speakers=3))
    assert loss.centres.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]
    assert loss.enrolled.tolist() == [True] * 3
    assert list(loss.parameters()) == []
    assert sorted(loss.state_dict()) == ["centres", "enrolled"]


def test_numbers_derived_by_hand() -> None:
    loss = make(torch.tensor([[2.0, 0.0], [0.0, 5.0]], dtype=torch.float64), alpha=2.0)
    # Cosines (0.6, 0.8) three times, and (−1, 0). Speaker 0: 0.7 − 0.6; unknown: 0.7 − 0.8; spoofs: 0.8 and 0.
    x = torch.tensor([[3.0, 4.0], [3.0, 4.0], [3.0, 4.0], [-1.0, 0.0]], dtype=torch.float64)
    want = (softplus(2 * 0.1) + softplus(2 * -0.1) + softplus(2 * 0.8) + softplus(0.0)) / 4
    assert number(loss(x, label([True, True, False, False], speaker=[0, -1, 0, 0]))) == pytest.approx(want, abs=1e-12)


def test_agrees_with_a_naive_loop() -> None:
    loss, x, labels = random_case("samo")
    total = 0.0
    for row, bonafide, speaker in zip(x, labels.is_bonafide.tolist(), labels.speaker.tolist(), strict=True):
        cosines = {k: float(row @ loss.centres[k] / (row.norm() * loss.centres[k].norm())) for k in (0, 1, 3)}
        nearest = max(cosines.values())
        total += softplus(20.0 * (0.7 - cosines.get(speaker, nearest) if bonafide else nearest))
    assert number(loss(x, labels)) == pytest.approx(total / 10, rel=1e-8)  # torch's softplus is linear above 20


def test_names_of_the_speakers_do_not_matter() -> None:
    loss, x, labels = random_case("samo")
    rename = torch.tensor([3, 0, 1, 2])  # new number of each speaker
    order = rename.argsort()
    renamed = make(loss.centres[order], loss.enrolled[order].tolist())
    speaker = torch.where(labels.speaker < 0, -1, rename[labels.speaker.clamp(min=0)])
    value = number(renamed(x, label(labels.is_bonafide, speaker=speaker)))
    assert value == pytest.approx(number(loss(x, labels)), rel=1e-12)
    np.testing.assert_allclose(scores(renamed, x), scores(loss, x), rtol=0, atol=1e-6)


def test_the_speaker_of_a_spoof_does_not_matter() -> None:
    loss, x, labels = random_case("samo")
    speaker = torch.where(labels.is_bonafide, labels.speaker, 1)
    assert torch.equal(loss(x, labels), loss(x, label(labels.is_bonafide, speaker=speaker)))


def test_enrolment_averages_raw_embeddings_by_speaker() -> None:
    loss = samo.Loss(Facts(embedding_dim=3, levels=1, speakers=3))
    x = torch.tensor([[4.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 9.0], [1.0, 1.0, 1.0]])
    loss.enrol(x, torch.tensor([2, 2, -1, 0]))
    assert loss.centres[[0, 2]].tolist() == [[1.0, 1.0, 1.0], [2.0, 1.0, 0.0]]
    assert loss.enrolled.tolist() == [True, False, True]
    assert loss.centroids().vectors.shape == (2, 3)
    # A second enrolment forgets the first.
    loss.enrol(x[:1], torch.tensor([1]))
    assert loss.enrolled.tolist() == [False, True, False]
    assert loss.centroids().vectors.tolist() == [[1.0, 0.0, 0.0]]


def test_enrolment_agrees_with_a_naive_loop_and_its_order_does_not_matter() -> None:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(40, 6, dtype=torch.float64, generator=generator)
    speaker = torch.randint(-1, 4, (40,), generator=generator)
    loss, shuffled = (make(torch.zeros(4, 6, dtype=torch.float64)) for _ in range(2))
    loss.enrol(x.requires_grad_(), speaker)
    assert not loss.centres.requires_grad
    order = torch.randperm(40, generator=generator)
    shuffled.enrol(x[order], speaker[order])
    torch.testing.assert_close(shuffled.centres, loss.centres, rtol=0, atol=1e-12)
    for k in range(4):
        rows = [row.detach() for row, who in zip(x, speaker.tolist(), strict=True) if who == k]
        torch.testing.assert_close(loss.centres[k], sum(rows[1:], rows[0]) / len(rows), rtol=0, atol=1e-12)


def test_training_never_moves_the_centres_by_itself() -> None:
    loss, x, labels = random_case("samo")
    before = loss.centres.clone()
    for mode in (loss.train(), loss.eval()):
        mode(x.requires_grad_(), labels).backward()
    assert torch.equal(loss.centres, before)


@pytest.mark.parametrize(
    ("hyperparameters", "due"),
    [({}, [4, 7, 10]), ({"update_interval": 1}, [2, 3, 4, 5, 6, 7, 8, 9, 10]), ({"update_interval": 20}, [])],
)
def test_epochs_of_enrolment(hyperparameters: dict[str, int], due: list[int]) -> None:
    loss = samo.Loss(Facts(embedding_dim=2, levels=1, speakers=1), **hyperparameters)
    seen: list[int] = []
    for epoch in range(1, 11):

        def enrolment(epoch: int = epoch) -> tuple[Tensor, Tensor]:
            seen.append(epoch)
            return torch.tensor([[0.0, float(epoch)]]), torch.tensor([0])

        loss.start_epoch(epoch, enrolment)
    assert seen == due
    assert loss.centres.tolist() == [[0.0, float(due[-1])] if due else [1.0, 0.0]]


def test_the_index_scores_the_nearest_enrolled_speaker() -> None:
    loss, x, _ = random_case("samo")
    cosines = torch.cosine_similarity(x[:, None], loss.centres[[0, 1, 3]][None], dim=2)
    np.testing.assert_allclose(scores(loss, 100 * x), cosines.max(dim=1).values.numpy(), rtol=0, atol=1e-6)


def test_descent_with_enrolment_gathers_bonafide_by_speaker() -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(30, 8, generator=generator).requires_grad_()
    flags, speaker = torch.arange(30) % 2 == 0, torch.arange(30) % 3
    loss = samo.Loss(Facts(embedding_dim=8, levels=1, speakers=3))
    optimizer = torch.optim.SGD([x], lr=0.5)
    for epoch in range(1, 31):
        loss.start_epoch(epoch, lambda: (x[flags], speaker[flags]))
        for _ in range(5):
            optimizer.zero_grad()
            loss(x, label(flags, speaker=speaker)).backward()
            optimizer.step()
    loss.enrol(x[flags], speaker[flags])
    found = scores(loss, x)
    assert found[flags.numpy()].min() > 0.6
    assert found[~flags.numpy()].max() < 0.2


def test_autocast_does_not_touch_the_enrolment() -> None:
    loss, x, _ = random_case("samo")
    loss, half = loss.float(), x.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss.enrol(half[:3], torch.tensor([0, 0, 0]))
    torch.testing.assert_close(loss.centres[0], half[:3].float().mean(0), rtol=0, atol=1e-6)


def test_without_known_speakers_enrolment_says_what_is_wrong() -> None:
    loss, x, _ = random_case("samo")
    with pytest.raises(InputError, match=r"has a known speaker.*fill the speaker column"):
        loss.enrol(x, torch.full((10,), -1))


@pytest.mark.parametrize("speaker", [-2, 4])
def test_speakers_out_of_range_are_refused(speaker: int) -> None:
    loss, x, labels = random_case("samo")
    with pytest.raises(ValueError, match=rf"from -1 \(unknown\) to 3, got {speaker}"):
        loss(x, label(labels.is_bonafide, speaker=speaker))
    with pytest.raises(ValueError, match=rf"from -1 \(unknown\) to 3, got {speaker}"):
        loss.enrol(x, torch.full((10,), speaker))


@pytest.mark.parametrize(
    ("speakers", "message"), [(0, "fill the speaker column"), (5, r"at least the 5 training speakers.*got 4")]
)
def test_speakers_must_be_known_and_fit_the_embedding(speakers: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        samo.Loss(Facts(embedding_dim=4, levels=1, speakers=speakers))
