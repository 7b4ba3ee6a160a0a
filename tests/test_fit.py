"""Training: the same bits from the same seed, the right checkpoints, the right learning rates, nothing pickled."""

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

from pipeline import cells, centroids, dataset, fit, runs, scoring
from pipeline.backends import asp, linear
from pipeline.cells import Cell
from pipeline.contracts import Centroids, Facts
from pipeline.dataset import Dataset
from pipeline.errors import InputError
from pipeline.losses import aoc, cross_entropy, qamo
from pipeline.metrics.eer import Eer
from pipeline.params import LearningRates, TrainParams, load
from pipeline.trials import Row, from_rows

ROOT = Path(__file__).parents[1]
LOSSES = {"aoc": aoc, "cross_entropy": cross_entropy, "qamo": qamo}
TRAIN = TrainParams(
    seed=3,
    epochs=6,
    batch_size=16,
    learning_rate=LearningRates(backend=0.01, centroids=0.01, layers=0.05),
    weight_decay=1e-4,
    patience=6,
    average_best=2,
)


@dataclass(frozen=True)
class Memory:
    """A reader over an array in RAM, (N, L, T, D) or (N, L, 2, D)."""

    array: np.ndarray

    @property
    def n_frames(self) -> np.ndarray:
        return np.full(len(self.array), self.array.shape[2], dtype=np.int32)

    def gather(self, rows: np.ndarray) -> np.ndarray:
        return self.array[rows]


def separable(n: int, *, seed: int, distance: float = 0.4) -> Dataset:
    """Utterances whose classes differ in the mean of one channel of the second of two layers."""
    rng = np.random.default_rng(seed)
    rows = [
        Row(f"t:{i}", f"u{i}", f"{i}.wav", "spoof" if i % 3 else "bonafide", quality=f"{1 + 4 * (i % 7) / 6}")
        for i in range(n)
    ]
    trials = from_rows(rows, source="t")
    array = rng.normal(size=(n, 2, 4, 6)).astype(np.float32)
    array[trials.is_bonafide, 1, :, 2] += 2 * distance
    return Dataset(trials=trials, reader=Memory(array), layers=(1, 2), channels=6, encoder="e", digest="")


def cell(backend: str, loss: str) -> Cell:
    return cells.find(load(ROOT / "params.yaml"), backend=backend, loss=loss)


def fitted(backend: str = "asp", loss: str = "qamo", params: TrainParams = TRAIN, distance: float = 0.4) -> fit.Fitted:
    chosen = cell(backend, loss)
    train, dev = separable(90, seed=0, distance=distance), separable(60, seed=1, distance=distance)
    cuts = dataset.thresholds(train.trials, levels=chosen.split.levels, given=chosen.split.thresholds)
    if backend == "linear":
        train, dev = (replace(d, reader=Memory(pooled(d.reader.array))) for d in (train, dev))
    return fit.fit(
        partial(chosen.make_backend, layers=2, channels=6),
        partial(chosen.make_loss, speakers=0),
        train=train,
        dev=dev,
        labels=dataset.labels(train.trials, cuts),
        params=params,
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
    other = fitted(loss=loss, params=TRAIN.model_copy(update={"seed": 4}))
    assert other.curves != first.curves


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

    ours = steps(lambda groups: fit.Adam(groups, weight_decay=0.02))
    theirs = steps(lambda groups: torch.optim.Adam([{"params": p, "lr": lr} for p, lr in groups], weight_decay=0.02))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-7)


def test_learning_rates_go_to_backend_centroids_and_layer_weights() -> None:
    backend, loss = asp.Backend(layers=2, channels=6, embedding_dim=5), qamo.Loss(Facts(5, 2, 0))
    rates = LearningRates(backend=1.0, centroids=2.0, layers=3.0)
    found = {id(p): rate for parameters, rate in fit.groups(backend, loss, rates) for p in parameters}
    names = dict(backend.named_parameters(prefix="backend")) | dict(loss.named_parameters(prefix="loss"))
    assert len(found) == len(names)
    assert {name: found[id(p)] for name, p in names.items() if found[id(p)] > 1} == {
        "loss.centers": 2.0,
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


def test_selection_averages_the_best_and_stops_after_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    script = iter([40.0, 30.0, 35.0, 30.0, 20.0, 25.0, 20.0, 30.0, 99.0])
    weights: list[float] = []

    def scripted_eer(backend: nn.Module, _loss: nn.Module, _dev: Dataset) -> Eer:
        weights.append(backend.weight.item())
        return Eer(next(script) / 100, 0.5, 0)

    def step(self: fit.Adam) -> None:
        for parameters, _, _ in self._groups:
            for p in parameters:
                if p.ndim == 0:
                    p.data += 1

    monkeypatch.setattr(fit, "dev_eer", scripted_eer)
    monkeypatch.setattr(fit.Adam, "step", step)
    train = separable(30, seed=0)
    result = fit.fit(
        Scripted,
        partial(cell("asp", "aoc").make_loss, speakers=0),
        train=train,
        dev=train,
        labels=dataset.labels(train.trials, ()),
        params=TRAIN.model_copy(update={"epochs": 20, "patience": 3, "average_best": 3}),
    )
    assert [e.dev_eer for e in result.curves] == [40, 30, 35, 30, 20, 25, 20, 30]  # the third without a lower one
    assert (result.dev_eer, result.dev_threshold) == (99, 0.5)
    assert result.kept == (5, 6, 7)
    assert result.backend.weight.item() == pytest.approx(np.mean([weights[i] for i in (4, 5, 6)]))


def test_centres_of_speakers_are_enrolled_between_epochs_and_by_the_final_backend(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen = cell("linear", "samo")
    frames = separable(90, seed=0)
    speakers = np.array([f"s{i % 5}" for i in range(90)])
    trials = replace(frames.trials, speaker=speakers)
    train = replace(frames, trials=trials, reader=Memory(pooled(frames.reader.array)))
    labels = dataset.labels(trials, ())
    made = []

    def make_loss(**facts: int) -> nn.Module:
        made.append(chosen.make_loss(speakers=5, **facts))
        enrol = made[0].enrol
        monkeypatch.setattr(made[0], "enrol", lambda *given: (calls.append(epochs_started[-1]), enrol(*given)))
        start = made[0].start_epoch
        monkeypatch.setattr(
            made[0], "start_epoch", lambda epoch, *rest: (epochs_started.append(epoch), start(epoch, *rest))
        )
        return made[0]

    calls: list[int] = []
    epochs_started: list[int] = []
    result = fit.fit(
        partial(chosen.make_backend, layers=2, channels=6),
        make_loss,
        train=train,
        dev=train,
        labels=labels,
        params=TRAIN.model_copy(update={"epochs": 8, "patience": 8}),
    )
    assert epochs_started == list(range(1, 9))
    assert calls == [4, 7, 8]  # every third epoch, and the end
    rows = np.flatnonzero(trials.is_bonafide)
    with torch.no_grad():
        embeddings = result.backend(*train.features(rows)).numpy()
    for speaker in range(5):
        mean = embeddings[labels.speaker[rows].numpy() == speaker].mean(0)
        np.testing.assert_allclose(result.centroids.vectors[speaker], mean / np.linalg.norm(mean), atol=1e-5)


def test_average_by_hand() -> None:
    states = [
        {"w": torch.tensor([1.0, 2.0]), "count": torch.tensor(7)},
        {"w": torch.tensor([3.0, 6.0]), "count": torch.tensor(9)},
    ]
    mean = fit.average(states)
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
    centroids.write(centroids.build(runs.centroids(tmp_path / "run")), tmp_path / "index")
    index = centroids.read(tmp_path / "index")
    scores = scoring.score_all(runs.backend(tmp_path / "run"), index, dev)

    result.backend.eval()
    with torch.no_grad():
        embeddings = result.backend(*dev.features(np.arange(60))).double()
    query = nn.functional.normalize(embeddings) if result.centroids.normalize_query else embeddings
    similarities = query @ torch.from_numpy(result.centroids.vectors).double().T
    expected = (similarities.mean(1) + result.centroids.bias).numpy()
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-6)
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files == {"backend.safetensors", "centroids.safetensors", "run.json"}
    assert json.loads((tmp_path / "run" / "run.json").read_text())["scoring"]["reduce"] in ("max", "mean")
    assert (
        load_file(tmp_path / "run" / "centroids.safetensors")["vectors"].tobytes() == result.centroids.vectors.tobytes()
    )


@pytest.mark.parametrize("reduce", ["max", "mean", "softmax"])
@pytest.mark.parametrize("normalize", [True, False])
def test_scores_by_a_naive_loop(reduce: str, normalize: bool) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(5, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    embeddings = rng.normal(size=(30, 8)).astype(np.float32)
    embeddings[3] = 0
    index = centroids.build(Centroids(vectors, normalize_query=normalize, bias=0.25, reduce=reduce))
    got = scoring.score(embeddings, index, names=[str(i) for i in range(30)])
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
        scoring.score(embeddings, index, names=["a", "b", "c"])


def test_an_index_gives_its_centroids_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    first = Centroids(rng.normal(size=(3, 8)).astype(np.float32), normalize_query=False, bias=-0.5, reduce="softmax")
    centroids.write(centroids.build(first), tmp_path / "index")
    back = centroids.read(tmp_path / "index").centroids()
    assert back.same_as(first)
    assert not back.same_as(replace(first, bias=0.5))
    assert not back.same_as(replace(first, vectors=first.vectors + np.float32(1e-6)))


def test_a_folder_of_other_things_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("work")
    index = centroids.build(Centroids(np.eye(2, 4, dtype=np.float32), normalize_query=True, bias=0.0, reduce="max"))
    with pytest.raises(InputError, match="got a folder of other things"):
        centroids.write(index, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "work"
    centroids.write(index, tmp_path / "index")
    centroids.write(index, tmp_path / "index")


def test_index_and_card_that_disagree_are_refused(tmp_path: Path) -> None:
    first = Centroids(np.eye(2, 4, dtype=np.float32), normalize_query=True, bias=0.0, reduce="max")
    centroids.write(centroids.build(first), tmp_path / "a")
    assert json.loads((tmp_path / "a" / "centroids.json").read_text()) == {
        "centroids": 2,
        "embedding_dim": 4,
        "normalize_query": True,
        "bias": 0.0,
        "reduce": "max",
    }
    centroids.write(centroids.build(replace(first, vectors=np.eye(3, 4, dtype=np.float32))), tmp_path / "b")
    (tmp_path / "b" / "centroids.json").write_text((tmp_path / "a" / "centroids.json").read_text())
    with pytest.raises(InputError, match="expected 2 centroids of width 4 by the card, got 3 of width 4"):
        centroids.read(tmp_path / "b")
    with pytest.raises(InputError, match="no centroid index there; run `dvc repro -f index`"):
        centroids.read(tmp_path / "c")


def test_damaged_or_missing_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no trained run there; run `dvc repro -f train`"):
        runs.centroids(tmp_path)
    card = {"scoring": {}, "backend": "asp", "backend_parameters": {}, "kind": {}, "reads": "frames"}
    (tmp_path / "run.json").write_text(json.dumps(card))
    (tmp_path / "centroids.safetensors").write_bytes(b"\x80\x04pickled")
    with pytest.raises(InputError, match="not weights that this project wrote"):
        runs.centroids(tmp_path)


def test_linear_reads_pooled_and_asp_frames() -> None:
    assert (linear.Backend.reads, asp.Backend.reads) == ("pooled", "frames")
