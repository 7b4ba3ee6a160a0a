"""What a training tells: each remark where it is due, and none of a training that went well."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.core.contracts import Facts, Labels
from pipeline.losses import aoc, qamo
from pipeline.training import selection
from pipeline.training.history import Epoch
from pipeline.training.remarks import remarks
from pipeline.training.selection import Selection
from tests.test_fit import TRAIN, fitted, separable

DEV = separable(300, seed=1).trials  # 100 bona fide, 200 spoof
GOOD = [
    Epoch(1, 1.0, 20.0, 0.1, dev_loss=0.9, train_eer=15.0),
    Epoch(2, 0.6, 8.0, 0.2, dev_loss=0.5, train_eer=4.0),
    Epoch(3, 0.5, 9.0, 0.3, dev_loss=0.6, train_eer=3.0),
]
TAKEN = Selection((2,), 8.0, GOOD[1])
MOVING = np.array([[[1.0, 0.0], [0.0, 1.0]], [[0.9, 0.1], [0.0, 1.0]], [[0.8, 0.2], [0.1, 0.9]]], np.float32)


def told(curves: list[Epoch] = GOOD, path: np.ndarray = MOVING, **changed: Any) -> tuple[str, ...]:
    given: dict[str, Any] = {"dev": DEV, "dev_eer": 8.0, "chosen": TAKEN, "asked": 3} | changed
    return remarks(curves, path, **given)


def test_a_training_that_went_well_says_nothing() -> None:
    assert told() == ()
    assert told(GOOD[:1], MOVING[:1], chosen=Selection((1,), 20.0, GOOD[0]), dev_eer=20.0, asked=1) == ()


def test_a_loss_that_did_not_fall() -> None:
    flat = [replace(epoch, loss=loss) for epoch, loss in zip(GOOD, (0.69, 0.70, 0.688), strict=True)]
    assert told(flat) == ("the loss did not fall (0.69 in epoch 1, 0.688 in epoch 3)",)
    falling = [replace(epoch, loss=loss) for epoch, loss in zip(GOOD, (0.69, 0.70, 0.68), strict=True)]
    assert told(falling) == ()


@pytest.mark.parametrize(("eer", "chance"), [(40.0, False), (40.3, True), (50.0, True), (60.0, True)])
def test_a_dev_eer_at_chance(eer: float, chance: bool) -> None:
    """Of 100 trials with a rate of 50 %, 95 % of the rates lie within 9.8 points."""
    said = told(dev_eer=eer)
    assert bool(said) == chance
    assert all(f"{eer:.2f} % cannot be told from chance with 100 trials" in line for line in said)


def test_centroids_that_never_moved_or_lie_on_one_another() -> None:
    assert told(path=MOVING[[0, 0, 0]]) == ("the centroids did not move after the first epoch",)
    collapsed = MOVING.copy()
    collapsed[-1] = [[1.0, 0.02], [2.0, 0.0]]  # one direction, two lengths
    assert told(path=collapsed) == ("the 2 centroids lie on one another (cosines from 0.9998)",)
    assert told(path=MOVING[:, :1]) == ()
    crept = MOVING[[0, 0]] * [[[1.0]], [[1.00009]]]  # by 9e-5 of their length
    assert told(path=crept) == ("the centroids did not move after the first epoch",)
    assert told(path=crept * [[[1.0]], [[1.0001]]]) == ()


def test_some_of_the_centroids_that_never_moved_or_lie_on_one_another() -> None:
    assert told(path=MOVING[:2]) == ("1 of the 2 centroids did not move after the first epoch",)
    three = np.concatenate((MOVING, -MOVING[:, :1]), axis=1)
    three[-1, 1] = [0.8, 0.21]  # cosine 0.99988 to the first
    assert told(path=three) == ("2 of the 3 centroids lie on one another (cosines from 0.9999)",)


def test_stopped_by_patience_while_the_loss_on_dev_fell() -> None:
    falling = [replace(epoch, dev_loss=loss) for epoch, loss in zip(GOOD, (0.9, 0.5, 0.4), strict=True)]
    assert told(falling) == ()
    assert told(falling, asked=10) == (
        "it stopped after 3 epochs for want of a lower dev EER, while the loss on dev still fell",
    )
    assert told(asked=10) == ()


@pytest.mark.parametrize(
    ("losses", "fell"),
    [
        ((0.50, 0.40, 0.42, 0.38, 0.39), True),  # 0.45 in the first two, 0.385 in the last two
        ((0.50, 0.40, 0.42, 0.60, 0.30), False),  # the lowest at last, and no lower all in all
        ((0.50, 0.499, 0.498, 0.498, 0.497), False),  # by 0.4 %
        ((0.50, 0.49, 0.495, 0.488, 0.487), True),  # by 1.5 %
        ((-0.50, -0.5, -0.5, -0.51, -0.51), True),  # by 2 %
    ],
)
def test_a_loss_on_dev_falls_where_the_later_half_of_the_wait_is_lower(
    losses: tuple[float, ...], *, fell: bool
) -> None:
    """Patience waits from the second epoch on, which has the lowest EER; the first epoch does not count."""
    errors = (20.0, 8.0, 9.0, 8.0, 8.5, 9.0)
    curves = [
        replace(GOOD[2], epoch=number, dev_eer=error, dev_loss=loss, loss=1 / number)
        for number, (error, loss) in enumerate(zip(errors, (0.1, *losses), strict=True), 1)
    ]
    assert bool(told(curves, asked=10)) == fell


def test_a_mean_of_epochs_that_is_worse_than_the_best_of_them() -> None:
    assert told(chosen=Selection((2, 3), 8.5, GOOD[1])) == (
        "the mean of its 2 best epochs has a dev EER of 8.50 %; taken is epoch 2 as it was, with 8.00 %",
    )
    assert told(chosen=Selection((2,), 8.5, GOOD[1])) == (
        "its best epoch, enrolled anew, has a dev EER of 8.50 %; taken is epoch 2 as it was, with 8.00 %",
    )
    assert told(chosen=Selection((2, 3), 8.0, GOOD[1])) == told() == ()


def test_a_training_set_that_is_known_by_heart() -> None:
    known = [replace(epoch, train_eer=0.0, dev_eer=27.0) for epoch in GOOD]
    assert told(known, dev_eer=27.0) == ("it knows its training set by heart: an EER of 0 % there, 27.00 % on dev",)
    assert told(known, dev_eer=9.0) == ()
    assert told(GOOD, dev_eer=27.0) == ()


def test_a_training_on_noise_is_told_from_one_that_learns() -> None:
    params = TRAIN.model_copy(update={"epochs": 25, "patience": 25})
    assert not fitted("asp", "aoc", params, distance=2.0).remarks
    noise = fitted("asp", "aoc", params, distance=0.0)
    assert any("chance" in line or "by heart" in line for line in noise.remarks)


def test_the_curves_are_those_of_a_naive_loop() -> None:
    result = fitted("asp", "qamo", TRAIN.model_copy(update={"epochs": 1}))
    (line,) = result.curves
    assert (line.epoch, line.train_eer < 60, np.isfinite(line.dev_loss)) == (1, True, True)
    assert line.facts.keys() == {"epoch", "loss", "dev_loss", "train_eer", "dev_eer"}


def test_the_loss_on_dev_is_the_loss_of_its_labels_alone() -> None:
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(300, 6)).astype(np.float32)
    for loss in (aoc.Loss(Facts(6, 1, 0)), qamo.Loss(Facts(6, 3, 0))):
        before = {name: tensor.clone() for name, tensor in loss.state_dict().items()}
        found = selection.dev_loss(loss.train(), embeddings, DEV, device=torch.device("cpu"))
        unknown = torch.full((300,), -1)
        labels = Labels(torch.from_numpy(DEV.is_bonafide), unknown, unknown)
        assert found == pytest.approx(float(loss.eval()(torch.from_numpy(embeddings), labels).detach()))
        assert all(torch.equal(before[name], tensor) for name, tensor in loss.state_dict().items())


def test_the_training_sample_is_fixed_and_has_both_classes() -> None:
    trials = separable(2_000, seed=0).trials
    rows = selection.train_sample(trials)
    assert len(rows) == 2 * selection.SAMPLE == len(set(rows.tolist()))
    assert int(trials.is_bonafide[rows].sum()) == selection.SAMPLE
    assert np.array_equal(rows, selection.train_sample(trials))
    assert len(selection.train_sample(DEV)) == 100 + 200
