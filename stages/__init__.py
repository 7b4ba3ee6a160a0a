"""The stages of the flow: parse arguments, call `pipeline`, save."""

import sys

from pipeline.core.errors import collect_garbage_seldom, end_at_interruptions

collect_garbage_seldom()  # before a stage imports torch
if sys.argv[0] == "-m":  # `python -m stages.train`: a stage is the whole process
    end_at_interruptions()
