"""The page of `xvlm-data serve` in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import choose, chromium, complaints, ids, one, wait
from tests.data.inspect_manifests import INFO, concept, write_folder
from tests.data.test_inspect_page import HOSTILE, scene
from tests.data.test_serve import Server
from xvlm_data.manifest import open_manifest

pytest.importorskip("selenium")
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A manifest of 120 scenes, one of them hostile, and another version of it."""
    folder = tmp_path_factory.mktemp("serve")
    rows = [scene(i) for i in range(120)]
    rows[100]["concepts"] += [concept(text, "region") for text in HOSTILE]
    info = INFO | {"name": HOSTILE[1], "licence": HOSTILE[0]}
    others = [scene(i) for i in range(1, 110)]
    others[5] = scene(6, caption="something else")
    server = Server(
        write_folder(folder / "one", rows[:50], rows[50:], info=info),
        write_folder(folder / "other", others),
    )
    yield server
    server.stop()


def opened(browser: Any, server: Server, fragment: str = "") -> Any:
    complaints(browser)
    browser.get("about:blank")
    browser.get(server.address + fragment)
    for mark in ("ready", "counted"):
        script = f"return document.documentElement.dataset.{mark}"
        wait(browser, lambda script=script: browser.execute_script(script))
    return browser


def asked(browser: Any, sql: str) -> str:
    field = one(browser, "#sql-text")
    field.clear()
    field.send_keys(sql, Keys.CONTROL, Keys.ENTER)
    status = one(browser, "#sql .status")
    wait(browser, lambda: status.text not in ("", "asking …"))
    text: str = status.text
    return text


def test_the_whole_manifest_is_searched(browser: Any, server: Server) -> None:
    opened(browser, server)
    assert one(browser, "h1").text == HOSTILE[1]
    assert len(ids(browser)) == 48
    assert len(choose(browser, "number 11", 11)) == 11  # 11, and 110 to 119
    assert choose(browser, "<script>document", 1) == ["made/100"]
    choose(browser, "", 48)
    Select(one(browser, "select[name=kind]")).select_by_value("markup")
    wait(browser, lambda: ids(browser) == ["made/100"])
    Select(one(browser, "select[name=kind]")).select_by_value("")
    wait(browser, lambda: len(ids(browser)) == 48)
    one(browser, ".more button").click()
    wait(browser, lambda: len(ids(browser)) == 96)
    pictures = browser.find_elements(By.CSS_SELECTOR, ".card img")
    wait(browser, lambda: pictures[0].get_property("naturalWidth") == 160)
    assert complaints(browser) == []


def test_any_row_is_a_step_away(browser: Any, server: Server) -> None:
    opened(browser, server)
    place = one(browser, "input[name=place]")
    for text, first in (("77", "made/77"), ("made/118", "made/118")):
        place.clear()
        place.send_keys(text, Keys.ENTER)
        wait(browser, lambda first=first: ids(browser)[:1] == [first])
    place.clear()
    place.send_keys("made/none", Keys.ENTER)
    wait(browser, lambda: "no row has this id" in one(browser, "#pictures .status").text)


def test_hostile_texts_are_texts_everywhere(browser: Any, server: Server) -> None:
    opened(browser, server)
    title = browser.title
    choose(browser, "onerror", 1)
    one(browser, ".card").click()
    found = browser.find_elements(By.CSS_SELECTOR, "dialog .concept.region > bdi")
    shown = [part.get_attribute("textContent") for part in found][2:]
    assert shown == list(HOSTILE)
    ActionChains(browser).send_keys(Keys.ESCAPE).perform()
    assert asked(
        browser, 'SELECT text, text AS "<img src=x onerror=alert(1)>" FROM concepts WHERE row = 100'
    ).startswith("19 rows")
    one(browser, "#compare form button").click()
    wait(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "#compare .chart"))
    alien = browser.execute_script(
        "return document.querySelectorAll('#app script, #app style, iframe, img[src=x], "
        "[onerror], [onload], [onmouseover]').length"
    )
    assert alien == 0 and browser.title == title
    assert complaints(browser) == []


def test_sql(browser: Any, server: Server) -> None:
    opened(browser, server)
    assert asked(browser, "SELECT row FROM images WHERE row IN (5, 7)").startswith("2 rows")
    one(browser, "#sql .push button").click()
    wait(browser, lambda: one(browser, "dialog").get_property("open"))
    assert one(browser, "dialog h2").text == "made/5"
    ActionChains(browser).send_keys(Keys.ARROW_RIGHT).perform()
    assert one(browser, "dialog h2").text == "made/7"
    ActionChains(browser).send_keys(Keys.ESCAPE).perform()
    assert "only one SELECT" in asked(browser, "DROP VIEW images")
    assert "file system operations" in asked(browser, "SELECT * FROM read_text('/etc/passwd')")


def test_two_manifests_are_compared(browser: Any, server: Server) -> None:
    opened(browser, server)
    one(browser, "#compare form button").click()
    wait(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "#compare .figures .chart"))
    cells = [
        part.text for part in browser.find_elements(By.CSS_SELECTOR, "#compare > div > .chart td.n")
    ]
    # Rows 1 to 109 are in both, one of them with another caption and one that was hostile.
    assert [text for text in cells if text.isdigit()] == ["109", "11", "0", "2"]
    opened(browser, server, "/#m=1")
    assert one(browser, "h1").text == "made"
    assert "109" in one(browser, "#summary").text


def test_a_selection_is_downloaded(browser: Any, server: Server, tmp_path: Path) -> None:
    behaviour = {"behavior": "allow", "downloadPath": str(tmp_path)}
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
    opened(browser, server)
    choose(browser, "number 11", 11)
    buttons = browser.find_elements(By.CSS_SELECTOR, "#pictures .push > button")
    next(button for button in buttons if button.text == "Export what fits").click()
    wait(browser, lambda: list(tmp_path.glob("*.parquet")))
    (path,) = tmp_path.glob("*.parquet")
    manifest = open_manifest(path)
    found = [name for batch in manifest.batches(["id"]) for name in batch.column(0).to_pylist()]
    assert found == ["made/11", *(f"made/{i}" for i in range(110, 120))]
    assert "number 11" in manifest.info["selected_from"]["how"]
    assert complaints(browser) == []


def test_nobody_is_kept_out(browser: Any, server: Server) -> None:
    axe = pytest.importorskip("axe_core_python")
    script = (Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    opened(browser, server)
    asked(browser, "SELECT * FROM images LIMIT 3")
    one(browser, "#compare form button").click()
    wait(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "#compare .figures .chart"))
    browser.execute_script(script)
    found = browser.execute_async_script(
        "const done = arguments[arguments.length - 1];"
        "axe.run({resultTypes: ['violations']}).then((r) => done(r.violations.map((v) => "
        "`${v.id}: ${v.nodes.slice(0, 3).map((n) => n.html + n.failureSummary)}`)));"
    )
    assert found == []
