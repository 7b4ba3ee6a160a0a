"""The stages of the flow: parse arguments, call `pipeline`, save."""

from pipeline.core.errors import collect_garbage_seldom, say_interruptions_shortly

collect_garbage_seldom()  # before a stage imports torch
say_interruptions_shortly()
