"""Attention over the windows of an utterance: the numbers of naive loops, in training, scoring and detection."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from pipeline import commands, detect
from pipeline.analysis import embeddings
from pipeline.audio import decode
from pipeline.backends import asp
from pipeline.core import trial_table
from pipeline.core.errors import InputError
from pipeline.core.members import member
from pipeline.core.sections import WindowsParams
from pipeline.core.windows import Window
from pipeline.detect import package
from pipeline.features import dataset, sampling
from pipeline.features.sampling import Augment
from pipeline.features.sources import WindowsTogether
from pipeline.metrics.eer import eer_of
from pipeline.scoring import centroids, runs, scorer
from pipeline.scoring.attention import OverWindows, over_windows
from pipeline.training import heads, loop, together
from tests import backends, systems
from tests.systems import FRAMES, POOLED, WINDOW
from tests.test_fit import TRAIN, cell, run_of, same, separable
from tests.test_fused import fuse_runs

ATTENTION = WindowsParams(count=3, reduce="attention")
pytestmark = pytest.mark.usefixtures("one_thread")


def several(n: int, *, seed: int, views: tuple[str, ...] = ()) -> dataset.Dataset:
    """A set of three windows, of which the later ones are noisier, and augmented views after them."""
    data = separable(n, seed=seed, views=ATTENTION.names(["clean", *views])[1:])
    return replace(data, views=views, windows=ATTENTION, source=WindowsTogether(data.source, 3))


def rows_of(data: dataset.Dataset) -> np.ndarray:
    """Features (3, N, L, T, D) of its windows, and of those of the views after them."""
    array: np.ndarray = data.source.source.tensor.numpy()  # type: ignore[attr-defined]
    return array.reshape(-1, len(data), *array.shape[1:])


def naive(module: OverWindows, windows: list[torch.Tensor], n_frames: torch.Tensor) -> np.ndarray:
    """The embeddings (B, E) of windows (B, L, T, D), utterance by utterance."""
    with torch.inference_mode():
        each = [module.backend(window, n_frames).numpy() for window in windows]
    query, found = module.query.detach().numpy(), []
    for utterance in zip(*each, strict=True):
        raw = [np.exp(float(sum(query * embedding))) for embedding in utterance]
        found.append(sum(one / sum(raw) * embedding for one, embedding in zip(raw, utterance, strict=True)))
    return np.stack(found)


# ---------------------------------------------------------------- the module


@pytest.mark.parametrize("name", backends.NAMES)
def test_an_embedding_is_a_weighted_mean_of_those_of_the_windows(name: str) -> None:
    module = over_windows(backends.make(name), ATTENTION).double().eval()
    assert isinstance(module, OverWindows)
    features, n_frames = backends.features_for(module), backends.N_FRAMES
    windows = [features, -features, 0.3 * features + 0.1]
    with torch.inference_mode():
        plain = module(torch.stack(windows, 1), n_frames)
        each = torch.stack([module.backend(window, n_frames) for window in windows])
        torch.testing.assert_close(plain, each.mean(0))  # it starts as the mean
        module.query.copy_(backends.noise(module.embedding_dim))
        found = module(torch.stack(windows, 1), n_frames)
        alike = module(torch.stack([features] * 3, 1), n_frames)
        torch.testing.assert_close(alike, module.backend(features, n_frames))
        torch.testing.assert_close(module(features[:, None], n_frames), module.backend(features, n_frames))
    np.testing.assert_allclose(found, naive(module, windows, n_frames), rtol=1e-8, atol=1e-10)
    assert (found - plain).abs().max() > 1e-4


@pytest.mark.parametrize("windows", [WindowsParams(), WindowsParams(reduce="attention"), WindowsParams(count=3)])
def test_no_attention_leaves_a_backend_as_it_is(windows: WindowsParams) -> None:
    backend = nn.Identity()
    assert over_windows(backend, windows) is backend
    assert windows.apart == windows.count


def test_a_backend_that_gives_something_else_is_named() -> None:
    backend = asp.Backend(layers=2, channels=6, embedding_dim=5)
    backend.forward = lambda features, _n_frames: features[:1, 0, 0]
    with pytest.raises(InputError, match=r"backends/asp.py: expected `Backend.forward` to return embeddings \(6, 5\)"):
        OverWindows(backend)(torch.zeros(2, 3, 2, 4, 6), torch.tensor([4, 4]))


def test_all_windows_of_an_utterance_in_a_view_are_one_row() -> None:
    data = several(7, seed=0, views=("noise_0", "trim"))
    array = rows_of(data)
    addresses = np.array([4, 0, 6, 7 * data.place("trim") + 2, 7 * data.place("noise_0") + 4])
    features, n_frames = data.features(addresses)
    expected = [array[:3, 4], array[:3, 0], array[:3, 6], array[6:, 2], array[3:6, 4]]
    np.testing.assert_array_equal(features.numpy(), np.stack(expected))
    assert n_frames.tolist() == [4] * 5
    both = dataset.join([data, several(5, seed=1, views=("noise_0", "trim"))])
    joined, _ = both.features(np.array([12 * both.place("trim") + 8, 3]))
    np.testing.assert_array_equal(joined[1].numpy(), array[:3, 3])
    np.testing.assert_array_equal(joined[0].numpy(), rows_of(several(5, seed=1, views=("noise_0", "trim")))[6:, 1])


# ---------------------------------------------------------------- training


def learner_of(data: dataset.Dataset, **given: Any) -> heads.HeadLearner:
    found = run_of(data, **given)
    return replace(found, system=heads.Head(over_windows(found.system.backend, ATTENTION), found.system.loss))


def test_an_epoch_reads_all_windows_of_the_drawn_view(monkeypatch: pytest.MonkeyPatch) -> None:
    data = several(30, seed=0, views=("noise_0", "narrowband"))
    learner, seen = learner_of(data, augment=Augment(("narrowband",), 0.4)), []
    monkeypatch.setattr(heads.HeadLearner, "loss", lambda _self, batch, _labels: seen.append(batch[0].clone()))
    list(learner.losses(2))
    views, _ = learner.drawn(2)
    assert set(views.tolist()) == {-1, 0}
    array, places = rows_of(data), {-1: [0, 1, 2], 0: [6, 7, 8]}
    order = sampling.batches(data.trials.is_bonafide, size=16, seed=5, epoch=2)
    for features, rows in zip(seen, order, strict=True):
        expected = np.stack([array[places[views[row]], row] for row in rows.tolist()])
        np.testing.assert_array_equal(features.numpy(), expected)


@pytest.mark.parametrize("loss", ["cross_entropy", "qamo", "aoc"])
def test_a_training_learns_the_weights_and_selects_by_the_deployed_score(loss: str) -> None:
    train, dev = several(90, seed=0), several(60, seed=1)
    params = TRAIN.model_copy(update={"epochs": 3, "batch_size": 16})
    fitted, _ = heads.fit_cell(cell("asp", loss), train=train, dev=dev, params=params, seed=3)
    assert isinstance(fitted.backend, OverWindows)
    assert fitted.backend.query.abs().max() > 1e-3
    index, names = centroids.build(fitted.centroids), dev.trials.utterance.tolist()
    windows, n_frames = [torch.from_numpy(window) for window in rows_of(dev)], torch.full((60,), 4)
    expected = scorer.score(naive(fitted.backend, windows, n_frames), index, names=names)
    np.testing.assert_allclose(fitted.dev_scores, expected, rtol=1e-4, atol=1e-5)
    assert fitted.dev_eer == 100 * eer_of(fitted.dev_scores, dev.trials.is_bonafide).eer
    assert scorer.score_all(fitted.backend, index, dev).tobytes() == fitted.dev_scores.tobytes()


def test_the_training_sample_and_dev_are_embedded_with_all_windows() -> None:
    data = several(12, seed=0)
    learner = learner_of(data)
    with torch.no_grad():
        learner.system.backend.query.fill_(2.0)
    rows, n_frames = np.array([1, 5, 8]), torch.full((12,), 4)
    expected = naive(learner.system.backend, [torch.from_numpy(window) for window in rows_of(data)], n_frames)
    np.testing.assert_allclose(np.concatenate(list(learner.embed_dev())), expected, rtol=1e-4, atol=1e-5)
    with torch.inference_mode():
        found = torch.cat(list(learner.embed_train(rows)))
    np.testing.assert_allclose(found, expected[rows], rtol=1e-4, atol=1e-5)


def test_trainings_together_come_to_the_bits_of_each_alone() -> None:
    train, dev = several(60, seed=0, views=("noise_0",)), several(30, seed=1)
    labels = sampling.labels(train.trials, (3.0,))

    def training(name: str, seat: together.Seat) -> together.Stops[loop.Fitted]:
        make = partial(member("backends", "asp").Backend, layers=2, channels=6, embedding_dim=5)
        return heads.fit_steps(
            make, partial(cell("asp", name).make_loss, speakers=0, layers=2), train=train, dev=dev, labels=labels,
            params=TRAIN.model_copy(update={"epochs": 2}), seed=3, augment=Augment(("noise_0",), 0.4), seat=seat,
        )  # fmt: skip

    names, found = ["aoc", "qamo", "cross_entropy"], {}

    def kept(name: str, seat: together.Seat) -> together.Stops[None]:
        found[name] = yield from training(name, seat)

    assert not [error for _, error in together.take_turns([partial(kept, name) for name in names]) if error]
    for name in names:
        assert same(found[name], together.alone(training(name, together.ALONE)))


# ---------------------------------------------------------------- the flow and detection


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny project of three windows with attention, and a fusion of its runs."""
    folder = systems.make(tmp_path_factory.mktemp("attention") / "project", count=3, reduce="attention")
    with contextlib.chdir(folder):
        fuse_runs(POOLED, FRAMES)
    return folder


@pytest.fixture
def inside(flow: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(flow)
    return flow


def eval_set(name: str) -> tuple[OverWindows, dataset.Dataset]:
    table = trial_table.read(Path("data/trials/eval.csv"))
    run, receipt = Path("data/runs", name), Path("data/features/eval.json")
    return runs.backend(run), scorer.open_set(run, receipt, table, root=Path("data/cache"))


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("name", [POOLED, FRAMES])
def test_a_score_and_an_embedding_are_of_all_windows(name: str) -> None:
    module, data = eval_set(name)
    assert module.query.abs().max() > 1e-3
    features, n_frames = data.features(np.arange(len(data)))
    embedded = naive(module, list(features.unbind(1)), n_frames)
    names = data.trials.utterance.tolist()
    expected = scorer.score(embedded, runs.index(Path("data/runs", name)), names=names)
    np.testing.assert_allclose(list(systems.scores(name)), expected, rtol=1e-4, atol=1e-5)
    stored = embeddings.read(Path("data/embeddings", name, "eval"))
    np.testing.assert_allclose(stored.vectors, embedded, rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("name", [POOLED, FRAMES])
def test_detection_gives_the_scores_of_the_flow_and_names_the_window_of_largest_weight(name: str) -> None:
    found = list(detect.load(name).detect(systems.audio("eval"), explain=True))
    np.testing.assert_allclose([one.score for one in found], list(systems.scores(name)), rtol=0, atol=1e-5)
    module, data = eval_set(name)
    features, n_frames = data.features(np.arange(len(data)))
    with torch.inference_mode():
        each = torch.stack([module.backend(window, n_frames) for window in features.unbind(1)], 1)
        heaviest = (each @ module.query).argmax(1).tolist()
    longer = 0
    for path, one, window in zip(systems.audio("eval"), found, heaviest, strict=True):
        samples = decode.load(path)
        if len(samples) <= WINDOW:
            assert one.part is None
            continue
        longer += 1
        start = Window(window, 3).start(len(samples), length=WINDOW) / 16_000
        assert one.part == pytest.approx((start, start + WINDOW / 16_000))
    assert longer > 3


@pytest.mark.usefixtures("inside")
def test_embeddings_of_files_are_those_of_the_flow() -> None:
    system = detect.load(POOLED, windows="first")
    found = np.stack(list(system.embeddings(systems.audio("eval"))))
    stored = embeddings.read(Path("data/embeddings", POOLED, "eval"))
    np.testing.assert_allclose(found, stored.vectors, rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("inside")
def test_a_file_without_an_embedding_is_told_among_the_others(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silent.wav", np.zeros(4 * WINDOW, np.float32), 16_000)
    paths = [tmp_path / "none.wav", systems.audio("eval")[0], tmp_path / "silent.wav"]
    none, found, silent = detect.load(POOLED).embeddings(paths)
    assert isinstance(none, detect.Unreadable)
    assert isinstance(silent, detect.Unreadable)
    assert "silent" in silent.why
    assert isinstance(found, np.ndarray)


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("windows", ["first", "mean", "min"])
def test_other_windows_are_embedded_one_by_one(windows: Any) -> None:
    system, path = detect.load(POOLED, windows=windows), systems.audio("eval")[1]
    scores = system.timeline(path).score
    expected = {"first": scores[0], "mean": scores.mean(), "min": scores.min()}[windows]
    assert system.score(path) == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.usefixtures("inside")
def test_a_fusion_gives_the_scores_of_the_flow() -> None:
    lines = Path("data/fusions/both/scores/eval.txt").read_text().splitlines()
    system = detect.load("both")
    found = list(system.detect(systems.audio("eval")))
    assert [one.score for one in found] == pytest.approx([float(line.split()[1]) for line in lines], abs=1e-4)
    told = json.loads(Path("data/fusions/both/fusion.json").read_text())
    lead = detect.load(max(told["weights"], key=told["weights"].get))
    assert [one.part for one in found] == [one.part for one in lead.detect(systems.audio("eval"))]


@pytest.mark.usefixtures("inside")
def test_a_package_scores_as_its_run_and_says_what_its_score_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package.write(POOLED, tmp_path / "package")
    wanted, paths = list(systems.scores(POOLED)), [path.resolve() for path in systems.audio("eval")]
    with contextlib.chdir(tmp_path):
        np.testing.assert_allclose(list(detect.load("package").scores(paths)), wanted, rtol=0, atol=1e-5)
        commands.dispatch(["detect", *map(str, paths), "--run", "package"])
    assert "window of largest weight at 0.0 to 0.2 s" in capsys.readouterr().out
    said = (tmp_path / "package/model_card.md").read_text()
    assert "The score is that of one embedding, by attention, of 3 windows of a recording" in said


def test_weights_without_attention_are_refused(flow: Path, tmp_path: Path) -> None:
    shutil.copytree(flow / "data/runs" / POOLED, tmp_path / "run")
    card = json.loads((tmp_path / "run/run.json").read_text())
    card["kind"]["windows"]["reduce"] = "mean"
    (tmp_path / "run/run.json").write_text(json.dumps(card))
    with pytest.raises(InputError, match=r"weights and card do not fit.*\n.*layer_weights.*expected .*, got none"):
        runs.backend(tmp_path / "run")
