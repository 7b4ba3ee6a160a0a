"""Training: the same bits from the same seed, the right checkpoints, the right learning rates, nothing pickled."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.backends import asp, linear
from pipeline.core.contracts import Centroids, Facts
from pipeline.core.devices import device_of
from pipeline.core.errors import InputError
from pipeline.core.params_file import load
from pipeline.core.sections import LearningRates, TrainParams
from pipeline.core.trial_table import Row, Trials, from_rows
from pipeline.features import dataset, sampling, sources
from pipeline.features.dataset import Dataset
from pipeline.features.sampling import Augment
from pipeline.features.sources import Held
from pipeline.losses import aoc, cross_entropy, qamo
from pipeline.metrics.eer import Eer
from pipeline.scoring import centroids, runs, scorer
from pipeline.training import adam, cells, checkpoints, heads, loop, selection, together
from pipeline.training import history as history_module
from pipeline.training.cells import Cell
from tests.places import SETTINGS

ROOT = Path(__file__).parents[1]
LOSSES = {"aoc": aoc, "cross_entropy": cross_entropy, "qamo": qamo}
TRAIN = TrainParams(
    set="train",
    device="cpu",
    precision="float32",
    epochs=6,
    batch_size=16,
    learning_rate=LearningRates(backend=0.01, centroids=0.01, layers=0.05),
    weight_decay=1e-4,
    patience=6,
    average_best=2,
)


def separable(n: int, *, seed: int, distance: float = 0.4, views: tuple[str, ...] = ()) -> Dataset:
    """Utterances whose classes differ in the mean of one channel of the second of two layers; views are noisier."""
    rng = np.random.default_rng(seed)
    rows = [
        Row(f"t:{i}", f"u{i}", f"{i}.wav", "spoof" if i % 3 else "bonafide", quality=f"{1 + 4 * (i % 7) / 6}")
        for i in range(n)
    ]
    trials = from_rows(rows, source="t")
    array = rng.normal(size=(n, 2, 4, 6)).astype(np.float32)
    array[trials.is_bonafide, 1, :, 2] += 2 * distance
    noisy = [array + rng.normal(size=array.shape).astype(np.float32) for _ in views]
    data = Dataset(
        name=f"set{seed}",
        trials=trials,
        source=Held(torch.zeros(0), np.full(n, 4, dtype=np.int32)),
        layers=(1, 2),
        channels=6,
        encoder="e",
        digest=f"{seed} {distance}",
        views=views,
    )
    return holding(data, np.concatenate([array, *noisy]))


def holding(data: Dataset, array: np.ndarray) -> Dataset:
    return replace(data, source=Held(torch.from_numpy(array), data.source.n_frames))


def array_of(data: Dataset) -> np.ndarray:
    return data.source.tensor.numpy()


def cell(backend: str, loss: str) -> Cell:
    return cells.find(load(SETTINGS), backend=backend, loss=loss, layers="all", views="clean")


def test_a_backend_that_does_not_say_its_width_is_refused_before_it_is_trained() -> None:
    widthless = replace(cell("linear", "aoc"), backend=lambda **_parameters: torch.nn.Linear(1, 1))
    with pytest.raises(InputError, match=r"backends/linear\.py: expected `self\.embedding_dim`"):
        widthless.make_backend(layers=1, channels=1)


def fitted(
    backend: str = "asp",
    loss: str = "qamo",
    params: TrainParams = TRAIN,
    distance: float = 0.4,
    *,
    seed: int = 3,
    views: tuple[str, ...] = (),
    probability: float = 0.0,
    checkpoint: Path | None = None,
    how: Any = loop.steps,
) -> loop.Fitted:
    chosen = cell(backend, loss)
    train, dev = separable(90, seed=0, distance=distance, views=views), separable(60, seed=1, distance=distance)
    cuts = sampling.thresholds(train.trials, levels=chosen.split.levels, given=chosen.split.thresholds)
    if backend == "linear":
        train, dev = (holding(data, pooled(array_of(data))) for data in (train, dev))
    return heads.fit(
        partial(chosen.make_backend, layers=2, channels=6),
        partial(chosen.make_loss, speakers=0, layers=2),
        train=train,
        dev=dev,
        labels=sampling.labels(train.trials, cuts),
        params=params,
        seed=seed,
        augment=Augment(views, probability),
        checkpoint=checkpoint,
        how=how,
    )


def pooled(frames: np.ndarray) -> np.ndarray:
    return np.stack([frames.mean(2), frames.std(2)], axis=2)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("backend", ["linear", "asp"])
def test_every_cell_learns_what_can_be_learnt(backend: str, loss: str) -> None:
    result = fitted(backend, loss, TRAIN.model_copy(update={"epochs": 25, "patience": 25}), distance=2.0)
    assert result.dev_eer < 5


@pytest.mark.parametrize("loss", LOSSES)
def test_the_same_seed_gives_the_same_bits(loss: str) -> None:
    torch.manual_seed(1)
    first = fitted(loss=loss)
    torch.manual_seed(2)  # the global generator plays no part
    before = torch.get_rng_state()
    second = fitted(loss=loss)
    assert torch.equal(torch.get_rng_state(), before)
    for name, tensor in first.backend.state_dict().items():
        assert torch.equal(tensor, second.backend.state_dict()[name])
    assert first.centroids.vectors.tobytes() == second.centroids.vectors.tobytes()
    assert first.curves == second.curves
    assert first.dev_scores.tobytes() == second.dev_scores.tobytes()
    assert fitted(loss=loss, seed=4).curves != first.curves


def test_samo_trains_where_a_speaker_has_spoofs_alone() -> None:
    """Such a speaker is numbered like an unknown one: no centre can be made of spoofs."""
    chosen, params = cell("linear", "samo"), TRAIN.model_copy(update={"epochs": 4, "patience": 4})
    data = separable(30, seed=0)
    speakers = np.array([("both", "spoof only", "both")[i % 3] for i in range(30)])
    data = replace(holding(data, pooled(array_of(data))), trials=replace(data.trials, speaker=speakers))
    labels = sampling.labels(data.trials, ())
    assert labels.speaker.tolist() == [0, -1, 0] * 10
    fitted = heads.fit(
        partial(chosen.make_backend, layers=2, channels=6),
        partial(chosen.make_loss, speakers=1, layers=2),
        train=data,
        dev=data,
        labels=labels,
        params=params,
        seed=0,
    )
    assert fitted.centroids.vectors.shape[0] == 1
    assert len(fitted.path) == 4


def test_adam_is_torchs_adam() -> None:
    def steps(make: Any) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        groups = [(list(model[0].parameters()), 0.1), (list(model[2].parameters()), 0.01)]
        optimizer = make(groups)
        for i in range(5):
            model(torch.full((2, 3), float(i))).sum().backward()
            optimizer.step()
            model.zero_grad()
        return [p.detach() for p in model.parameters()]

    ours = steps(lambda groups: adam.Adam(groups, weight_decay=0.02))
    theirs = steps(lambda groups: torch.optim.Adam([{"params": p, "lr": lr} for p, lr in groups], weight_decay=0.02))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-7)


def test_learning_rates_go_to_backend_centroids_and_layer_weights() -> None:
    backend, loss = asp.Backend(layers=2, channels=6, embedding_dim=5), qamo.Loss(Facts(5, 2, 0))
    rates = LearningRates(backend=1.0, centroids=2.0, layers=3.0)
    found = {id(p): rate for parameters, rate in adam.groups(backend, loss, rates) for p in parameters}
    names = dict(backend.named_parameters(prefix="backend")) | dict(loss.named_parameters(prefix="loss"))
    assert len(found) == len(names)
    assert {name: found[id(p)] for name, p in names.items() if found[id(p)] > 1} == {
        "loss.centres": 2.0,
        **{name: 3.0 for name in names if name.endswith("logits")},
    }
    assert sum(name.endswith("logits") for name in names) == 1


class Scripted(nn.Module):
    """A backend whose only weight counts the optimiser's steps, so that checkpoints can be told apart."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding_dim = 6
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, features: torch.Tensor, _n_frames: torch.Tensor) -> torch.Tensor:
        return features.mean((1, 2)) + 0 * self.weight


@pytest.mark.parametrize(("mean", "averages"), [(15.0, True), (20.0, True), (20.1, False), (99.0, False)])
def test_selection_averages_the_best_where_that_is_no_worse_and_stops_after_patience(
    monkeypatch: pytest.MonkeyPatch, mean: float, averages: bool
) -> None:
    errors = [40.0, 30.0, 35.0, 30.0, 20.0, 25.0, 20.0, 30.0]
    script = iter([*errors, mean, mean if averages else 20.0])
    weights: list[float] = []

    made = Scripted()

    def scripted_eer(_scores: np.ndarray, _dev: Trials) -> Eer:
        weights.append(made.weight.item())
        return Eer(next(script) / 100, 0.5, 0)

    def step(self: adam.Adam, **_: object) -> None:
        for parameters, _, _ in self._groups:
            for p in parameters:
                if p.ndim == 0:
                    p.data += 1

    monkeypatch.setattr(loop, "dev_eer", scripted_eer)
    monkeypatch.setattr(adam.Adam, "step", step)
    train = separable(30, seed=0)
    result = heads.fit(
        lambda: made,
        partial(cell("asp", "aoc").make_loss, speakers=0, layers=2),
        train=train,
        dev=train,
        labels=sampling.labels(train.trials, ()),
        params=TRAIN.model_copy(update={"epochs": 20, "patience": 3, "average_best": 3}),
        seed=3,
    )
    assert [e.dev_eer for e in result.curves] == [40, 30, 35, 30, 20, 25, 20, 30]  # the third without a lower one
    best = min((5, 7), key=lambda epoch: result.curves[epoch - 1].dev_loss)
    kept = (5, 6, 7) if averages else (best,)
    assert (result.dev_eer, result.dev_threshold) == (mean if averages else 20, 0.5)
    assert result.selection.kept == kept
    assert result.backend.weight.item() == pytest.approx(np.mean([weights[i - 1] for i in kept]))
    assert result.selection.facts == {
        "averaged": [5, 6, 7],
        "mean_dev_eer": mean,
        "best_epoch": best,
        "best_dev_eer": 20.0,
        "taken": "mean" if averages else "best epoch",
    }
    assert next(script, None) is None


def test_the_selected_system_is_never_worse_on_dev_than_its_best_epoch() -> None:
    """On data that is nearly noise the mean of five epochs is often worse; then the best one comes back, to the bit."""
    taken = []
    for seed in range(8):
        params = TRAIN.model_copy(update={"average_best": 5, "epochs": 8, "patience": 8})
        result = fitted("asp", ("qamo", "aoc", "cross_entropy")[seed % 3], params, distance=0.2, seed=seed)
        best = min(result.curves, key=lambda line: (line.dev_eer, line.dev_loss, line.epoch))
        assert result.dev_eer <= best.dev_eer
        assert result.selection.best == best
        assert result.selection.takes_best == any("as it was" in remark for remark in result.remarks)
        if result.selection.takes_best:
            assert result.dev_eer == best.dev_eer
            assert result.centroids.vectors.tobytes() == result.path[best.epoch - 1].tobytes()
        taken.append(result.selection.takes_best)
    assert len(set(taken)) == 2  # both happen here


def test_an_epoch_far_from_the_best_is_not_averaged() -> None:
    """Of 20 bona fide the best epoch misses 2: by hand, Wilson's upper end of 2 in 20 is 30.10 %."""
    dev = separable(60, seed=1).trials
    history = history_module.History()
    for epoch, error in enumerate([60.0, 30.2, 10.0, 30.0, 12.0], start=1):
        history.add(history_module.Epoch(epoch, 0.0, error, seconds=0.0), ONE_CENTROID, {}, keep=5)
    assert selection.good_epochs(history, 5, dev) == (3, 5, 4)
    assert selection.good_epochs(history, 2, dev) == (3, 5)
    learnt_nothing = history_module.History()
    for epoch, error in enumerate([50.0, 49.0, 55.0], start=1):
        learnt_nothing.add(history_module.Epoch(epoch, 0.0, error, seconds=0.0), ONE_CENTROID, {}, keep=5)
    assert selection.good_epochs(learnt_nothing, 5, dev) == (2,)


ONE_CENTROID = Centroids(np.ones((1, 2), np.float32), normalize_query=True, bias=0.0, reduce="max")


def test_of_equally_good_epochs_the_lower_dev_loss_decides_and_then_the_earlier() -> None:
    history = history_module.History()
    lines = [(30.0, 0.5), (20.0, 0.4), (30.0, 0.1), (20.0, 0.3), (30.0, 0.5), (20.0, np.nan)]
    for epoch, (error, loss) in enumerate(lines, start=1):
        line = history_module.Epoch(epoch, 0.0, error, seconds=0.0, dev_loss=loss)
        history.add(line, ONE_CENTROID, {}, keep=4)
    assert history.best(3) == [4, 2, 6]
    assert history.best(9) == [4, 2, 6, 3, 1, 5]
    assert sorted(history.states) == [2, 3, 4, 6]


def test_patience_counts_from_the_first_of_the_lowest() -> None:
    history = history_module.History()
    assert not history.done(TRAIN)
    for epoch, error in enumerate([5.0, 3.0, 3.0, 4.0], start=1):
        history.add(history_module.Epoch(epoch, 0.0, error, seconds=0.0), ONE_CENTROID, {}, keep=3)
    for epochs, patience, done in ((9, 2, True), (9, 3, False), (4, 3, True)):
        assert history.done(TRAIN.model_copy(update={"epochs": epochs, "patience": patience})) is done


@pytest.mark.parametrize("loss", ["aoc", "qamo", "oc_softmax", "cross_entropy"])
def test_the_path_is_where_the_centroids_were_after_each_epoch(monkeypatch: pytest.MonkeyPatch, loss: str) -> None:
    seen = []
    real = loop.train_epoch

    def watched(learner: loop.Learner, optimizer: adam.Adam, epoch: int) -> together.Stops[float]:
        value = yield from real(learner, optimizer, epoch)
        seen.append(learner.system.loss.centroids().vectors.tolist())
        return value

    monkeypatch.setattr(loop, "train_epoch", watched)
    path = fitted(loss=loss).path
    assert path.dtype == np.float32
    assert path.tolist() == seen
    assert len(np.unique(path[:, 0], axis=0)) == len(seen)  # they move


def test_centres_of_speakers_are_enrolled_between_epochs_and_by_the_final_backend(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen = cell("linear", "samo")
    frames = separable(90, seed=0)
    speakers = np.array([f"s{i % 5}" for i in range(90)])
    trials = replace(frames.trials, speaker=speakers)
    train = replace(holding(frames, pooled(array_of(frames))), trials=trials)
    labels = sampling.labels(trials, ())
    made = []

    def make_loss(**facts: int) -> nn.Module:
        made.append(chosen.make_loss(speakers=5, layers=2, **facts))
        enrol = made[0].enrol
        monkeypatch.setattr(made[0], "enrol", lambda *given: (calls.append(epochs_started[-1]), enrol(*given)))
        start = made[0].start_epoch
        monkeypatch.setattr(
            made[0], "start_epoch", lambda epoch, *rest: (epochs_started.append(epoch), start(epoch, *rest))
        )
        return made[0]

    calls: list[int] = []
    epochs_started: list[int] = []
    monkeypatch.setattr(loop, "dev_eer", lambda _scores, _dev: Eer(0.2, 0.5, 0))  # so that the mean is no worse
    result = heads.fit(
        partial(chosen.make_backend, layers=2, channels=6),
        make_loss,
        train=train,
        dev=train,
        labels=labels,
        params=TRAIN.model_copy(update={"epochs": 8, "patience": 8}),
        seed=3,
    )
    assert epochs_started == list(range(1, 9))
    assert calls == [4, 7, 8, 8]  # every third epoch; at the end to select, and as it is deployed
    rows = np.flatnonzero(trials.is_bonafide)
    with torch.no_grad():
        embeddings = result.backend(*train.features(rows)).numpy()
    for speaker in range(5):
        mean = embeddings[labels.speaker[rows].numpy() == speaker].mean(0)
        np.testing.assert_allclose(result.centroids.vectors[speaker], mean / np.linalg.norm(mean), atol=1e-5)


# ---------------------------------------------------------------- going on after a kill


class KilledError(Exception):
    """Stands for the end of the process."""


def same(a: loop.Fitted, b: loop.Fitted) -> bool:
    weights = [fitted.backend.state_dict() | {"c": torch.from_numpy(fitted.centroids.vectors)} for fitted in (a, b)]
    equal = all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    facts = [(f.path.tobytes(), f.dev_eer, f.dev_threshold, f.dev_scores.tobytes()) for f in (a, b)]
    return equal and facts[0] == facts[1] and (a.curves, a.selection) == (b.curves, b.selection)


@pytest.mark.parametrize("loss", ["aoc", "qamo"])
@pytest.mark.parametrize("at", [1, 2, 4, 6, 7])  # 7: after the last epoch
def test_a_killed_training_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str, at: int
) -> None:
    file = tmp_path / "run.checkpoint"
    how = {"loss": loss, "views": ("noise_0",), "probability": 0.3}
    undisturbed = fitted(**how)
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0)
    real_epoch, real_finish, trained = loop.train_epoch, loop._finished, []

    def dying(learner: loop.Learner, optimizer: adam.Adam, epoch: int) -> together.Stops[float]:
        trained.append(epoch)
        if trained == list(range(1, at + 1)) and at < 7:
            # killed in the middle: what it did since the checkpoint must not count
            yield from real_epoch(learner, optimizer, epoch)
            raise KilledError
        return (yield from real_epoch(learner, optimizer, epoch))

    def dying_at_the_end(*given: Any, **named: Any) -> loop.Fitted:
        if at == 7 and len(trained) == 6 and not ended:
            ended.append(True)
            raise KilledError
        return real_finish(*given, **named)

    ended: list[bool] = []
    monkeypatch.setattr(loop, "train_epoch", dying)
    monkeypatch.setattr(loop, "_finished", dying_at_the_end)
    with pytest.raises(KilledError):
        fitted(checkpoint=file, **how)
    assert file.is_dir() == (at > 1)
    assert same(fitted(checkpoint=file, **how), undisturbed)
    assert trained == [*range(1, min(at, 6) + 1), *range(at, 7)]  # nothing that was kept is trained again
    assert [path.name for path in tmp_path.iterdir()] == [file.name]  # the caller's, until the result is on disk


@pytest.mark.parametrize(("loss", "patience"), [("qamo", 6), ("aoc", 1)])
def test_a_training_in_parts_comes_to_the_bits_of_an_undisturbed_one(tmp_path: Path, loss: str, patience: int) -> None:
    """Its best epochs, which are averaged, lie before and after the ends of the parts; or it ends within one."""
    params = TRAIN.model_copy(update={"epochs": 6, "patience": patience, "average_best": 4})
    given: Any = {"backend": "linear", "loss": loss, "params": params, "views": ("noise_0",), "probability": 0.5}
    whole = fitted(**given)
    assert (len(whole.curves) < 6) == (patience == 1)
    for until in (2, 5, 1):
        begun: Any = fitted(**given, checkpoint=tmp_path / "c", how=partial(loop.begin, until=until))
        assert begun == whole.curves[: max(until, 5 if until == 1 else 0)]
    assert same(fitted(**given, checkpoint=tmp_path / "c"), whole)


def test_patience_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dev EER of a resumed training is compared with the lowest before the kill, not with infinity."""
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0)
    errors = iter([10.0, 20.0, 20.0, 99.0, 20.0, 99.0, 99.0])
    monkeypatch.setattr(loop, "dev_eer", lambda _scores, _dev: Eer(next(errors) / 100, 0.5, 0))
    params = TRAIN.model_copy(update={"patience": 3})
    real = loop.train_epoch

    def dying(learner: loop.Learner, optimizer: adam.Adam, epoch: int) -> together.Stops[float]:
        if epoch == 4:
            raise KilledError
        return real(learner, optimizer, epoch)

    monkeypatch.setattr(loop, "train_epoch", dying)
    with pytest.raises(KilledError):
        fitted(params=params, checkpoint=tmp_path / "c")
    next(errors)
    monkeypatch.setattr(loop, "train_epoch", real)
    assert [epoch.dev_eer for epoch in fitted(params=params, checkpoint=tmp_path / "c").curves] == [10, 20, 20, 20]


def test_seconds_go_on_counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each epoch takes 35 s here, before and after the kill; the time between the two counts for nothing."""
    clock = [500.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0)
    real = loop.train_epoch

    def slow(learner: loop.Learner, optimizer: adam.Adam, epoch: int) -> together.Stops[float]:
        if epoch == 4 and clock[0] < 1000:
            raise KilledError
        clock[0] += 35
        return real(learner, optimizer, epoch)

    monkeypatch.setattr(loop, "train_epoch", slow)
    with pytest.raises(KilledError):
        fitted(checkpoint=tmp_path / "c")
    clock[0] = 9000.0
    assert [epoch.seconds for epoch in fitted(checkpoint=tmp_path / "c").curves] == [35, 70, 105, 140, 175, 210]


@pytest.mark.parametrize("seconds", [60.0, 0.0])
def test_checkpoints_are_written_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    clock = [0.0]
    written: list[float] = []
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", seconds)
    monkeypatch.setattr(loop, "_save", lambda *_args, **_more: written.append(clock[0]))
    real = loop.train_epoch

    def slow(learner: loop.Learner, optimizer: adam.Adam, epoch: int) -> together.Stops[float]:
        clock[0] += 35
        return real(learner, optimizer, epoch)

    monkeypatch.setattr(loop, "train_epoch", slow)
    fitted(checkpoint=tmp_path / "c")
    assert written == ([70, 140, 210] if seconds else [35, 70, 105, 140, 175, 210])


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 4},
        {"params": TRAIN.model_copy(update={"weight_decay": 1e-3})},
        {"distance": 0.5},
        {"views": ("noise_0",), "probability": 0.5},
        {"backend": "linear"},
        {"loss": "cross_entropy"},
    ],
)
def test_a_checkpoint_of_another_run_is_left_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: dict[str, Any]
) -> None:
    expected = fitted(**other)
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0)
    fitted(checkpoint=tmp_path / "c")
    assert (tmp_path / "c" / "last.safetensors").is_file()
    assert same(fitted(checkpoint=tmp_path / "c", **other), expected)


def test_seed_and_views_alone_tell_runs_apart() -> None:
    """Even where the initial weights are the same."""
    run = run_of(separable(12, seed=0, views=("noise_0",)))
    augmented = [replace(run, augment=Augment(("noise_0",), probability)) for probability in (0.2, 0.3)]
    joined = replace(run, features=replace(run.features, groups=np.arange(12) // 6))
    relabelled = replace(run, labels=replace(run.labels, level=run.labels.level.clamp(max=1)))
    runs = [run, replace(run, seed=6), *augmented, joined, relabelled]
    assert len({one.identity for one in runs}) == len(runs)
    assert replace(run).identity == run.identity


def test_hyperparameters_that_are_no_tensors_tell_runs_apart() -> None:
    facts = Facts(5, 2, 0)
    first = checkpoints.facts_of(qamo.Loss(facts))
    assert first == checkpoints.facts_of(qamo.Loss(facts))
    assert first != checkpoints.facts_of(qamo.Loss(facts, alpha=19.0))
    assert first != checkpoints.facts_of(qamo.Loss(facts, reduce="max"))


SCRIPT = """
import os, signal, sys
from pathlib import Path
from pipeline.training import loop
from tests.test_fit import fitted

real = loop.train_epoch
def dying(learner, optimizer, epoch):
    mean = yield from real(learner, optimizer, epoch)
    if epoch == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return mean
loop.train_epoch = dying
loop.CHECKPOINT_SECONDS = 0
fitted(checkpoint=Path(sys.argv[1]))
"""


def test_sigkill_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "c"
    ended = subprocess.run([sys.executable, "-c", SCRIPT, str(file)], cwd=ROOT, capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    trained = []
    real = loop.train_epoch
    monkeypatch.setattr(
        loop,
        "train_epoch",
        lambda learner, optimizer, epoch: trained.append(epoch) or real(learner, optimizer, epoch),
    )
    resumed = fitted(checkpoint=file)
    assert trained == [4, 5, 6]
    assert same(resumed, fitted())


# ---------------------------------------------------------------- precision, device, views, several sets


def test_bfloat16_computes_the_backend_in_it_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[torch.dtype]] = {"train": set(), "eval": set()}
    real_forward = asp.Backend.forward

    def forward(self: nn.Module, features: torch.Tensor, n_frames: torch.Tensor) -> torch.Tensor:
        embeddings = real_forward(self, features, n_frames)
        seen["train" if self.training else "eval"].add(embeddings.dtype)
        assert features.dtype == torch.float32
        return embeddings

    monkeypatch.setattr(asp.Backend, "forward", forward)
    params = TRAIN.model_copy(update={"precision": "bfloat16", "epochs": 25, "patience": 25})
    result = fitted(params=params, distance=2.0)
    assert seen == {"train": {torch.bfloat16}, "eval": {torch.float32}}
    assert {tensor.dtype for tensor in result.backend.parameters()} == {torch.float32}
    assert result.dev_eer < 5
    assert fitted(params=TRAIN, distance=2.0).curves != result.curves[:6]


def test_dev_scores_are_those_that_score_would_write() -> None:
    result = fitted()
    dev = separable(60, seed=1)
    expected = scorer.score_all(result.backend, centroids.build(result.centroids), dev)
    assert result.dev_scores.dtype == np.float32
    assert result.dev_scores.tobytes() == expected.tobytes()
    assert 100 * selection.dev_eer(result.dev_scores, dev.trials).eer == result.dev_eer


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of("auto", key="k") == device_of("cpu", key="k") == torch.device("cpu")
    with pytest.raises(InputError, match=r"train\.device: expected a GPU"):
        fitted(params=TRAIN.model_copy(update={"device": "cuda"}))


def run_of(
    train: Dataset, *, augment: Augment = sampling.NO_AUGMENT, cuts: tuple[float, ...] = (2.0, 4.0)
) -> heads.HeadLearner:
    backend, loss = asp.Backend(layers=2, channels=6, embedding_dim=5), aoc.Loss(Facts(5, 3, 0))
    return heads.HeadLearner(
        system=heads.Head(backend, loss),
        train=train.trials,
        dev=train.trials,
        features=train,
        dev_features=train,
        labels=sampling.labels(train.trials, cuts),
        params=TRAIN,
        seed=5,
        augment=augment,
        device=torch.device("cpu"),
    )


def optimizer_of(run: heads.HeadLearner) -> adam.Adam:
    return adam.Adam(run.groups(), weight_decay=0.0)


def test_views_are_drawn_as_often_as_asked_and_lower_the_quality_level() -> None:
    n, views = 6000, ("noise_0", "rawboost4_0", "narrowband")
    data = separable(12, seed=0, views=views)
    trials = data.trials.take(np.arange(n) % 12)
    trials = replace(trials, quality=np.where(np.arange(n) % 5 == 0, np.nan, trials.quality))
    run = run_of(replace(data, trials=trials), augment=Augment(("narrowband", "noise_0"), 0.4))
    drawn, labels = run.drawn(1)
    share = np.bincount(drawn + 1, minlength=3) / n
    np.testing.assert_allclose(share, [0.6, 0.2, 0.2], atol=0.02)
    for before, after, view in zip(run.labels.level.tolist(), labels.level.tolist(), drawn.tolist(), strict=True):
        assert after == (before if view < 0 or before < 0 else max(before - 1, 0))
    assert set(run.labels.level.tolist()) == {-1, 0, 1, 2}
    assert torch.equal(labels.is_bonafide, run.labels.is_bonafide)
    np.testing.assert_array_equal(run.drawn(1)[0], drawn)
    for other in (run.drawn(2)[0], replace(run, seed=6).drawn(1)[0]):
        assert 0.3 < np.mean((drawn < 0) != (other < 0)) < 0.65  # independent: 2 · 0.4 · 0.6


def test_clean_training_and_enrolment_see_the_clean_view_alone() -> None:
    train = separable(30, seed=0, views=("noise_0",))
    run = run_of(train)
    drawn, labels = run.drawn(1)
    assert set(drawn.tolist()) == {-1}
    assert torch.equal(labels.level, run.labels.level)
    augmented = replace(run, augment=Augment(("noise_0",), 1.0))
    assert set(augmented.drawn(1)[0].tolist()) == {0}
    clean = loop.enrolment(run)[0]
    assert torch.equal(loop.enrolment(augmented)[0], clean)
    rows = np.flatnonzero(train.trials.is_bonafide)
    with torch.no_grad():
        assert torch.equal(clean, run.system.backend(*train.features(rows)))


def test_an_epoch_is_its_steps_by_a_naive_loop() -> None:
    """What stands in a batch: the features of the drawn view with the lowered label, in the sampler's order."""
    train = separable(50, seed=0, views=("noise_0", "narrowband"))
    torch.manual_seed(0)
    run = run_of(train, augment=Augment(("narrowband", "noise_0"), 0.5))
    torch.manual_seed(0)
    naive = run_of(train)
    mean = together.alone(loop.train_epoch(run, optimizer_of(run), 2))
    assert torch.initial_seed() == (5 << 20) + 2  # dropout's
    drawn, labels = run.drawn(2)
    address = {-1: 0, 0: 100, 1: 50}  # of the first utterance, by the view drawn
    torch.manual_seed((5 << 20) + 2)
    optimizer, losses = optimizer_of(naive), []
    for rows in sampling.batches(train.trials.is_bonafide, size=16, seed=5, epoch=2):
        features = torch.from_numpy(array_of(train)[[address[drawn[row]] + row for row in rows.tolist()]])
        losses.append(naive.loss((features, torch.full((len(rows),), 4)), sampling.take(labels, rows)).item())
        optimizer.step()
    assert mean == sum(losses) / len(losses)
    for name, tensor in run.system.state_dict().items():
        assert torch.equal(tensor, naive.system.state_dict()[name])


def test_joined_sets_are_trained_on_in_equal_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    joined = dataset.join([separable(60, seed=0), separable(15, seed=1)])
    run = run_of(joined)
    seen: list[np.ndarray] = []
    real = sampling.take
    monkeypatch.setattr(sampling, "take", lambda labels, rows: seen.append(rows) or real(labels, rows))
    together.alone(loop.train_epoch(run, optimizer_of(run), 1))
    assert len(seen) == -(-120 // TRAIN.batch_size)
    for rows in seen:
        shares = np.bincount(joined.groups[rows], minlength=2)
        assert abs(shares[0] - shares[1]) <= 1


def test_average_by_hand() -> None:
    states = [
        {"w": torch.tensor([1.0, 2.0]), "count": torch.tensor(7)},
        {"w": torch.tensor([3.0, 6.0]), "count": torch.tensor(9)},
    ]
    mean = history_module.average([state.__getitem__ for state in states], states[0])
    assert mean["w"].tolist() == [2.0, 4.0]
    assert mean["count"].item() == 7


def test_a_loss_that_explodes_is_an_error() -> None:
    rates = LearningRates(backend=1e30, centroids=1e30, layers=1e30)
    with pytest.raises(InputError, match=r"epoch \d: the loss is (nan|inf|-inf); lower train\.learning_rate"):
        fitted(loss="cross_entropy", params=TRAIN.model_copy(update={"learning_rate": rates}))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_saved_run_scores_as_it_did(tmp_path: Path, loss: str) -> None:
    """Weights, centroids and index on disk give the scores of the modules in memory, and those of plain torch."""
    result = fitted("asp", loss)
    dev = separable(60, seed=1)
    weights = {name: tensor.numpy() for name, tensor in result.backend.state_dict().items()}
    parameters = cell("asp", loss).backend_parameters
    card = {"backend": "asp", "backend_parameters": parameters, "kind": dev.kind, "reads": "frames"}
    runs.save(tmp_path / "run", weights=weights, centroids=result.centroids, card=card)
    scores = scorer.score_all(runs.backend(tmp_path / "run"), runs.index(tmp_path / "run"), dev)

    result.backend.eval()
    with torch.no_grad():
        embeddings = result.backend(*dev.features(np.arange(60))).double()
    query = nn.functional.normalize(embeddings) if result.centroids.normalize_query else embeddings
    similarities = query @ torch.from_numpy(result.centroids.vectors).double().T
    expected = (similarities.mean(1) + result.centroids.bias).numpy()
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-6)
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files == {"backend.safetensors", "centroids.faiss", "run.json"}
    assert json.loads((tmp_path / "run" / "run.json").read_text())["scoring"]["reduce"] in ("max", "mean")
    assert runs.centroids(tmp_path / "run").vectors.tobytes() == result.centroids.vectors.tobytes()


def test_embeddings_outlast_the_memory_of_their_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "CHUNK_BYTES", 1)
    data = separable(150, seed=0)
    kept = list(scorer.embed(Flat(), data))
    np.testing.assert_array_equal(np.concatenate(kept), array_of(data).reshape(150, -1))


def test_a_set_is_scored_in_the_view_that_is_asked_for() -> None:
    data = separable(150, seed=0, views=("noise_0", "trim"))
    rows = array_of(data).reshape(3, 150, -1)
    for view in range(3):
        np.testing.assert_array_equal(np.concatenate(list(scorer.embed(Flat(), data, view=view))), rows[view])


class Flat(nn.Module):
    """A backend whose embeddings are the memory of the features."""

    def forward(self, features: torch.Tensor, _n_frames: torch.Tensor) -> torch.Tensor:
        return features.flatten(1)


@pytest.mark.parametrize("reduce", ["max", "mean", "softmax"])
@pytest.mark.parametrize("normalize", [True, False])
def test_scores_by_a_naive_loop(reduce: str, normalize: bool) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(5, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    embeddings = rng.normal(size=(30, 8)).astype(np.float32)
    embeddings[3] = 0
    index = centroids.build(Centroids(vectors, normalize_query=normalize, bias=0.25, reduce=reduce))
    got = scorer.score(embeddings, index, names=[str(i) for i in range(30)])
    for x, value in zip(embeddings.astype(float), got, strict=True):
        q = x / max(np.linalg.norm(x), 1e-12) if normalize else x
        s = [float(q @ v) for v in vectors.astype(float)]
        weights = [np.exp(u) / sum(np.exp(w) for w in s) for u in s]
        expected = {"max": max(s), "mean": sum(s) / 5, "softmax": sum(w * u for w, u in zip(weights, s, strict=True))}
        assert value == pytest.approx(expected[reduce] + 0.25, abs=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("reduce", ["max", "mean", "softmax"])
def test_an_embedding_that_is_not_finite_is_never_a_score(value: float, reduce: str) -> None:
    index = centroids.build(Centroids(np.eye(2, 4, dtype=np.float32), normalize_query=True, bias=0.0, reduce=reduce))
    embeddings = np.ones((3, 4), dtype=np.float32)
    embeddings[1, 2] = value
    with pytest.raises(InputError, match="utterance b: expected a finite embedding"):
        scorer.score(embeddings, index, names=["a", "b", "c"])


def test_linear_reads_pooled_and_asp_frames() -> None:
    assert (linear.Backend.reads, asp.Backend.reads) == ("pooled", "frames")


def test_a_centroid_that_no_utterance_would_train_is_refused() -> None:
    chosen = cell("asp", "qamo")
    train, dev = separable(90, seed=0), separable(60, seed=1)
    high = replace(chosen, split=cells.QualitySplit(2, (0.0,)))
    with pytest.raises(
        InputError, match=r"params\.yaml:\d+: losses\.qamo: expected bona fide .*, got 0, \d+ from the low"
    ):
        heads.fit_cell(high, train=train, dev=dev, params=TRAIN, seed=1)
