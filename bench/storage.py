"""What int8 storage and bfloat16 computation do to features, and to the EER of real speech.

    python bench/storage.py [--recipe recipes/speech.yaml] [--seeds 1 2 3]

Runs a recipe three times with `dvc repro` in a copy of the project: as float32 kept in float16, float32 kept in int8,
and bfloat16 kept in float16; with the backend `asp`, which reads frames (those that read means and deviations see no
int8). Prints the error of every cached layer against the first, root mean square relative to the features' own, and the
EER of every run on every set. The spread over the seeds tells what a difference between the columns is worth.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML

from pipeline.reader import Reader
from pipeline.store import CLEAN, open_receipts

ROOT = Path(__file__).parents[1]
WAYS = {
    "float16": {"precision": "float32", "storage": "float16"},
    "int8": {"precision": "float32", "storage": "int8"},
    "bfloat16": {"precision": "bfloat16", "storage": "float16"},
}
CHUNK = 64


def copied(place: Path) -> Path:
    """The project as git has it, and what is not yet committed, elsewhere."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(["git", "init", "-q"], cwd=place, check=True)
    return place


def run(project: Path, recipe: dict[str, Any], way: str, seeds: list[int]) -> dict[str, float]:
    """EER of every run and set, percent, and the features of that way in the project's store."""
    changed = json.loads(json.dumps(recipe))
    changed["extract"] |= WAYS[way]
    changed["grid"] |= {"backend": ["asp"], "seed": seeds}
    changed["analyse"]["backend"] = []
    changed["features"]["root"] = str(project / "cache")
    for part in changed["sets"].values():
        part |= {key: str((ROOT / part[key]).resolve()) for key in ("protocol", "root")}
    with (project / "params.yaml").open("w") as file:
        YAML(typ="safe").dump(changed, file)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["dvc", "repro"], cwd=project, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    (project / way).mkdir()
    for receipt in (project / "data/features").glob("*.json"):
        (project / way / receipt.name).write_bytes(receipt.read_bytes())
    names = [
        f"asp-{loss}-{layers}-{views}-{seed}-{name}"
        for loss in changed["grid"]["loss"]
        for layers in changed["grid"]["layers"]
        for views in changed["grid"]["views"]
        for name in changed["evaluate"]["sets"]
        for seed in seeds
    ]
    return {name: json.loads((project / f"data/metrics/{name}.json").read_text())["eer"] for name in names}


def errors(project: Path, way: str) -> dict[str, float]:
    """Layer -> root mean square error of a way's features over that of the first way's, over all sets."""
    squares: dict[str, list[float]] = {}
    for receipt in sorted((project / "float16").glob("*.json")):
        (first, facts), (other, _) = (
            next(iter(open_receipts(project / name / receipt.name, root=project / "cache").values()))
            for name in ("float16", way)
        )
        readers = [Reader(store, views=(CLEAN,), layers=facts["layers"], pooled=False) for store in (first, other)]
        for start in range(0, first.spec.utterances, CHUNK):
            rows = np.arange(start, min(start + CHUNK, first.spec.utterances))
            exact, rough = (reader.gather(rows).double() for reader in readers)
            for k, layer in enumerate(facts["layers"]):
                kept = squares.setdefault(str(layer), [0.0, 0.0])
                kept[0] += float((rough[:, k] - exact[:, k]).square().sum())
                kept[1] += float(exact[:, k].square().sum())
    return {layer: (wrong / whole) ** 0.5 for layer, (wrong, whole) in squares.items()}


def main() -> None:
    """Run, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes/speech.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    args = parser.parse_args()
    recipe = YAML(typ="safe").load(args.recipe)
    with tempfile.TemporaryDirectory() as name:
        project = copied(Path(name))
        found = {way: run(project, recipe, way, args.seeds) for way in WAYS}
        for way in ("int8", "bfloat16"):
            told = ", ".join(f"layer {layer} {100 * error:.2f} %" for layer, error in errors(project, way).items())
            print(f"{way}: error of the features: {told}")
    print(f"\nEER in percent{'':32}" + "".join(f"{way:>10}" for way in WAYS))
    for name in found["float16"]:
        print(f"{name:46}" + "".join(f"{found[way][name]:10.2f}" for way in WAYS))
    table = np.array([list(found[way].values()) for way in WAYS])
    cells = table.reshape(len(WAYS), -1, len(args.seeds))
    print(f"mean{'':42}" + "".join(f"{value:10.2f}" for value in table.mean(axis=1)))
    for way, values in zip(("int8", "bfloat16"), table[1:], strict=True):
        print(f"{way}: differs by {np.abs(values - table[0]).mean():.2f} points on average")
    if len(args.seeds) > 1:
        print(f"seeds of one system differ by {cells[0].std(axis=1, ddof=1).mean():.2f} points (standard deviation)")


if __name__ == "__main__":
    main()
