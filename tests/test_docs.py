"""README and docs: the site builds, commands run, and examples work as a reader copies them.

A fenced block is copied into the file that its title names; one with the title `params.yaml` changes the keys that it
shows. Blocks of bash and untitled Python run in a small copy of the project, in the order of the page, unless the line
above says `<!-- not run: why -->`.
"""

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from ruamel.yaml import YAML

from pipeline.core import params_file, trial_table
from pipeline.core.members import member, names
from tests.places import SETTINGS

ROOT = Path(__file__).parents[1]
CARD = ROOT / "docs/model_card.md"  # written by `bonafide package`, not by hand
PAGES = [ROOT / "README.md", *sorted({*(ROOT / "docs").glob("*.md")} - {CARD})]
FENCE = re.compile(r'^(?:<!-- not run: ([^\n]+) -->\n)?```(\w*)(?: title="([^"\n]+)")?\n(.*?)^```$', re.M | re.S)
LANGUAGES = {"bash", "python", "yaml", "text"}
RUN = "linear-qamo-all-clean-1"
SIZES = {"train": (200, 40), "dev": (80, 20), "eval": (160, 20)}  # utterances of the demo, and here
SMALL = {
    "encoder": {"random": {"width": 32, "feedforward": 64, "conv_channels": 16}},
    "extract": {"window": {"samples": 16_000}},
    "train": {"epochs": 2},
    "grid": {"backend": ["linear"], "loss": ["qamo"]},
    "analyse": {"scorings": [], "projections": ["pca"]},
    "evaluate": {"bootstrap": 100},
}


class Block(NamedTuple):
    """A fenced block of a page."""

    not_run: str | None
    language: str
    title: str | None
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(why, language, title or None, text) for why, language, title, text in FENCE.findall(page.read_text())]


def merged(settings: Any, changes: Any) -> Any:
    """The settings with the keys of the changes in place of theirs, section by section."""
    if not isinstance(settings, dict) or not isinstance(changes, dict):
        return changes
    return settings | {key: merged(settings.get(key), value) for key, value in changes.items()}


class Reader:
    """Somebody who copies blocks into a project, and runs what is to be run."""

    def __init__(self, folder: Path, path: str) -> None:
        self.folder = folder
        self.env = {**os.environ, "PATH": path, "PYTHONPATH": str(folder)}
        ignored = shutil.ignore_patterns("__pycache__", "dvc.lock")
        for name in ("pipeline", "stages", "flow", "docs"):
            if (ROOT / name).exists():
                shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        for name in (
            "dvc.yaml",
            ".dvc/config",
            ".dvcignore",
            ".gitignore",
            "data/analysis/.gitkeep",
            "data/others/.gitkeep",
            "data/recordings/.gitkeep",
        ):
            (folder / name).parent.mkdir(exist_ok=True, parents=True)
            shutil.copy(ROOT / name, folder / name)
        shutil.copy(SETTINGS, folder)
        demo = folder / "pipeline/corpora/demo.py"
        text = demo.read_text()
        for split, (utterances, fewer) in SIZES.items():
            assert f'"{split}": ({utterances}, ' in text
            text = text.replace(f'"{split}": ({utterances}, ', f'"{split}": ({fewer}, ')
        demo.write_text(text)
        self.run("bash", "git init -q")

    def change(self, changes: dict[str, Any]) -> None:
        yaml, path = YAML(typ="safe"), self.folder / "params.yaml"
        yaml.dump(merged(yaml.load(path), changes), path)

    def follow(self, block: Block) -> None:
        if block.title == "params.yaml":
            self.change(YAML(typ="safe").load(block.text))
        elif block.title:
            (self.folder / block.title).write_text(block.text)
        elif block.language in ("bash", "python") and not block.not_run:
            self.run(block.language, block.text)

    def run(self, language: str, text: str) -> str:
        command = ["bash", "-euo", "pipefail", "-c"] if language == "bash" else ["python", "-c"]
        done = subprocess.run(
            [*command, text], cwd=self.folder, env=self.env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, warm_path: str) -> Iterator[Reader]:
    """A reader whose demo, of one run and two epochs, is done."""
    found = Reader(tmp_path_factory.mktemp("project"), warm_path)
    found.change(SMALL)
    found.run("bash", "dvc repro")
    return found


def test_blocks_are_found_with_their_titles_and_reasons(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(
        'a\n<!-- not run: slow -->\n```bash\nx\ny\n```\n```python title="a/b.py"\n\nz\n```\n```yaml\n```\n'
    )
    assert blocks(tmp_path / "page.md") == [
        ("slow", "bash", None, "x\ny\n"),
        ("", "python", "a/b.py", "\nz\n"),
        ("", "yaml", None, ""),
    ]


def test_changes_keep_the_keys_that_they_do_not_name() -> None:
    assert merged({"a": {"b": 1, "c": [1, 2]}, "d": 1}, {"a": {"c": [3]}, "e": {}}) == {
        "a": {"b": 1, "c": [3]}, "d": 1, "e": {},
    }  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_block_has_a_language_that_is_run_or_shown(page: Path) -> None:
    found = blocks(page)
    assert {block.language for block in found} <= LANGUAGES
    assert page.read_text().count("\n```") == 2 * len(found)  # none that the pattern misses


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_change_of_the_parameters_is_valid(page: Path, tmp_path: Path) -> None:
    """Each by itself, on the parameters as they come; of extend.md one after the other, as they are run."""
    default = YAML(typ="safe").load(SETTINGS)
    settings = default
    for block in blocks(page):
        if block.title == "params.yaml":
            settings = merged(settings if page.name == "extend.md" else default, YAML(typ="safe").load(block.text))
            YAML(typ="safe").dump(settings, tmp_path / "params.yaml")
            params_file.load(tmp_path / "params.yaml")


@pytest.mark.parametrize("loss", names("losses"))
def test_the_page_of_losses_has_every_parameter_with_its_default(loss: str) -> None:
    page = (ROOT / "docs/losses.md").read_text()
    (section,) = re.findall(rf"^## `{loss}`\n(.*?)(?=^## |\Z)", page, re.M | re.S)
    shown: dict[str, str] = {}
    for keys, defaults in re.findall(r"^\| (`[^|]+`) \| ([^|]+) \|", section, re.M):
        shown |= dict(zip(re.findall(r"`(\w+)`", keys), defaults.split(", "), strict=True))
    build = member("losses", loss).Loss
    known = {name: one.default for name, one in inspect.signature(build).parameters.items() if name != "facts"}
    split = {"levels": 2, "thresholds": None} if build.quality else {}  # what pipeline/training/cells.py adds
    assert {name: YAML(typ="safe").load(text) for name, text in shown.items()} == known | split


@pytest.mark.parametrize("axis", ["losses", "backends"])
def test_every_member_is_in_the_table_at_the_top_of_its_page(axis: str) -> None:
    top = (ROOT / f"docs/{axis}.md").read_text().partition("\n## ")[0]
    assert sorted(re.findall(r"^\| `(\w+)` \|", top, re.M)) == names(axis)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_file_that_a_link_names_is_there(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_citation_names_this_version_this_licence_and_both_methods() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = YAML(typ="safe").load(ROOT / "CITATION.cff")
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    methods = {entry["notes"]: entry["identifiers"][0]["value"] for entry in citation["references"]}
    assert methods == {"the loss aoc": "arXiv:2406.16716", "the loss qamo": "arXiv:2509.20679"}


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    built = {path.parent.name for path in (tmp_path / "site").glob("*/index.html")}
    assert built == {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"}


RUNNABLE = [page for page in PAGES if page.name != "extend.md"]


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda path: path.name)
def test_commands_run(page: Path, reader: Reader) -> None:
    for block in blocks(page):
        if not block.title:
            reader.follow(block)


def test_the_examples_work_as_a_reader_copies_them(reader: Reader) -> None:
    """The last test of this file: it changes the project."""
    data = reader.folder / "data"
    for block in blocks(ROOT / "docs/extend.md"):
        assert not block.not_run
        reader.follow(block)
        if "linear-logistic" in block.text:
            assert "linear-logistic" in (data / "report/leaderboard.txt").read_text()
    card = json.loads((data / "runs/peak-qamo-all-clean-1/run.json").read_text())
    assert (card["backend"], card["reads"]) == ("peak", "frames")
    assert len(trial_table.read(data / "trials/mine.csv")) == SIZES["eval"][1]
    header, *estimates = (data / "quality/mine.csv").read_text().splitlines()
    assert header.startswith("utterance,")
    assert len(estimates) == SIZES["eval"][1]
    assert all(",contrast-1," in line for line in estimates)
    receipt = json.loads((data / "features/train.json").read_text())
    assert receipt["views"] == ["clean", "echo_0"]
    card = json.loads((data / "runs/linear-qamo-all-echoed-1/run.json").read_text())
    assert card["views"] == {"draw": ["echo_0"], "probability": 0.5}
