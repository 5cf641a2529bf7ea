"""A made review, served by the command in a process of its own, and its page in a browser as a person uses it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

from raytrain.review.decisions import Decision
from raytrain.review.log import DecisionLog
from tests.making_review import MadeReview

READY = "#views[aria-busy=false]"
PATIENCE_S = 20
"""For a picture, on a machine that does much else."""
MARGIN_PX = 8
"""Around a tile that is fitted into its view, both sides together."""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass
class Served:
    """A review and the process that serves it, always at the same address and with the same token."""

    made: MadeReview
    token_file: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[str] | None = None
    url: str = ""

    def start(self) -> Served:
        options = ["--port", str(self.port), "--token-file", str(self.token_file), "--reviewer", "someone", "--json"]
        command = [sys.executable, "-m", "raytrain.cli", "review", "serve", self.made.uri, *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        printed = ""
        for line in self.process.stdout:
            printed += line
            if line.startswith("}"):
                break
        self.url = json.loads(printed)["url"]
        return self

    def kill(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> Served:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.kill()

    def decisions(self, reviewer: str) -> list[Decision]:
        """What the store has of a reviewer, in the order it was decided."""
        return [each for each in DecisionLog(self.made.uri).read_all() if each.reviewer == reviewer]

    def index_of(self, tile_id: str) -> int:
        return self.made.tile_ids.index(tile_id)


@dataclass
class Reviewer:
    """A person with a browser of their own, and what that browser complained about."""

    name: str
    page: Page
    context: BrowserContext
    complaints: list[str] = field(default_factory=list)

    @property
    def tile(self) -> str:
        return self.page.locator("#tile-name").inner_text()

    def wait(self) -> None:
        self.page.wait_for_selector(READY)

    def press(self, *keys: str) -> None:
        """Press keys one after another, each once the tile that the one before went to is there."""
        for key in keys:
            self.wait()
            self.page.keyboard.press(key)
        self.wait()

    def expect_tile(self, tile_id: str) -> None:
        expect(self.page.locator("#tile-name")).to_have_text(tile_id)
        self.wait()

    def said(self, text: str | re.Pattern[str]) -> None:
        expect(self.page.locator("#said")).to_contain_text(text)

    def go_to(self, served: Served, index: int) -> None:
        """Go to the tile of this index in the ranking, from wherever in the same filter."""
        while (here := served.index_of(self.tile)) != index:
            self.press("n" if here < index else "p")

    def point(self, row: float, column: float, size_px: int, view: int = 0) -> tuple[float, float]:
        """Where the middle of a pixel of the tile is on the screen, while the tile is fitted to its view."""
        box = self.page.locator(f"#view-{view}").bounding_box()
        assert box is not None
        scale = min(box["width"] - MARGIN_PX, box["height"] - MARGIN_PX) / size_px
        left = box["x"] + (box["width"] - scale * size_px) / 2
        top = box["y"] + (box["height"] - scale * size_px) / 2
        return left + (column + 0.5) * scale, top + (row + 0.5) * scale

    def paint(self, size_px: int, *pixels: tuple[int, int], view: int = 0) -> None:
        """Draw with the tool in hand through the middles of pixels."""
        points = [self.point(row, column, size_px, view) for row, column in pixels]
        self.page.mouse.move(*points[0])
        self.page.mouse.down()
        for point in points[1:]:
            self.page.mouse.move(*point)
        self.page.mouse.up()

    def queue(self) -> Locator:
        return self.page.locator("#queue")

    def picture(self, view: int) -> str:
        """What a view shows, as the address of a PNG, once it is drawn."""
        script = f"""async () => {{
            for (let frame = 0; frame < 2; frame++) await new Promise(requestAnimationFrame);
            const canvas = document.getElementById("view-{view}");
            return canvas.toDataURL() }}"""
        return str(self.page.evaluate(script))

    def shows(self, view: int, picture: str) -> None:
        """Wait until a view shows this: what a layer needs may still have to come."""
        self._until(lambda: self.picture(view) == picture, f"view {view} never showed the picture")

    def shows_other(self, view: int, picture: str) -> None:
        """Wait until a view shows anything else."""
        self._until(lambda: self.picture(view) != picture, f"view {view} stayed as it was")

    def _until(self, holds: Callable[[], bool], otherwise: str) -> None:
        until = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < until, otherwise
            self.page.wait_for_timeout(50)


Come = Callable[..., Reviewer]


def come(browser: Browser, served: Served, name: str, **options: Any) -> Reviewer:
    """Open the page as a person who was never there, and give a name."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, "locale": "en-GB"} | options)
    context.set_default_timeout(15_000)
    reviewer = Reviewer(name, context.new_page(), context)
    watch(reviewer)
    reviewer.page.goto(served.url)
    reviewer.page.fill("#reviewer-name", name)
    reviewer.page.keyboard.press("Enter")
    reviewer.wait()
    return reviewer


def watch(reviewer: Reviewer) -> None:
    def note(message: Any) -> None:
        if message.type in ("error", "warning"):
            reviewer.complaints.append(message.text)

    reviewer.page.on("console", note)
    reviewer.page.on("pageerror", lambda error: reviewer.complaints.append(str(error)))


def painted(mask: NDArray[np.uint8], value: int, size_px: int, *pixels: tuple[int, int]) -> NDArray[np.uint8]:
    """Return a mask after a stroke of a round brush through the middles of pixels."""
    found = mask.copy()
    rows, columns = np.indices(mask.shape)
    for (row0, column0), (row1, column1) in zip(pixels, pixels[1:] or pixels, strict=False):
        step = np.array([row1 - row0, column1 - column0], float)
        along = (rows - row0) * step[0] + (columns - column0) * step[1]
        along = np.clip(along / max(1.0, float(step @ step)), 0, 1)
        distance2 = (rows - row0 - along * step[0]) ** 2 + (columns - column0 - along * step[1]) ** 2
        found[distance2 <= (size_px / 2) ** 2 + 1e-6] = value
    return found
