"""The command `bonafide`. Each file is a command with a `main(argv)`; the first line of its docstring is its help."""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.core.errors import collect_garbage_seldom, importing, run_command

FOLDER = Path(__file__).parent


def main() -> None:
    """Run `bonafide` as the whole process."""
    collect_garbage_seldom()
    run_command(lambda: dispatch(sys.argv[1:]))


def dispatch(argv: Sequence[str]) -> None:
    """Run one command with its arguments. Raises SystemExit for an unknown command, and the errors of the command."""
    commands = {path.stem: path for path in sorted(FOLDER.glob("*.py")) if not path.stem.startswith("_")}
    parser = argparse.ArgumentParser(
        prog="bonafide",
        description="Tools for research on audio deepfake detection.",
        epilog="commands:\n"
        + "\n".join(f"  {name:10} {_purpose(path)}" for name, path in commands.items())
        + "\n\n`bonafide COMMAND --help` explains a command and shows examples.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="bonafide COMMAND ...",
    )
    parser.add_argument("command", choices=commands, metavar="COMMAND", help="one of the commands below")
    name = parser.parse_args(argv[:1]).command  # what follows is the command's own
    with importing():
        from pipeline.core import members

        command = members.member("commands", name)
    command.main(argv[1:])


def _purpose(path: Path) -> str:
    """The first line of a module's docstring. The module is not imported, because some imports are slow."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]
