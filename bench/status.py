"""What `dvc status` of a large grid would save by other stages: upper bounds.

    python -m bench.status [--quick]

Takes the project of `python -m bench.ablation --only many`, 300 cells that are up to date, and changes the stages of
its cells, `train`, `score` and `evaluate`, as each line says. Each time the stand-ins for the outputs and the locks are
made anew. What would have to make the file of a change is left out, so that a line says what the change saves at most:

parameters as JSON    the cells read `data/settings.json`, which a stage would have to make of `params.yaml`
one file of code      a cell depends on one file, in which a stage would have to write the hashes of the code
one folder of plots   `det`, `histogram` and `risk` of a run are one output, which `dvc plots` would not draw
score in evaluate     one stage makes the scores and the metrics

Prints a Markdown table: processor seconds and seconds of `dvc status`, lines of the locks, the machine's load. The
line `as it is` comes at the beginning and at the end. Takes about 15 minutes on an idle machine; --quick takes 9 cells,
to see that all changes work.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from bench import flow
from bench.ablation import Place, head, run, show

Stages = dict[str, dict[str, Any]]  # of a cell: name -> its entry in YAML
FILES = {"train": "dvc.yaml", "score": "flow/score/dvc.yaml", "evaluate": "flow/evaluate/dvc.yaml"}
SETTINGS = "data/settings.json"
CODE = "data/code.json"
RUN_OF_SCORE = "${item.backend}-${item.loss}-${item.layers}-${item.views}-${item.seed}"


def as_json(stages: Stages) -> None:
    """Parameters are read from a file of JSON."""
    for stage in stages.values():
        stage["params"] = [{SETTINGS: stage["params"]}]


def no_params(stages: Stages) -> None:
    """No stage of a cell has parameters."""
    for stage in stages.values():
        del stage["params"]


def no_code(stages: Stages) -> None:
    """No code is a dependency."""
    for stage in stages.values():
        stage["deps"] = [dep for dep in stage["deps"] if not _is_code(dep)]


def one_code(stages: Stages) -> None:
    """One file stands for all code."""
    no_code(stages)
    for stage in stages.values():
        stage["deps"] = [*stage["deps"], CODE]


def one_folder(stages: Stages) -> None:
    """The plots of a run are one output."""
    evaluate = stages["evaluate"]
    del evaluate["plots"]
    evaluate["outs"] = [*evaluate["outs"], "data/plots/${key}"]


def joined(stages: Stages) -> None:
    """What `score` reads and writes belongs to `evaluate`; the grid has one evaluation set, `eval`."""
    score, evaluate = stages.pop("score"), stages["evaluate"]
    for kind in ("deps", "outs"):
        names = [name.replace(RUN_OF_SCORE, "${key}").replace("${item.set}", "eval") for name in score[kind]]
        evaluate[kind] = list(dict.fromkeys([*evaluate[kind], *names]))
    evaluate["deps"].remove("data/scores/${key}")


def _is_code(dep: str) -> bool:
    return dep.startswith(("pipeline/", "stages/"))


CHANGES: dict[str, tuple[Callable[[Stages], None], ...]] = {
    "as it is": (),
    "parameters as JSON": (as_json,),
    "no parameters": (no_params,),
    "one file of code": (one_code,),
    "no code": (no_code,),
    "one folder of plots": (one_folder,),
    "score in evaluate": (joined,),
    "parameters as JSON, one file of code": (as_json, one_code),
    "these, one folder of plots, score in evaluate": (joined, as_json, one_code, one_folder),
    "no parameters, no code": (no_params, no_code),
    "as it is, again": (),
}


def change(project: Path, changes: tuple[Callable[[Stages], None], ...]) -> None:
    """Change the stages of the cells of a project, and give it the files that they may depend on."""
    yaml = YAML(typ="safe")
    yaml.sort_base_mapping_type_on_output = False  # the keys of `matrix` make the names of the runs, in this order
    (project / SETTINGS).write_text(json.dumps(yaml.load(project / "params.yaml")))
    (project / CODE).write_text("{}")
    files = {name: yaml.load(project / path) for name, path in FILES.items()}
    stages = {name: files[name]["stages"].pop(name) for name in FILES}
    for apply in changes:
        apply(stages)
    for name, stage in stages.items():
        files[name]["stages"][name] = stage
    for name, path in FILES.items():
        yaml.dump(files[name], project / path)


def status(project: Path) -> tuple[float, float]:
    """Seconds of processor and of the clock of a `dvc status` that finds nothing to do."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = run(project, "dvc", "status", "--quiet")  # another exit code than 0, and so an error, if anything is stale
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, ran.seconds


def measure(place: Place, name: str) -> None:
    """The line of one change."""
    project = place.many(name.replace(" ", "_"))
    change(project, CHANGES[name])
    flow.run_all(project)
    processor, seconds = status(project)
    lines = sum(len(path.read_text().splitlines()) for path in project.rglob("dvc.lock"))
    show(name, f"{processor:.1f}", f"{seconds:.1f}", f"{lines:,}", f"{os.getloadavg()[0]:.0f}")


def main() -> None:
    """One change after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="9 cells")
    args = parser.parse_args()
    logging.getLogger("dvc").setLevel(logging.ERROR)  # it names each lock that it writes
    head("change", "processor seconds", "seconds", "lines of lock", "load")
    for name in CHANGES:
        with tempfile.TemporaryDirectory() as folder:
            measure(Place(Path(folder), args.quick), name)


if __name__ == "__main__":
    main()
