"""Headless Chromium, driven over its own protocol: open a page from disk, ask what it logged and requested, look."""

from __future__ import annotations

import base64
import json
import os
import time
from pathlib import Path
from typing import Any

SHOTS = "CALIBRATE_SCREENSHOTS"
"""Environment variable: the folder for screenshots; without it they lie in pytest's temporary folder."""

LAYOUT = Path(__file__).with_name("layout.js")

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--no-first-run", "--disable-extensions", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--mute-audio", "--force-device-scale-factor=1", "--lang=en-GB",
    # No name resolves and no address answers: what a page asks the network for fails, and is in the log.
    "--proxy-server=http://127.0.0.1:9", "--proxy-bypass-list=<-loopback>", "--host-resolver-rules=MAP * ~NOTFOUND",
)  # fmt: skip


class Browser:
    """`driver` is the selenium WebDriver, for everything that has no method here."""

    def __init__(self, driver: Any, folder: Path) -> None:
        self.driver, self.folder = driver, folder
        self._events: list[dict[str, Any]] = []
        self._console: list[dict[str, Any]] = []
        self._page = ""

    @classmethod
    def start(cls, chromium: Path, chromedriver: Path, profile: Path) -> Browser:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = str(chromium)
        for flag in (*FLAGS, f"--user-data-dir={profile / 'profile'}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        # Naming both paths keeps selenium from looking for a driver to download.
        driver = webdriver.Chrome(options=options, service=Service(executable_path=str(chromedriver)))
        driver.set_page_load_timeout(60)
        driver.set_script_timeout(60)
        chosen = os.environ.get(SHOTS)
        folder = Path(chosen) if chosen else profile / "screenshots"
        folder.mkdir(parents=True, exist_ok=True)
        return cls(driver, folder)

    def quit(self) -> None:
        self.driver.quit()

    def open(
        self,
        path: Path,
        width: int = 1440,
        height: int = 900,
        *,
        dark: bool = False,
        fragment: str = "",
        media: str = "",
    ) -> None:
        """Loads a page from disk, in a viewport of `width` x `height` CSS pixels; `media` may be "print".

        `fragment` is what stands after #. What earlier pages logged is forgotten.
        """
        self.driver.get("about:blank")  # so that the same file with another fragment is loaded anew
        self.resize(width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": [scheme]})
        self._collect()
        self._events, self._console = [], []
        self._page = Path(path).resolve().as_uri()
        self.driver.get(self._page + (f"#{fragment}" if fragment else ""))
        # Under load chromedriver has been seen to return while a large page was still being read.
        until = time.monotonic() + 60
        while self.run("return [document.readyState, location.href.split('#')[0]]") != ["complete", self._page]:
            if time.monotonic() > until:
                raise TimeoutError(f"{path} did not load in 60 s")
            time.sleep(0.02)

    def resize(self, width: int, height: int = 900) -> None:
        """Another viewport for the page that is open."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def run(self, script: str, *arguments: Any) -> Any:
        """Runs JavaScript in the page; `return` gives a value."""
        return self.driver.execute_script(script, *arguments)

    def find(self, selector: str) -> Any:
        """The first element of a CSS selector, as selenium's WebElement."""
        return self.driver.find_element("css selector", selector)

    def find_all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    # What the page did.

    def console_errors(self) -> list[str]:
        """Errors on the console since `open`: uncaught exceptions, refused requests, console.error."""
        self._collect()
        return [one["message"] for one in self._console if one["level"] == "SEVERE"]

    def requests(self) -> list[str]:
        """Addresses that the page asked for since `open`, failed ones included; not the page itself, data: or blob:."""
        self._collect()
        asked = [
            event["params"]["request"]["url"]
            for event in self._events
            if event["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in asked if url.partition("#")[0] != self._page and not url.startswith(("data:", "blob:"))]

    def _collect(self) -> None:
        self._console += self.driver.get_log("browser")
        self._events += [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]

    # How it looks.

    def layout_problems(self, selector: str = "body") -> list[str]:
        """What a reader would trip over below `selector`: text that is cut, that lies over other text or outside of
        the page, and a page that scrolls sideways. Text inside a box that scrolls by itself may be wider than it."""
        return self.driver.execute_script(LAYOUT.read_text(encoding="utf-8"), selector)

    def screenshot(self, name: str, selector: str = "") -> Path:
        """A PNG of the whole page, or of one element; returns where it is."""
        options: dict[str, Any] = {"captureBeyondViewport": True, "format": "png"}
        box = self.run(
            "const e = arguments[0] ? document.querySelector(arguments[0]) : document.documentElement;"
            "const b = e.getBoundingClientRect();"
            "return {x: b.x + scrollX, y: b.y + scrollY, width: b.width, height: b.height};", selector,
        )  # fmt: skip
        options["clip"] = {
            **box,
            "width": max(box["width"], 1),
            "height": max(min(box["height"], 16000), 1),
            "scale": 1,
        }
        picture = self.driver.execute_cdp_cmd("Page.captureScreenshot", options)
        path = self.folder / f"{name}.png"
        path.write_bytes(base64.b64decode(picture["data"]))
        return path
