"""How long a person waits for the page of a review, in headless Chromium: for the first page, and for the next chip.

The review is that of `tests.bench.review_page`: the challenge's number of chips of 512 px, of which some differ in
pixels. The first page counts from the request to both pictures, both masks and the ranking on the screen, in a browser
that was never there. The next chip counts from the key to its pictures and outlines on the screen, decoding and drawing
included: after a second on the chip before, as people look; at once, as fast as the page lets go on, so that little is
there ahead; and after a leap in the ranking, where nothing is. How many of the chips differ in pixels from all that was
shown or fetched ahead in another way of going on is told: the server reads equal ones once.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from tests.bench import record
from tests.browser.served_review import READY, Served
from tests.making_review import make_review

CHROMIUM = "/usr/bin/chromium"
CHIP_S, PAGE_S = 0.3, 2.0
"""What is aimed at."""
DWELL_MS = 1000
AHEAD = 3
"""How many tiles the page fetches ahead."""
WATCH = """
  localStorage.setItem("raytrain-review/reviewer", "bench");
  window.waits = []; window.from = 0;
  const start = (event) => { window.from = event.timeStamp; };
  addEventListener("keydown", start, true);
  addEventListener("click", start, true);
  const watch = () => new MutationObserver(() => {
    if (document.getElementById("views").getAttribute("aria-busy") !== "false") return;
    const from = window.from;
    requestAnimationFrame(() => setTimeout(() => window.waits.push(performance.now() - from)));
  }).observe(document.getElementById("views"), { attributeFilter: ["aria-busy"] });
  addEventListener("DOMContentLoaded", watch);
"""
"""Notes the time from the last key, or else from the request of the page, until a tile is drawn whole."""


def main() -> None:
    """Make the review, serve it, and go through it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiles", type=int, default=11_748)
    parser.add_argument("--size-px", type=int, default=512)
    parser.add_argument("--distinct", type=int, default=256, help="how many tiles differ in pixels")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--write", metavar="MACHINE")
    options = parser.parse_args()
    least = 2 * (options.runs + 2 * AHEAD + 1) + options.runs * (AHEAD + 1)
    if options.distinct < least:
        parser.error(f"--distinct: expected {least} or more for {options.runs} runs; found {options.distinct}")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM)
        made = make_review(Path(folder), options.tiles, options.size_px, options.distinct, apart=True)
        with Served(made, Path(folder) / "token") as served:
            first = first_pages(browser, served, options.runs)
            chips = next_chips(browser, served, options.runs)
    rows = [row("the first page", first, "", PAGE_S)]
    rows += [row(what, waits, f"{num_new} of {len(waits)}", CHIP_S) for what, (waits, num_new) in chips.items()]
    headers = ["what", "median, ms", "worst, ms", "not read before", "aim, ms"]
    title = f"The page of a review in a browser, {options.tiles} chips of {options.size_px} px"
    note = f"{options.runs} times each, at 1280 x 800 px, true and false colour side by side; server and browser here."
    table = record.Table("Waiting", headers, rows, note)
    record.keep_tables("review_page_browser", "review_page_browser", options.write, title, [table])


def first_pages(browser: Browser, served: Served, runs: int) -> list[float]:
    """Open the page in fresh browsers; the server runs already, as it does when a person comes."""
    waits = []
    for _ in range(runs):
        page = opened(browser, served)
        waits.append(noted(page, 1)[0])
        assert page.locator("#list .row:not(.loading)").count() > 8
        page.context.close()
    return waits


def next_chips(browser: Browser, served: Served, runs: int) -> dict[str, tuple[list[float], int]]:
    """Go on in the three ways, each in a browser of its own and in another part of the ranking.

    Return the waits of each, and how many of its chips the server had not read in another.
    """
    found = {}
    hashes = [served.made.sha256[tile_id] for tile_id in served.made.tile_ids]
    read = {*hashes[: AHEAD + 1]}  # by the first pages
    for what, part, dwell_ms in (
        ("the next chip, by accepting, after a second", AHEAD + 1, DWELL_MS),
        ("the next chip, by accepting, at once", len(hashes) // 2, 0),
    ):
        page = opened(browser, served)
        leap(page, part)
        count = len(noted(page, 1))
        for i in range(runs):
            page.wait_for_timeout(dwell_ms)
            page.keyboard.press("a")
            noted(page, count + i + 1)
        found[what] = noted(page, count + runs)[count:], len({*hashes[part + 1 : part + runs + 1]} - read)
        read.update(hashes[part : part + runs + 2 * AHEAD + 1])
        page.context.close()
    page = opened(browser, served)
    noted(page, 1)
    chosen = far_apart(hashes, read, runs)
    for i, index in enumerate(chosen):
        page.wait_for_timeout(DWELL_MS)
        leap(page, index)
        noted(page, i + 2)
    found["any chip, chosen in the ranking"] = noted(page, runs + 1)[1:], len({hashes[i] for i in chosen} - read)
    page.context.close()
    return found


def far_apart(hashes: list[str], read: set[str], count: int) -> list[int]:
    """Draw places in the ranking whose pixels are not `read`, by looking at one drawn before included."""
    found: list[int] = []
    known = set(read)
    for index in random.Random(1).sample(range(len(hashes)), len(hashes)):
        if len(found) < count and hashes[index] not in known:
            found.append(index)
            known.update(hashes[index : index + AHEAD + 1])
    assert len(found) == count, "main asks for enough that differ"
    return found


def opened(browser: Browser, served: Served) -> Page:
    page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
    page.add_init_script(WATCH)
    page.goto(served.url)
    page.wait_for_selector(READY)
    return page


def leap(page: Page, index: int) -> None:
    """Scroll the ranking to an index, and press its row once it is there."""
    page.locator("#list").evaluate("(list, index) => { list.scrollTop = index * 46 }", index)
    row = page.locator(f"#list-{index}:not(.loading)")
    row.wait_for()
    row.click()
    page.wait_for_selector(READY)


def noted(page: Page, count: int) -> list[float]:
    """Return the waits so far, in milliseconds, once there are so many."""
    page.wait_for_function("(count) => window.waits.length >= count", arg=count)
    waits: list[float] = page.evaluate("window.waits")
    return waits


def row(what: str, waits_ms: list[float], not_read: str, aim_s: float) -> list[str]:
    return [what, f"{statistics.median(waits_ms):.0f}", f"{max(waits_ms):.0f}", not_read, f"{1000 * aim_s:.0f}"]


if __name__ == "__main__":
    main()
