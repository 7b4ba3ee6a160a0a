"""Five corpora in five layouts, trained together as one flat pool: from their downloads to an EER."""

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from ruamel.yaml import YAML

from pipeline.core import trial_table
from stages import encoder, extract, pool, prepare, score, train
from tests import miniatures
from tests.places import SETTINGS

FIVE = ["celeb", "diffusion", "vocoders", "crowd", "languages"]
RUN = "linear-oc_softmax-all-clean-1"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the stages ran up to the scores of one run."""
    folder = tmp_path_factory.mktemp("five")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        sets = write_params(folder)

        def run(stage: ModuleType, words: str) -> None:
            patch.setattr(sys, "argv", ["stage", *words.split()])
            stage.main()

        for name in sets:
            run(prepare, f"--set {name} --trials trials/{name}.csv")
        run(encoder, "--trials trials --card encoder.json")
        for name in sets:
            table, receipt = f"--trials trials/{name}.csv", f"--receipt features/{name}.json"
            run(extract, f"--set {name} {table} --card encoder.json {receipt} --extracted extracted/{name}.json")
        run(pool, "--pool five --trials trials --features features --extracted extracted")
        cell = "--backend linear --loss oc_softmax --layers all --views clean --seed 1"
        outputs = "--metrics metrics.json --curves curves.csv --dev-scores dev.txt --seconds seconds.json"
        run(train, f"{cell} --trials trials --features features --run runs/{RUN} {outputs}")
        inputs = f"--set eval --run runs/{RUN} --trials trials/eval.csv --features features/eval.json"
        run(score, f"{inputs} --scores scores/eval.txt --views scores/eval")
    return folder


def write_params(folder: Path) -> list[str]:
    """Parameters with the five as sets and as one pool, trained together. Gives the names of the sets."""
    settings = YAML(typ="safe").load(SETTINGS)
    settings["sets"] = miniatures.five(folder)
    settings["pools"] = {"five": FIVE}
    settings["encoder"]["random"] |= {"layers": 3, "width": 32, "heads": 4, "feedforward": 48, "conv_channels": 16}
    settings["encoder"]["finetune"]["set"] = "celeb"  # the encoder is frozen
    settings["extract"] |= {"layers": [1, 3], "window": {"samples": 3_200, "pad": "repeat"}}
    settings["layers"] = {"all": [1, 3]}
    settings["train"] |= {"set": "five", "epochs": 8}
    settings["grid"] |= {"backend": ["linear"], "loss": ["oc_softmax"], "layers": ["all"], "seed": [1]}
    settings["analyse"] |= {"loss": ["oc_softmax"]}
    settings["evaluate"] |= {"sets": ["eval"], "bootstrap": 20}
    YAML(typ="safe").dump(settings, folder / "params.yaml")
    return list(settings["sets"])


def test_the_pool_has_all_trials_of_the_five(trained: Path) -> None:
    tables = [trial_table.read(trained / f"trials/{name}.csv") for name in FIVE]
    assert [len(table) for table in tables] == [8, 8, 16, 8, 8]
    pooled = trial_table.read(trained / "trials/five.csv")
    assert pooled.path.tolist() == [path for table in tables for path in table.path.tolist()]
    assert pooled.is_bonafide.sum() == 24
    assert "fake/de/vits/ein Satz 0.wav" in pooled.utterance.tolist()


def test_the_run_was_trained_on_the_pool_and_scores_every_trial(trained: Path) -> None:
    assert json.loads((trained / f"runs/{RUN}/run.json").read_text())["train"]["set"] == "five"
    table = trial_table.read(trained / "trials/eval.csv")
    lines = (line.rsplit(" ", 1) for line in (trained / "scores/eval.txt").read_text().splitlines())
    scores = {name: float(score) for name, score in lines}
    assert list(scores) == table.utterance.tolist()
    assert np.isfinite([*scores.values()]).all()
    assert len({*scores.values()}) == len(scores)
