"""Fusion: its weights against scikit-learn's, its properties, and the stage that writes a fused run."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from ruamel.yaml import YAML
from sklearn.linear_model import LogisticRegression

from pipeline.core import params_file, trial_table
from pipeline.core.errors import InputError
from pipeline.core.files import write_text
from pipeline.core.trial_table import Row, Trials
from pipeline.metrics import fusion, join, scorefile
from pipeline.metrics.eer import eer_of
from stages import fuse
from tests.places import SETTINGS

RUNS = ("linear-qamo-all-clean-1", "asp-qamo-all-clean-1")
IS_BONAFIDE = np.arange(120) % 3 == 0


def drawn(seed: int, columns: int = 2) -> NDArray[np.float64]:
    """Scores (120, K) of systems that each know something of their own, on scales that differ."""
    noise = np.random.default_rng(seed).normal(size=(120, columns))
    return (noise + 1.5 * IS_BONAFIDE[:, None]) * 10.0 ** np.arange(columns) + 3


def reference(scores: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Weights and offset of scikit-learn's logistic regression on standard scores, both classes alike."""
    centre, deviation = scores.mean(axis=0), scores.std(axis=0)
    model = LogisticRegression(C=1.0, class_weight="balanced", tol=1e-10, max_iter=10_000)
    model.fit((scores - centre) / deviation, IS_BONAFIDE)
    weights = model.coef_[0] / deviation
    return weights, float(model.intercept_[0] - weights @ centre)


def test_the_weights_are_those_of_logistic_regression() -> None:
    scores = drawn(1, columns=3)
    found = fusion.fit(scores, IS_BONAFIDE)
    weights, offset = reference(scores)
    assert (weights > 0).all()
    np.testing.assert_allclose(found.weights, weights, rtol=1e-4)
    np.testing.assert_allclose(found.apply(scores), scores @ weights + offset, atol=1e-4)


def test_a_system_that_is_inverted_or_constant_has_no_weight() -> None:
    scores = drawn(1, columns=1)
    with_others = np.hstack([scores, -scores + drawn(2, columns=1) / 9, np.full((120, 1), 0.1)])
    found, alone = (fusion.fit(own, IS_BONAFIDE) for own in (with_others, scores))
    assert found.weights[1:] == (0, 0)
    np.testing.assert_allclose(found.weights[0], alone.weights[0], rtol=1e-5)


def test_equal_systems_share_the_weight_and_separable_classes_keep_it_bounded() -> None:
    twice = fusion.fit(np.repeat(drawn(1, columns=1), 2, axis=1), IS_BONAFIDE)
    np.testing.assert_allclose(twice.weights[0], twice.weights[1], rtol=1e-6)
    apart = fusion.fit(np.where(IS_BONAFIDE, 1.0, 0.0)[:, None], IS_BONAFIDE)
    assert 0 < apart.weights[0] < 20


def test_a_trial_out_of_fold_is_scored_by_the_others() -> None:
    scores = drawn(3)
    got = fusion.out_of_fold(scores, IS_BONAFIDE)
    held = np.zeros(120, np.bool_)
    for of_class in (np.flatnonzero(IS_BONAFIDE), np.flatnonzero(~IS_BONAFIDE)):
        held[of_class[4::10]] = True  # the fifth of ten folds
    weights = fusion.fit(scores[~held], IS_BONAFIDE[~held])
    np.testing.assert_array_equal(got[held], weights.apply(scores[held]))
    noise = np.random.default_rng(5).normal(size=(120, 60))  # 60 systems that know nothing
    fitted = fusion.fit(noise, IS_BONAFIDE).apply(noise)
    assert eer_of(fitted, IS_BONAFIDE).eer <= 0.3
    assert eer_of(fusion.out_of_fold(noise, IS_BONAFIDE), IS_BONAFIDE).eer > 0.4


@pytest.mark.parametrize("bonafide", [1, 119])
def test_too_few_trials_of_a_class(bonafide: int) -> None:
    with pytest.raises(ValueError, match=rf"at least 2 trials of each class, got {bonafide} bona fide"):
        fusion.fit(drawn(1), np.arange(120) < bonafide)


# ---------------------------------------------------------------- the stage


def table() -> Trials:
    labels = ["bonafide" if bonafide else "spoof" for bonafide in IS_BONAFIDE]
    return trial_table.from_rows([Row("x", f"u{i}", f"u{i}.wav", label) for i, label in enumerate(labels)], source="x")


def project(folder: Path, fusions: dict[str, list[str]]) -> list[str]:
    """Two runs with dev scores and scores of `eval`, of which both have the view mp3_32; the arguments of the stage."""
    settings = YAML(typ="safe").load(SETTINGS) | {"fuse": fusions}
    YAML(typ="safe").dump(settings, folder / "params.yaml")
    trials, dev, clean, view = table(), drawn(1), drawn(2), drawn(3)
    for name in ("dev", "eval"):
        write_text(folder / f"trials/{name}.csv", trial_table.to_csv(trials))
    for i, run in enumerate(RUNS):
        scorefile.write(folder / f"dev_scores/{run}.txt", trials, dev[:, i], layout="2019")
        views = {"clean": clean[:, i], "mp3_32": view[:, i]} | ({"noise_0": view[:, i]} if i else {})
        place = folder / "scores" / run
        scorefile.write_views(place / "eval.txt", place / "eval", trials, views, layout="2021")
    given = {
        "--params": "params.yaml", "--trials": "trials", "--members": "scores", "--members-dev": "dev_scores",
        "--scores": "fused/scores", "--dev-scores": "fused/dev.txt", "--fusion": "fused/fusion.json",
        "--metrics": "metrics/both.json",
    }  # fmt: skip
    return ["--name", "both", *(part for option, name in given.items() for part in (option, str(folder / name)))]


def test_the_stage_writes_the_files_of_a_run(tmp_path: Path) -> None:
    fuse.main(project(tmp_path, {"both": [*RUNS]}))
    trials, dev = table(), drawn(1)
    weights, offset = reference(dev)
    told = json.loads((tmp_path / "fused/fusion.json").read_text())
    np.testing.assert_allclose([told["weights"][run] for run in RUNS], weights, rtol=1e-4)
    for file, scores in (("eval.txt", drawn(2)), ("eval/mp3_32.txt", drawn(3))):
        got = join.read(tmp_path / "fused/scores" / file, trials)
        np.testing.assert_allclose(got, scores @ weights + offset, atol=1e-3)
    assert [file.name for file in (tmp_path / "fused/scores/eval").iterdir()] == ["mp3_32.txt"]  # not of all runs
    held = join.read(tmp_path / "fused/dev.txt", trials)
    np.testing.assert_allclose(held, fusion.out_of_fold(dev, IS_BONAFIDE), rtol=1e-5)
    metrics = json.loads((tmp_path / "metrics/both.json").read_text())
    assert metrics["dev_eer"] == round(100 * eer_of(np.float32(held), IS_BONAFIDE).eer, 5)
    assert (metrics["parameters"], metrics["remarks"]) == (3, [])


def test_scores_of_a_system_of_elsewhere_are_fused_as_a_run(tmp_path: Path) -> None:
    """The same scores under another name and in another layout give the same fusion."""
    runs = project(tmp_path, {"both": [*RUNS]})
    fuse.main(runs)
    wanted = [(tmp_path / f"fused/{name}").read_bytes() for name in ("dev.txt", "scores/eval.txt")]
    given = [*project(tmp_path, {"both": [RUNS[0], "other/wavlm"]}), "--others", str(tmp_path / "others")]
    for source, name in ((f"dev_scores/{RUNS[1]}.txt", "dev"), (f"scores/{RUNS[1]}/eval.txt", "eval")):
        found = join.read(tmp_path / source, table())
        lines = [f"{utterance},{score!r}" for utterance, score in zip(table().utterance, found.tolist(), strict=True)]
        write_text(tmp_path / f"others/wavlm/{name}.txt", "\n".join(["utterance,score", *lines, ""]))
        (tmp_path / source).unlink()
    fuse.main(given)
    assert [(tmp_path / f"fused/{name}").read_bytes() for name in ("dev.txt", "scores/eval.txt")] == wanted
    assert list(json.loads((tmp_path / "fused/fusion.json").read_text())["weights"]) == [RUNS[0], "other/wavlm"]
    assert params_file.load(tmp_path / "params.yaml").fused_runs == (RUNS[0],)
    (tmp_path / "others/wavlm/eval.txt").unlink()
    with pytest.raises(InputError, match=r"others/wavlm/eval\.txt: no score file there; .* yours to put there"):
        fuse.main(given)


def test_the_stage_tells_of_a_run_without_weight(tmp_path: Path) -> None:
    given = project(tmp_path, {"both": [*RUNS]})
    scorefile.write(tmp_path / f"dev_scores/{RUNS[1]}.txt", table(), -drawn(1)[:, 0], layout="2019")
    fuse.main(given)
    (remark,) = json.loads((tmp_path / "metrics/both.json").read_text())["remarks"]
    assert remark.startswith(f"{RUNS[1]} has the weight 0: ")


def test_a_run_that_lacks_trials_is_named(tmp_path: Path) -> None:
    given = project(tmp_path, {"both": [*RUNS]})
    scorefile.write(
        tmp_path / f"dev_scores/{RUNS[1]}.txt", table().take(np.arange(100)), drawn(1)[:100, 0], layout="2019"
    )
    with pytest.raises(InputError, match=rf"dev_scores/{RUNS[1]}\.txt: .*20 of 120"):
        fuse.main(given)
    (tmp_path / f"scores/{RUNS[0]}/eval.txt").unlink()
    scorefile.write(tmp_path / f"dev_scores/{RUNS[1]}.txt", table(), drawn(1)[:, 1], layout="2019")
    with pytest.raises(InputError, match=rf"scores/{RUNS[0]}/eval\.txt: no score file there"):
        fuse.main(given)


@pytest.mark.parametrize(
    ("fusions", "message"),
    [
        ({"both": [RUNS[0]]}, r"params.yaml:\d+: fuse\.both: .*at least 2 items"),
        ({"both": [RUNS[0], RUNS[0]]}, r"fuse\.both: .*expected each entry once"),
        ({"both": [RUNS[0], "sls-qamo-all-clean-1"]}, r":\d+: fuse\.both\.1: expected a run of .*got 'sls-qamo"),
        ({"both": [*RUNS], "more": [RUNS[0], "both"]}, r"fuse\.more\.1: expected a run of the grid.*got 'both'"),
        ({"Both": [*RUNS]}, r"fuse\.Both"),
        ({"other": [*RUNS]}, r"params.yaml: fuse: expected one of other, got 'both'"),
        ({"both": ["../x", RUNS[0]]}, r"fuse\.both"),
        ({"both": ["other/../x", RUNS[0]]}, r"fuse\.both"),
    ],
)  # fmt: skip
def test_fusions_that_cannot_be_are_named(tmp_path: Path, fusions: dict[str, list[str]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fuse.main(project(tmp_path, fusions))


def test_a_fusion_is_a_row_of_the_leaderboard(tmp_path: Path) -> None:
    project(tmp_path, {"both": [*RUNS]})
    settings = params_file.load(tmp_path / "params.yaml")
    assert settings.runs["both"] == "both"
    assert settings.fused_runs == RUNS
