"""The stages of the flow: parse arguments, call `pipeline`, save."""

from pipeline.core.errors import collect_garbage_seldom

collect_garbage_seldom()  # before a stage imports torch
