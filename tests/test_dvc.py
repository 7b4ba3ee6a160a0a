"""The DVC files: every stage declares exactly the modules that its script imports, its paths, its own parameters."""

import ast
import re
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import grimp
import pytest
from dvc.repo import Repo
from dvc.stage import PipelineStage
from ruamel.yaml import YAML

from pipeline.core import params_file
from pipeline.core.members import names
from pipeline.core.params import Params
from pipeline.features import receipt_files
from tests.places import SETTINGS

ROOT = Path(__file__).parents[1]
SHELVES = ("backends", "corpora", "losses", "quality")  # a stage depends on the members that it is given, by name
SHARED = {axis: Path(f"pipeline/{axis}/_shared.py") for axis in ("backends", "losses")}


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> list[PipelineStage]:
    """The stages of the parameters as they come."""
    settings = YAML(typ="safe").load(SETTINGS)
    return resolved(tmp_path_factory.mktemp("shipped"), settings)


def resolved(project: Path, settings: dict) -> list[PipelineStage]:
    """The stages that DVC makes of other parameters, in an empty folder."""
    shutil.copytree(ROOT / "flow", project / "flow", ignore=shutil.ignore_patterns("dvc.lock"))
    shutil.copy(ROOT / "dvc.yaml", project)
    YAML(typ="safe").dump(settings, project / "params.yaml")
    with Repo.init(project, no_scm=True) as repo:
        return [stage for stage in repo.index.stages if isinstance(stage, PipelineStage)]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> list[PipelineStage]:
    """The stages of the fine-tuned run and of a fusion, which the parameters as they come have none of."""
    settings = YAML(typ="safe").load(SETTINGS)
    settings["evaluate"]["finetuned"] = ["mine"]
    settings["fuse"] = {"mine_and_another": ["mine", "linear-qamo-all-clean-1"]}
    return [stage for stage in resolved(tmp_path_factory.mktemp("project"), settings) if "@mine" in stage.name]


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("pipeline", "stages", cache_dir=None)


def file_of(module: str) -> Path:
    path = Path(*module.split("."))
    return path / "__init__.py" if (ROOT / path).is_dir() else path.with_suffix(".py")


@cache
def speaks(path: Path) -> bool:
    """Whether a module holds more than its docstring."""
    return len(ast.parse((ROOT / path).read_text()).body) > 1


@cache
def loaded() -> tuple[Params, dict]:
    """The parameters, and those of fine-tuning: a frozen encoder's are not loaded."""
    return params_file.load(SETTINGS), YAML(typ="safe").load(SETTINGS)["encoder"]["finetune"]


def members(stage: PipelineStage) -> Iterator[str]:
    """The members that a stage finds by name, from its own parameters; all views, as any may be drawn."""
    kind, _, cell = stage.name.partition("@")
    axes = cell.split("-")
    settings, tuning = loaded()
    if kind == "prepare":
        yield f"pipeline.corpora.{settings.sets[cell].corpus}"
        yield f"pipeline.quality.{settings.sets[cell].quality}"
    if kind == "encoder":
        yield f"pipeline.losses.{tuning['loss']}"
    if kind in ("encoder", "finetuned", "embed_finetuned"):
        yield f"pipeline.backends.{tuning['backend']}"
    elif kind in ("train", "score", "embed"):
        yield f"pipeline.backends.{axes[0]}"
    if kind == "train":
        yield f"pipeline.losses.{axes[1]}"
    if kind in ("encoder", "extract"):
        yield from (f"pipeline.views.{name}" for name in names("views"))


def test_every_stage_declares_what_its_script_imports(
    stages: list[PipelineStage], tuned: list[PipelineStage], graph: grimp.ImportGraph
) -> None:
    assert len(stages) == 3 + 1 + 3 + 3 + 1 + 6 + 6 + 6 + 1 + (1 + 4 + 4 + 1)
    kinds = ["analyse_finetuned", "embed_finetuned", "evaluate_finetuned", "finetuned"]
    fused = ["evaluate_fused@mine_and_another", "fuse@mine_and_another"]
    assert sorted(stage.name for stage in tuned) == sorted([*(f"{kind}@mine" for kind in kinds), *fused])
    for stage in (*stages, *tuned):
        script = f"stages.{stage.name.split('@')[0].split('_')[0]}"
        assert f"python -m {script} " in stage.cmd
        chosen = set(members(stage))
        modules = {script, *chosen, *(rooms_of_corpora(graph) if script == "stages.prepare" else ())}
        modules |= {found for module in modules for found in graph.find_upstream_modules(module)}
        files = {file_of(module) for module in modules if speaks(file_of(module))}
        # a loss or backend may use what its shelf shares: declared for all of them
        files |= {SHARED[axis] for axis in SHARED if any(f".{axis}." in module for module in chosen)}
        files |= {Path("pipeline/losses/_ranks.py")} if any(".losses." in module for module in chosen) else set()
        code = [dep.def_path for dep in stage.deps if dep.def_path.startswith(("pipeline/", "stages/"))]
        assert set(code) == places(files), f"{stage.name}: {sorted(set(code) ^ places(files))}"


def places(files: set[Path]) -> set[str]:
    """What stands for files in dvc.yaml: a room where more than half of it is used, else single files."""
    rooms: dict[Path, set[Path]] = {}
    for path in files:
        rooms.setdefault(Path(*path.parts[:2]), set()).add(path)
    found = set()
    for room, used in rooms.items():
        whole = [path for path in (ROOT / room).rglob("*.py") if speaks(path.relative_to(ROOT))]
        is_room = room.parts[0] == "pipeline" and room.name not in SHELVES
        found |= {str(room)} if is_room and 2 * len(used) > len(whole) else {str(path) for path in used}
    return found


def rooms_of_corpora(graph: grimp.ImportGraph) -> set[str]:
    """What any corpus imports: `prepare` declares it for all of them, as dvc.yaml cannot choose by the name."""
    corpora = {name for name in graph.find_children("pipeline.corpora") if not name.rpartition(".")[2].startswith("_")}
    return {found for name in corpora for found in graph.find_upstream_modules(name)}


def test_every_path_on_a_command_line_is_declared(stages: list[PipelineStage], tuned: list[PipelineStage]) -> None:
    for stage in (*stages, *tuned):
        declared = [item.def_path for item in (*stage.deps, *stage.outs) if item.def_path.startswith("data/")]
        for word in stage.cmd.split():
            if word.startswith("data/") and not word.startswith("data/seconds"):  # read off a clock: no result
                assert any(path == word or path.startswith(word + "/") for path in declared), (stage.name, word)
        for path in declared:
            assert any(path == word or path.startswith(word + "/") for word in stage.cmd.split()), (stage.name, path)


def test_a_cell_depends_on_its_own_parameters_alone(stages: list[PipelineStage]) -> None:
    own = {stage.name: {name for dep in stage.params for name in dep.params} for stage in stages}
    cell = {"backends.asp", "layers.all", "losses.qamo", "train", "views.clean"}
    assert own["train@asp-qamo-all-clean-1"] == cell
    scored = {"evaluate.sets", "evaluate.views"}
    assert own["extract@dev"] == {"encoder", "extract", "features.root", "pools", "sets.dev.root", "train.set", *scored}
    chosen = {"analyse.layers", "analyse.views", "encoder.finetune.layers", "evaluate.finetuned", *scored}
    assert own["select@eval"] == {"grid.layers", "grid.views", "layers", "views", *chosen}
    assert own["prepare@eval"] == {"sets.eval", "encoder.normalize"}
    assert own["report"] == {"analyse", "encoder", "evaluate", "fuse", "grid", "pools", "report", "sets", "train.set"}
    assert {kind for kind in own if own[kind] & {"losses.aoc"}} == {
        "train@linear-aoc-all-clean-1",
        "train@asp-aoc-all-clean-1",
    }


def test_no_stage_of_a_run_depends_on_layers_that_it_does_not_read(
    stages: list[PipelineStage], tuned: list[PipelineStage]
) -> None:
    whole = {
        stage.name.partition("@")[0]
        for stage in (*stages, *tuned)
        if any(dep.def_path.startswith("data/features") for dep in stage.deps)
    }
    assert whole == {"select", "layers"}  # and `pool`, which the parameters as they come have none of
    choices = {stage.name: re.findall(r"--choice (\S+)", stage.cmd) for stage in (*stages, *tuned)}
    assert {name: choice for name, (choice,) in ((name, found) for name, found in choices.items() if found)} == {
        "embed@linear-qamo-all-clean-1": "all-clean",
        "embed_finetuned@mine": receipt_files.FINETUNED,
    }


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_has_a_stage_for_each_row_and_set(recipe: Path, tmp_path: Path) -> None:
    settings = params_file.load(recipe)
    stages = {stage.name: stage for stage in resolved(tmp_path, YAML(typ="safe").load(recipe))}
    assert {name for name in stages if name.startswith("train@")} == {f"train@{run}" for run in settings.grid.runs}
    assert sorted(name.split("@")[1] for name in stages if name.startswith("evaluate")) == sorted(settings.runs)
    sets = {dep.def_path for dep in stages["encoder"].deps if dep.def_path.startswith("data/trials/")}
    assert sets <= {f"data/trials/{name}.csv" for name in settings.sets}
    used = [path for stage in stages.values() for dep in stage.deps if (path := dep.def_path).startswith("pipeline/")]
    assert not [path for path in dict.fromkeys(used) if not (ROOT / path).exists()]


@pytest.mark.parametrize("pools", [{}, {"both": ["train", "eval"]}])
def test_features_alone_are_enough_from_layers_and_select_on(tmp_path: Path, pools: dict[str, list[str]]) -> None:
    """What docs/features.md gives to who has pulled features: no stage of it needs what another one would make."""
    stages = resolved(tmp_path, YAML(typ="safe").load(SETTINGS) | {"pools": pools})
    (targets,) = re.findall(r"^dvc repro --downstream (.+)$", (ROOT / "docs/features.md").read_text(), re.M)
    targets += " select_pool" if pools else ""
    makes = {out.def_path: stage for stage in stages for out in stage.outs}
    needs = {stage.name: [dep.def_path for dep in stage.deps if dep.def_path.startswith("data/")] for stage in stages}
    kinds = {stage.name: stage.name.partition("@")[0] for stage in stages}

    def makers(path: str) -> set[str]:
        return {
            one.name for out, one in makes.items() if f"{out}/".startswith(f"{path}/") or path.startswith(f"{out}/")
        }

    before = {name: set().union(*map(makers, paths)) for name, paths in needs.items()}
    run = {name for name, kind in kinds.items() if kind in targets.split()}
    while more := {name for name in before if name not in run and before[name] & run}:
        run |= more
    assert {kinds[name] for name in kinds if name not in run} - {"pool"} == {"prepare", "encoder", "extract"}
    pulled = ("data/features", "data/trials")
    for name in run:
        for path in needs[name]:
            assert path.startswith(pulled) or makers(path) & run, f"{name} needs {path}"
