"""The stage analyse through its `main`, on small embeddings: what it writes, and what it refuses."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from ruamel.yaml import YAML

from pipeline.analysis import embedding_index, embeddings
from pipeline.core import trial_table
from pipeline.core.contracts import Centroids
from pipeline.core.errors import InputError
from pipeline.core.trial_table import Row, Trials
from pipeline.report import analysis_pictures
from pipeline.scoring import centroids, runs, scorer
from stages import analyse
from tests.places import SETTINGS

ROOT = Path(__file__).parents[1]
SIZES = {"train": 30, "dev": 12, "eval": 15}
WIDTH = 6
RUN = "linear-qamo-all-clean-1"
VECTORS = np.eye(WIDTH, dtype=np.float32)[:2]


def table(name: str) -> Trials:
    rows = [
        Row(
            where=name,
            utterance=f"{name}{i}",
            path=f"flac/{i}.wav",
            label="spoof" if i % 3 else "bonafide",
            speaker=f"s{i % 4}",
            attack=f"A0{i % 2}" if i % 3 else "-",
            quality=f"{1 + i % 5}",
        )
        for i in range(SIZES[name])
    ]
    return trial_table.from_rows(rows, source=name)


def vectors(name: str) -> NDArray[np.float32]:
    rng = np.random.default_rng(list(SIZES).index(name))
    kept = table(name).is_bonafide
    made = rng.normal(size=(len(kept), WIDTH)) + 2 * kept[:, None] * VECTORS[rng.integers(2, size=len(kept))]
    return made.astype(np.float32)


def project(folder: Path, *, normalize: bool = True, made: NDArray[np.float32] = VECTORS, cuts: Any = (3.0,)) -> Path:
    """A folder with a run, trials, embeddings and parameters."""
    run = Centroids(made, normalize_query=normalize, bias=0.25, reduce="max")
    path = np.stack([made, made]) + np.array([1.0, 0.0], np.float32)[:, None, None]
    card = {
        "backend": "linear",
        "backend_parameters": {},
        "kind": {"layers": [1], "channels": 8},
        "reads": "pooled",
        "quality_thresholds": list(cuts),
    }
    weights = {"w": np.ones(2, np.float32)}
    runs.save(folder / "runs" / RUN, weights=weights, centroids=run, card=card, path=path.astype(np.float32))
    (folder / "trials").mkdir()
    for name in SIZES:
        (folder / f"trials/{name}.csv").write_text(trial_table.to_csv(table(name)))
        embed(folder, name, table(name), vectors(name), normalize=normalize)
    configure(folder)
    return folder


def embed(folder: Path, name: str, whole: Trials, made: NDArray[np.float32], *, normalize: bool = True) -> None:
    facts = embeddings.identity(folder / "runs" / RUN, name, whole)
    names = whole.utterance.tolist()
    embedding_index.build(folder / "embeddings" / name, [made], names, normalize=normalize, facts=facts)


def configure(folder: Path, **changed: Any) -> None:
    settings = YAML(typ="safe").load(SETTINGS)
    settings["analyse"] |= {"points": 100, "projections": ["pca"]}
    settings["evaluate"] |= {"sets": ["eval"], "asv": {}}
    for section, values in changed.items():
        settings[section] = settings[section] | values
    YAML(typ="safe").dump(settings, folder / "params.yaml")


def arguments(folder: Path, out: str = "out") -> list[str]:
    given = {"--params": "params.yaml", "--run": f"runs/{RUN}", "--trials": "trials"}
    given |= {"--embeddings": "embeddings", "--analysis": out}
    return [part for option, name in given.items() for part in (option, str(folder / name))]


def read(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "out" / name).read_text())
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = project(tmp_path_factory.mktemp("analyse"))
    analyse.main(arguments(folder))
    return folder


@pytest.fixture
def sketched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are files without a drawing, for tests of what else is written."""
    monkeypatch.setattr(analysis_pictures, "save", lambda _figure, path: path.write_bytes(b""))


def test_the_report_names_the_run_and_its_sets(made: Path) -> None:
    found = read(made, "analysis.json")
    assert (found["run"], found["train"], found["sets"]) == (RUN, "train", ["train", "dev", "eval"])
    assert (found["centroids"], found["embedding_dim"], found["distance"]) == (2, WIDTH, "cosine")
    assert found["similarity"] == [[1.0, 0.0], [0.0, 1.0]]
    assert found["path"]["epochs"] == [1, 2]
    assert found["path"]["to_last"][1] == [0.0, 0.0]


def test_assignments_are_those_of_a_loop(made: Path) -> None:
    found = read(made, "analysis.json")["assignments"]["eval"]
    nearest = vectors("eval")[:, :2].argmax(axis=1)
    whole = table("eval")
    for label, own in (("bonafide", whole.is_bonafide), ("spoof", ~whole.is_bonafide)):
        assert found["class"][label] == np.bincount(nearest[own], minlength=2).tolist()
    assert found["quality_level"]["1"] == np.bincount(nearest[whole.quality >= 3], minlength=2).tolist()
    assert found["corpus"] == {"demo": np.bincount(nearest, minlength=2).tolist()}
    assert list(found["speaker"]) == ["s0", "s1", "s2", "s3"]


def test_scores_are_those_that_scoring_gives(made: Path) -> None:
    index = runs.index(made / "runs" / RUN)
    scores = scorer.score(vectors("eval"), index, names=table("eval").utterance.tolist())
    told = {trial["utterance"]: trial["score"] for trial in read(made, "analysis.json")["hardest"]}
    lowest = np.flatnonzero(table("eval").is_bonafide)[np.argmin(scores[table("eval").is_bonafide])]
    assert told[f"eval{lowest}"] == pytest.approx(float(scores[lowest]), rel=1e-5)
    chart = read(made, "map.json")
    own = dict(zip(chart["utterance"], chart["score"], strict=True))
    assert [own[f"eval{i}"] for i in range(15)] == [round(float(score), 4) for score in scores]


def test_neighbours_are_of_the_training_set(made: Path) -> None:
    trial = read(made, "analysis.json")["hardest"][0]
    assert trial["set"] == "dev"
    units = {name: v / np.linalg.norm(v, axis=1, keepdims=True) for name, v in ((n, vectors(n)) for n in SIZES)}
    apart = np.linalg.norm(units["train"] - units["dev"][int(trial["utterance"][3:])], axis=1)
    assert [near["utterance"] for near in trial["neighbours"]] == [f"train{i}" for i in np.argsort(apart)[:5]]
    assert [near["distance"] for near in trial["neighbours"]] == pytest.approx(np.sort(apart)[:5], abs=1e-5)


def test_the_map_names_the_audio_of_every_trial(made: Path) -> None:
    found = read(made, "map.json")
    assert found["points"] == sum(SIZES.values())
    assert found["audio"] == [f"data/demo/flac/{i}.wav" for size in SIZES.values() for i in range(size)]
    assert found["categories"]["set"]["names"] == ["train", "dev", "eval"]
    assert found["categories"]["quality level"]["names"] == ["0", "1"]
    assert len(found["projections"][0]["centroids"]) == 2


def test_tables_and_pictures_lie_beside(made: Path) -> None:
    names = {path.name for path in (made / "out").iterdir()}
    tables = {f"{name}.csv" for name in ("assignments", "distances", "path", "geometry", "shift", "hardest")}
    assert names == tables | {"analysis.json", "map.json", "pca.png", "path.png", "distances.png", "similarity.png"}
    with (made / "out/shift.csv").open(newline="") as file:
        assert [row["set"] for row in csv.DictReader(file)] == ["train", "dev", "eval"]


def test_the_same_input_gives_the_same_bytes_over_an_older_analysis(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in (made / "out").iterdir()}
    (made / "out/left.over").write_text("of an older one")
    analyse.main(arguments(made))
    assert {path.name: path.read_bytes() for path in (made / "out").iterdir()} == before
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"{RUN}: 2 centroids, embeddings of width {WIDTH}; cosines between centroids 0.00")
    assert said[-1] == f"-> {made / 'out'}"


@pytest.mark.usefixtures("sketched")
def test_blocks_change_nothing(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analyse, "BLOCK", 7)
    analyse.main(arguments(made, "again"))
    assert (made / "again/map.json").read_bytes() == (made / "out/map.json").read_bytes()


@pytest.mark.usefixtures("sketched")
def test_a_run_that_does_not_normalise_and_knows_no_levels(tmp_path: Path) -> None:
    project(tmp_path, normalize=False, made=VECTORS[:1], cuts=())
    analyse.main(arguments(tmp_path))
    found = read(tmp_path, "analysis.json")
    assert (found["centroids"], found["distance"]) == (1, "euclidean")
    assert "quality_level" not in found["assignments"]["dev"]
    assert not (tmp_path / "out/similarity.png").exists()
    chart = read(tmp_path, "map.json")
    assert "quality level" not in chart["categories"]
    assert chart["projections"][0]["centroids"] is None


@pytest.mark.usefixtures("sketched")
@pytest.mark.parametrize(("adapters", "told"), [("demo demo", "first more"), ("demo manifest", "demo manifest")])
def test_trials_of_a_pool_are_told_by_where_they_came_from(tmp_path: Path, adapters: str, told: str) -> None:
    project(tmp_path)
    parts = {"first": "train", "more": "eval"}  # their tables, under names of other sets
    sets = {}
    for (name, own), adapter in zip(parts.items(), adapters.split(), strict=True):
        (tmp_path / f"trials/{name}.csv").write_text(trial_table.to_csv(table(own)))
        sets[name] = {"corpus": adapter, "protocol": "p", "root": f"/data/{name}", "split": "x", "quality": "column"}
    whole = trial_table.pool({name: table(own) for name, own in parts.items()}, dict.fromkeys(parts, "one corpus"))
    (tmp_path / "trials/both.csv").write_text(trial_table.to_csv(whole))
    embed(tmp_path, "both", whole, np.concatenate([vectors(own) for own in parts.values()]))
    configure(tmp_path, sets=sets, pools={"both": ["first", "more"]}, train={"set": "both"})
    analyse.main(arguments(tmp_path))
    found = read(tmp_path, "analysis.json")
    assert found["sets"] == ["both", "dev", "eval"]
    assert {name: sum(counts) for name, counts in found["assignments"]["both"]["corpus"].items()} == dict(
        zip(told.split(), (30, 15), strict=True)
    )
    audio = read(tmp_path, "map.json")["audio"]
    assert (audio[0], audio[29], audio[30]) == (
        "/data/first/flac/0.wav",
        "/data/first/flac/29.wav",
        "/data/more/flac/0.wav",
    )
    (tmp_path / "trials/more.csv").write_text(trial_table.to_csv(table("dev")))
    with pytest.raises(InputError, match=r"both\.csv: expected the trials of first, more, got others; run `dvc repro"):
        analyse.main(arguments(tmp_path))


# ---------------------------------------------------------------- what it refuses


def test_an_index_of_another_run_is_refused(tmp_path: Path) -> None:
    project(tmp_path)
    other = Centroids(2 * VECTORS, normalize_query=True, bias=0.25, reduce="max")
    centroids.write_index(centroids.build(other), tmp_path / "runs" / RUN / runs.CENTROIDS_FILE)
    with pytest.raises(InputError, match=rf"{RUN}/centroids\.faiss: expected the index that was written with the run"):
        analyse.main(arguments(tmp_path))
    assert not (tmp_path / "out").exists()


def test_embeddings_of_other_trials_are_refused(tmp_path: Path) -> None:
    project(tmp_path)
    (tmp_path / "trials/dev.csv").write_text(trial_table.to_csv(table("eval")))
    with pytest.raises(InputError, match=r"embeddings/dev: expected the embeddings of .* run `dvc repro"):
        analyse.main(arguments(tmp_path))


def test_a_damaged_embedding_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analyse, "BLOCK", 7)
    project(tmp_path)
    damaged = vectors("train")
    damaged[16] = np.nan
    file, card = tmp_path / "embeddings/train/embeddings.npy", tmp_path / "embeddings/train/embeddings.json"
    np.save(file, damaged)
    with pytest.raises(InputError, match=r"embeddings\.npy: expected the bytes that embeddings\.json tells of"):
        analyse.main(arguments(tmp_path))
    record = json.loads(card.read_text())
    record["crc32c"][file.name] = embeddings.checksum(file)
    card.write_text(json.dumps(record))
    with pytest.raises(InputError, match="utterance train16: expected a finite embedding"):
        analyse.main(arguments(tmp_path))


@pytest.mark.usefixtures("sketched")
def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    project(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"out: expected a free place or an older folder with analysis\.json"):
        analyse.main(arguments(tmp_path))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_missing_embeddings_are_one_message_and_exit_code_2(tmp_path: Path, warm_env: dict[str, str]) -> None:
    project(tmp_path)
    (tmp_path / "embeddings/eval/embeddings.json").unlink()
    command = ["python", "-m", "stages.analyse", *arguments(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, env=warm_env, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: {tmp_path}/embeddings/eval/embeddings.json: no ")
    assert "run `dvc repro" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_help_teaches_and_imports_no_torch() -> None:
    code = "import sys; from stages import analyse; print('torch' in sys.modules); analyse.main(['--help'])"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.startswith("False\n")
    for word in ("analysis.json", "map.json", "analyse.points", "similarity", "python -m stages.analyse"):
        assert word in ended.stdout
