"""What the report costs a browser with a map of 20,000 trials: bytes, first paint, and a hover.

    python bench/page.py [--points 20000]

The aims are 15 MB for the page and 100 ms for a hover: from the event until the frame that shows its answer is drawn.
The trials are generated: clusters in the plane, names and audio paths as long as those of ASVspoof 5, a MOS, six
neighbours each. Needs Chromium and playwright for Python (extra `test`).
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.metrics.det import det_points
from pipeline.report import curves, leaderboard
from pipeline.report.page import page
from pipeline.report.page.embedding_space import AnalysedRun, Analysis, Map

AIM_MB, AIM_MS = 15, 100
HOVERS = 100
CENTROIDS, ATTACKS, NEAR = 4, 16, 6
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
HOVER = """([x, y]) => new Promise((done) => {
  const plane = document.getElementById("plane");
  const { left, top } = plane.getBoundingClientRect();
  const start = performance.now();
  plane.dispatchEvent(new PointerEvent("pointermove", { clientX: left + x, clientY: top + y, bubbles: true }));
  const handled = performance.now() - start;
  requestAnimationFrame(() => setTimeout(() => done([handled, performance.now() - start])));
})"""

TOGGLE = """() => {
  const start = performance.now();
  document.querySelector("#keys button").click();
  return performance.now() - start;
}"""


def trials(points: int) -> dict[str, Any]:
    """A map of so many trials as `analyse` writes it."""
    rng = np.random.default_rng(1)
    attack = rng.integers(0, ATTACKS + 1, points)  # 0: bona fide
    places = rng.uniform(600, 3_500, (2, ATTACKS + 1))[:, attack] + rng.normal(0, 200, (2, points))
    x, y = np.clip(places, 0, 4095).astype(int).tolist()
    names = ["bonafide", *(f"A{i:02d}" for i in range(1, ATTACKS + 1))]
    category = {
        "class": {"names": ["bonafide", "spoof"], "codes": np.minimum(attack, 1).tolist()},
        "set": {"names": ["train", "dev", "eval"], "codes": rng.integers(0, 3, points).tolist()},
        "attack": {"names": names, "codes": attack.tolist()},
        "centroid": {"names": list("0123"), "codes": rng.integers(0, CENTROIDS, points).tolist()},
    }
    projection = {"name": "PCA", "note": "31 % and 12 % of the variance", "x": x, "y": y}
    return {
        "run": "linear-qamo-all-clean-1",
        "points": points,
        "bits": 12,
        "projections": [
            projection | {"centroids": [[1_000 * k, 2_000] for k in range(CENTROIDS)]},
            projection | {"name": "t-SNE", "x": y, "y": x, "centroids": None},
        ],
        "utterance": [f"E_{i:010d}" for i in range(points)],
        "audio": [f"../../data/ASVspoof5/flac_E_eval/E_{i:010d}.flac" for i in range(points)],
        "score": rng.normal(size=points).round(4).tolist(),
        "categories": category,
        "numbers": {"MOS": rng.uniform(1, 5, points).round(3).tolist()},
        "neighbours": rng.integers(0, points, (points, NEAR)).tolist(),
    }


def analysis() -> dict[str, Any]:
    """An analysis with nothing but its map to look at."""
    empty: dict[str, Any] = {name: {} for name in ("assignments", "distances", "geometry", "shift")}
    return empty | {
        "run": "linear-qamo-all-clean-1",
        "centroids": CENTROIDS,
        "embedding_dim": 64,
        "train": "train",
        "sets": ["train", "dev", "eval"],
        "distance": "cosine",
        "similarity": np.eye(CENTROIDS).tolist(),
        "path": None,
        "hardest": [],
    }


def html(points: int) -> str:
    """The page of one run on one set, with the map."""
    run, system = "linear-qamo-all-clean-1", "linear-qamo"
    rng = np.random.default_rng(2)
    bonafide, spoof = rng.normal(2, 1, 500), rng.normal(0, 1, 500)
    result = leaderboard.Result(15.9, None, 1.0, 500, 500, {})
    board = leaderboard.Leaderboard(
        (system,), {system: (run,)}, ("eval",), "eval", {run: leaderboard.TrainedFacts(15.0, 17_092, None)},
        {(run, "eval"): result},
    )  # fmt: skip
    shares = curves.histogram(np.concatenate((bonafide, spoof)), np.arange(1_000) < 500)
    shown = page.Curves({(run, "eval"): det_points(bonafide, spoof)}, {(run, "eval"): shares}, {})
    space = AnalysedRun(
        Analysis.model_validate_json(json.dumps(analysis())), Map.model_validate_json(json.dumps(trials(points)))
    )
    return page.render(board, shown, spaces=[space], audio_root="../..")


def measure(path: Path) -> None:
    """Open the page, hover over its map, and print how long it took."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        tab = browser.new_page(viewport={"width": 1280, "height": 800})
        tab.goto(path.resolve().as_uri())
        tab.wait_for_timeout(500)
        paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
        loaded = tab.evaluate("performance.timing.loadEventEnd - performance.timing.navigationStart")
        print(f"first paint {tab.evaluate(paint):.0f} ms, loaded {loaded:.0f} ms")
        tab.locator("#plane").scroll_into_view_if_needed()
        side = tab.locator("#plane").bounding_box()["width"]
        for colour in ("class", "attack", "MOS"):
            tab.locator("#colour").select_option(colour)
            places = np.random.default_rng(3).uniform(0.15 * side, 0.85 * side, (HOVERS, 2)).tolist()
            both = [tab.evaluate(HOVER, place) for place in places]
            told(f"hover, by {colour}: handler", [handled for handled, _ in both])
            told(f"hover, by {colour}: drawn", [drawn for _, drawn in both], aim=AIM_MS)
        tab.locator("#colour").select_option("class")
        told("legend, one group off or on", [tab.evaluate(TOGGLE) for _ in range(10)])
        browser.close()


def told(what: str, times: list[float], *, aim: float | None = None) -> None:
    """Print median and greatest of some milliseconds."""
    aimed = "" if aim is None else f" (aim: {aim:.0f} ms, {'met' if max(times) <= aim else 'MISSED'})"
    print(f"{what}: median {statistics.median(times):.1f} ms, greatest {max(times):.1f} ms{aimed}")


def main() -> None:
    """Make the page, weigh it, open it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=20_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        text = html(args.points)
        path = Path(folder, "index.html")
        path.write_text(text)
        size = path.stat().st_size / 1e6
        print(f"{args.points} trials: rendered in {time.perf_counter() - start:.1f} s")
        print(f"page {size:.2f} MB (aim: {AIM_MB} MB, {'met' if size <= AIM_MB else 'MISSED'})")
        measure(path)


if __name__ == "__main__":
    main()
