# SPDX-License-Identifier: Apache-2.0
"""The page of `segship serve` in a real browser: pictures of it for the documents, and how soon a click shows its mask.

    python -m benchmarks.page pictures     # docs/images/page*.jpg
    python -m benchmarks.page clicks       # benchmarks/results/page_clicks.json

Needs Debian's chromium and playwright, which drives it; tests/serve/test_page.py does so with the functions here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

from benchmarks.machine import save_result, versions

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

IMAGES = Path(__file__).parents[1] / "docs" / "images"
CHROMIUM = shutil.which("chromium")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")
START_SECONDS = 60
MARGIN = 24
"""Pixels that a fitted picture leaves free, both sides together; and how far it is zoomed in at most."""
MOST_FITTING = 8

SPOON, CUP = (365, 290), (300, 120)
CLICKS = 60


@contextmanager
def serving(*options: str) -> Iterator[str]:
    """Start `segship serve` on a free port of this machine and yield its address."""
    command = [sys.executable, "-m", "segship", "serve", "--port", "0", "--log", "none", *options]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            assert server.stdout is not None
            found = re.search(r"http://[\d.]+:\d+", server.stdout.readline())
            if found is None:
                raise RuntimeError(f"segship serve ended with {server.wait(START_SECONDS)} and named no address")
            yield found[0]
        finally:
            server.terminate()
            server.wait(START_SECONDS)


@contextmanager
def browsing() -> Iterator[Browser]:
    """Start the browser with an empty profile and yield it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


def place_of(page: Page, point_xy: tuple[float, float], size: tuple[int, int] = (600, 400)) -> tuple[float, float]:
    """Return where a pixel of a fitted picture of a size (width, height) is in the window."""
    box = page.locator("#stage").bounding_box()
    assert box is not None
    scale = min((box["width"] - MARGIN) / size[0], (box["height"] - MARGIN) / size[1], MOST_FITTING)
    return (
        box["x"] + (box["width"] - size[0] * scale) / 2 + (point_xy[0] + 0.5) * scale,
        box["y"] + (box["height"] - size[1] * scale) / 2 + (point_xy[1] + 0.5) * scale,
    )


def click(page: Page, point_xy: tuple[float, float], size: tuple[int, int] = (600, 400), **how: Any) -> None:
    """Click on a pixel of a fitted picture and wait for the mask."""
    with page.expect_response(re.compile("/masks$")):
        page.mouse.click(*place_of(page, point_xy, size), **how)
    page.locator("#list [aria-current]:not(.waiting) .score:not(:empty)").wait_for()


def open_sample(page: Page, address: str) -> None:
    """Open the page and the picture inside the package, and wait until it is encoded."""
    page.goto(address)
    with page.expect_response(re.compile("/v1/images")):
        page.locator("#use-sample").click()
    page.locator("#zoom").wait_for()


def _find_everything(page: Page) -> None:
    page.locator("[data-mode=everything]").click()
    page.locator("#keep-all").wait_for(timeout=60_000)
    page.locator("#cancel").wait_for(state="hidden", timeout=60_000)


def take_pictures(folder: Path = IMAGES) -> None:
    """Write pictures of the page: clicks, everything in Chinese, and a telephone's screen."""
    folder.mkdir(parents=True, exist_ok=True)
    with serving() as address, browsing() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        open_sample(page, address)
        for place, name in ((CUP, "Cup"), (SPOON, "Spoon")):
            page.keyboard.press("n")
            click(page, place)
            page.keyboard.press("F2")
            page.keyboard.type(name)
            page.keyboard.press("Enter")
        page.screenshot(path=folder / "page.jpg", type="jpeg", quality=88)

        page = browser.new_page(viewport={"width": 1280, "height": 800}, locale="zh-CN", color_scheme="dark")
        open_sample(page, address)
        _find_everything(page)
        page.mouse.click(*place_of(page, CUP))
        page.mouse.move(*place_of(page, SPOON))
        page.screenshot(path=folder / "page-everything.jpg", type="jpeg", quality=88)

        size = {"width": 390, "height": 844}
        page = browser.new_page(viewport=size, has_touch=True, is_mobile=True, device_scale_factor=2)
        open_sample(page, address)
        click(page, SPOON)
        page.screenshot(path=folder / "page-phone.jpg", type="jpeg", quality=88)


# From the release of the button to the frame in which the mask is painted; deletions change the status, too.
_STOPWATCH = """() => {
  window.taken = [];
  let released = 0;
  document.addEventListener("pointerup", (event) => (released = event.timeStamp), true);
  new MutationObserver(() => {
    if (!released || !document.querySelector("#list [aria-current] .score")?.textContent) return;
    const since = released;
    released = 0;
    requestAnimationFrame(() => window.taken.push(performance.now() - since));
  }).observe(document.getElementById("status"), {childList: true});
}"""


def measure_clicks() -> dict[str, Any]:
    """Click again and again, each time for a new object, and return milliseconds until its mask is painted."""
    with serving() as address, browsing() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        open_sample(page, address)
        page.evaluate(_STOPWATCH)
        for number in range(CLICKS):
            click(page, (40 + 7 * number, 60 + 4 * number))
            page.wait_for_timeout(50)
            page.keyboard.press("Delete")
            page.wait_for_timeout(50)
        taken = page.evaluate("window.taken")
    return {"clicks": len(taken), "median_ms": round(median(taken), 1), "p90_ms": round(quantiles(taken, n=10)[-1], 1)}


def main() -> None:
    """Do what the command line says: ``pictures`` or ``clicks``."""
    if sys.argv[1:] == ["pictures"]:
        take_pictures()
    elif sys.argv[1:] == ["clicks"]:
        began = time.perf_counter()
        path = save_result("page_clicks", measure_clicks(), versions=versions(("starlette", "uvicorn", "playwright")))
        print(f"{path} after {time.perf_counter() - began:.0f} s")
    else:
        raise SystemExit("python -m benchmarks.page pictures | clicks")


if __name__ == "__main__":
    main()
