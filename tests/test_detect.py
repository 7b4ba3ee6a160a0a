"""Detection on files: the numbers of the flow, and nothing that a folder of files holds can stop it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
import runpy
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import faiss
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from pipeline import detect
from pipeline.analysis import embeddings
from pipeline.analysis.gaussians import Gaussians
from pipeline.audio import decode, track
from pipeline.core.errors import InputError
from pipeline.detect import Detection, System, Unreadable, assembly, hearing, loading
from pipeline.detect.system import _Head
from pipeline.extraction import forward
from pipeline.metrics import calibration, scorefile
from pipeline.scoring import runs
from tests import systems
from tests.systems import BATCH, FRAMES, POOLED, WINDOW

pytestmark = pytest.mark.usefixtures("one_thread")

CLOSE = 1e-5  # what batches of other shapes move a score by


@pytest.fixture(scope="module")
def system(project: Path) -> System:
    with contextlib.chdir(project):
        return detect.load(POOLED, windows="first")


def noise(path: Path, samples: int, *, seed: int = 0) -> np.ndarray:
    """A float WAV of noise at 16 kHz."""
    found = np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32)
    soundfile.write(path, found, 16_000, subtype="FLOAT")
    return found


def detections(system: System, paths: list[Path], *, explain: bool = False) -> list[Detection]:
    found = list(system.detect(paths, explain=explain))
    assert all(isinstance(one, Detection) for one in found), found
    return found


# ---------------------------------------------------------------- the same numbers


@pytest.mark.parametrize("run", [POOLED, FRAMES])
def test_the_scores_are_those_of_the_flow(here: Path, run: str) -> None:
    found = detections(detect.load(run, windows="first"), systems.audio("eval"))
    assert [one.path for one in found] == systems.audio("eval")
    got, wanted = np.array([one.score for one in found]), np.array(list(systems.scores(run)))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6)
    assert np.ptp(wanted) > 1000 * CLOSE  # else the comparisons here compare nothing


@pytest.mark.parametrize("run", [POOLED, FRAMES])
def test_frames_pass_through_float16_as_in_the_store(here: Path, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    system, seen = detect.load(run, windows="first"), []
    system.backend.register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    list(system.detect(systems.audio("eval")[:1]))
    (features,) = seen
    assert features.dtype == torch.float32
    assert torch.equal(features, features.half().float()) == (run == FRAMES)
    assert features.shape == ((1, 2, 9, 32) if run == FRAMES else (1, 2, 2, 32))


def test_three_lines_give_the_score_of_a_file(here: Path) -> None:
    system = detect.load(POOLED, windows="first")
    score = system.score("audio/eval/4.flac")
    assert isinstance(score, float)
    assert score == pytest.approx(list(systems.scores(POOLED))[4], abs=CLOSE)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
@pytest.mark.parametrize("channels", [0, 1, 2])
def test_samples_in_memory_score_as_a_file_of_them(system: System, tmp_path: Path, rate: int, channels: int) -> None:
    shape = (rate // 4, channels) if channels else (rate // 4,)
    samples = np.random.default_rng(rate).normal(0, 0.1, shape).astype(np.float32)
    before = samples.copy()
    soundfile.write(tmp_path / "one.wav", samples, rate, subtype="FLOAT")
    assert system.score_samples(samples, rate) == system.score(tmp_path / "one.wav")
    assert system.score_samples(samples[::-1], rate) != system.score(tmp_path / "one.wav")
    np.testing.assert_array_equal(samples, before)


def test_samples_of_a_file_score_as_the_file(system: System, here: Path) -> None:
    for path in systems.audio("eval")[:4]:
        samples, rate = soundfile.read(path, dtype="float32")
        assert system.score_samples(samples, rate) == system.score(path)


@pytest.mark.parametrize(
    ("samples", "rate", "said"),
    [
        (np.ones((2, 3_000, 1), np.float32), 16_000, r"expected \(n,\) or \(n, channels\) float32, got \(2, 3000, 1\)"),
        (np.zeros(0, np.float32), 16_000, r"got \(0,\) float32"),
        (np.arange(3_000, dtype=np.int16), 16_000, r"got \(3000,\) int16"),
        (np.arange(3_000, dtype=np.float32), 0, "expected a sample rate in whole Hz, got 0"),
        (np.arange(3_000, dtype=np.float32), 22_050.5, "expected a sample rate in whole Hz, got 22050.5"),
        (np.arange(300, dtype=np.float32), 16_000, "expected at least 25 ms"),
        (np.ones(3_000, np.float32), 16_000, "silent"),
        (np.append(np.zeros(WINDOW, np.float32), np.ones(99, np.float32)), 16_000, f"first {WINDOW} samples .* silent"),
        (np.append(np.ones(3_000, np.float32), np.float32(np.nan)), 16_000, "1 samples are NaN"),
    ],
)
def test_samples_that_cannot_be_scored_are_told(system: System, samples: np.ndarray, rate: int, said: str) -> None:
    with pytest.raises(InputError, match=f"^samples in memory: .*{said}"):
        system.score_samples(samples, rate)


def test_only_the_first_window_counts(system: System, tmp_path: Path) -> None:
    samples = noise(tmp_path / "long.wav", 3 * WINDOW)
    soundfile.write(tmp_path / "head.wav", samples[:WINDOW], 16_000, subtype="FLOAT")
    soundfile.write(tmp_path / "rest.wav", samples[WINDOW:], 16_000, subtype="FLOAT")
    long, head, rest = (system.score(tmp_path / f"{name}.wav") for name in ("long", "head", "rest"))
    assert long == pytest.approx(head, abs=CLOSE)
    assert abs(long - rest) > 10 * CLOSE


# ---------------------------------------------------------------- what is told besides


def test_a_score_at_the_threshold_is_spoof(here: Path) -> None:
    path = systems.audio("eval")[0]
    own = detect.load(POOLED, windows="first").score(path)
    for threshold, accepted in ((own, False), (math.nextafter(own, -1), True), (own + 0.1, False)):
        (found,) = detections(detect.load(POOLED, threshold=threshold, windows="first"), [path])
        assert found.is_bonafide is accepted
    assert detect.load(POOLED, windows="first").threshold == runs.card(Path("data/runs") / POOLED)["dev_threshold"]


def test_scores_have_the_digits_of_a_score_file(system: System, project: Path) -> None:
    """A threshold is one of the scores on dev, as a file has it; float32 in full digits would be above or below it."""
    score = system.score(project / "audio/eval/1.flac")
    assert score == float(str(np.float32(score)))


def test_the_probability_is_that_of_the_calibration_on_dev(here: Path) -> None:
    dev = scorefile.parse(Path(f"data/dev_scores/{POOLED}.txt"))
    bonafide = np.array(dev.label) == "bonafide"
    fitted = calibration.fit(dev.score[bonafide], dev.score[~bonafide])
    assert fitted.slope > 0.1
    for found in detections(detect.load(POOLED, windows="first"), systems.audio("eval")[:3]):
        ratio = math.exp(fitted.slope * found.score + fitted.offset)
        assert found.probability == pytest.approx(ratio / (1 + ratio), rel=1e-9)


def test_the_verdict_is_that_of_the_rule_on_dev(here: Path) -> None:
    dev = scorefile.parse(Path(f"data/dev_scores/{POOLED}.txt"))
    bonafide = np.array(dev.label) == "bonafide"
    lowest, highest = dev.score[bonafide].min(), dev.score[~bonafide].max()  # ⌊0.25 · 7⌋ = 1 of the six of a class
    system = detect.load(POOLED, windows="first")
    rule = system.parts.rule
    assert rule is not None
    assert (rule.error_rate, rule.bonafide_from, rule.spoof_up_to) == (0.25, lowest, highest)
    for found in detections(system, systems.audio("eval")):
        low, high = found.score < lowest, found.score > highest
        assert found.verdict == ("cannot_tell" if low == high else "spoof" if low else "bonafide")


def test_the_distance_is_a_percentile_of_the_training_sets_own(here: Path) -> None:
    system = detect.load(POOLED, windows="first")
    known, _ = system.training
    vectors = np.asarray(known.vectors, np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    def mean_of_five(one: np.ndarray, others: np.ndarray) -> float:
        return float(np.sort(np.linalg.norm(others - one, axis=1))[:5].mean())

    own = [mean_of_five(vectors[i], np.delete(vectors, i, axis=0)) for i in range(len(vectors))]
    windows = systems.audio("eval")
    held = embeddings.read(Path(f"data/embeddings/{POOLED}/eval")).vectors.astype(np.float64)
    held /= np.linalg.norm(held, axis=1, keepdims=True)
    wanted = [100 * np.mean([other <= mean_of_five(one, vectors) for other in own]) for one in held]
    assert len(set(wanted)) > 3
    assert [found.distance_percentile for found in detections(system, windows)] == pytest.approx(wanted, abs=0.1)
    assert detections(system, [Path("audio/train/7.flac")])[0].distance_percentile == 0  # its own nearest, at 0
    _, trials = system.training
    by_class = Gaussians.of(np.asarray(known.vectors), trials.is_bonafide, normalize=True).percentiles(held)
    assert [found.mahalanobis_percentile for found in detections(system, windows)] == pytest.approx(by_class, abs=0.1)


def test_scores_that_cannot_be_calibrated_have_no_probability(copied: Path) -> None:
    path = Path(f"data/dev_scores/{POOLED}.txt")
    lines = [line.split() for line in path.read_text().splitlines()]
    path.write_text("".join(f"{u} {a} {key} {(key == 'bonafide') * 1e-300}\n" for u, a, key, _ in lines))
    (found,) = detections(detect.load(POOLED, windows="first"), systems.audio("eval")[:1])
    assert found.probability is None


def test_extreme_scores_have_a_probability(system: System) -> None:
    assert system.probability(1e80) == 1.0
    assert system.probability(-1e80) == 0.0


def test_the_nearest_centroid_is_the_one_of_largest_cosine(here: Path) -> None:
    found = detections(detect.load(POOLED, windows="first"), systems.audio("eval"))
    held = embeddings.read(Path(f"data/embeddings/{POOLED}/eval")).vectors
    vectors = runs.centroids(Path("data/runs") / POOLED).vectors
    for one, vector in zip(found, held, strict=True):
        cosines = [float(vector @ other / np.linalg.norm(other)) for other in vectors]
        assert one.centroid == cosines.index(max(cosines))


def test_neighbours_are_the_nearest_of_the_training_set(here: Path) -> None:
    found = detections(detect.load(POOLED, windows="first"), systems.audio("eval"), explain=True)
    train = embeddings.read(Path(f"data/embeddings/{POOLED}/train"))
    held = embeddings.read(Path(f"data/embeddings/{POOLED}/eval")).vectors
    for one, vector in zip(found, held, strict=True):
        away = {}
        for name, other in zip(train.utterances.tolist(), train.vectors, strict=True):
            away[name] = float(np.linalg.norm(other / np.linalg.norm(other) - vector / np.linalg.norm(vector)))
        wanted = sorted(away, key=away.__getitem__)[:5]
        assert [near.utterance for near in one.neighbours] == wanted
        assert [near.distance for near in one.neighbours] == pytest.approx([away[n] for n in wanted], abs=1e-4)
        for near in one.neighbours:
            spoof = int(near.utterance.removeprefix("train")) % 2
            assert (near.label, near.attack) == (("spoof", "A1") if spoof else ("bonafide", "-"))


def test_a_training_utterance_is_its_own_nearest(system: System, here: Path) -> None:
    (found,) = detections(system, [Path("audio/train/7.flac")], explain=True)
    assert found.neighbours[0].utterance == "train7"
    assert found.neighbours[0].distance < 1e-3
    (found,) = detections(system, [Path("audio/train/7.flac")])
    assert found.neighbours == ()


def test_without_an_analysis_there_is_nothing_to_explain_with(copied: Path) -> None:
    shutil.rmtree("data/embeddings")
    system = detect.load(POOLED, windows="first")
    message = r"data/embeddings/.*/train: no embeddings of the training set.*`analyse`.*dvc repro flow/analyse"
    with pytest.raises(InputError, match=message):
        next(system.detect(["audio/eval/0.flac"], explain=True))
    (found,) = detections(system, [Path("audio/eval/0.flac")])
    assert (found.distance_percentile, found.neighbours) == (None, ())


def test_embeddings_of_other_weights_explain_nothing(copied: Path) -> None:
    card = Path(f"data/embeddings/{POOLED}/train/embeddings.json")
    card.write_text(json.dumps(json.loads(card.read_text()) | {"weights": "0" * 16}))
    with pytest.raises(InputError, match="expected the embeddings of"):
        next(detect.load(POOLED).detect(["audio/eval/0.flac"], explain=True))
    assert detections(detect.load(POOLED), [Path("audio/eval/0.flac")])[0].distance_percentile is None


# ---------------------------------------------------------------- many files, and bad ones


def test_bad_files_are_told_and_the_others_go_on(system: System, here: Path, tmp_path: Path) -> None:
    good = systems.audio("eval")
    (tmp_path / "text.wav").write_text("not audio")
    soundfile.write(tmp_path / "late.wav", np.append(np.zeros(WINDOW), np.ones(99)), 16_000)
    (tmp_path / "folder.wav").mkdir()
    bad = {
        tmp_path / "text.wav": "expected an audio file",
        tmp_path / "none.wav": "no such file",
        tmp_path / "late.wav": f"first {WINDOW} samples at 16 kHz are silent",
        tmp_path / "folder.wav": "no such file",
    }
    names = list(bad)
    mixed = [names[0], *good[:4], names[1], good[4], *names[2:], *good[5:]]
    found = list(system.detect(mixed))
    assert [one.path for one in found] == mixed
    for one in found:
        if one.path in bad:
            assert isinstance(one, Unreadable)
            assert one.why.startswith(f"{one.path}: ")
            assert bad[one.path] in one.why
    got = [one.score for one in found if isinstance(one, Detection)]
    np.testing.assert_allclose(got, list(systems.scores(POOLED)), rtol=0, atol=CLOSE)
    with pytest.raises(InputError, match=r"text\.wav: expected an audio file"):
        system.score(tmp_path / "text.wav")


def test_a_file_that_may_not_be_read_is_told(system: System, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, **_: object) -> np.ndarray:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(decode, "read", refuse)
    (found,) = system.detect(["audio/eval/0.flac"])
    assert found == Unreadable(Path("audio/eval/0.flac"), "audio/eval/0.flac: Permission denied")


def test_features_that_are_out_of_range_spoil_no_other_file(
    system: System, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = forward.compute

    def fussy(*args, names: list[str], **options):
        if any(name.endswith("4.flac") for name in names):
            raise InputError("utterance 4: expected finite features")
        return whole(*args, names=names, **options)

    monkeypatch.setattr("pipeline.detect.system.compute", fussy)
    found = list(system.detect(systems.audio("eval")))
    assert [i for i, one in enumerate(found) if isinstance(one, Unreadable)] == [4]
    assert found[4].why == "utterance 4: expected finite features"
    got = [one.score for one in found if isinstance(one, Detection)]
    wanted = [score for i, score in enumerate(systems.scores(POOLED)) if i != 4]
    np.testing.assert_allclose(got, wanted, rtol=0, atol=CLOSE)


def test_files_are_taken_a_few_batches_ahead_and_no_further(system: System, here: Path) -> None:
    taken = 0

    def paths() -> Iterator[Path]:
        nonlocal taken
        for i in range(1_000):
            taken += 1
            yield systems.audio("eval")[i % 12]

    found = system.detect(paths())
    for _ in range(10):
        next(found)
    found.close()
    assert 10 <= taken <= 10 + 3 * BATCH


def test_a_window_does_not_hold_on_to_a_long_file(system: System, tmp_path: Path) -> None:
    noise(tmp_path / "long.wav", 20 * WINDOW)
    head = system._head(tmp_path / "long.wav")
    assert isinstance(head, _Head)
    assert head.samples.base is None
    assert len(head.samples) == WINDOW


@pytest.mark.parametrize(("largest", "together"), [(0, {1}), (2**30, {2, 3, 4})])
def test_large_files_are_decoded_one_at_a_time(
    here: Path, monkeypatch: pytest.MonkeyPatch, largest: int, together: set[int]
) -> None:
    real, lock, now, most = decode.samples_of, threading.Lock(), 0, 0

    def slow(name: str, tracks: list, *, keep: int | None) -> np.ndarray:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.02)
        with lock:
            now -= 1
        return real(name, tracks, keep=keep)

    monkeypatch.setattr(track, "LARGE", largest)
    monkeypatch.setattr(decode, "samples_of", slow)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(decode.load, systems.audio("eval")))
    assert most in together


def test_a_channel_is_scored_as_a_file_of_it(system: System, here: Path, tmp_path: Path) -> None:
    left, right = (noise(tmp_path / f"{i}.wav", 2 * WINDOW, seed=i) for i in range(2))
    soundfile.write(tmp_path / "both.wav", np.stack([left, right], axis=1), 16_000, subtype="FLOAT")
    alone = [system.score(tmp_path / f"{i}.wav") for i in range(2)]
    for channel, score in (("left", alone[0]), ("right", alone[1]), (1, alone[1])):
        one = detect.load(POOLED, channel=channel, windows="first")
        assert one.score(tmp_path / "both.wav") == score
        assert one.score_samples(np.stack([left, right], axis=1), 16_000) == score
        assert one.timeline(tmp_path / "both.wav").score[0] == pytest.approx(score, abs=CLOSE)
    assert system.score(tmp_path / "both.wav") not in alone


def test_a_file_below_a_closed_folder_is_told(system: System, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refuse)
    (found,) = system.detect(["audio/eval/0.flac"])
    assert found == Unreadable(Path("audio/eval/0.flac"), "audio/eval/0.flac: Permission denied")


def test_no_files_give_nothing(system: System) -> None:
    assert list(system.detect([])) == []


# ---------------------------------------------------------------- over time


@pytest.mark.parametrize(
    ("samples", "starts"),
    [(400, [0]), (1_000, [0]), (1_001, [0, 1]), (1_500, [0, 500]), (2_300, [0, 500, 1_000, 1_300])],
)
def test_window_starts_by_hand(samples: int, starts: list[int]) -> None:
    assert hearing.overlapping(samples, window=1_000).tolist() == starts


@given(samples=st.integers(400, 100_000), window=st.integers(400, 20_000))
def test_windows_cover_a_file_and_overlap_by_half(samples: int, window: int) -> None:
    starts = hearing.overlapping(samples, window=window)
    assert starts[0] == 0
    assert starts[-1] == max(samples - window, 0)
    steps = np.diff(starts)
    assert ((steps > 0) & (steps <= window // 2)).all()
    assert (steps[:-1] == window // 2).all()


def test_a_timeline_is_the_score_of_every_window(system: System, tmp_path: Path) -> None:
    samples = noise(tmp_path / "long.wav", 4 * WINDOW + 700)
    found = system.timeline(tmp_path / "long.wav")
    np.testing.assert_allclose(found.start, [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.64375])
    np.testing.assert_allclose(found.end, found.start + WINDOW / 16_000)
    for start, score in zip(found.start, found.score, strict=True):
        at = round(start * 16_000)
        soundfile.write(tmp_path / "one.wav", samples[at : at + WINDOW], 16_000, subtype="FLOAT")
        assert score == pytest.approx(system.score(tmp_path / "one.wav"), abs=CLOSE)
    assert found.lowest == np.argmin(found.score)


def test_silent_windows_have_no_score_and_short_files_one(system: System, tmp_path: Path) -> None:
    samples = noise(tmp_path / "short.wav", 1_000)
    found = system.timeline(tmp_path / "short.wav")
    assert (found.start.tolist(), found.end.tolist()) == ([0.0], [0.0625])
    assert found.score[0] == pytest.approx(system.score(tmp_path / "short.wav"), abs=CLOSE)
    gaps = np.concatenate([np.zeros(2 * WINDOW), np.resize(samples, WINDOW)])
    soundfile.write(tmp_path / "gaps.wav", gaps, 16_000, subtype="FLOAT")
    found = system.timeline(tmp_path / "gaps.wav")
    assert np.isnan(found.score).tolist() == [True, True, True, False, False]
    assert found.lowest in (3, 4)
    assert dataclasses.replace(found, score=found.score * np.nan).lowest is None


def test_all_windows_score_as_each_by_itself(system: System, tmp_path: Path) -> None:
    samples = noise(tmp_path / "long.wav", 4 * WINDOW + 700)
    scores = []
    for start in (0, 1_600, 3_200, 4_800, 6_400, 8_000, 9_600, 10_300):  # the last one ends with the file
        soundfile.write(tmp_path / "one.wav", samples[start : start + WINDOW], 16_000, subtype="FLOAT")
        scores.append(system.score(tmp_path / "one.wav"))
    for windows, reduced in (("mean", np.mean(scores)), ("min", min(scores))):
        whole = dataclasses.replace(system, windows=windows)
        (found,) = detections(whole, [tmp_path / "long.wav"])
        assert found.score == pytest.approx(reduced, abs=CLOSE)
        assert whole.score_samples(samples, 16_000) == found.score
        noise(tmp_path / "short.wav", 1_000)
        (short,) = detections(whole, [tmp_path / "short.wav"])
        assert short.score == system.score(tmp_path / "short.wav")
        assert short.part is None
        with pytest.raises(InputError, match="all 3200 samples at 16 kHz are silent"):
            whole._whole(Path("silent.wav"), np.full(WINDOW, 0.5, np.float32), (), None)
        (missing,) = whole.detect([tmp_path / "none.wav"])
        assert isinstance(missing, Unreadable)


@pytest.mark.parametrize("place", [0, 2, 5])
def test_the_part_is_where_a_spoof_was_spliced_in(
    system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    samples = noise(tmp_path / "spliced.wav", 6 * WINDOW)
    samples[place * WINDOW : (place + 1) * WINDOW] *= 0.01
    soundfile.write(tmp_path / "spliced.wav", samples, 16_000, subtype="FLOAT")

    def loudness(_system: System, windows: tuple, names: list[str]) -> np.ndarray:
        return np.repeat(windows[0].std(axis=1)[:, None], 64, axis=1)  # (n, 64)

    monkeypatch.setattr(System, "embed", loudness)
    monkeypatch.setattr("pipeline.scoring.scorer.score", lambda embedded, *_index, names: embedded[:, 0])
    seconds = WINDOW / 16_000
    (found,) = detections(dataclasses.replace(system, windows="min"), [tmp_path / "spliced.wav"])
    assert found.part == pytest.approx((place * seconds, (place + 1) * seconds))
    assert found.score == pytest.approx(0.001, rel=0.1)


# ---------------------------------------------------------------- what belongs together


def test_an_unknown_run_is_told_with_those_there_are(here: Path) -> None:
    with pytest.raises(InputError, match=f"^nope: expected the name of a run.*data/runs has {FRAMES}, {POOLED}$"):
        detect.load("nope")


def test_outside_of_a_project_there_is_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="there is no data/runs with runs in this folder"):
        detect.load(POOLED)


def test_another_encoder_is_refused(copied: Path) -> None:
    settings = YAML(typ="safe").load(Path("params.yaml"))
    settings["encoder"]["random"]["seed"] = 6
    YAML(typ="safe").dump(settings, Path("params.yaml"))
    with pytest.raises(
        InputError, match=r"encoder random: expected what the run was trained with, weights_sha256 \w+, "
    ):
        detect.load(POOLED)


def test_a_run_is_known_by_the_receipt_of_its_choice_of_layers(copied: Path) -> None:
    path, card = Path("data/selected/dev/all-clean.json"), Path("data/runs") / POOLED / "run.json"
    facts = json.loads(card.read_text())
    card.write_text(json.dumps(facts | {"features": facts["features"] | {"dev": "1" * 64}}))
    with pytest.raises(InputError, match="trained on other features"):
        detect.load(POOLED)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(json.loads(Path("data/features/dev.json").read_text()) | {"digest": "1" * 64}))
    assert detect.load(POOLED)


def test_a_run_of_other_features_is_refused(copied: Path) -> None:
    path = Path("data/features/dev.json")
    receipt = json.loads(path.read_text())
    receipt["encoder"]["window"]["samples"] = 4_000
    path.write_text(json.dumps(receipt))
    with pytest.raises(InputError, match=r"trained on other features than data/features/dev\.json tells of"):
        detect.load(POOLED)
    receipt["encoder"]["window"]["samples"] = WINDOW
    path.write_text(json.dumps(receipt | {"digest": "0" * 64}))
    with pytest.raises(InputError, match="trained on other features"):
        detect.load(POOLED)


def test_the_index_of_another_run_is_refused(copied: Path) -> None:
    shutil.copyfile(f"data/runs/{FRAMES}/centroids.faiss", f"data/runs/{POOLED}/centroids.faiss")
    with pytest.raises(InputError, match=f"data/runs/{POOLED}/centroids.faiss: expected .* 2 centroids .*, got 1 of"):
        detect.load(POOLED)


def test_the_same_centroids_in_an_index_of_another_metric_are_refused(copied: Path) -> None:
    path = f"data/runs/{POOLED}/centroids.faiss"
    index = faiss.IndexFlatL2(64)
    index.add(runs.centroids(Path(path).parent).vectors)
    faiss.write_index(index, path)
    with pytest.raises(InputError, match=r"with the metric inner_product.*, got 2 of width 64 with the metric l2; run"):
        detect.load(POOLED)


def test_features_of_another_version_are_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "FEATURES_VERSION", loading.FEATURES_VERSION + 1)
    with pytest.raises(InputError, match="features_version 1, got 2"):
        detect.load(POOLED)


def test_a_gpu_that_is_not_there_is_told(system: System, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    parts = dataclasses.replace(system.parts, device="cuda")
    monkeypatch.setattr(assembly, "find", lambda _run: parts)
    with pytest.raises(InputError, match="expected a GPU that torch can use"):
        detect.load(POOLED)


def test_training_diverged_is_told_of_every_file(system: System, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(System, "embed", lambda _self, windows, names: np.full((len(names), 64), np.nan, np.float32))
    found = list(system.detect(systems.audio("eval")[:2]))
    assert [isinstance(one, Unreadable) for one in found] == [True, True]
    assert "0.flac: expected a finite embedding" in found[0].why


# ---------------------------------------------------------------- docs


def test_the_walkthrough_walks(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    runpy.run_path(str(systems.ROOT / "docs/walkthrough.py"))
    said = capsys.readouterr().out
    assert "20 embeddings of train, 12 of eval" in said
    (difference,) = re.findall(r"difference to the score file: (\S+)", said)
    assert float(difference) < 1e-6
    assert "nearest: train" in said
    assert list(tmp_path.glob("*-pca.png"))


def test_the_walkthrough_goes_where_scores_cannot_be_calibrated(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(assembly, "calibrated_by", lambda *_scores: None)
    shutil.rmtree(f"data/embeddings/{FRAMES}")
    Path(f"data/embeddings/{FRAMES}").mkdir()  # an empty folder is not a run that was analysed
    walked = runpy.run_path(str(systems.ROOT / "docs/walkthrough.py"))
    assert re.search(r"\.flac: \S+, no probability, centroid \d", capsys.readouterr().out)
    vectors = runs.centroids(Path("data/runs") / POOLED).vectors
    held = embeddings.read(Path(f"data/embeddings/{POOLED}/eval")).vectors
    cosines = held @ vectors.T / np.linalg.norm(held, axis=1)[:, None] / np.linalg.norm(vectors, axis=1)
    np.testing.assert_allclose(walked["away"], 1 - cosines.max(axis=1), atol=1e-5)


def test_the_walkthrough_measures_to_the_mean_where_there_are_no_centroids(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    shutil.rmtree(f"data/embeddings/{POOLED}")
    walked = runpy.run_path(str(systems.ROOT / "docs/walkthrough.py"))
    folder = Path(f"data/embeddings/{FRAMES}")
    mean = embeddings.read(folder / "train").vectors[::2].mean(axis=0)  # every other one is bona fide
    wanted = np.linalg.norm(embeddings.read(folder / "eval").vectors - mean, axis=1)
    np.testing.assert_allclose(walked["away"], wanted, rtol=1e-4)


def test_the_walkthrough_says_that_nothing_was_analysed(copied: Path) -> None:
    shutil.rmtree("data/embeddings")
    with pytest.raises(SystemExit, match=r"data/embeddings: expected the embeddings of a run, got none; .*`analyse`"):
        runpy.run_path(str(systems.ROOT / "docs/walkthrough.py"))
