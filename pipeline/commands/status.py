"""Show how far the grid is: a table of cells, done, stale, running, failed or dropped.

A cell is done where its training, its scores and its evaluation are up to date. It failed where a sweep could not make
one of them; the last lines of what it said lie in .dvc/tmp/sweep. It was dropped where `bonafide sweep --halving` ended
its training early, and none of its inputs changed since.

examples:
  bonafide status
  bonafide status train@linear-qamo-all-clean-1   one stage and what it needs
  bonafide status --downstream layers select      where features were pulled, and nothing before them can run
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.core.arguments import parser_of
from pipeline.sweep.status import lines, progress
from pipeline.sweep.tracked import Flow


def main(argv: Sequence[str]) -> None:
    """Parse, look, print."""
    purpose, _, details = (__doc__ or "").partition("\n\n")
    parser = parser_of("bonafide status", purpose, details)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="stages, as `dvc repro` takes them; default: all")
    parser.add_argument(
        "--downstream", action="store_true", help="the targets and what needs them, as in `bonafide sweep`"
    )
    args = parser.parse_args(argv)
    if args.downstream and not args.targets:
        parser.error("argument --downstream: expected stages beside it, such as `layers select`")
    flow = Flow(args.targets, downstream=args.downstream)
    for line in lines(progress(flow, flow.root)):
        print(line)
