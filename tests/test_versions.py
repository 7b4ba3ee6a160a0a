"""The versions that files name: the Makefile, pyproject.toml, constraints.txt, containers, the workflow, the docs."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()
PYTHONS = re.findall(r"^PYTHONS := (.+)$", MAKEFILE, re.M)[0].split()
CONTAINERS = ["Dockerfile", "Dockerfile.cpu"]


def pinned(python: str) -> dict[str, str]:
    """The version of each package on that Python; a package that is pinned twice there is an error."""
    found: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        requirement = Requirement(line) if line and not line.startswith("#") else None
        if requirement and (not requirement.marker or requirement.marker.evaluate({"python_version": python})):
            name = requirement.name.lower().replace("_", "-")
            assert name not in found, f"{name} is pinned twice on Python {python}"
            (exact,) = requirement.specifier
            found[name] = exact.version
    return found


def test_python_is_that_of_pyproject_in_every_file() -> None:
    oldest, newest = PYTHONS[-1], PYTHONS[0]
    assert PROJECT["requires-python"] == f">={oldest}"
    workflow = YAML(typ="safe").load(ROOT / ".github/workflows/ci.yml")
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == PYTHONS[::-1]
    for page in ("README.md", "docs/index.md"):
        assert f"Python {oldest} to {newest}" in (ROOT / page).read_text()


@pytest.mark.parametrize("python", PYTHONS)
def test_every_package_is_pinned_within_its_range(python: str) -> None:
    versions = pinned(python)
    wanted = [Requirement(text) for part in PROJECT["optional-dependencies"].values() for text in part]
    wanted += map(Requirement, PROJECT["dependencies"])
    wrong = [
        f"{one}: {versions.get(one.name)}"
        for one in wanted
        if one.name != "scoreq"
        and versions.get(one.name) not in one.specifier  # scoreq downloads a model and is not tested
    ]
    assert not wrong


@pytest.mark.parametrize("python", PYTHONS)
def test_the_page_says_what_ran_on_each_python_with_the_pinned_versions(python: str) -> None:
    rows = re.findall(rf"^\| {re.escape(python)}\.\d+ \| ([^|]+) \|", (ROOT / "docs/install.md").read_text(), re.M)
    assert pinned(python)["torch"] in rows[0]


@pytest.mark.parametrize(
    ("commands", "says"),
    [
        # pyenv has a command that fails for each version that is not selected; Debian's Python may lack venv.
        ({"3.14": "", "3.13": "run", "3.12": "run venv", "3.11": "run venv"}, "Python 3.12 (python3.12) for .venv"),
        ({"3.15": "run venv", "3": "3.12 run venv"}, "Python 3.12 (python3) for .venv"),
        ({"3": "3.10 run venv"}, "expected Python 3.11 to 3.14, got 3.10 (python3):"),
        ({"3": "3.15 run venv"}, "expected Python 3.11 to 3.14, got 3.15 (python3):"),
        ({}, "expected Python 3.11 to 3.14, got none (python3):"),
    ],
)
def test_make_takes_the_newest_python_that_runs(commands: dict[str, str], says: str, tmp_path: Path) -> None:
    for name, can in commands.items():
        path = tmp_path / f"python{name}"
        version = can.split()[0] if can[:1] == "3" else name
        path.write_text(
            "#!/bin/sh\n"
            f'case "{can}/$*" in\n'
            f"    *run*version_info*) echo {version} ;;\n"
            "    *venv/*ensurepip*) ;;\n"
            "    *) exit 1 ;;\n"
            "esac\n"
        )
        path.chmod(0o755)
    make = [shutil.which("make") or "", "--file", ROOT / "Makefile", ".venv/bin/python"]
    done = subprocess.run(make, cwd=tmp_path, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert says in done.stdout + done.stderr


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_has_a_supported_python_a_plain_user_and_what_make_needs(name: str) -> None:
    lines = (ROOT / name).read_text().splitlines()
    (base,) = re.findall(r"^FROM python:(\S+)-slim", "\n".join(lines), re.M)
    (extra,) = re.findall(r"^ENV EXTRA=(\S+)", "\n".join(lines), re.M)
    assert base in PYTHONS
    assert extra == ("cpu" if name.endswith("cpu") else "gpu")
    assert f"RUN make .venv/installed-{extra}-test" in lines
    assert 'CMD ["make", "demo"]' in lines
    assert lines.index("USER 1000") < min(i for i, line in enumerate(lines) if line.startswith(("COPY", "RUN make")))
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[2:-1]]
    assert [path for path in copied if not (ROOT / path).exists()] == []


def test_the_workflow_runs_what_ci_runs_with_the_python_of_its_matrix() -> None:
    job = YAML(typ="safe").load(ROOT / ".github/workflows/ci.yml")["jobs"]["test"]
    assert job["env"]["PYTHON"] == "python${{ matrix.python }}"
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert (ROOT / ".ci/run").stat().st_mode & 0o100
