"""Whether verdicts keep their promise on the scores of a project's runs: on trials like those of the rule, or not.

    python bench/verdicts.py PROJECT SET [--rates 0.05 0.1 0.2] [--own 20]

PROJECT has score files of dev and of SET, by all its runs. For each error rate it prints the means over the runs of the
shares in percent of bona fide called spoof, spoof called bona fide, and trials without a verdict:

    halves of dev   the rule is of one half of dev, the verdicts are on the other: trials like those of the rule
    SET             the rule is of dev, as `evaluate` has it; and of each attack the share that is called bona fide
    own             the rule is of --own trials of each class of SET, as `bonafide calibrate` has it, the verdicts are
                    on the others; and bona fide rejected and spoof accepted there, at the threshold of dev and of those

Which trials are drawn differs from run to run.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.core import trial_table
from pipeline.metrics import join, scorefile, verdicts
from pipeline.metrics.decisions import at_threshold
from pipeline.metrics.eer import eer_of

SPLITS = 10  # of dev into halves, for each run
SEED = 1

Scores = NDArray[np.float64]
Classes = NDArray[np.bool_]


def drawn(is_bonafide: Classes, counts: Sequence[int], rng: np.random.Generator) -> Classes:
    """So many trials of both classes, bona fide first, drawn by chance: (N,)."""
    chosen = np.zeros(len(is_bonafide), np.bool_)
    for count, members in zip(counts, (np.flatnonzero(is_bonafide), np.flatnonzero(~is_bonafide)), strict=True):
        chosen[rng.permutation(members)[:count]] = True
    return chosen


def judged(fitted: tuple[Scores, Classes], held: tuple[Scores, Classes], rate: float) -> list[float]:
    """Bona fide called spoof, spoof called bona fide, no verdict: in 0..1, of held trials by a rule of fitted ones."""
    (scores, is_bonafide), (others, known) = fitted, held
    rule = verdicts.fit(scores[is_bonafide], scores[~is_bonafide], error_rate=rate)
    return list(verdicts.shares(rule, others[known], others[~known]).values())


def of_run(project: Path, run: str, name: str, rate: float, own: int, *, seed: int) -> dict[str, list[float]]:
    """All shares of one run, by what was judged."""
    rng = np.random.default_rng((SEED, seed))
    found = scorefile.parse(project / f"data/dev_scores/{run}.txt")
    dev, dev_bonafide = found.score, scorefile.own_key(found).is_bonafide
    table = trial_table.read(project / f"data/trials/{name}.csv")
    scores, is_bonafide = join.read(project / f"data/scores/{run}/{name}.txt", table), table.is_bonafide
    sizes = [int(dev_bonafide.sum()) // 2, int((~dev_bonafide).sum()) // 2]
    halves = [
        judged((dev[half], dev_bonafide[half]), (dev[~half], dev_bonafide[~half]), rate)
        for half in (drawn(dev_bonafide, sizes, rng) for _ in range(SPLITS))
    ]
    shares = {"halves of dev": np.mean(halves, axis=0).tolist()}
    shares[name] = judged((dev, dev_bonafide), (scores, is_bonafide), rate)
    for attack in sorted(set(table.attack[~is_bonafide].tolist())):
        rows = is_bonafide | (table.attack == attack)
        shares[f"  {attack}"] = judged((dev, dev_bonafide), (scores[rows], is_bonafide[rows]), rate)[1:2]
    mine = drawn(is_bonafide, (own, own), rng)
    others, known = scores[~mine], is_bonafide[~mine]
    shares["own"] = judged((scores[mine], is_bonafide[mine]), (others, known), rate)
    for title, threshold in (
        ("  dev's threshold", eer_of(dev, dev_bonafide).threshold),
        ("  own threshold", eer_of(scores[mine], is_bonafide[mine]).threshold),
    ):
        decided = at_threshold(others[known], others[~known], threshold)
        shares[title] = [decided.frr, decided.far]
    return shares


def main() -> None:
    """Print the means over all runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path)
    parser.add_argument("set")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.05, 0.1, 0.2])
    parser.add_argument("--own", type=int, default=20)
    given = parser.parse_args()
    runs = sorted(path.parent.name for path in (given.project / "data/scores").glob(f"*/{given.set}.txt"))
    print(f"{len(runs)} runs")
    for rate in given.rates:
        found = [of_run(given.project, run, given.set, rate, given.own, seed=i) for i, run in enumerate(runs)]
        print(f"\nerror rate {100 * rate:g} %")
        for title in found[0]:
            means = 100 * np.mean([shares[title] for shares in found], axis=0)
            print(f"  {title:18}" + "".join(f"{mean:7.1f}" for mean in means))


if __name__ == "__main__":
    main()
