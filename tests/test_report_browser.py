"""The report's page in a real browser: it loads without a complaint, sorts, switches its colours, prints."""

from __future__ import annotations

import base64
import shutil
import warnings
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from featcache.reporting.gathering import gather
from featcache.reporting.report import Report
from tests.kit_images import make_folder
from tests.kit_reports import HOSTILE, cache_of, drawn, run_of

pytestmark = drawn
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    binary = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no Chromium and chromedriver on this machine")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    found = webdriver.Chrome(options=options, service=service)
    yield found
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # selenium's own
        found.quit()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("browser")
    cache = cache_of(
        make_folder(folder / "photos", train=20, test=12), folder / "features", (HOSTILE, "b", "c")
    )
    folders = [run_of(cache, "ridge"), run_of(cache, "knn"), run_of(cache, "mlp", hidden=(4,), epochs=3)]
    page = folder / "report.html"
    page.write_text(Report(gather(folders)).html())
    return page.as_uri()


def _open(browser: Any, address: str, width: int = 1280, height: int = 900) -> None:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get("about:blank")
    browser.get(address)


def test_it_loads_without_a_complaint_and_is_in_english(browser: Any, address: str) -> None:
    _open(browser, address)
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.documentElement.lang") == "en"
    assert "featcache report" in browser.title
    broken = "return [...document.images].filter(each => !each.complete || !each.naturalWidth).length"
    assert browser.execute_script(broken) == 0
    assert browser.execute_script("return document.images.length") >= 36
    assert browser.execute_script("return document.querySelectorAll('svg[role=img][aria-label]').length") >= 9
    asked = "return performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length"
    assert browser.execute_script(asked) == 0
    assert browser.execute_script("return document.scripts.length") == 1


def test_tables_sort_and_say_so(browser: Any, address: str) -> None:
    _open(browser, address)
    table = "document.querySelector('table.comparison')"
    column = f"[...{table}.tBodies[0].rows].map(row => Number(row.cells[AT].dataset.sort))"
    heads = browser.find_elements("css selector", "table.comparison thead th")
    at = next(number for number, head in enumerate(heads) if head.text.startswith("fit"))
    script = "return " + column.replace("AT", str(at))
    button = heads[at].find_element("tag name", "button")
    button.click()
    up = browser.execute_script(script)
    assert up == sorted(up) and len(set(up)) == 3 and heads[at].get_attribute("aria-sort") == "ascending"
    button.send_keys("\ue007")  # Enter: the keyboard does what the mouse does
    assert browser.execute_script(script) == up[::-1]
    assert heads[at].get_attribute("aria-sort") == "descending"
    assert heads[0].get_attribute("aria-sort") is None


def test_the_colours_switch(browser: Any, address: str) -> None:
    _open(browser, address)
    script = "return [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    light = browser.execute_script(script)
    theme = browser.find_element("id", "theme")
    assert theme.text == "Dark"
    theme.click()
    dark = browser.execute_script(script)
    assert theme.text == "Light" and theme.get_attribute("aria-pressed") == "true"
    assert sum(map(int, light[0][4:-1].split(","))) > 600 > 200 > sum(map(int, dark[0][4:-1].split(",")))
    ink = "return getComputedStyle(document.querySelector('svg text')).fill"
    assert browser.execute_script(ink) == dark[1] != light[1]
    theme.click()
    assert browser.execute_script(script) == light


def test_it_follows_the_system_s_colours(browser: Any, address: str) -> None:
    wanted = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": wanted})
    _open(browser, address)
    try:
        assert browser.find_element("id", "theme").text == "Light"
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_it_fits_a_phone_and_a_link_opens_a_run(browser: Any, address: str) -> None:
    _open(browser, address, 390, 844)
    wide = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert wide[0] <= wide[1]
    closed = browser.find_element("css selector", "details.run:not([open])")
    run = closed.get_attribute("id")
    assert browser.execute_script(f"return document.getElementById('{run}').open") is False
    browser.execute_script(f"document.querySelector('a[href=\"#{run}\"]').click()")
    waited = f"const done = arguments[0]; setTimeout(() => done(document.getElementById('{run}').open), 100)"
    assert browser.execute_async_script(waited) is True


def test_it_prints(browser: Any, address: str) -> None:
    _open(browser, address)
    paper = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert base64.b64decode(paper["data"]).startswith(b"%PDF")
    assert browser.get_log("browser") == []


def test_every_control_can_be_reached_and_has_a_name(browser: Any, address: str) -> None:
    _open(browser, address)
    script = (
        "return [...document.querySelectorAll('button, a, summary, [tabindex]')].filter(each => "
        "!(each.textContent.trim() || each.getAttribute('aria-label')) || each.tabIndex < 0).length"
    )
    assert browser.execute_script(script) == 0
    assert browser.execute_script("return document.querySelectorAll('img:not([alt])').length") == 0
    headings = "return [...document.querySelectorAll('h1,h2,h3,h4')].map(each => each.tagName)"
    levels = browser.execute_script(headings)
    assert levels[0] == "H1" and levels.count("H1") == 1
    assert all(int(b[1]) <= int(a[1]) + 1 for a, b in pairwise(levels))


def test_names_that_would_break_out_are_plain_text(browser: Any, address: str) -> None:
    _open(browser, address)
    names = "return [...document.querySelectorAll('.classes tbody th')].map(each => each.textContent)"
    assert HOSTILE in browser.execute_script(names)
