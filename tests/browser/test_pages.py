"""Our pages in a browser: whole, silent, sortable, legible in both themes, on a phone, on paper and without scripts."""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route
from pypdf import PdfReader

from tests.browser.made_pages import LAST_ROW, NAMES, PAGES

PHONE = {"width": 390, "height": 844}
PAPER_PX = 680
"""The width of an A4 page between its margins."""


@dataclass
class Opened:
    """A page in a browser, the addresses that it asked for, and what the browser complained about."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


Open = Callable[..., Opened]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages under test, each made once."""
    found = {}
    for name, make in PAGES.items():
        folder = tmp_path_factory.mktemp(name)
        found[name] = folder / "page.html"
        found[name].write_text(make(folder), encoding="utf-8")
    return found


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """Open a file, in a context of its own, with every request but that for the file refused and written down."""
    contexts: list[BrowserContext] = []

    def opened(path: Path, address: str | None = None, **options: Any) -> Opened:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, "locale": "en-GB"} | options)
        context.set_default_timeout(10_000)
        contexts.append(context)
        found = Opened(context.new_page())
        address = address or path.as_uri()

        def answer(route: Route) -> None:
            found.requests.append(route.request.url)
            if route.request.url == address:
                route.fulfill(body=path.read_bytes(), content_type="text/html")
            else:
                route.abort()

        context.route("**/*", answer)
        found.page.on("console", lambda message: found.complaints.append(message.text))
        found.page.on("pageerror", lambda error: found.complaints.append(str(error)))
        found.page.goto(address)
        return found

    yield opened
    for context in contexts:
        context.close()


every_page = pytest.mark.parametrize("name", PAGES)


# Whole and silent

SIZES = """() => [...document.querySelectorAll("main svg, main img, .figure, table, .track, .key, .ramp span")].map(
    (each) => { const box = each.getBoundingClientRect(); return [each.tagName, box.width, box.height,
                each.tagName === "IMG" ? each.complete && each.naturalWidth > 0 : true]; })"""


@every_page
@pytest.mark.parametrize("address", [None, "https://bucket.example/reports/page.html"], ids=["folder", "bucket"])
def test_everything_is_there_and_nothing_is_asked_for(
    files: dict[str, Path], open_page: Open, name: str, address: str | None
) -> None:
    opened = open_page(files[name], address)
    opened.page.wait_for_load_state("networkidle")
    text = files[name].read_text()
    found = opened.page.evaluate(SIZES)
    for tag, count in (("svg", text.count("<svg")), ("IMG", text.count("<img")), ("TABLE", text.count("<table"))):
        assert sum(each[0] == tag for each in found) == count
    assert sum(each[0] == "DIV" for each in found) == text.count('<div class="figure">') > 0
    assert all(width > 0 and height > 0 and whole for _, width, height, whole in found), found
    assert opened.requests == [address or files[name].as_uri()]
    assert opened.complaints == []


def test_what_a_page_is_not_meant_to_do_is_stopped_by_its_policy(
    files: dict[str, Path], open_page: Open, tmp_path: Path
) -> None:
    """And is seen by the test above."""
    foreign = (
        '<script>document.title = "ran"</script><img src="https://example.com/a.png" onerror="document.title = 1">'
        '<form action="https://example.com"><button id="send">Send</button></form></main>'
    )
    changed = tmp_path / "changed.html"
    changed.write_text(files["full"].read_text().replace("</main>", foreign))
    opened = open_page(changed)
    assert opened.page.title().startswith("A page of everything")
    opened.page.click("#send", no_wait_after=True)
    for directive in ("script-src", "img-src", "form-action"):
        for _ in range(100):
            if any(directive in each for each in opened.complaints):
                break
            opened.page.wait_for_timeout(50)
        else:
            pytest.fail(f"nothing about {directive} in {opened.complaints}")
    assert opened.requests == [changed.as_uri()]


@every_page
def test_without_javascript_only_the_buttons_are_missing(files: dict[str, Path], open_page: Open, name: str) -> None:
    bare, scripted = (open_page(files[name], java_script_enabled=on).page for on in (False, True))
    assert scripted.locator("thead button").count() > 0
    assert bare.locator("button").count() == 0
    assert bare.inner_text("main") == scripted.inner_text("main")
    found = bare.evaluate(SIZES)
    assert len(found) == len(scripted.evaluate(SIZES))
    assert all(width > 0 and height > 0 and whole for _, width, height, whole in found), found


@every_page
def test_a_page_can_be_read_aloud(files: dict[str, Path], open_page: Open, name: str) -> None:
    page = open_page(files[name]).page
    levels = page.evaluate("""() => [...document.querySelectorAll("h1, h2, h3")].map((each) => each.tagName)""")
    assert levels[0] == "H1"
    assert levels.count("H1") == 1
    assert levels.count("H2") == page.locator("section").count() > 1
    assert page.locator("img:not([alt]), img[alt='']").count() == 0
    assert page.locator("[role=img]:not([aria-label]), [role=region]:not([aria-label])").count() == 0
    assert page.locator("th:not([scope])").count() == 0
    assert page.get_attribute("html", "lang") == "en"
    for link in page.locator("nav a").all():
        assert page.locator(f"section[id='{(link.get_attribute('href') or '')[1:]}']").count() == 1


# Sorting

CELLS = """([table, column]) => [...document.querySelectorAll("table")[table].tBodies[0].rows].map(
    (row) => [row.cells[column].dataset.sort ?? null, row.cells[column].textContent])"""


def cells(page: Page, table: int, column: int) -> list[tuple[float | None, str]]:
    found = page.evaluate(CELLS, [table, column])
    return [(None if key is None else float(key), text) for key, text in found]


@every_page
def test_every_column_of_numbers_sorts_by_them_up_and_down_and_back(
    files: dict[str, Path], open_page: Open, name: str
) -> None:
    page = open_page(files[name]).page
    moved = 0
    for i in range(page.locator("table").count()):
        table = page.locator("table").nth(i)
        if table.locator("tbody tr").count() < 2:
            assert table.locator("button").count() == 0, "one row has no order"
            continue
        kinds = table.locator("thead th").evaluate_all("(all) => all.map((each) => each.dataset.kind)")
        for column in [place for place, kind in enumerate(kinds) if kind == "number"]:
            before = cells(page, i, column)
            known = [each for each in before if each[0] is not None]
            missing = [each for each in before if each[0] is None]
            for direction in ("ascending", "descending", None):
                table.locator("thead button").nth(column).evaluate("(each) => each.click()")
                told = table.locator("thead th").evaluate_all("(all) => all.map((each) => each.ariaSort)")
                assert told == [direction if place == column else None for place in range(len(kinds))]
                ordered = sorted(known, key=itemgetter(0), reverse=direction == "descending")
                expected = [*ordered, *missing] if direction else before
                assert cells(page, i, column) == expected
                moved += expected != before
    assert moved > 3


def column_of(page: Page, heading: str, column: int) -> list[str]:
    """Return the text of a column of the table under a heading, from top to bottom."""
    section = page.locator("section", has=page.get_by_role("heading", name=heading, exact=True))
    rows = "(each, column) => [...each.querySelectorAll('tbody tr')].map((row) => row.cells[column].innerText)"
    return list(section.evaluate(rows, column))


def test_text_sorts_as_people_sort_it_by_mouse_and_keyboard(files: dict[str, Path], open_page: Open) -> None:
    page = open_page(files["full"]).page
    ascending = ["<b>Čukotka</b>", "aden", "Äquator", "Berlin", "chip1", "chip2", "chip10", ""]
    assert sorted(ascending) == sorted(NAMES)
    name = page.get_by_role("button", name="Name", exact=True)
    name.click()
    assert column_of(page, "Mixed", 0) == ascending
    for key, expected in (
        ("Space", [*ascending[-2::-1], ""]),
        ("Enter", list(NAMES)),
        ("Enter", ascending),
    ):
        page.keyboard.press(key)
        assert column_of(page, "Mixed", 0) == expected
    assert page.evaluate("document.activeElement.textContent") == "Name"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.locator("th[aria-sort=ascending]").inner_text() == "Number"
    assert column_of(page, "Mixed", 1) == ["-1", "0.0700", "0.5000", "12", "all", *2 * ["\N{EN DASH}"], "cut off"]


def test_rows_that_are_equal_keep_their_order_in_both_directions(files: dict[str, Path], open_page: Open) -> None:
    page = open_page(files["full"]).page
    before = column_of(page, "Long", 0)
    header = page.get_by_role("columnheader", name="None")
    for _ in range(2):
        header.locator("button").click()
        assert column_of(page, "Long", 0) == before


def test_a_long_table_scrolls_in_its_box_below_its_header(files: dict[str, Path], open_page: Open) -> None:
    page = open_page(files["full"]).page
    box = page.locator(".long")
    box.evaluate("(each) => { each.scrollTop = 500 }")
    top = box.evaluate("(each) => each.getBoundingClientRect().top")
    assert box.locator("thead th").first.evaluate("(each) => each.getBoundingClientRect().top") == pytest.approx(
        top, abs=1
    )
    assert box.evaluate("(each) => each.clientHeight < each.scrollHeight / 2")


# On a phone, in both themes, on paper

# What reaches over the edge without a box to scroll in, and the smallest text in pixels, in drawings too.
OVER_THE_EDGE = """() => [...document.querySelectorAll("main *")].filter((each) =>
    !each.closest(".scroll") && each.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5
  ).map((each) => each.outerHTML.slice(0, 200))"""
SMALLEST_TEXT = """() => {
  const scale = (each) => each.closest("svg") ? Math.hypot(each.getScreenCTM().a, each.getScreenCTM().b) : 1;
  const shown = [...document.querySelectorAll("svg text, main :not(svg *)")].filter((each) =>
    each.checkVisibility() && [...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim()));
  return Math.min(...shown.map((each) => parseFloat(getComputedStyle(each).fontSize) * scale(each)));
}"""


@every_page
def test_a_phone_shows_the_page_without_scrolling_sideways(files: dict[str, Path], open_page: Open, name: str) -> None:
    page = open_page(files[name], viewport=PHONE, is_mobile=True, has_touch=True).page
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    assert page.evaluate(OVER_THE_EDGE) == []
    widths = page.locator(".panels img").evaluate_all("(all) => all.map((each) => each.getBoundingClientRect().width)")
    assert all(width > 150 for width in widths), widths
    assert page.evaluate(SMALLEST_TEXT) > 8.5


CONTRASTS = """() => {
  const channels = (text) => text.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map((c) => c / 255).map(
    (c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4
  ).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (each) => {
    for (let at = each; at; at = at.parentElement) {
      const colour = channels(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
  };
  return [...document.querySelectorAll("body *")].filter((each) => !["SCRIPT", "STYLE"].includes(each.tagName) &&
    [...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim())
  ).map((each) => {
    const style = getComputedStyle(each);
    const colours = [channels(each.closest("svg") ? style.fill : style.color), behind(each)].map(luminance);
    return [(Math.max(...colours) + 0.05) / (Math.min(...colours) + 0.05), each.textContent.trim().slice(0, 60)];
  });
}"""


@every_page
def test_text_stands_out_in_both_themes(files: dict[str, Path], open_page: Open, name: str) -> None:
    grounds = []
    for theme in ("light", "dark"):
        page = open_page(files[name], color_scheme=theme).page
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        found = page.evaluate(CONTRASTS)
        assert len(found) > 50
        assert [each for each in found if each[0] < 4.5] == []
        drawn = page.evaluate("""() => [...new Set([...document.querySelectorAll("svg *")].flatMap(
            (each) => [getComputedStyle(each).stroke, getComputedStyle(each).fill]))]""")
        assert not [colour for colour in drawn if "rgb(1, 2, 3)" in colour], "a marker that is no colour of the page"
    assert grounds == ["rgb(255, 255, 255)", "rgb(18, 22, 27)"]


CUT = """() => [...document.querySelectorAll("main *")].filter((each) => {
    const box = each.getBoundingClientRect(), style = getComputedStyle(each);
    const hides = style.overflowX !== "visible" && !each.matches(".track, .ramp, svg, svg *");
    return box.right > document.documentElement.clientWidth + 0.5 ||
           hides && (each.scrollWidth > each.clientWidth || each.scrollHeight > each.clientHeight);
  }).map((each) => each.outerHTML.slice(0, 200))"""


@every_page
def test_paper_is_light_and_cuts_nothing(files: dict[str, Path], open_page: Open, name: str) -> None:
    page = open_page(files[name], color_scheme="dark", viewport={"width": PAPER_PX, "height": 950}).page
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert [each for each in page.evaluate(CONTRASTS) if each[0] < 4.5] == []
    assert page.evaluate(CUT) == []
    coloured = page.locator(".track, .track span, .key, .ramp span")
    printed = coloured.evaluate_all("(all) => all.map((each) => getComputedStyle(each).printColorAdjust)")
    assert all(each == "exact" for each in printed)


def without_spaces(text: str) -> str:
    """Return text with ligatures as the letters that they stand for, and without what breaks lines."""
    return re.sub(r"\s", "", unicodedata.normalize("NFKC", text))


@every_page
def test_a_printed_page_has_all_rows_below_headers(files: dict[str, Path], open_page: Open, name: str) -> None:
    page = open_page(files[name]).page
    sheets = [sheet.extract_text() for sheet in PdfReader(io.BytesIO(page.pdf(format="A4"))).pages]
    printed = without_spaces("".join(sheets))
    for cell in page.locator("tbody tr > :first-child").all_inner_texts():
        assert without_spaces(cell) in printed, cell
    if name == "full":
        (last,) = [sheet for sheet in sheets if LAST_ROW in sheet]
        assert "row 0" not in last
        assert re.search(r"Row\s+Share\s+Count\s+Ratio\s+None", last), "the header stands on each sheet"
        assert sum(len(sheet.images) for sheet in PdfReader(io.BytesIO(page.pdf(format="A4"))).pages) == 11
