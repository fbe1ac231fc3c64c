"""The page, in headless Chromium."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import signal
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from desk import Desk, content
from prerequisite import missing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENCE_S = 60
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # which root cannot have
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1100,900",
)
# Notes all that the page shows of its bars.
WATCH = """
window.shown = [];
new MutationObserver(records => {
  for (const {target} of records)
    if (target.matches?.("[role=progressbar]"))
      shown.push([target.getAttribute("aria-label"), Number(target.getAttribute("aria-valuenow"))]);
}).observe(document.getElementById("files"), {subtree: true, attributes: true});
"""
Start = Any


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        missing("there is no Chromium: apt install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = str(chromium)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'chromium'}"):
        options.add_argument(flag)
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    browser = webdriver.Chrome(options, Service(str(driver)))
    try:
        yield browser
    finally:
        browser.quit()


def state(browser: webdriver.Chrome, name: str) -> str | None:
    """Of the file with that name, as the page shows it."""
    shown: str | None = browser.execute_script(
        "return [...document.querySelectorAll('#files li')].find("
        "row => row.querySelector('.name').textContent === arguments[0])?.dataset.state",
        name,
    )
    return shown


def wait(browser: webdriver.Chrome, name: str, expected: str | None) -> None:
    WebDriverWait(browser, PATIENCE_S, 0.02).until(lambda _: state(browser, name) == expected)


def complaints(browser: webdriver.Chrome) -> list[Any]:
    """What the browser's console shows as errors."""
    return [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]  # type: ignore[no-untyped-call]


def test_upload_watch_download_remove(
    browser: webdriver.Chrome, start: Start, tmp_path: Path
) -> None:
    process = start("--port", "0")
    browser.get(process.url)
    WebDriverWait(browser, PATIENCE_S).until(
        lambda _: browser.find_element(By.ID, "link").text == "live"
    )
    browser.execute_script(WATCH)
    paths = [tmp_path / name for name in ("first.bin", "<b>second.txt", "empty")]
    for path, size in zip(paths, (24_000_000, 1_000_000, 0), strict=True):
        path.write_bytes(content(size, size))
    browser.find_element(By.ID, "pick").send_keys("\n".join(map(str, paths)))
    for path in paths:
        wait(browser, path.name, "done")  # As text: a name is never markup.

    shown = browser.execute_script("return shown")
    numbers = [number for name, number in shown if name == "first.bin"]
    assert numbers == sorted(numbers)
    assert any(0 < number < 50 for number in numbers), "no progress of the upload"
    assert any(50 < number < 100 for number in numbers), "no progress of the examination"
    assert numbers[-1] == 100

    row = browser.find_element(By.XPATH, "//li[.//*[text()='first.bin']]")
    digest = hashlib.sha256(paths[0].read_bytes()).hexdigest()
    assert row.find_element(By.TAG_NAME, "code").text == digest[:16] + "…"
    row.find_element(By.LINK_TEXT, "Download").click()
    downloaded = tmp_path / "downloads" / "first.bin"
    WebDriverWait(browser, PATIENCE_S).until(
        lambda _: downloaded.exists() and downloaded.stat().st_size == paths[0].stat().st_size
    )
    assert downloaded.read_bytes() == paths[0].read_bytes()
    row.find_element(By.TAG_NAME, "button").click()
    wait(browser, "first.bin", None)
    assert state(browser, "empty") == "done"
    assert complaints(browser) == []
    assert process.end(signal.SIGTERM)[:2] == (0, "")  # with a page open


def test_an_upload_goes_on_where_it_was(
    browser: webdriver.Chrome, start: Start, tmp_path: Path, run: Any
) -> None:
    """As after a crash of the browser: the server has a part of the file."""
    process = start("--port", "0")
    path = tmp_path / "again.bin"
    path.write_bytes(content(5_000_000))

    async def half() -> str:
        async with aiohttp.ClientSession(process.url) as session:
            desk = Desk(session)
            file = await desk.announce(path.name, 5_000_000)
            await desk.send(file["id"], 0, path.read_bytes()[:3_000_000])
            file_id: str = file["id"]
            return file_id

    file_id = run(half())
    browser.get(process.url)
    wait(browser, path.name, "uploading")
    browser.find_element(By.ID, "pick").send_keys(str(path))
    wait(browser, path.name, "done")
    assert len(browser.find_elements(By.CSS_SELECTOR, "#files li")) == 1
    assert complaints(browser) == []

    async def whole() -> bytes:
        async with aiohttp.ClientSession(process.url) as session:
            return (await Desk(session).download(file_id))[1]

    assert run(whole()) == path.read_bytes()


def test_everything_has_a_name_and_can_be_reached_by_keyboard(
    browser: webdriver.Chrome, start: Start, run: Any
) -> None:
    process = start("--port", "0")

    async def fill() -> None:
        async with aiohttp.ClientSession(process.url) as session:
            desk = Desk(session)
            await asyncio.gather(*(desk.upload(f"{n}.txt", b"abc") for n in range(3)))

    run(fill())
    browser.get(process.url)
    for n in range(3):
        wait(browser, f"{n}.txt", "done")
    for css in ("input", "a", "button", "[role=progressbar]"):
        elements = browser.find_elements(By.CSS_SELECTOR, f"main {css}")
        assert elements
        for element in elements:
            assert element.accessible_name, element.get_attribute("outerHTML")
            if css != "[role=progressbar]":
                browser.execute_script("arguments[0].focus()", element)
                assert browser.switch_to.active_element == element
    assert browser.find_element(By.TAG_NAME, "html").get_attribute("lang") == "en"
