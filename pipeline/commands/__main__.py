"""`python -m pipeline.commands`: the same as `bonafide`."""

from pipeline.commands import main

main()
