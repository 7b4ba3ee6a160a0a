"""Trainings that take turns: the bits of each alone, one reading for all, and nobody's end is another's."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.core.errors import InputError
from pipeline.core.members import member
from pipeline.core.sections import LearningRates
from pipeline.features import sampling
from pipeline.features.dataset import Dataset
from pipeline.features.sampling import Augment
from pipeline.training import heads, loop, together
from tests import backends, losses
from tests.test_fit import TRAIN, holding, pooled, same, separable

TRAIN = TRAIN.model_copy(update={"epochs": 3, "average_best": 2})
DROPOUT = {"aasist": {}, "mlp": {"embedding_dim": 6, "hidden_dim": 6, "hidden_layers": 2, "dropout": 0.4}}
AUGMENT = Augment(("noise_0",), 0.4)
Made = tuple[Any, Any]  # what makes a backend, what makes a loss


class Sets:
    """Datasets that all read, frames (L 2, T 9, D 12) or their means and deviations, with speakers and a noisy view."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        found = {}
        for name, count in (("train", 60), ("dev", 30)):
            data = separable(count, seed=len(name), views=("noise_0",) if name == "train" else ())
            trials = replace(data.trials, speaker=np.array([f"s{i % 5}" for i in range(count)]))
            array = rng.normal(size=(count * (1 + len(data.views)), 2, 9, 12)).astype(np.float32)
            array[:count][trials.is_bonafide] += 0.3
            frames = np.arange(count, dtype=np.int32) % 9 + 1
            data = replace(data, trials=trials, source=replace(data.source, n_frames=frames))
            found[name] = {"frames": holding(data, array), "pooled": holding(data, pooled(array))}
        self.train, self.dev = found["train"], found["dev"]


SETS = Sets()


def made(backend: str, loss: str, **changed: Any) -> Made:
    settings = DROPOUT.get(backend, backends.SETTINGS[backend]) | changed
    if "frames" in settings:
        settings["frames"] = 9
    build = partial(member("backends", backend).Backend, layers=2, channels=12, **settings)
    return build, partial(member("losses", loss).Loss)


def steps(seat: together.Seat, which: Made, **given: Any) -> together.Stops[loop.Fitted]:
    """A training of a backend and a loss on the sets above."""
    build, make_loss = which
    reads = build.func.reads
    seat.reads = reads
    train: Dataset = SETS.train[reads]
    labels = sampling.labels(train.trials, (3.0,))
    return heads.fit_steps(
        build,
        lambda embedding_dim: make_loss(losses.Facts(embedding_dim, 2, 5, 2)),
        **{"train": train, "dev": SETS.dev[reads], "labels": labels, "params": TRAIN, "seed": 3, "augment": AUGMENT}
        | given,
        seat=seat,
    )


def turns(*trainings: Any) -> list[Any]:
    """What each training came to, or the error that it ended with."""
    found: list[Any] = [None] * len(trainings)

    def kept(number: int, training: Any, seat: together.Seat) -> together.Stops[None]:
        found[number] = yield from training(seat)

    for number, error in together.take_turns([partial(kept, i, training) for i, training in enumerate(trainings)]):
        found[number] = error or found[number]
    return found


ALL = [(name, "aoc") for name in backends.NAMES] + [("mlp", name) for name in losses.NAMES]


def test_every_backend_and_loss_comes_to_the_bits_of_a_training_alone() -> None:
    """With dropout, augmented views, padding, losses that enrol speakers and losses with quality levels."""
    short = TRAIN.model_copy(update={"epochs": 1})
    trainings = [partial(steps, which=made(*names), params=short) for names in ALL]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    found = turns(*trainings)
    assert torch.equal(torch.get_rng_state(), before)
    for names, training, fitted in zip(ALL, trainings, found, strict=True):
        assert isinstance(fitted, loop.Fitted), (names, fitted)
        torch.rand(3)  # a training alone finds the global generator anywhere
        assert same(fitted, together.alone(training(together.ALONE))), names


class Counted:
    """A source that counts the features that are read of it."""

    def __init__(self, source: Any) -> None:
        self.inner, self.read = source, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def gather(self, addresses: np.ndarray, out: Tensor) -> None:
        self.read += len(addresses)
        self.inner.gather(addresses, out)


def counted() -> dict[str, Any]:
    """The sets of pooled features, which count."""
    return {
        name: replace(data, source=Counted(data.source))
        for name, data in (("train", SETS.train["pooled"]), ("dev", SETS.dev["pooled"]))
    }


def test_what_several_want_is_read_once() -> None:
    one, four = counted(), counted()
    together.alone(steps(together.ALONE, made("linear", "aoc"), **one))
    names = [("linear", "aoc"), ("mlp", "aoc"), ("linear", "cross_entropy"), ("linear", "qamo")]
    turns(*(partial(steps, which=made(*each), **four) for each in names))
    extra = 60 * 3  # of each training, the training sample after an epoch; the rest of an epoch is shared
    assert one["train"].source.read == 2 * extra
    assert four["train"].source.read == extra + 4 * extra
    ends = one["dev"].source.read - 30 * 3  # the passes over dev that choose the result
    assert four["dev"].source.read - 30 * 3 >= 4 * 30
    assert four["dev"].source.read - 30 * 3 <= 4 * (ends + 30)


def test_other_seeds_sizes_of_batches_and_views_are_read_apart() -> None:
    others = [
        {},
        {"seed": 4},
        {"params": TRAIN.model_copy(update={"batch_size": 12})},
        {"augment": Augment(("noise_0",), 0.9)},
    ]
    trainings = [partial(steps, which=made("mlp", "aoc"), **other) for other in others]
    for training, fitted in zip(trainings, turns(*trainings), strict=True):
        assert same(fitted, together.alone(training(together.ALONE)))


def test_where_one_ends_early_or_fails_the_others_go_on() -> None:
    rates = LearningRates(backend=1e30, centroids=1e30, layers=1e30)
    trainings: list[Any] = [
        partial(steps, which=made("mlp", "cross_entropy"), params=TRAIN.model_copy(update={"learning_rate": rates})),
        partial(steps, which=made("mlp", "aoc"), params=TRAIN.model_copy(update={"patience": 1, "epochs": 9})),
        partial(steps, which=made("asp", "aoc"), labels=None),  # fails before its first batch
        partial(steps, which=made("mlp", "aoc"), params=TRAIN.model_copy(update={"epochs": 9, "patience": 9})),
    ]
    diverged, early, broken, whole = turns(*trainings)
    assert isinstance(diverged, InputError)
    assert "lower train.learning_rate" in str(diverged)
    assert isinstance(broken, TypeError)
    assert len(early.curves) < len(whole.curves) == 9
    for fitted, training in ((early, trainings[1]), (whole, trainings[3])):
        assert same(fitted, together.alone(training(together.ALONE)))


def test_one_that_changes_its_features_changes_them_for_itself() -> None:
    class Careless(member("backends", "mlp").Backend):
        def forward(self, features: Tensor, n_frames: Tensor) -> Tensor:
            features.mul_(2)
            return super().forward(features, n_frames)

    careful = made("mlp", "aoc")
    careless = partial(Careless, *careful[0].args, **careful[0].keywords), careful[1]
    trainings = [partial(steps, which=which) for which in (careful, careless, careful, careless)]
    found = turns(*trainings)
    for training, fitted in zip(trainings, found, strict=True):
        assert same(fitted, together.alone(training(together.ALONE)))
    assert not same(found[0], found[1])


def test_each_goes_on_from_its_own_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in epochs 2 and 4 and not yet begun, they go on side by side, and the one behind is waited for."""
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0)
    params = TRAIN.model_copy(update={"epochs": 5, "patience": 5})
    trainings = [partial(steps, which=made("mlp", name), params=params) for name in ("aoc", "qamo", "cross_entropy")]
    for number, epochs in ((0, 1), (1, 3)):
        short = trainings[number](together.ALONE, checkpoint=tmp_path / str(number))
        while next(short)[0] <= epochs:
            pass
        short.close()
    at: list[tuple[int, bool]] = []
    real = loop.train_epoch

    def watched(learner: loop.Learner, optimizer: Any, epoch: int) -> together.Stops[float]:
        at.append((epoch, "qamo" in type(learner.system.loss).__module__))
        return real(learner, optimizer, epoch)

    monkeypatch.setattr(loop, "train_epoch", watched)
    found = turns(*(partial(training, checkpoint=tmp_path / str(i)) for i, training in enumerate(trainings)))
    assert sorted(epoch for epoch, _ in at) == [1, 2, 2, 3, 3, 4, 4, 4, 5, 5, 5]
    assert [epoch for epoch, qamo in at if not qamo] == [2, 1, 2, 3, 3, 4, 4, 5, 5]
    for training, fitted in zip(trainings, found, strict=True):
        assert same(fitted, together.alone(training(together.ALONE)))


def test_features_that_cannot_be_read_end_all_that_read_them() -> None:
    """And none takes the batches before that for an epoch."""
    sets = counted()

    def gather(addresses: np.ndarray, out: Tensor) -> None:
        sets["dev"].source.read += 1
        if sets["dev"].source.read > 1:
            raise InputError("a damaged shard")
        sets["dev"].source.inner.gather(addresses, out)

    sets["dev"].source.gather = gather
    some = partial(steps, which=made("linear", "aoc"), **sets)
    found = turns(some, some, partial(steps, which=made("linear", "aoc")))
    assert [str(error) for error in found[:2]] == ["a damaged shard"] * 2
    assert isinstance(found[2], loop.Fitted)


def test_a_clock_runs_in_its_own_turns_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(together.time, "perf_counter", lambda: clock[0])

    def taking(seconds: float, seat: together.Seat) -> together.Stops[float]:
        start = seat.now()
        for batch in range(3):
            clock[0] += seconds
            yield 1, 0, batch
        return seat.now() - start

    assert turns(partial(taking, 2.0), partial(taking, 5.0)) == [6.0, 15.0]
