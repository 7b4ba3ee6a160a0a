"""What the layer atlas costs: 25 layers of XLSR-300M in five corpora of 25,000 utterances, every training of them.

    python bench/atlas.py [--layers 25]

The aims are 10 minutes on two cores and 4 GB. Features are generated while the clock stands still, as in
`bench/layers.py`, with attacks that corpora share in part; a tenth of each corpus is bona fide. There are ten trainings
a layer, one on each corpus and one on all but each. Reading a store is timed in `bench/layers.py`; with `--reading` its
seconds a layer of 25,380 utterances are added. The peak memory is that of the process, generating included.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import time

import numpy as np
from numpy.typing import NDArray

from bench import layers as one_corpus
from pipeline.analysis import layer_atlas
from pipeline.core.contracts import Tap

AIM_SECONDS, AIM_GB = 600, 4
CORPORA = tuple(f"corpus_{i}" for i in range(5))
BONAFIDE, SPOOF = 2_500, 22_500


def main() -> None:
    """Measure, print beside the aims."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=25)
    parser.add_argument("--reading", type=float, default=0.0, metavar="SECONDS")
    args = parser.parse_args()
    one_corpus.SIZES = dict.fromkeys(CORPORA, (BONAFIDE, SPOOF))
    one_corpus.ATTACKS = {name: (2 * i, 2 * i + 4) for i, name in enumerate(CORPORA)} | {"eval": (0, 12)}
    generating = [0.0, 0.0]

    def read(name: str, view: str, layer: Tap) -> NDArray[np.float32]:
        del view
        start = time.perf_counter(), time.process_time()
        made = one_corpus.features(name, layer)
        generating[0] += time.perf_counter() - start[0]
        generating[1] += time.process_time() - start[1]
        return made

    labels = {name: one_corpus.classes(name) for name in CORPORA}
    start = time.perf_counter(), time.process_time()
    found = layer_atlas.survey(
        read, labels, layers=range(args.layers), domains={name: [name] for name in CORPORA}, views={}
    )
    seconds = time.perf_counter() - start[0] - generating[0]
    processor = time.process_time() - start[1] - generating[1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    reading = args.reading * args.layers * len(CORPORA)
    print(f"{args.layers} layers of {len(CORPORA)} x {BONAFIDE + SPOOF:,} utterances x {2 * one_corpus.CHANNELS}")
    print(f"{'fitting, scoring, choosing':34} {seconds:7.1f} s, {processor:.1f} s of processor")
    print(f"{'reading':34} {reading:7.1f} s")
    print(f"{'together':34} {seconds + reading:7.1f} s    aim {AIM_SECONDS} s for 25 layers on two cores")
    print(f"{'peak memory':34} {peak:7.2f} GB   aim {AIM_GB} GB")
    for layer in range(args.layers):
        mine = [cell for cell in found.cells if cell.layer == layer]
        alone = np.mean([cell.eer for cell in mine if cell.method == "logistic" and cell.trained in CORPORA])
        rest = np.mean([cell.eer for cell in mine if cell.method == "logistic" and cell.trained not in CORPORA])
        print(f"layer {layer:2}: mean EER {alone:.3f} % trained on one corpus, {rest:.3f} % on all but one")
    print([choice.layers for choice in found.choices])
    print(f"{os.cpu_count()} cores, {platform.machine()}, numpy {np.__version__}")


if __name__ == "__main__":
    main()
