"""How far each view lowers the quality of bona fide speech, by DNSMOS (extra `quality`).

    python bench/view_quality.py ../shared/speech/digits ../shared/speech/wild [--most 30]

Each folder has a manifest corpus with `trials.csv`, of whose bona fide the first `--most` are taken. A row says the
mean MOS, its mean difference to the clean utterance with the standard error, and the share of utterances that fall.
QAMO counts every view one level of quality lower (`features.sampling.level_shift`): this measures where that holds.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

from pipeline.audio import decode, views
from pipeline.quality import dnsmos

EACH = ["rawboost4_0", "noise_0", "babble0_0", "babble10_0", "babble20_0", "music10_0", "reverb300_0", "reverb600_0"]
EACH += ["reverb900_0", "packet_loss5_0", "packet_loss10_0", "packet_loss30_0", "mp3_16", "mp3_32", "mp3_128", "aac32"]
EACH += ["opus6", "opus12", "opus48", "amr4750", "amr7400", "alaw", "mulaw", "resample4", "resample6", "narrowband"]
EACH += ["resample12", "clipping1", "clipping10", "clipping20", "quieter12", "quieter40", "trim"]


def main() -> None:
    """Parse, estimate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--most", type=int, default=30)
    args = parser.parse_args()
    for folder in args.folders:
        with (folder / "trials.csv").open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["label"] == "bonafide"][: args.most]
        heard = {row["path"]: decode.load(folder / row["path"]) for row in rows}
        clean = np.array([dnsmos.estimate(samples) for samples in heard.values()])
        print(f"{folder}: {len(clean)} bona fide, clean {clean.mean():.2f} (deviation {clean.std(ddof=1):.2f})")
        print("| view | MOS | difference | lower |\n|---|---|---|---|")
        for view in EACH:
            found = [dnsmos.estimate(views.apply(view, samples, utterance=path)) for path, samples in heard.items()]
            by = np.array(found) - clean
            error = by.std(ddof=1) / np.sqrt(len(by))
            print(
                f"| `{view}` | {np.mean(found):.2f} | {by.mean():+.2f} ± {error:.2f} | {np.mean(by < 0):.0%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
