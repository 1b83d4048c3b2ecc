"""A headless Chromium for tests of pages; tests that need one skip where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-color-profile=srgb",
    "--force-prefers-reduced-motion",
    "--window-size=1400,1000",
)


@contextmanager
def chromium(folder: Path) -> Iterator[Any]:
    """A Selenium driver of Chromium with a fresh profile in ``folder``; logs are kept."""
    selenium = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    program = next(filter(None, map(shutil.which, _BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("needs chromium and chromedriver (Debian: apt-get install chromium-driver)")
    options = selenium.ChromeOptions()
    options.binary_location = program
    for option in (*_OPTIONS, f"--user-data-dir={folder}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = selenium.Chrome(options=options, service=Service(driver))
    browser.set_script_timeout(60)
    try:
        yield browser
    finally:
        browser.quit()


def complaints(browser: Any) -> list[str]:
    """What the console says since it was last asked: errors, warnings, breaches of the policy."""
    return [entry["message"] for entry in browser.get_log("browser")]


def one(browser: Any, selector: str) -> Any:
    return browser.find_element("css selector", selector)


def ids(browser: Any) -> list[str]:
    """The rows whose cards are shown."""
    found: list[str] = browser.execute_script(
        "return [...document.querySelectorAll('.card .meta bdi')].map((id) => id.textContent)"
    )
    return found


def choose(browser: Any, text: str, count: int) -> list[str]:
    """Search for a text and wait for so many cards."""
    from selenium.webdriver.common.keys import Keys

    field = one(browser, "#search")
    field.clear()
    field.send_keys(text, Keys.SPACE, Keys.BACKSPACE)
    wait(browser, lambda: len(ids(browser)) == count)
    return ids(browser)


def wait(browser: Any, done: Any) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 30, poll_frequency=0.05).until(lambda _: done())
