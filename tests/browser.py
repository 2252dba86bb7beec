"""A real headless Chromium for the tests of the report, or the reason why there is none."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
MISSING = "no chromium and chromedriver here (apt-get install chromium chromium-driver): the report was not opened"
PATIENCE_S = 20.0


@contextmanager
def chromium(profile: Path, *, width: int = 1366, height: int = 768) -> Iterator[WebDriver]:
    """Start a browser that logs its console and every request, and cannot resolve any host."""
    options = Options()
    options.binary_location = str(CHROMIUM)
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--hide-scrollbars",
        "--force-prefers-reduced-motion",
        f"--user-data-dir={profile}",
        f"--window-size={width},{height}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(executable_path=str(DRIVER)))
    try:
        driver.set_page_load_timeout(PATIENCE_S)
        # the viewport, not the window with its frame
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )
        driver.get("about:blank")
        driver.get_log("performance")  # the browser's own new tab
        yield driver
    finally:
        driver.quit()


def wait(driver: WebDriver, condition: str) -> None:
    """Wait until a JavaScript expression is true."""
    WebDriverWait(driver, PATIENCE_S, poll_frequency=0.05).until(
        lambda browser: browser.execute_script(f"return Boolean({condition})"), message=f"never true: {condition}"
    )


def open_page(driver: WebDriver, page: Path, fragment: str = "") -> None:
    """Open a page from the file system and wait until its script has run."""
    driver.get("about:blank")  # a page of which only the fragment changes would not be loaded again
    driver.get(page.absolute().as_uri() + fragment)
    wait(driver, "document.documentElement.dataset.ready === 'yes'")


def requests(driver: WebDriver) -> list[str]:
    """Give the address of every request since the last call, without those for data in the page itself."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [
        message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"
    ]
    return [url for url in urls if not url.startswith(("data:", "about:", "blob:"))]


def complaints(driver: WebDriver) -> list[str]:
    """Give what the browser's console holds since the last call: errors and warnings."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
