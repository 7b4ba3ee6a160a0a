"""Where files of the tests are."""

from pathlib import Path

SETTINGS = Path(__file__).parent / "params.yaml"  # a copy of the project's parameters, which its users edit
