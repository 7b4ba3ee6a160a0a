"""The rules of the house: rooms, names, lengths, and plain English, read from the source without importing it."""

import ast
import io
import re
import tokenize
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for folder in ("pipeline", "stages") for path in (ROOT / folder).rglob("*.py"))
MOST_LINES = 45  # of a function
MEMBERS = {"Backend", "Loss"}  # each file of these shelves has one

# Sentences that a reader has to read twice.
RIDDLES = (
    r"\btold of\b",
    r"\bthat they are of\b",
    r"\bwhat\b[^.;:]*\bwhat\b",
    r"\bwhose\b[^.;:]*\bof\b",
)
# Oxford spelling: -ize, as in the parameter `normalize`, and otherwise British.
SPELLINGS = {
    r"(normal|optim|standard|quant|initial|general|summar|organ|random)is(e|ed|er|ers|es|ing|ation|ations)\b": "-ize",
    r"\b(multi_)?cent(er|ers|ered|ering)\b": "centre, or centroid for a vector of a loss",
    r"\bcolor(s|ed|ing)?\b": "colour",
    r"\bneighbor": "neighbour",
    r"\banalyz": "analyse",
}

API_WORDS = {"upper center"}  # matplotlib's
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "params.yaml", ROOT / "Makefile"]
PAGES += sorted((ROOT / "recipes").glob("*.yaml"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def test_every_room_has_a_purpose_and_nothing_lies_loose() -> None:
    folders = {path.parent for path in SOURCES if path.is_relative_to(ROOT / "pipeline")}
    assert len(folders) > 15
    for folder in folders:
        docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
        assert docstring, f"{name_of(folder)}/__init__.py: expected a docstring with the purpose of the room"
    assert [path.name for path in (ROOT / "pipeline").iterdir() if path.is_file()] == ["__init__.py"]


def test_no_class_name_is_defined_twice() -> None:
    places = defaultdict(list)
    for path in SOURCES:
        for node in nodes(path):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(name_of(path))
    twice = {name: found for name, found in places.items() if len(found) > 1 and name not in MEMBERS}
    assert not twice
    for name in MEMBERS:  # of them only one in a file
        assert len(places[name]) == len(set(places[name]))


def test_no_import_of_our_own_takes_another_name() -> None:
    aliases = {
        f"{name_of(path)}: {alias.name} as {alias.asname}"
        for path in SOURCES
        for node in nodes(path)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
        if alias.asname and (getattr(node, "module", None) or alias.name).split(".")[0] in ("pipeline", "stages")
    }
    assert not aliases


def test_functions_are_short() -> None:
    long = {
        f"{name_of(path)}: {node.name}"
        for path in SOURCES
        for node in nodes(path)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno >= MOST_LINES
    }
    assert not long


# ---------------------------------------------------------------- English


def prose(text: str) -> list[str]:
    """Comments, docstrings and messages of a module, each on one line, without code and titles in them."""
    found = [part.value for part in ast.walk(ast.parse(text)) if isinstance(part, ast.Constant)]
    words = [part for part in found if isinstance(part, str) and " " in part.strip()]
    comments: list[list[str]] = []
    last = (-2, -1)  # line and column of the comment before: lines of one comment are one sentence
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            line, column = token.start
            if (line, column) != (last[0] + 1, last[1]):
                comments.append([])
            comments[-1].append(token.string.lstrip("# "))
            last = line, column
    whole = words + [" ".join(comment) for comment in comments]
    return [" ".join(re.sub(r'`[^`]*`|"[^"]*"', "", part).split()) for part in whole]


def page_prose(path: Path) -> list[str]:
    """The paragraphs of a page, or the comments of a YAML file or Makefile, without code and titles in them."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".md":
        text = "\n".join(line.partition("#")[2] if "#" in line else "" for line in text.splitlines())
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return [" ".join(re.sub(r'`[^`]*`|"[^"]*"', "", part).split()) for part in re.split(r"\n\s*\n", text)]


def defined(text: str) -> set[str]:
    """Names that a module gives: classes, functions, arguments, variables and attributes."""
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
    return names


def riddles(parts: list[str]) -> list[str]:
    return [part for part in parts for riddle in RIDDLES if re.search(riddle, part, re.IGNORECASE)]


def misspelt(parts: list[str]) -> list[str]:
    return [f"{part}: {right}" for part in parts for wrong, right in SPELLINGS.items() if re.search(wrong, part, re.I)]


def words_of(text: str) -> list[str]:
    """The prose of a module and the names that it gives, without those of other libraries."""
    own = [part for part in prose(text) if part not in API_WORDS]
    return own + [name.replace("_", " ") for name in defined(text)]


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_sentences_are_plain_and_words_have_one_spelling(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not riddles(prose(text))
    assert not misspelt(words_of(text))


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_pages_are_plain_and_words_have_one_spelling(path: Path) -> None:
    parts = page_prose(path)
    assert len(parts) > 2
    assert not riddles(parts)
    assert not misspelt(parts)


def test_what_the_checks_of_english_find(tmp_path: Path) -> None:
    for text in (
        '"""The groups that distances are\ntold of."""',
        "# The weights that\n# they are of\nx = 1\n",
        'raise ValueError(f"{x}: what learns, what it learns from")',
        "# The loss whose vectors are those of a run\n",
    ):
        assert riddles(prose(text))
    assert not riddles(prose('"""What it is. What it does."""\n# A loss whose\nx = 1  # value of x\n'))
    assert len(misspelt(words_of("def normalise(center): ...\n"))) == 2
    assert misspelt(words_of('"""The colors of an optimiser."""'))
    apart = 'plot(color="black", loc="upper center")  # `color` is optimistic, "Center loss"\nnormalize = 1\n'
    assert not misspelt(words_of(apart))
    (tmp_path / "page.md").write_text("The colors\n\n```\ncolor\n```\n\nwhat it is,\nwhat it does\n")
    parts = page_prose(tmp_path / "page.md")
    assert (len(misspelt(parts)), len(riddles(parts))) == (1, 1)
