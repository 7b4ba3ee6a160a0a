"""Several windows of an utterance: where they begin, what the store holds, how training and scoring use them."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from pipeline import detect
from pipeline.audio import decode, loader, views, windowing
from pipeline.audio.loader import Clip
from pipeline.core import params_file, trial_table, windows
from pipeline.core.contracts import Centroids
from pipeline.core.errors import InputError
from pipeline.core.sections import WindowParams, WindowsParams
from pipeline.core.windows import Window
from pipeline.detect import fused, hearing, package
from pipeline.encoder.cards import Card
from pipeline.extraction import hdf5
from pipeline.features import dataset, receipt_files, sampling
from pipeline.features.sampling import Augment
from pipeline.metrics import scorefile
from pipeline.metrics.eer import eer_of
from pipeline.metrics.fusion import Fusion
from pipeline.scoring import centroids, runs, scorer
from pipeline.training import drawing, heads, loop
from stages import extract, score
from tests import systems
from tests.conftest import Corpus
from tests.places import SETTINGS
from tests.systems import FRAMES, POOLED, WINDOW, run_stage
from tests.test_extract import PARAMS, in_threads, make_encoder, run, store_of
from tests.test_fit import Flat, array_of, cell, run_of, separable
from tests.test_store import tree

__all__ = ["in_threads"]  # a fixture
THREE = WindowsParams(count=3)


# ---------------------------------------------------------------- where they begin


@pytest.mark.parametrize(
    ("samples", "hop", "starts"),
    [
        (10, None, [0, 3, 6]),  # the last one ends with the utterance
        (10, 2, [0, 2, 4]),
        (10, 5, [0, 3, 6]),  # too short for this hop
        (9, None, [0, 2, 5]),
        (5, 1, [0, 0, 1]),
        (4, None, [0, 0, 0]),
        (3, 2, [0, 0, 0]),
    ],
)
def test_starts_by_hand(samples: int, hop: int | None, starts: list[int]) -> None:
    """Three windows of four samples."""
    assert [Window(number, 3, hop).start(samples, length=4) for number in range(3)] == starts


@given(
    samples=st.integers(1, 10_000), length=st.integers(400, 2_000), count=st.integers(1, 20), hop=st.integers(0, 3_000)
)
def test_windows_lie_in_the_utterance_in_order(samples: int, length: int, count: int, hop: int) -> None:
    starts = [Window(number, count, hop or None).start(samples, length=length) for number in range(count)]
    room = max(samples - length, 0)
    assert starts[0] == 0
    assert starts == sorted(starts)
    steps = np.diff(starts)
    if hop and hop * (count - 1) <= room:
        assert set(steps.tolist()) <= {hop}
    elif count > 1:
        assert starts[-1] == room
        assert np.ptp(steps) <= 1  # spread evenly


@given(
    view=st.sampled_from(["clean", "mp3_32", "trim", "recorded_noise10_0"]),
    count=st.integers(2, windows.MOST),
    hop=st.none() | st.integers(1, 10**9 - 1),
    data=st.data(),
)
def test_a_name_is_that_of_one_window_of_one_view(view: str, count: int, hop: int | None, data: st.DataObject) -> None:
    window = Window(data.draw(st.integers(1, count - 1)), count, hop)
    assert windows.parse(window.name(view)) == (view, window)
    assert windows.parse(Window(0, count, hop).name(view)) == (view, windows.FIRST)


def test_names_by_hand() -> None:
    assert WindowsParams(count=3).names(["clean", "mp3_32"]) == (
        "clean", "window_1_of_3", "window_2_of_3", "mp3_32", "mp3_32_window_1_of_3", "mp3_32_window_2_of_3",
    )  # fmt: skip
    assert WindowsParams(count=2, hop=800).names(["clean"]) == ("clean", "window_1_of_2_hop_800")


@pytest.mark.parametrize(
    "name",
    ["clean", "window_0_of_3", "window_3_of_3", "window_01_of_3", "window_1_of_3_hop_0", "window_1_of_3_hop_",
     "window_1_of_3/..", "window_1_of_3\n", "window_1_of_1001", "noise_0", "noise_0window_1_of_3"],
)  # fmt: skip
def test_other_names_are_of_no_window(name: str) -> None:
    assert windows.parse(name) == (name, windows.FIRST)


def test_a_silent_window_is_left_for_the_first(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, 3_000).astype(np.float32)
    samples[1_000:2_000] = 0
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    clip = Clip("a", tmp_path / "a.wav", decode.digest((tmp_path / "a.wav").read_bytes()))
    found = [
        loader.load_window(clip, view=view, window=WindowParams(samples=1_000, pad="repeat"))[0]
        for view in THREE.names(["clean"])
    ]
    for cut, start in zip(found, (0, 0, 2_000), strict=True):
        np.testing.assert_array_equal(cut, samples[start : start + 1_000])


# ---------------------------------------------------------------- what the store holds


@pytest.mark.parametrize("pad", ["repeat", "zero"])
@pytest.mark.parametrize("hop", [None, 300])
@pytest.mark.usefixtures("in_threads")
def test_the_store_holds_what_the_encoder_gives_of_each_window_of_each_view(
    corpus: Corpus, tmp_path: Path, card: Card, pad: str, hop: int | None
) -> None:
    chosen = {"windows": WindowsParams(count=3, hop=hop), "views": ("noise_0",)}
    params = PARAMS.model_copy(update={"window": WindowParams(samples=3_200, pad=pad), **chosen})
    receipt = run(corpus, tmp_path, card, params)
    each = [(view, number) for view in ("clean", "noise_0") for number in range(3)]
    group = zarr.open_group(store_of(tmp_path, receipt), mode="r")
    encode, (folder, trials) = make_encoder((1, 3)), corpus
    moved = 0
    for i, path in enumerate(trials.path):
        clean = decode.load(folder / path)
        for (view, number), name in zip(each, receipt["views"], strict=True):
            whole = views.apply(view, clean, utterance=str(trials.utterance[i]))
            room = max(len(whole) - 3_200, 0)
            start = int(number * (room if hop is None else min(room, 2 * hop)) / 2)
            moved += start > 0
            samples, valid = windowing.window(whole[start:], length=3_200, pad=pad)
            taps, n_frames = encode(torch.from_numpy(samples)[None], torch.tensor([valid]))
            assert group["n_frames"][i] == n_frames.item()
            for layer, features in taps.items():
                frames = features[0, : n_frames.item()].numpy()
                got = group[f"{name}/layer_{layer:02d}"][i].astype(np.float32)
                np.testing.assert_allclose(got[: len(frames)], frames, atol=4e-3)  # float16 up to 4
    assert moved >= 12


@pytest.mark.usefixtures("in_threads")
def test_one_window_stays_as_it_is_and_others_are_added_to_its_store(
    corpus: Corpus, tmp_path: Path, card: Card
) -> None:
    one = run(corpus, tmp_path, card)
    before = tree(store_of(tmp_path, one))
    assert run(corpus, tmp_path, card, PARAMS.model_copy(update={"windows": WindowsParams()})) == one
    grown = run(corpus, tmp_path, card, PARAMS.model_copy(update={"windows": THREE}))
    assert "windows" not in one
    assert grown["windows"] == {"count": 3, "hop": None, "reduce": "mean"}
    assert (grown["store"], grown["views"]) == (one["store"], ["clean", "window_1_of_3", "window_2_of_3"])
    after = tree(store_of(tmp_path, one))
    assert {name: after[name] for name in before} == before
    least = run(corpus, tmp_path, card, PARAMS.model_copy(update={"windows": WindowsParams(count=3, reduce="min")}))
    assert tree(store_of(tmp_path, one)) == after  # another way to reduce computes nothing
    assert least == grown | {"windows": {"count": 3, "hop": None, "reduce": "min"}}


@pytest.mark.usefixtures("in_threads")
def test_a_choice_of_layers_and_views_keeps_all_windows(corpus: Corpus, tmp_path: Path, card: Card) -> None:
    params = PARAMS.model_copy(update={"windows": THREE, "views": ("noise_0", "trim")})
    (tmp_path / "dev.json").write_text(json.dumps(run(corpus, tmp_path, card, params)))
    ((store, receipt),) = receipt_files.open_receipts(tmp_path / "dev.json", root=tmp_path).values()
    chosen = receipt_files.selected(store, receipt, layers=[3], views=["trim"])
    assert chosen["views"] == ["clean", "window_1_of_3", "window_2_of_3", *THREE.names(["trim"])]
    (tmp_path / "dev.json").write_text(json.dumps(chosen))
    data = dataset.open_set(tmp_path / "dev.json", corpus[1], root=tmp_path, reads="frames", views=["trim"])
    assert (data.windows, data.place("trim"), data.kind["windows"]) == (THREE, 3, THREE.model_dump())
    group = zarr.open_group(store.path, mode="r")
    for place, view in enumerate(chosen["views"]):
        np.testing.assert_array_equal(data.features(np.arange(10) + 10 * place)[0][:, 0], group[f"{view}/layer_03"][:])


@pytest.mark.usefixtures("in_threads")
def test_all_windows_go_to_a_file_of_hdf5_and_come_back(corpus: Corpus, tmp_path: Path, card: Card) -> None:
    params = PARAMS.model_copy(update={"windows": WindowsParams(count=2, hop=800), "views": ("noise_0",)})
    (tmp_path / "dev.json").write_text(json.dumps(receipt := run(corpus, tmp_path, card, params)))
    hdf5.export(tmp_path / "dev.json", tmp_path / "dev.h5", root=tmp_path, trials=corpus[1])
    back = hdf5.bring_back(tmp_path / "dev.h5", root=tmp_path / "other")
    assert back.digest(receipt["views"], receipt["layers"]) == receipt["digest"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"windows": {"count": 0}}, "expected a receipt with the windows of an utterance"),
        ({"windows": {"count": 3, "reduce": "max"}}, "expected a receipt with the windows of an utterance"),
        ({"windows": [3]}, "expected a receipt with the windows of an utterance"),
        ({"windows": {"count": 3}}, "expected a receipt with the views window_1_of_3, window_2_of_3, got one without"),
    ],
)
def test_a_receipt_of_other_windows_than_it_has_is_refused(
    corpus: Corpus, tmp_path: Path, card: Card, change: dict[str, Any], message: str
) -> None:
    (tmp_path / "dev.json").write_text(json.dumps(run(corpus, tmp_path, card) | change))
    with pytest.raises(InputError, match=message):
        receipt_files.read_receipts(tmp_path / "dev.json")


# ---------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("extract", {"windows": {"count": 1, "hop": 800}}, "expected a hop with a count of 2 or more"),
        ("extract", {"windows": {"count": 0}}, "windows.count: .*greater than or equal to 1"),
        (
            "extract",
            {"windows": {"count": 2, "reduce": "max"}},
            "windows.reduce: expected 'mean', 'min' or 'attention'",
        ),
    ],
)
def test_windows_that_cannot_be_are_told_with_their_line(
    tmp_path: Path, section: str, values: dict[str, Any], message: str
) -> None:
    settings = YAML(typ="safe").load(SETTINGS)
    settings["extract"]["windows"] = {"count": 2}
    settings[section] |= values
    YAML(typ="safe").dump(settings, tmp_path / "params.yaml")
    with pytest.raises(InputError, match=rf"params.yaml:\d+: {section}.*{message}"):
        params_file.load(tmp_path / "params.yaml")


# ---------------------------------------------------------------- training and scoring


def several(n: int, *, seed: int, chosen: WindowsParams = THREE, views: tuple[str, ...] = ()) -> dataset.Dataset:
    """A set in which later windows are noisier, and augmented views after them."""
    data = separable(n, seed=seed, views=chosen.names(["clean", *views])[1:])
    return replace(data, views=views, windows=chosen)


def test_training_draws_every_window_alike() -> None:
    count = 6_000
    drawn = drawing.drawn_windows(count, 3, seed=5, epoch=1)
    np.testing.assert_allclose(np.bincount(drawn) / count, [1 / 3] * 3, atol=0.02)
    for other in (drawing.drawn_windows(count, 3, seed=5, epoch=2), drawing.drawn_windows(count, 3, seed=6, epoch=1)):
        assert 0.6 < np.mean(drawn != other) < 0.73  # independent: 2 / 3
    assert not drawing.drawn_windows(count, 1, seed=5, epoch=1).any()


def test_an_epoch_reads_the_drawn_window_of_the_drawn_view_of_each_utterance(monkeypatch: pytest.MonkeyPatch) -> None:
    data = several(30, seed=0, views=("noise_0", "narrowband"))
    learner, seen = run_of(data, augment=Augment(("narrowband",), 0.4)), []
    monkeypatch.setattr(heads.HeadLearner, "loss", lambda _self, batch, _labels: seen.append(batch[0].clone()))
    list(learner.losses(2))
    order = list(sampling.batches(data.trials.is_bonafide, size=16, seed=5, epoch=2))
    views, _ = learner.drawn(2)
    chosen = drawing.drawn_windows(30, 3, seed=5, epoch=2)
    first = {-1: 0, 0: 6}  # of clean and of narrowband
    place = [first[view] + window for view, window in zip(views.tolist(), chosen.tolist(), strict=True)]
    assert set(place) == {0, 1, 2, 6, 7, 8}
    for features, rows in zip(seen, order, strict=True):
        expected = array_of(data)[[30 * place[row] + row for row in rows.tolist()]]
        np.testing.assert_array_equal(features.numpy(), expected)


@pytest.mark.parametrize("reduce", ["mean", "min"])
def test_a_score_is_reduced_over_the_windows(reduce: str) -> None:
    data = several(150, seed=0, chosen=WindowsParams(count=3, reduce=reduce), views=("noise_0",))
    rng = np.random.default_rng(0)
    made = Centroids(rng.normal(size=(2, 48)).astype(np.float32), True, 0.5, "max")
    index, rows = centroids.build(made), array_of(data).reshape(6, 150, -1)
    names = data.trials.utterance.tolist()
    each = np.stack([scorer.score(view, index, names=names) for view in rows])
    for view, of_view in (("clean", each[:3]), ("noise_0", each[3:])):
        expected = of_view.min(0) if reduce == "min" else of_view.mean(0)
        np.testing.assert_allclose(scorer.score_all(Flat(), index, data, view=view), expected, rtol=1e-6)


@pytest.mark.parametrize("reduce", ["mean", "min"])
def test_selection_is_by_the_scores_of_all_windows(reduce: str) -> None:
    chosen = WindowsParams(count=3, reduce=reduce)
    train, dev = several(90, seed=0, chosen=chosen), several(60, seed=1, chosen=chosen)
    of = cell("asp", "cross_entropy")
    settings = params_file.load(SETTINGS).train.model_copy(update={"epochs": 3, "batch_size": 16, "device": "cpu"})
    fitted, _ = heads.fit_cell(of, train=train, dev=dev, params=settings, seed=3)
    expected = scorer.score_all(fitted.backend, centroids.build(fitted.centroids), dev)
    np.testing.assert_array_equal(fitted.dev_scores, expected)
    assert fitted.dev_eer == 100 * eer_of(expected, dev.trials.is_bonafide).eer
    first = scorer.score_all(fitted.backend, centroids.build(fitted.centroids), replace(dev, windows=WindowsParams()))
    assert not np.array_equal(first, expected)


def test_the_loss_on_dev_is_that_of_all_windows() -> None:
    dev = several(12, seed=0)
    learner = run_of(dev)
    embeddings = np.concatenate(list(learner.embed_dev()))
    assert embeddings.shape == (36, 5)
    parts = np.split(embeddings, 3)
    whole = loop.dev_loss(learner.system.loss, embeddings, dev.trials, device=torch.device("cpu"))
    each = [loop.dev_loss(learner.system.loss, part, dev.trials, device=torch.device("cpu")) for part in parts]
    assert whole == pytest.approx(np.mean(each), rel=1e-5)


# ---------------------------------------------------------------- the flow


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny project of three windows."""
    return systems.make(tmp_path_factory.mktemp("windows") / "project", count=3)


@pytest.mark.parametrize("name", [POOLED, FRAMES])
def test_a_run_is_scored_on_all_windows_that_it_was_trained_on(flow: Path, name: str) -> None:
    with contextlib.chdir(flow):
        card = runs.card(Path("data/runs", name))
        assert card["kind"]["windows"] == {"count": 3, "hop": None, "reduce": "mean"}
        receipt, table = Path("data/features/eval.json"), trial_table.read(Path("data/trials/eval.csv"))
        data = scorer.open_set(Path("data/runs", name), receipt, table, root=Path("data/cache"))
        backend, index = runs.backend(Path("data/runs", name)), runs.index(Path("data/runs", name))
        names = table.utterance.tolist()
        each = [scorer.score_each(scorer.embed(backend, data, view=number), index, names=names) for number in range(3)]
        np.testing.assert_allclose(list(systems.scores(name)), np.mean(each, axis=0), rtol=1e-5, atol=1e-6)
        assert np.abs(np.diff(each, axis=0)).max() > 1e-3


def test_a_set_is_scored_in_all_windows_of_each_view(flow: Path, tmp_path: Path) -> None:
    shutil.copytree(flow, tmp_path / "project")
    with contextlib.chdir(tmp_path / "project"):
        settings = YAML(typ="safe").load(Path("params.yaml"))
        settings["evaluate"]["views"] = ["noise_0"]
        YAML(typ="safe").dump(settings, Path("params.yaml"))
        trials, run, receipt = "data/trials/eval.csv", f"data/runs/{POOLED}", "data/features/eval.json"
        run_stage(extract, set="eval", trials=trials, card="data/encoder.json", receipt=receipt)
        run_stage(
            score, set="eval", run=run, trials=trials, features=receipt, scores="data/eval.txt", views="data/eval"
        )  # fmt: skip
        table = trial_table.read(Path(trials))
        data = scorer.open_set(Path(run), Path(receipt), table, root=Path("data/cache"), views=["noise_0"])
        backend, index, names = runs.backend(Path(run)), runs.index(Path(run)), table.utterance.tolist()
        each = [scorer.score_each(scorer.embed(backend, data, view=place), index, names=names) for place in range(6)]
        found = scorefile.parse(Path("data/eval/noise_0.txt"))
        np.testing.assert_allclose(found.score, np.mean(each[3:], axis=0), rtol=1e-5, atol=1e-6)
        assert np.abs(np.mean(each[:3], axis=0) - np.mean(each[3:], axis=0)).max() > 1e-3
        assert Path("data/eval.txt").read_bytes() == Path(f"data/scores/{POOLED}/eval.txt").read_bytes()


def test_a_run_does_not_score_features_of_other_windows(flow: Path, project: Path) -> None:
    receipt, table = project / "data/features/eval.json", trial_table.read(project / "data/trials/eval.csv")
    with pytest.raises(InputError, match=r"trained on features of \{.*'windows': \{'count': 3.*, got \{"):
        scorer.open_set(flow / "data/runs" / POOLED, receipt, table, root=project / "data/cache")


# ---------------------------------------------------------------- detection


@pytest.mark.parametrize("name", [POOLED, FRAMES])
def test_detection_hears_the_windows_of_the_run_and_gives_the_scores_of_the_flow(flow: Path, name: str) -> None:
    with contextlib.chdir(flow):
        found = list(detect.load(name).detect(systems.audio("eval")))
        wanted = list(systems.scores(name))
        np.testing.assert_allclose([one.score for one in found], wanted, rtol=0, atol=1e-5)
        for path, one in zip(systems.audio("eval"), found, strict=True):
            samples = decode.load(path)
            if len(samples) <= WINDOW:
                assert one.part is None
                continue
            starts = [Window(number, 3).start(len(samples), length=WINDOW) / 16_000 for number in range(3)]
            assert one.part[0] in starts
            assert one.part[1] == pytest.approx(one.part[0] + WINDOW / 16_000)


def test_a_package_hears_the_windows_of_its_run(flow: Path, tmp_path: Path) -> None:
    with contextlib.chdir(flow):
        package.write(POOLED, tmp_path / "package")
        wanted = list(systems.scores(POOLED))
        paths = [path.resolve() for path in systems.audio("eval")]
    np.testing.assert_allclose(list(detect.load(tmp_path / "package").scores(paths)), wanted, rtol=0, atol=1e-5)
    said = (tmp_path / "package/model_card.md").read_text()
    assert "The score is the mean of 3 windows of a recording, spread evenly over it,\nof 3200 samples" in said


def test_a_silent_window_counts_as_the_first_in_detection_too(flow: Path, tmp_path: Path) -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, 4 * WINDOW).astype(np.float32)
    samples[WINDOW : 3 * WINDOW] = 0  # where the second of three windows lies
    with contextlib.chdir(flow):
        first, whole = (detect.load(POOLED, windows=windows) for windows in ("first", None))
        ends = first.score_samples(samples, 16_000), first.score_samples(samples[3 * WINDOW :], 16_000)
        assert whole.score_samples(samples, 16_000) == pytest.approx((2 * ends[0] + ends[1]) / 3, abs=1e-5)


@pytest.mark.parametrize(
    ("asked", "count", "heard"),
    [
        (None, 1, "mean"), ("run", 1, "first"), ("first", 1, "first"), ("min", 1, "min"),
        (None, 3, "run"), ("run", 3, "run"), ("first", 3, "first"), ("mean", 3, "mean"),
    ],
)  # fmt: skip
def test_which_windows_are_heard(asked: Any, count: int, heard: str) -> None:
    assert hearing.resolved(asked, WindowsParams(count=count)) == heard


def test_all_of_a_file_is_heard_where_the_run_has_one_window(project: Path) -> None:
    with contextlib.chdir(project):
        first, default, mean = (detect.load(POOLED, windows=windows) for windows in ("first", None, "mean"))
        for path in systems.audio("eval"):
            is_longer = len(decode.load(path)) > WINDOW
            assert default.score(path) == mean.score(path)
            assert (abs(default.score(path) - first.score(path)) > 1e-5) == is_longer


def test_a_fusion_reduces_the_scores_of_each_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lowest of sums is not the sum of the lowest: the flow fuses scores of utterances."""
    scores = {"a": np.float32([1, 5, 2]), "b": np.float32([4, 0, 9])}

    class Member:
        width = 1

        def __init__(self, name: str) -> None:
            self.judge = lambda _embedded, names: scores[name]

    system = fused.Fused.__new__(fused.Fused)
    members, fusion = (Member("a"), Member("b")), Fusion((2.0, 3.0), 0.5)
    own = WindowsParams(count=3, reduce="min")
    for name, value in {"members": members, "fusion": fusion, "windows": "run", "own": own}.items():
        object.__setattr__(system, name, value)
    assert system.reduced(np.zeros((3, 2), np.float32), np.zeros(3, np.float32)) == 2 * 1 + 3 * 0 + 0.5
