"""A real headless Chromium for the pages this project writes. Nothing but file:// can be reached from it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.driver import Browser


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests; each `open` starts from an empty page. Skipped where there is none."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        missing = "chromium" if chromium is None else "chromedriver"
        pytest.skip(
            f"no {missing}: on Debian `apt-get install chromium chromium-driver`, which `make test` does as root"
        )
    pytest.importorskip("selenium", reason="no selenium: bench/requirements/test.txt has it")
    from selenium.common.exceptions import WebDriverException

    try:
        started = Browser.start(Path(chromium), Path(driver), tmp_path_factory.mktemp("browser"))
    except WebDriverException as refused:
        pytest.skip(f"chromium does not start here: {(refused.msg or '').strip().splitlines()[:1]}")
    try:
        yield started
    finally:
        started.quit()
