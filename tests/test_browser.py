"""The report in a real browser, headless and offline: sorting, the map, audio, dark mode, a phone's width."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from pipeline.metrics.det import det_points
from pipeline.report import curves, leaderboard
from pipeline.report.page import embedding_space, page, tables
from tests import analysed

api = pytest.importorskip("playwright.sync_api", reason="needs playwright for Python")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt install chromium)")

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
EDGE = 16  # pixels around the outermost points, as map.js has it
REACH = 24  # pixels, likewise
TOP = 4095
OPEN_ALL = "document.querySelectorAll('details').forEach((one) => (one.open = true))"
FIRST, SECOND = "run-one", "run-two"
CHART = analysed.chart(FIRST)
# system, EER on eval, seconds, parameters: ties, a missing number, numbers whose text sorts otherwise
ROWS = (("d", 1.0, None, 9_000), ("b", 2.0, 10.5, 1_000_000), ("a", 3.0, 9.25, 20_000), ("c", 4.0, 9.25, 20_000))
HALF = np.arange(130) < 50
AXES = {
    name: {"backend": backend, "loss": loss, "layers": "all"}
    for (name, *_), backend, loss in zip(
        ROWS, ("asp", "linear", "asp", "linear"), ("<l>", "<l>", "m", "m"), strict=True
    )
}


def board() -> leaderboard.Leaderboard:
    results = {
        (name, "eval"): leaderboard.Result(
            eer, None, 0.0, 50, 80, {"A<b>": leaderboard.Attack(eer, 80)}, {"C1": leaderboard.Attack(50.0 - eer, 80)},
            measures={"min_dcf": (1.0 - eer / 8, (0.0, 1.0)), "cllr": (12.5 - eer, None)},
        )
        for name, eer, *_ in ROWS
    }  # fmt: skip
    trainings = {name: leaderboard.TrainedFacts(5.0, count, seconds) for name, _, seconds, count in ROWS}
    names = tuple(name for name, *_ in ROWS)
    return leaderboard.Leaderboard(names, {name: (name,) for name in names}, ("eval",), "eval", trainings, results)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a project's folder, two analysed runs, and the audio of u5 beside it."""
    root = tmp_path_factory.mktemp("project")
    analysed.write(root, FIRST)
    analysed.write(root, SECOND, facts=analysed.analysis(SECOND, centroids=14), points=analysed.chart(SECOND, seed=2))
    rng = np.random.default_rng(1)
    bonafide, spoof = rng.normal(2, 1, 50), rng.normal(0, 1, 80)
    shares = curves.histogram(np.concatenate((bonafide, spoof)), np.arange(130) < 50)
    found = page.Curves(
        {(name, "eval"): det_points(bonafide, spoof) for name, *_ in ROWS},
        {(name, "eval"): shares for name, *_ in ROWS},
        {},
    )
    spaces = embedding_space.gather(root, (FIRST, SECOND))
    path = root / "data/report/index.html"
    path.parent.mkdir(parents=True)
    origin = page.Origin(title="<i>Mine</i>", encoder="tiny", corpora={"eval": "demo"}, date="2026-01-31", axes=AXES)
    html = page.render(board(), found, origin=origin, spaces=spaces, audio_root="../..", note="<b>a note</b>")
    path.write_text(html)
    (root / "audio").mkdir()
    soundfile.write(root / "audio/u5.flac", 0.1 * rng.normal(size=1_600), 16_000)
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Tab:
    """A tab with the report: what it asked for, what it complained about."""

    def __init__(self, browser: Any, report: Path, **settings: Any) -> None:
        self.context = browser.new_context(**({"viewport": {"width": 1280, "height": 800}} | settings))
        self.context.set_offline(True)
        self.context.set_default_timeout(5_000)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(f"dialog: {dialog.message}") or dialog.dismiss())
        self.address = report.as_uri()
        self.page.goto(self.address)

    def load_again(self) -> None:
        """The report as it is when it was just opened."""
        self.page.mouse.move(0, 0)
        self.page.set_viewport_size({"width": 1280, "height": 800})
        self.page.emulate_media(color_scheme="light")
        self.requests.clear()
        self.complaints.clear()
        self.page.goto(self.address)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.page, name)

    def until(self, expression: str) -> None:
        """Wait for up to 5 s; the page's own rules forbid playwright to look by itself."""
        for _ in range(100):
            if self.page.evaluate(expression):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"never true: {expression}")

    def text(self, selector: str) -> str:
        return str(self.page.locator(selector).inner_text())

    def systems(self, table: str = "table.pooled") -> list[str]:
        return list(self.page.locator(f"{table} tbody th").all_inner_texts())

    def sorting(self) -> dict[str, str]:
        found = self.page.locator("table.pooled thead th[aria-sort]")
        return {re.split(r"\s", th.inner_text())[0]: th.get_attribute("aria-sort") for th in found.all()}

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where a place of the map is in the window."""
        plane = self.page.locator("#plane")
        plane.scroll_into_view_if_needed()
        box = plane.bounding_box()
        scale = (box["width"] - 2 - 2 * EDGE) / TOP  # 2: the border
        return box["x"] + 1 + EDGE + x * scale, box["y"] + box["height"] - 1 - EDGE - y * scale

    def hover(self, point: int) -> None:
        self.page.mouse.move(*self.place(CHART["projections"][0]["x"][point], CHART["projections"][0]["y"][point]))


@pytest.fixture(scope="module")
def opened(browser: Any, report: Path) -> Iterator[Tab]:
    tab = Tab(browser, report)
    yield tab
    tab.context.close()


@pytest.fixture
def tab(opened: Tab) -> Tab:
    """The report just opened; a tab for all tests, as a new one takes a process."""
    opened.load_again()
    return opened


def alone(point: int) -> bool:
    """Whether no other point lies within 10 pixels or so."""
    x, y = (np.array(CHART["projections"][0][axis]) for axis in "xy")
    near = np.hypot(x - x[point], y - y[point]) < 100
    return bool(near.sum() == 1)


ALONE = [point for point in range(60) if alone(point)]


def test_it_renders_without_complaints_and_asks_for_nothing(tab: Tab, report: Path) -> None:
    assert tab.requests == [report.as_uri()]
    assert tab.complaints == []
    assert tab.text("[role=note]") == "<b>a note</b>"
    assert tab.locator("img, iframe, link").count() == 0


def test_a_click_on_a_header_sorts_by_numbers_with_dashes_last(tab: Tab) -> None:
    assert tab.systems() == ["d", "b", "a", "c"]
    assert tab.sorting() == {"eval": "ascending"}
    seconds = tab.get_by_role("button", name="Seconds")
    seconds.click()
    assert tab.systems() == ["a", "c", "b", "d"]  # 9.25, 9.25 in the order before, 10.5, -
    assert tab.sorting() == {"Seconds": "ascending"}
    seconds.click()
    assert tab.systems() == ["b", "a", "c", "d"]
    assert tab.sorting() == {"Seconds": "descending"}
    tab.get_by_role("button", name="Parameters").click()
    assert tab.systems() == ["d", "a", "c", "b"]  # 9,000, 20,000 twice, 1,000,000


def test_the_keyboard_sorts_too_and_equal_rows_keep_their_order(tab: Tab) -> None:
    tab.get_by_role("button", name="System").first.focus()
    tab.keyboard.press("Enter")
    assert tab.systems() == ["a", "b", "c", "d"]
    tab.keyboard.press("Space")
    assert tab.systems() == ["d", "c", "b", "a"]
    tab.get_by_role("button", name="Runs").press("Enter")
    assert tab.systems() == ["d", "c", "b", "a"]
    assert tab.systems("#group-0 table") == ["d", "b", "a", "c"]  # a table of its own
    assert tab.complaints == []


def column(tab: Tab, key: str) -> list[str]:
    """The cells of a measure that can be seen, row by row."""
    return [cell.inner_text().split()[0] for cell in tab.locator(f"table.pooled td.{key}").all() if cell.is_visible()]


@pytest.mark.parametrize("scripts", [True, False])
def test_a_menu_switches_the_metric_and_the_groups_without_a_script_too(
    browser: Any, report: Path, scripts: bool
) -> None:
    tab = Tab(browser, report, java_script_enabled=scripts)
    assert column(tab, "eer") == ["1.00", "2.00", "3.00", "4.00"]
    assert column(tab, "min_dcf") == column(tab, "cllr") == []
    tab.locator("#measure").select_option("min_dcf")
    assert column(tab, "min_dcf") == ["0.8750", "0.7500", "0.6250", "0.5000"]
    assert column(tab, "eer") == column(tab, "cllr") == []
    if scripts:
        tab.get_by_role("button", name="min DCF").click()
        assert tab.systems() == ["c", "a", "b", "d"]
        tab.locator("#measure").select_option("cllr")
        tab.get_by_role("button", name="Cllr, bits, raw scores").first.click()
        assert tab.systems() == ["c", "a", "b", "d"]  # 8.5, 9.5, 10.5, 11.5: as numbers, not as text
    groups = tab.locator(".group")
    assert [groups.nth(i).is_visible() for i in range(2)] == [True, False]
    tab.locator("#group").select_option("Codecs in eval")
    assert [groups.nth(i).is_visible() for i in range(2)] == [False, True]
    tab.context.close()


def test_filters_leave_the_rows_of_some_systems_in_all_tables(tab: Tab) -> None:
    def left() -> list[list[str]]:
        tables = tab.locator("table.sortable").all()
        rows = [table.locator("tbody tr:not([hidden]) th").all() for table in tables]
        return [[(row.text_content() or "").strip() for row in own] for own in rows]

    assert tab.locator("#filters select").evaluate_all("all => all.map(one => one.dataset.axis)") == ["backend", "loss"]
    tab.locator("select[data-axis=backend]").select_option("linear")
    assert left() == [["b", "c"]] * 4
    tab.locator("select[data-axis=loss]").select_option("<l>")
    assert left() == [["b"]] * 4
    assert tab.text("#left") == "1 of 4"
    tab.locator("select[data-axis=backend]").select_option("")
    tab.locator("#filter").fill("D")
    assert left() == [["d"]] * 4
    tab.locator("#filter").fill("nobody")
    assert left() == [[]] * 4
    tab.locator("#filter").fill("")
    tab.locator("select[data-axis=loss]").select_option("")
    assert left() == [["d", "b", "a", "c"]] * 4
    assert tab.complaints == []


def long_page() -> str:
    rng = np.random.default_rng(1)
    det, shares = det_points(rng.normal(1, 1, 50), rng.normal(0, 1, 80)), curves.histogram(rng.normal(size=130), HALF)
    pairs = [(name, "eval") for name, *_ in ROWS]
    return page.render(board(), page.Curves(dict.fromkeys(pairs, det), dict.fromkeys(pairs, shares), {}))


def test_long_tables_grow_when_asked_sorted_or_filtered(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "WHOLE", 2)
    path = tmp_path / "index.html"
    path.write_text(long_page())
    for ask in (
        lambda tab: tab.locator("#group-0").get_by_role("button", name="Show all").click(),
        lambda tab: tab.locator("#group-0").get_by_role("button", name="A<b>").click(),
        lambda tab: tab.locator("#filter").press_sequentially(" "),
    ):
        tab = Tab(browser, path)
        assert tab.systems("#group-0 table") == ["d", "b"]
        assert "The best 2 of 4 systems" in tab.text("#group-0 .rest")
        ask(tab)
        assert sorted(tab.systems("#group-0 table")) == ["a", "b", "c", "d"]
        assert tab.locator("#group-0 .rest").count() == 0
        assert tab.complaints == []
        tab.context.close()


@pytest.mark.parametrize("scripts", [True, False])
def test_all_rows_of_a_long_leaderboard_are_shown(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, scripts: bool
) -> None:
    monkeypatch.setattr(tables, "WHOLE", 2)
    (tmp_path / "index.html").write_text(long_page())
    tab = Tab(browser, tmp_path / "index.html", java_script_enabled=scripts)
    if scripts:
        tab.until("document.querySelectorAll('table.pooled tbody tr').length === 4")
    assert tab.systems(".pooled") == ["d", "b", "a", "c"]
    assert column(tab, "eer") == ["1.00", "2.00", "3.00", "4.00"]
    assert tab.locator("table.pooled").count() == (1 if scripts else 2)
    assert tab.locator("table.pooled thead").last.is_visible()
    tab.context.close()


def test_headers_stay_in_sight_and_the_page_stays_short(browser: Any, report: Path) -> None:
    tab = Tab(browser, report, viewport={"width": 1280, "height": 200})
    box = tab.locator(".scroll").first
    box.scroll_into_view_if_needed()
    before = tab.locator("table.pooled thead").bounding_box()["y"]
    assert box.evaluate("one => { one.scrollTop = 60; return one.scrollTop; }") == 60
    header = tab.locator("table.pooled thead th").first.bounding_box()
    assert header["y"] == pytest.approx(before, abs=1)
    tab.context.close()


def test_a_line_and_its_name_are_brought_out_together(tab: Tab) -> None:
    figure = tab.locator("#det ~ .figures figure").first
    dimmed = "all => all.map(one => getComputedStyle(one).opacity)"
    lines = figure.locator("polyline")
    assert lines.evaluate_all(dimmed) == ["1"] * 4
    figure.locator(".legend li").nth(2).hover()
    assert lines.evaluate_all(dimmed) == ["0.2", "0.2", "1", "0.2"]
    assert figure.locator(".legend li").evaluate_all(dimmed) == ["0.2", "0.2", "1", "0.2"]
    tab.mouse.move(2, 2)
    assert lines.evaluate_all(dimmed) == ["1"] * 4
    figure.locator(".legend li").nth(1).focus()
    assert lines.evaluate_all(dimmed) == ["0.2", "1", "0.2", "0.2"]


def test_the_title_says_what_it_is_about_and_contents_lead_there(tab: Tab) -> None:
    assert tab.text("h1") == "<i>Mine</i>"
    assert tab.title() == "<i>Mine</i>: leaderboard"
    assert tab.text("dl.origin").split("\n") == ["Encoder", "tiny", "Corpora", "eval: demo", "Newest run", "2026-01-31"]
    for link in tab.locator("nav a").all():
        link.click()
        target = tab.locator(link.get_attribute("href"))
        assert target.evaluate("one => Math.abs(one.getBoundingClientRect().top)") < 800
    assert tab.complaints == []


def test_a_phone_shows_the_eer_beside_the_name(tab: Tab) -> None:
    tab.set_viewport_size({"width": 390, "height": 844})
    for cell in tab.locator("table.pooled td.eer").all():
        box = cell.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390


def test_hovering_shows_the_trial(tab: Tab) -> None:
    point = next(point for point in ALONE if point % 2 and point % 5)
    tab.hover(point)
    attack = analysed.ATTACKS[point % 3]
    lines = [
        f"u{point}", "class: spoof", f"set: {analysed.SETS[point % 3]}", f"attack: {attack}", "centroid: 1",
        f"score: {CHART['score'][point]}", f"MOS: {CHART['numbers']['MOS'][point]}",
    ]  # fmt: skip
    assert tab.text("#tip").splitlines() == lines
    tab.mouse.move(5, 5)
    assert not tab.locator("#tip").is_visible()


def test_the_nearest_point_is_the_one_that_a_search_over_all_finds(tab: Tab) -> None:
    points = np.array([CHART["projections"][0][axis] for axis in "xy"], dtype=np.float64)  # (2, N)
    left, bottom = tab.place(0, 0)
    scale = (tab.place(TOP, 0)[0] - left) / TOP
    around = np.array([(1, 0), (-1, 0), (0, 1), (0, -1)]) * (REACH - 3) / scale
    places = np.concatenate((np.random.default_rng(4).uniform(0, TOP, (30, 2)), *points.T[ALONE[:8], None] + around))
    shown = 0
    for at in places:
        tab.mouse.move(left + at[0] * scale, bottom - at[1] * scale)
        distance = scale * np.hypot(*(points - at[:, None]))  # pixels
        nearest, second = np.argsort(distance, kind="stable")[:2]
        if distance[second] - distance[nearest] < 2 or abs(distance[nearest] - REACH) < 2:
            continue  # the pointer stands at whole pixels
        told = tab.evaluate("document.querySelector('#tip:not([hidden]) strong')?.textContent")
        assert told == (CHART["utterance"][nearest] if distance[nearest] < REACH else None)
        shown += told is not None
    assert shown > 30


def test_a_click_opens_the_trial_and_its_neighbours(tab: Tab) -> None:
    point = next(point for point in ALONE if 0 < point < 50)
    before = tab.evaluate("document.getElementById('plane').toDataURL()")
    tab.hover(point)
    tab.mouse.down()
    tab.mouse.up()
    assert tab.text("#trial h3") == f"u{point}"
    assert tab.locator("#trial li button").all_inner_texts() == [f"u{point + i}" for i in (1, 2, 3)]
    assert tab.evaluate("document.getElementById('plane').toDataURL()") != before
    assert tab.text("#said").startswith(f"Opened u{point}, class ")
    tab.locator("#trial li button").nth(1).click()
    assert tab.text("#trial h3") == f"u{point + 2}"
    assert tab.evaluate("document.activeElement.innerText") == f"u{point + 2}"


def test_an_utterance_is_found_by_its_name(tab: Tab) -> None:
    box = tab.get_by_role("searchbox")
    box.fill("u3")
    assert tab.text("#tip strong") == "u3"  # not u30, which comes later anyway, nor u13
    box.fill("u5")
    box.press("Enter")
    assert tab.text("#trial h3") == "u5"
    box.fill("nobody")
    assert tab.text("#found") == "not on this map"


def told_set(tab: Tab) -> str:
    """The set of the trial that is opened."""
    return tab.text("#trial dt:text-is('set') + dd")


def test_a_name_that_sets_share_leads_to_every_one_of_them(tab: Tab) -> None:
    box = tab.get_by_role("searchbox")
    box.fill(analysed.TWIN)
    assert tab.text("#found") == "train, dev, eval: Enter for the next"
    for name in (*analysed.SETS, analysed.SETS[0]):
        box.press("Enter")
        assert tab.text("#trial h3") == analysed.TWIN
        assert told_set(tab) == name
    box.fill("u5")
    assert tab.text("#found") == ""


def test_the_hardest_trials_and_their_nearest_open_in_their_own_set(tab: Tab) -> None:
    tab.evaluate(OPEN_ALL)
    panel = f"section[data-run={FIRST}]"
    for name in ("dev", "eval"):
        tab.locator(f"{panel} th[data-set={name}][data-trial={analysed.TWIN}] button").click()
        assert (tab.text("#trial h3"), told_set(tab)) == (analysed.TWIN, name)
        tab.locator(f"{panel} span[data-trial={analysed.TWIN}] button").first.click()
        assert told_set(tab) == "train"


def test_names_from_a_manifest_stay_text(tab: Tab) -> None:
    box = tab.get_by_role("searchbox")
    box.fill("</script>")
    box.press("Enter")
    assert tab.text("#trial h3") == analysed.HOSTILE
    assert tab.text("#tip strong") == analysed.HOSTILE
    assert "No audio is known" in tab.text("#trial")
    tab.locator("#colour").select_option("attack")
    assert "A<b>" in tab.text("#keys")
    assert tab.locator("img, #keys b, #tip b, table b").count() == 0
    assert tab.complaints == []


def test_no_script_runs_that_is_not_the_pages_own(tab: Tab) -> None:
    tab.evaluate(
        """() => {
          const script = document.createElement("script");
          script.textContent = "window.injected = 1";
          document.body.append(script);
          document.body.insertAdjacentHTML("beforeend", "<svg onload='window.injected = 1'></svg>");
        }"""
    )
    tab.wait_for_timeout(50)
    assert tab.evaluate("window.injected") is None
    assert any("Content Security Policy" in complaint for complaint in tab.complaints)


def towards(point: int, right: int, up: int) -> int:
    """The nearest point within 45 degrees of a direction, by looking at all."""
    x, y = (np.array(CHART["projections"][0][axis]) for axis in "xy")
    dx, dy = x - x[point], y - y[point]
    along, aside = dx * right + dy * up, np.abs(dx * up) + np.abs(dy * right)
    allowed = (along > 0) & (aside <= along)
    return int(np.argmin(np.where(allowed, dx**2 + dy**2, np.iinfo(np.int64).max))) if allowed.any() else point


def test_arrow_keys_walk_over_the_map(tab: Tab) -> None:
    plane = tab.locator("#plane")
    plane.focus()
    x, y = (np.array(CHART["projections"][0][axis]) for axis in "xy")
    tab.keyboard.press("ArrowRight")
    point = int(np.argmin(np.hypot(x - TOP / 2, y - TOP / 2)))
    assert tab.text("#tip strong") == f"u{point}"
    for key, way in (("Right", (1, 0)), ("Up", (0, 1)), ("Left", (-1, 0)), ("Down", (0, -1))) * 3:
        tab.keyboard.press(f"Arrow{key}")
        point = towards(point, *way)
        assert tab.text("#tip strong") == CHART["utterance"][point]
    assert tab.text("#said").startswith(CHART["utterance"][point])
    tab.keyboard.press("Enter")
    assert tab.text("#trial h3") == CHART["utterance"][point]
    tab.keyboard.press("Escape")
    assert not tab.locator("#tip").is_visible()
    tab.get_by_role("searchbox").fill(f"u{int(x[1:].argmax()) + 1}")
    tab.evaluate("document.getElementById('plane').focus()")
    for _ in range(60):
        tab.keyboard.press("ArrowRight")
    assert tab.text("#said") == "No trial that way."


def test_audio_plays_where_it_is_and_is_missed_where_it_is_not(tab: Tab, report: Path) -> None:
    box = tab.get_by_role("searchbox")
    box.fill("u5")
    box.press("Enter")
    tab.until("document.querySelector('#trial audio')?.played.length > 0")
    audio = tab.locator("#trial audio")
    assert audio.evaluate("audio => audio.duration") == pytest.approx(0.1)
    assert audio.get_attribute("src") == "../../audio/u5.flac"
    box.fill("u7")
    box.press("Enter")
    tab.wait_for_selector("#trial .missing")
    assert tab.text("#trial .missing") == "The audio is not there: audio/u7.flac"
    root = report.parents[2].as_uri()
    assert tab.requests == [report.as_uri(), f"{root}/audio/u5.flac", f"{root}/audio/u7.flac"]


def test_the_legend_hides_groups(tab: Tab) -> None:
    point = next(point for point in ALONE if point % 2)
    tab.hover(point)
    assert tab.locator("#tip").is_visible()
    spoof = tab.get_by_role("button", name="spoof (30)")
    before = tab.evaluate("document.getElementById('plane').toDataURL()")
    spoof.click()
    assert spoof.get_attribute("aria-pressed") == "false"
    assert tab.evaluate("document.getElementById('plane').toDataURL()") != before
    tab.hover(point)
    assert not tab.locator("#tip").is_visible() or "spoof" not in tab.text("#tip")
    spoof.click()
    tab.hover(point)
    assert tab.text("#tip strong") == CHART["utterance"][point]


def test_colours_and_projections_can_be_chosen(tab: Tab) -> None:
    picture = "document.getElementById('plane').toDataURL()"
    seen = {tab.evaluate(picture)}
    for colour in ("set", "attack", "centroid", "score", "MOS"):
        tab.locator("#colour").select_option(colour)
        seen.add(tab.evaluate(picture))
    assert "unknown" in tab.text("#keys")  # every fifth MOS
    assert re.split(r"\s+", tab.text("#keys"))[:2] == ["1.067", "4.933"]
    assert tab.text("#projection-note").endswith("of the variance, centroids are numbered diamonds")
    tab.locator("#projection").select_option("t-SNE")
    seen.add(tab.evaluate(picture))
    assert tab.text("#projection-note") == "t-SNE, perplexity 30"
    assert len(seen) == 6  # set and centroid may be alike no more than the others
    assert tab.complaints == []


def test_the_map_zooms_and_pans_and_a_drag_opens_nothing(tab: Tab) -> None:
    picture = "document.getElementById('plane').toDataURL()"
    point = next(point for point in ALONE if point)
    x, y = (CHART["projections"][0][axis][point] for axis in "xy")
    whole = tab.evaluate(picture)
    at = tab.place(x, y)
    tab.mouse.move(*at)
    tab.keyboard.down("Control")
    tab.mouse.wheel(0, -300)  # twice as close, and the place under the pointer stays
    tab.keyboard.up("Control")
    tab.until(f"document.getElementById('plane').toDataURL() !== {json.dumps(whole)}")
    tab.mouse.move(at[0] + 1, at[1])
    assert tab.text("#tip strong") == f"u{point}"
    tab.mouse.down()
    tab.mouse.move(at[0] - 60, at[1] - 40, steps=4)
    tab.mouse.up()
    assert tab.locator("#trial h3").count() == 0
    tab.wait_for_timeout(100)
    tab.get_by_role("button", name="Whole map").click()
    tab.until(f"document.getElementById('plane').toDataURL() === {json.dumps(whole)}")
    tab.locator("#plane").focus()
    tab.keyboard.press("+")
    tab.until("!document.getElementById('whole').disabled")
    tab.keyboard.press("0")
    tab.until("document.getElementById('whole').disabled")
    tab.get_by_role("searchbox").fill("u5")
    assert tab.text("#tip strong") == "u5"
    assert tab.complaints == []


def test_two_fingers_zoom_the_map_and_not_the_page(browser: Any, report: Path) -> None:
    tab = Tab(browser, report, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    point = next(point for point in ALONE if point)
    x, y = tab.place(*(CHART["projections"][0][axis][point] for axis in "xy"))
    picture = "document.getElementById('plane').toDataURL()"
    whole = tab.evaluate(picture)
    session = tab.context.new_cdp_session(tab.page)

    def touch(kind: str, *apart: float) -> None:
        fingers = [{"x": x - way, "y": y, "id": 0} for way in apart] + [
            {"x": x + way, "y": y, "id": 1} for way in apart
        ]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": fingers})

    touch("touchStart", 20)
    for apart in (25, 35, 50, 60):
        touch("touchMove", apart)
    touch("touchEnd")
    tab.until(f"{picture} !== {json.dumps(whole)}")
    assert tab.evaluate("visualViewport.scale") == 1
    tab.touchscreen.tap(x, y)  # three times as close, and the place between the fingers stays there
    assert tab.text("#trial h3") == f"u{point}"
    before = tab.evaluate(picture)
    touch("touchStart", 60)
    touch("touchMove", 30)
    touch("touchMove", 15)
    touch("touchEnd")
    tab.until("document.getElementById('whole').disabled")
    assert tab.evaluate(picture) != before
    tab.context.close()


def test_another_run_can_be_chosen(tab: Tab) -> None:
    assert tab.locator("section[data-run]").evaluate_all("all => all.map(one => one.hidden)") == [False, True]
    tab.locator("#run").select_option(SECOND)
    assert tab.locator("section[data-run]").evaluate_all("all => all.map(one => one.hidden)") == [True, False]
    assert tab.locator(f"section[data-run={SECOND}] table.dense td").count() == 14 * 14
    assert tab.complaints == []
    tab.evaluate(OPEN_ALL)
    tab.locator(f"section[data-run={SECOND}] [data-trial=u12] button").first.click()
    assert tab.text("#trial h3") == "u12"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_laptop_and_a_phone_in_light_and_dark(tab: Tab, scheme: str) -> None:
    tab.emulate_media(color_scheme=scheme)
    tab.evaluate(OPEN_ALL)
    for width in (1280, 390, 320):
        tab.set_viewport_size({"width": width, "height": 800})
        tab.hover(1)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        tip, plane = (tab.locator(selector).bounding_box() for selector in ("#tip", "#plane"))
        assert tip["x"] >= plane["x"] - 1
        assert tip["x"] + tip["width"] <= plane["x"] + plane["width"] + 1
    red, *_ = map(int, re.findall(r"\d+", tab.evaluate("getComputedStyle(document.body).backgroundColor")))
    assert (red < 50) == (scheme == "dark")
    assert tab.complaints == []


def test_the_map_is_drawn_again_for_the_dark(tab: Tab) -> None:
    tab.emulate_media(color_scheme="light")
    before = tab.evaluate("document.getElementById('plane').toDataURL()")
    tab.emulate_media(color_scheme="dark")
    tab.until("document.getElementById('plane').toDataURL() !== " + json.dumps(before))


def test_without_scripts_all_but_the_map_is_there(browser: Any, report: Path) -> None:
    tab = Tab(browser, report, java_script_enabled=False)
    assert tab.systems() == ["d", "b", "a", "c"]
    assert tab.locator("table button").count() == 0
    assert tab.locator("#no-script").is_visible()
    assert all(tab.get_by_role("heading", name=f"Centroids of {run}").is_visible() for run in (FIRST, SECOND))
    assert not tab.locator("#plane").is_visible()
    tab.context.close()
