"""A real browser without a window, for pages that people look at."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.by import By

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 120.0  # for a page to show something, on a loaded machine


def missing() -> str:
    """Why there is no browser here; empty if there is one. CI always has one: there a missing one is a failure."""
    if os.environ.get("CI"):
        return ""
    if not any(map(shutil.which, BROWSERS)):
        return "needs Chromium: install the packages chromium and chromium-driver"
    return "" if shutil.which("chromedriver") else "needs chromedriver: install the package chromium-driver"


class Browser:
    """Chromium, which reaches nothing but this machine.

    Args:
        screenshots: folder for them.
        profile: folder for its own files.
    """

    def __init__(self, screenshots: Path, profile: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = str(next(filter(None, map(shutil.which, BROWSERS))))
        for flag in (
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1500,1000",
            "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", f"--user-data-dir={profile}",
        ):  # fmt: skip
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
        self._screenshots = screenshots
        screenshots.mkdir(parents=True, exist_ok=True)

    def open(self, address: str) -> None:
        """Go to a page, by an empty one: a change of what follows # alone would not load it."""
        self.driver.get("about:blank")
        self.errors()
        self.driver.get(address)

    def errors(self) -> list[str]:
        """What the console has complained about since the last call."""
        return [str(entry["message"]) for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def text(self) -> str:
        """All that can be read on the page."""
        return str(self.driver.find_element(By.TAG_NAME, "body").text)

    def all(self, selector: str) -> list[Any]:
        """The elements of a CSS selector."""
        return list(self.driver.find_elements(By.CSS_SELECTOR, selector))

    def point(self, x: int, y: int) -> None:
        """Move the pointer to a place of the window."""
        actions = ActionBuilder(self.driver)
        actions.pointer_action.move_to_location(x, y)
        actions.perform()

    def wait(self, condition: Callable[[], Any], name: str) -> None:
        """Wait until something holds, and take a screenshot either way."""
        deadline = time.monotonic() + SECONDS
        while not (holds := condition()) and time.monotonic() < deadline:
            time.sleep(0.2)
        self.screenshot(name)
        assert holds, f"{name} did not come: {self.text()[:2000]}"

    def screenshot(self, name: str) -> Path:
        """A picture of what can be seen now."""
        path = self._screenshots / f"{name}.png"
        self.driver.save_screenshot(str(path))
        return path

    def close(self) -> None:
        """End it."""
        self.driver.quit()


def screenshots(fallback: Path) -> Path:
    """Where screenshots go: ``RAYCURV_SCREENSHOTS``, or a folder of the tests."""
    return Path(os.environ.get("RAYCURV_SCREENSHOTS") or fallback)
