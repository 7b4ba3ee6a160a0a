"""Write docs/model_card.md and docs/images/leaderboard.png anew, from the demo that ran in a folder.

    python docs/from_demo.py [FOLDER]    # the current folder, if none is named; after `make demo` there

Needs Chromium and playwright for Python (extra `test`).
"""

import io
import os
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from pipeline.detect import package

DOCS = Path(__file__).resolve().parent
RUN = "linear-qamo-all-clean-1"
WIDTH, DENSITY = 1_000, 1.5  # pixels of the window, and of the picture for each of them
COLOURS = 255


def picture(page: Path) -> bytes:
    """The page as PNG, from its top to the end of the leaderboard."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        window = {"width": WIDTH, "height": 1_400}
        tab = browser.new_page(viewport=window, device_scale_factor=DENSITY, color_scheme="light")
        tab.goto(page.resolve().as_uri())
        table = tab.locator("table.pooled").bounding_box()
        height = table["y"] + table["height"] + 2
        shot = tab.screenshot(clip={"x": 0, "y": 0, "width": WIDTH, "height": height})
        browser.close()
    small = io.BytesIO()
    Image.open(io.BytesIO(shot)).convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE).save(
        small, "PNG", optimize=True
    )
    return small.getvalue()


def main() -> None:
    """Package the run, copy its model card, draw the leaderboard."""
    os.chdir(sys.argv[1] if len(sys.argv) > 1 else ".")
    with tempfile.TemporaryDirectory() as folder:
        package.write(RUN, Path(folder, "package"))
        shutil.copy(Path(folder, "package/model_card.md"), DOCS / "model_card.md")
    (DOCS / "images/leaderboard.png").write_bytes(picture(Path("data/report/index.html")))


if __name__ == "__main__":
    main()
