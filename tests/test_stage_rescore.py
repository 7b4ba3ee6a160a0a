"""The rescore stage through its `main`, on small stored embeddings."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from ruamel.yaml import YAML

from pipeline.analysis import embedding_index, embedding_scores, embeddings, exact_search
from pipeline.core import trial_table
from pipeline.core.contracts import Centroids
from pipeline.core.errors import InputError
from pipeline.core.trial_table import Row, Trials
from pipeline.metrics import join, scorefile
from pipeline.metrics.det import det_points
from pipeline.metrics.eer import official_eer
from pipeline.scoring import runs
from stages import rescore
from tests.places import SETTINGS

ROOT = Path(__file__).parents[1]
SIZES = {"train": 60, "dev": 31, "eval": 24, "other": 10}
OUTPUTS = {"--scores": "rescored/r", "--dev-scores": "dev_scores/r.txt", "--metrics": "metrics/r-new.json"}


def table(name: str) -> Trials:
    rows = [
        Row(name, f"{name}{i}", f"{i}.wav", "spoof" if i % 3 else "bonafide", attack="A01" if i % 3 else "-")
        for i in range(SIZES[name])
    ]
    return trial_table.from_rows(rows, source=name)


def vectors(name: str) -> NDArray[np.float32]:
    """Embeddings whose classes overlap."""
    rng = np.random.default_rng(list(SIZES).index(name))
    return (rng.normal(size=(SIZES[name], 4)) + 1.2 * table(name).is_bonafide[:, None]).astype(np.float32)


def project(folder: Path, **analyse: object) -> Path:
    """A folder with the trials and embeddings of all sets, their run and its metrics, and parameters."""
    centroids = Centroids(np.eye(4, dtype=np.float32)[:1], True, 0.0, "max")
    card = {"backend": "linear", "backend_parameters": {}, "reads": "pooled", "kind": {"layers": [1], "channels": 8}}
    runs.save(folder / "runs/r", weights={"w": np.ones(1, np.float32)}, centroids=centroids, card=card)
    (folder / "trials").mkdir()
    for name in SIZES:
        (folder / f"trials/{name}.csv").write_text(trial_table.to_csv(table(name)))
        stored(folder, name, table(name), vectors(name))
    (folder / "metrics").mkdir()
    trained = {"dev_eer": 1.5, "dev_threshold": 0.25, "epochs": 12, "parameters": 345}
    (folder / "metrics/r.json").write_text(json.dumps(trained))
    settings = YAML(typ="safe").load(SETTINGS)
    settings["sets"]["other"] = settings["sets"]["eval"] | {"corpus": "asvspoof5"}
    settings["evaluate"]["sets"] = ["eval", "other"]
    settings["analyse"] |= {"centroids": None, "neighbours": 3} | analyse
    YAML(typ="safe").dump(settings, folder / "params.yaml")
    return folder


def stored(folder: Path, name: str, of: Trials, rows: NDArray[np.float32]) -> None:
    facts = embeddings.identity(folder / "runs/r", name, of)
    embedding_index.build(folder / "embeddings/r" / name, [rows], of.utterance.tolist(), normalize=True, facts=facts)


def arguments(folder: Path, scoring: str = "knn") -> list[str]:
    given: Mapping[str, str] = {
        "--params": "params.yaml", "--run": "runs/r", "--training": "metrics/r.json", "--trials": "trials",
        "--embeddings": "embeddings/r",
    } | OUTPUTS  # fmt: skip
    return ["--scoring", scoring, *(part for option, name in given.items() for part in (option, str(folder / name)))]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = project(tmp_path_factory.mktemp("rescore"))
    rescore.main(arguments(folder))
    return folder


def expected(made: Path, scoring: str, name: str) -> NDArray[np.float32]:
    train, found = (embeddings.read(made / "embeddings/r" / which) for which in ("train", name))
    fitted = embedding_scores.fit(scoring, train, table("train").is_bonafide, centroids=None, neighbours=3)
    return embedding_scores.scores(fitted, found)


def test_every_set_has_a_score_file_in_its_layout(made: Path) -> None:
    for name, layout in (("eval", "2021"), ("other", "asvspoof5")):
        file = scorefile.parse(made / f"rescored/r/{name}.txt")
        assert file.layout == layout
        np.testing.assert_array_equal(np.float32(join.read(file.path, table(name))), expected(made, "knn", name))
    assert sorted(path.name for path in (made / "rescored/r").iterdir()) == ["eval.txt", "other.txt"]


def test_knn_by_a_naive_loop(made: Path) -> None:
    units = {name: vectors(name).astype(float) for name in ("train", "eval")}
    units = {name: rows / np.linalg.norm(rows, axis=1, keepdims=True) for name, rows in units.items()}
    bonafide = units["train"][table("train").is_bonafide]
    wanted = [-np.sort([np.linalg.norm(row - other) for other in bonafide])[:3].mean() for row in units["eval"]]
    got = join.read(made / "rescored/r/eval.txt", table("eval"))
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_dev_scores_carry_their_key_and_give_the_metrics(made: Path) -> None:
    file = scorefile.parse(made / "dev_scores/r.txt")
    assert file.layout == "2019"
    assert scorefile.own_key(file).is_bonafide.tolist() == table("dev").is_bonafide.tolist()
    assert file.attack == table("dev").attack.tolist()
    np.testing.assert_array_equal(np.float32(file.score), expected(made, "knn", "dev"))
    bonafide = table("dev").is_bonafide
    error = official_eer(det_points(file.score[bonafide], file.score[~bonafide]))
    told = json.loads((made / "metrics/r-new.json").read_text())
    assert told == {
        "dev_eer": round(100 * error.eer, 5), "dev_threshold": error.threshold, "epochs": 12, "parameters": 345,
        "scoring": "knn", "neighbours": 3,
    }  # fmt: skip
    assert 0 < told["dev_eer"] < 50
    assert told["dev_threshold"] in file.score  # the very number of the score file


@pytest.mark.parametrize("scoring", embedding_scores.SCORINGS)
def test_each_scoring_is_its_own(tmp_path: Path, scoring: str, capsys: pytest.CaptureFixture[str]) -> None:
    project(tmp_path)
    rescore.main(arguments(tmp_path, scoring))
    np.testing.assert_array_equal(
        np.float32(join.read(tmp_path / "rescored/r/eval.txt", table("eval"))),
        expected(tmp_path, scoring, "eval"),
    )
    told = json.loads((tmp_path / "metrics/r-new.json").read_text())
    assert told["scoring"] == scoring
    units = exact_search.compared(vectors("train")[table("train").is_bonafide], normalize=True)
    wanted = {"kmeans": {"centroids": embedding_scores.chosen_centroids(units, normalize=True)}, "mahalanobis": {}}
    own = {key: value for key, value in told.items() if key in ("centroids", "neighbours")}
    assert own == wanted.get(scoring, {"neighbours": 3})
    assert capsys.readouterr().out.startswith(f"r-{scoring}: dev EER {told['dev_eer']:.2f} % -> ")


def test_the_parameters_are_taken_up(tmp_path: Path) -> None:
    project(tmp_path, centroids=4, neighbours=7)
    for scoring, wanted in (("kmeans", {"centroids": 4}), ("knn", {"neighbours": 7})):
        rescore.main(arguments(tmp_path, scoring))
        told = json.loads((tmp_path / "metrics/r-new.json").read_text())
        assert wanted.items() <= told.items()


def test_the_same_embeddings_give_the_same_files(tmp_path: Path) -> None:
    project(tmp_path)
    texts = []
    for _ in range(2):
        rescore.main(arguments(tmp_path, "kmeans"))
        files = [*(tmp_path / "rescored/r").iterdir(), *(tmp_path / name for name in list(OUTPUTS.values())[1:])]
        texts.append({file: file.read_bytes() for file in files})
    assert texts[0] == texts[1]


def test_labels_of_evaluation_sets_change_nothing(made: Path, tmp_path: Path) -> None:
    project(tmp_path)
    words = (tmp_path / "trials/eval.csv").read_text().replace(",bonafide,", ",?,").replace(",spoof,", ",bonafide,")
    (tmp_path / "trials/eval.csv").write_text(words.replace(",?,", ",spoof,"))
    rescore.main(arguments(tmp_path))
    assert (tmp_path / "rescored/r/eval.txt").read_bytes() == (made / "rescored/r/eval.txt").read_bytes()


# ---------------------------------------------------------------- what is refused


def test_embeddings_of_other_trials_weights_or_normalisation(tmp_path: Path) -> None:
    project(tmp_path)
    order = np.roll(np.arange(SIZES["eval"]), 1)
    stored(tmp_path, "eval", table("eval").take(order), vectors("eval")[order])
    with pytest.raises(InputError, match=r"embeddings/r/eval: expected the embeddings of .*, got those of .*; run"):
        rescore.main(arguments(tmp_path))
    stored(tmp_path, "eval", table("eval"), vectors("eval"))
    rescore.main(arguments(tmp_path))
    run = tmp_path / "runs/r"
    runs.save(run, weights={"w": np.zeros(1, np.float32)}, centroids=runs.centroids(run), card=runs.card(run))
    with pytest.raises(InputError, match=r"embeddings/r/train: expected the embeddings of"):
        rescore.main(arguments(tmp_path))


def test_what_is_missing(tmp_path: Path) -> None:
    project(tmp_path)
    for path, message in (
        ("metrics/r.json", r"metrics/r\.json: no metrics of a training there; run `dvc repro -f train`"),
        ("trials/train.csv", r"trials/train\.csv: no trial table there; run `dvc repro prepare`"),
        ("embeddings/r/dev/embeddings.json", r"dev/embeddings\.json: no set of embeddings there; run `dvc repro"),
    ):
        content = (tmp_path / path).read_bytes()
        (tmp_path / path).unlink()
        with pytest.raises(InputError, match=message):
            rescore.main(arguments(tmp_path))
        (tmp_path / path).write_bytes(content)
    assert not (tmp_path / "metrics/r-new.json").exists()


def test_more_neighbours_than_bona_fide_is_one_message_and_exit_code_2(
    tmp_path: Path, warm_env: dict[str, str]
) -> None:
    project(tmp_path, neighbours=21)
    command = ["python", "-m", "stages.rescore", *arguments(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, env=warm_env, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr == "error: analyse.neighbours: expected at most the 20 bona fide of training, got 21\n"


def test_an_unknown_scoring_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        rescore.main(arguments(tmp_path, "lof"))
    assert ended.value.code == 2
    assert "invalid choice: 'lof'" in capsys.readouterr().err


def test_it_runs_without_torch(tmp_path: Path) -> None:
    project(tmp_path)
    code = f"import sys; from stages import rescore; rescore.main({arguments(tmp_path)}); print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.endswith("False\n")


def test_help_says_what_each_scoring_is(warm_env: dict[str, str]) -> None:
    command = ["python", "-m", "stages.rescore", "--help"]
    ended = subprocess.run(command, cwd=ROOT, env=warm_env, capture_output=True, text=True, check=True)
    for name in embedding_scores.SCORINGS:
        assert f"\n    {name} " in ended.stdout
