"""The stages of the flow: parse arguments, call `pipeline`, save."""

import sys

from pipeline.core.errors import collect_garbage_seldom, end_at_interruptions

collect_garbage_seldom()  # before a stage imports torch
if sys.argv[0] in ("-m", "-c"):  # Python runs a stage as the whole process; nobody imports one for its functions
    end_at_interruptions()
