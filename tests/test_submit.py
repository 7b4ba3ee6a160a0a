"""`bonafide submit`: the files that the Arena's schemas and its check of the EER accept."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

from pipeline import commands
from pipeline.api import ArenaModel
from pipeline.core import trial_table
from pipeline.core.errors import InputError
from pipeline.core.trial_table import Row

SCHEMAS = Path(__file__).parents[2] / "shared" / "arena"
DATASET = "Benchmarks/Some-Set"
# Bona fide 3 and 1, spoof 2, 1 and 0: with the tie at 1 counted evenly, FRR = FAR = 2/5 on the line from (0, 2/3) at
# threshold 0 to (1/2, 1/3) at threshold 1.
SCORES = {"b1": 3.0, "b2": 1.0, "s1": 2.0, "s2": 1.0, "s3": 0.0}
EER = 40.0
URL = "https://huggingface.co/you/model/resolve/0123abc/.eval_results/scores.txt"
ABOUT: dict[str, Any] = {
    "system": {
        "name": "A system", "slug": "a-system", "description": "", "code": "https://example.org/code",
        "checkpoint": "https://example.org/weights",
        "paper": {"arxiv_id": "2509.20679", "url": "https://arxiv.org/abs/2509.20679", "bibtex": "@article{}"},
    },
    "dataset": {"id": DATASET, "revision": "0123abc", "split": "test"},
    "artifact": {"bench_version": "1.0", "scores_url": URL},
    "submitter": {"hf_username": "you", "contact": "you@example.org"},
    "submitted_at": "2026-11-26",
    "arena": {"url": "https://example.org", "system_url": "https://example.org/a-system"},
}  # fmt: skip


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    labels = {"b": "bonafide", "s": "spoof"}
    rows = (Row(name, name, path=f"{name}.wav", label=labels[name[0]]) for name in SCORES)
    for folder in ("data/trials", "data/scores/run"):
        Path(folder).mkdir(parents=True)
    Path("data/trials/wild.csv").write_text(trial_table.to_csv(trial_table.from_rows(rows, source="here")))
    Path("data/scores/run/wild.txt").write_text("".join(f"{name} {score}\n" for name, score in SCORES.items()))


def submit(about: Any = ABOUT, *, run: str = "run") -> None:
    if not isinstance(about, str):
        YAML(typ="safe").dump(about, Path("about.yaml"))
    else:
        Path("about.yaml").write_text(about)
    commands.dispatch(["submit", run, "--set", "wild", "--about", "about.yaml", "--out", "out"])


def read(path: str) -> Any:
    return YAML(typ="safe").load(Path(path))


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value is as a JSON schema says, by the keywords that the Arena's schemas use."""
    types = {"object": dict, "string": str, "integer": int, "number": (int, float)}
    if "const" in schema and value != schema["const"]:
        return False
    if "type" in schema and not isinstance(value, types[schema["type"]]):
        return False
    if isinstance(value, str):
        date = schema.get("format") != "date" or re.fullmatch(r"\d{4}-\d\d-\d\d", value)
        return bool(len(value) >= schema.get("minLength", 0) and re.search(schema.get("pattern", ""), value) and date)
    if not isinstance(value, dict):
        return bool(value >= schema.get("minimum", value))
    if len(value) < schema.get("minProperties", 0) or not set(schema.get("required", ())) <= value.keys():
        return False
    known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    for key, inner in value.items():
        wanted = known.get(key) or next((patterns[each] for each in patterns if re.search(each, key)), None)
        if wanted is None and schema.get("additionalProperties") is False:
            return False
        if wanted is not None and not fits(inner, wanted):
            return False
    return True


def schema(name: str) -> dict[str, Any]:
    path = SCHEMAS / f"{name}.schema.json"
    if not path.is_file():
        pytest.skip(f"no {path}")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_records_are_as_the_schemas_say() -> None:
    submit()
    for name, path in (
        ("submission", "out/submissions/a-system.yaml"),
        ("result", f"out/.eval_results/{DATASET}/result.yaml"),
    ):
        found = read(path)
        assert fits(found, schema(name))
        assert not fits(found | {"schema_version": 9}, schema(name))
        assert not fits({key: found[key] for key in found if key != "scores"}, schema(name))


def test_scores_and_their_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    submit()
    scores = Path(f"out/.eval_results/{DATASET}/scores.txt")
    assert scores.read_text() == "b1 3.0\nb2 1.0\ns1 2.0\ns2 1.0\ns3 0.0\n"
    found, result = read("out/submissions/a-system.yaml"), read(f"out/.eval_results/{DATASET}/result.yaml")
    assert found["scores"] == result["scores"]
    assert found["scores"]["eer_percent"] == pytest.approx(EER, abs=1e-9)
    assert (found["scores"]["n_trials"], found["scores"]["n_skipped"]) == (5, 0)
    assert found["artifact"]["scores_sha256"] == hashlib.sha256(scores.read_bytes()).hexdigest()
    assert found["system"]["paper"]["arxiv_id"] == result["system"]["paper"]["arxiv_id"] == "2509.20679"
    assert "EER 40.0000 % as the Arena defines it" in capsys.readouterr().out


def test_the_first_step_writes_the_scores_alone(capsys: pytest.CaptureFixture[str]) -> None:
    submit(ABOUT | {"artifact": {"bench_version": "1.0"}})
    files = [path.relative_to("out").as_posix() for path in Path("out").rglob("*") if path.is_file()]
    assert files == [f".eval_results/{DATASET}/scores.txt"]
    assert "next: upload .eval_results/Benchmarks/Some-Set/scores.txt" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("system", {"slug": "A System"}, r"system\.slug: .* got 'A System'"),
        ("system", {"licence": "MIT"}, r"system\.licence: .*not permitted"),
        ("dataset", {"revision": "main"}, r"dataset\.revision"),
        ("dataset", {"id": "../elsewhere"}, r"dataset\.id"),
        ("dataset", {"revision": 1234567}, r"in quotes:\n.*dataset\.revision: .*valid string"),
        ("artifact", {"scores_url": "https://huggingface.co/you/model/resolve/main/s.txt"}, r"artifact\.scores_url"),
    ],
)
def test_what_the_arena_would_refuse_is_refused(section: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        submit(ABOUT | {section: ABOUT[section] | changes})
    assert not Path("out").exists()


def test_other_files_and_runs_are_one_message() -> None:
    for about in ("a: [", "", "- 1\n"):
        with pytest.raises(InputError, match=r"about\.yaml: "):
            submit(about)
    with pytest.raises(InputError, match=r"no scores of this run on this set; there are those of run/wild"):
        submit(run="other")
    with pytest.raises(InputError, match=r"nothing\.yaml: no such file"):
        commands.dispatch(["submit", "run", "--set", "wild", "--about", "nothing.yaml", "--out", "out"])


def test_a_date_needs_no_quotes() -> None:
    submit(Path("about.yaml").write_text("") or ABOUT)
    text = Path("about.yaml").read_text().replace("'2026-11-26'", "2026-11-26")
    assert "submitted_at: 2026-11-26" in text
    submit(text)
    assert read("out/submissions/a-system.yaml")["submitted_at"] == "2026-11-26"


def test_a_system_behind_the_interface_of_the_arena(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        def score_samples(self, samples: np.ndarray, rate: int) -> float:
            return float(samples.sum()) + rate

    monkeypatch.setattr("pipeline.detect.load", lambda name, **_: Fake() if name == "package" else None)
    model = ArenaModel("package")
    clips = [np.ones(3, np.float32), np.zeros(2, np.float32)]
    model.load()
    assert model.score_batch(clips, [16_000, 8_000]) == [16_003.0, 8_000.0]
    model.unload()
    assert model.score(clips[0], model.expected_sample_rate) == 16_003.0  # loads again
