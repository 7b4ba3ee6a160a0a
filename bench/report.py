"""What the report of hundreds of systems takes: to make it, and a browser to paint it.

    python bench/report.py [--systems 500] [--attacks 33] [--tree OTHER]

The aims for 500 systems are 2 s of wall time for the stage `report`, and 1 s until the page is loaded and painted. The
systems are generated: backends, losses and layers of a grid, two sets, all metrics, 33 attacks and three codecs in each
set. OTHER is another checkout, whose code makes the report. Needs Chromium and playwright for Python (extra `test`).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML

from pipeline.metrics.det import det_points
from pipeline.report import curves

ROOT = Path(__file__).parents[1]
AIM_MADE, AIM_PAINTED = 2.0, 1.0  # seconds
SETS, BACKENDS, LOSSES = ("eval", "wild"), 10, 10
REPEATS = 5
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
PAINTED = """() => new Promise((done) => {
  const painted = () => requestAnimationFrame(() => setTimeout(() => done(performance.now())));
  if (document.readyState === "complete") painted(); else addEventListener("load", painted);
})"""
ALL_ROWS = """(count) => new Promise((done) => {
  const there = () => document.querySelectorAll(".pooled tbody tr").length >= count;
  const look = () => (there() ? done(performance.now()) : setTimeout(look, 10));
  look();
})"""


def parameters(tree: Path, systems: int) -> dict[str, Any]:
    """Parameters whose grid has so many systems."""
    found: dict[str, Any] = YAML(typ="safe").load(tree / "params.yaml")
    layers = -(-systems // (BACKENDS * LOSSES))
    found["backends"] = {f"backend{i}": {} for i in range(BACKENDS)}
    found["losses"] = {f"loss{i}": {} for i in range(LOSSES)}
    found["layers"] = {f"layers{i}": [1] for i in range(layers)}
    found["grid"] |= {"backend": [*found["backends"]], "loss": [*found["losses"]], "layers": [*found["layers"]]}
    found["sets"]["wild"] = found["sets"]["eval"]
    found["evaluate"] |= {"sets": list(SETS), "finetuned": []}
    found["encoder"]["finetune"] |= {"backend": "backend0", "loss": "loss0"}
    found["analyse"] |= {"backend": [], "loss": [], "layers": [], "views": [], "seed": []}
    return found


def metrics(rng: np.random.Generator, attacks: int) -> dict[str, Any]:
    """What `evaluate` writes of a run on a set."""
    eer, cost = rng.uniform(1, 40), rng.uniform(0, 1)
    spoof = dict.fromkeys((f"A{i:03d}" for i in range(1, attacks + 1)), 100)
    codecs = {f"C{i:02d}": {"eer": rng.uniform(0, 50), "bonafide": 20, "spoof": 80} for i in range(3)}
    return {
        "eer": eer, "eer_interpolated": eer, "eer_interval": [eer - 1, eer + 1], "threshold": 0.5, "bonafide": 1_000,
        "spoof": 100 * attacks, "min_dcf": cost, "min_dcf_interval": [cost / 2, 2 * cost], "act_dcf": 1.0,
        "cllr": 2 * cost, "min_cllr": cost, "min_tdcf_2019": cost, "min_tdcf_2021": cost,
        "calibrated": {"slope": 2.0, "offset": -1.0, "act_dcf": cost, "cllr": cost},
        "at_threshold": {"threshold": 0.4, "accuracy": 90.0, "balanced_accuracy": 90.0, "frr": eer / 2, "far": 2 * eer},
        "attacks": {name: {"eer": rng.uniform(0, 50), "spoof": count} for name, count in spoof.items()},
        "vocoders": {}, "codecs": codecs,
    }  # fmt: skip


def generate(folder: Path, tree: Path, systems: int, attacks: int) -> None:
    """Write parameters, metrics and curves of so many systems into a folder."""
    settings = parameters(tree, systems)
    with (folder / "params.yaml").open("w") as file:
        YAML(typ="safe").dump(settings, file)
    rng, data, grid = np.random.default_rng(1), folder / "data", settings["grid"]
    det = curves.thinned(det_points(rng.normal(1.5, 1, 1_000), rng.normal(0, 1, 9_000)))
    shares = curves.histogram(rng.normal(0, 1, 2_000), np.arange(2_000) < 1_000)
    for name in ("metrics", "plots", "curves", "seconds", "layers", "analysis"):
        (data / name).mkdir(parents=True)
    for backend in grid["backend"]:
        for loss in grid["loss"]:
            for layers in grid["layers"]:
                run = f"{backend}-{loss}-{layers}-clean-1"
                (data / f"metrics/{run}").mkdir()
                training = {"dev_eer": rng.uniform(1, 40), "parameters": 17_000, "dev_threshold": 0.4, "remarks": []}
                (data / f"metrics/{run}.json").write_text(json.dumps(training))
                (data / f"curves/{run}.csv").write_text(
                    "epoch,loss,dev_loss,train_eer,dev_eer\n1,0.9,1.0,9,20\n2,0.5,0.7,5,10\n"
                )
                (data / f"seconds/{run}.json").write_text('{"seconds": 2.5}')
                for name in SETS:
                    (data / f"metrics/{run}/{name}.json").write_text(json.dumps(metrics(rng, attacks)))
                    curves.write_det(data / f"plots/{run}/det/{name}.csv", det)
                    curves.write_histogram(data / f"plots/{run}/histogram/{name}.csv", shares)


def make(folder: Path, tree: Path) -> tuple[list[float], list[float]]:
    """Run the stage `report` with the code of a checkout, several times; return seconds of wall time and processor."""
    folders = ("metrics", "plots", "curves", "seconds", "layers", "analysis")
    words = [word for name in folders for word in (f"--{name}", f"data/{name}")]
    command = [sys.executable, "-m", "stages.report", *words, "--out", "data/report", "--summary", "data/summary.json"]
    environment = {**os.environ, "PYTHONPATH": str(tree.resolve()), "OMP_NUM_THREADS": "1"}
    wall, processor = [], []
    for _ in range(REPEATS):
        start, before = time.perf_counter(), os.times()
        subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=True)
        wall.append(time.perf_counter() - start)
        after = os.times()
        processor.append(after.children_user + after.children_system - before.children_user - before.children_system)
    return wall, processor


def paint(path: Path, systems: int) -> None:
    """Open the page of so many systems in a new tab several times, and print how long it took."""
    from playwright.sync_api import sync_playwright

    first, whole, busy, rows = [], [], [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        for _ in range(REPEATS):
            tab = browser.new_page(viewport={"width": 1280, "height": 800})
            session = tab.context.new_cdp_session(tab)
            session.send("Performance.enable", {"timeDomain": "threadTicks"})
            tab.goto(path.resolve().as_uri(), wait_until="commit")
            whole.append(tab.evaluate(PAINTED) / 1e3)
            paint_entry = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
            first.append(tab.evaluate(paint_entry) / 1e3)
            told_by = session.send("Performance.getMetrics")["metrics"]
            busy.append(next(entry["value"] for entry in told_by if entry["name"] == "TaskDuration"))
            rows.append(tab.evaluate(ALL_ROWS, systems) / 1e3)
            height = tab.evaluate("document.documentElement.scrollHeight")
            cells = tab.evaluate("document.querySelectorAll('td').length")
            tab.close()
        browser.close()
    told("first paint", first)
    told("loaded and painted", whole, aim=AIM_PAINTED)
    told("processor of the page's main thread until then", busy)
    told("all rows of the leaderboard are there", rows)
    print(f"{height:,} pixels high, {cells:,} cells")


def told(what: str, seconds: list[float], *, aim: float | None = None) -> None:
    """Print median and greatest of some times."""
    middle = statistics.median(seconds)
    aimed = "" if aim is None else f" (aim: {aim:.0f} s, {'met' if middle <= aim else 'MISSED'})"
    print(f"{what}: median {middle:.2f} s, greatest {max(seconds):.2f} s{aimed}", flush=True)


def main() -> None:
    """Generate, make, paint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", type=int, default=500)
    parser.add_argument("--attacks", type=int, default=33)
    parser.add_argument("--tree", type=Path, default=ROOT, metavar="OTHER")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate(folder, given.tree, given.systems, given.attacks)
        wall, processor = make(folder, given.tree)
        told("made", wall, aim=AIM_MADE)
        told("made, processor", processor)
        page = folder / "data/report/index.html"
        print(f"page {page.stat().st_size / 1e6:.2f} MB")
        paint(page, given.systems)


if __name__ == "__main__":
    main()
