"""The page of `xvlm-data inspect --html`, in a real browser where there is one."""

from __future__ import annotations

import io
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from tests.browser import choose, chromium, complaints, ids, one, wait
from tests.data.inspect_manifests import INFO, concept, row, write_folder
from xvlm_data.errors import UserError
from xvlm_data.inspect.command import inspect_command
from xvlm_data.inspect.page import render

pytest.importorskip("selenium")
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

#: Each sets the title or asks the network, if anything of it is ever taken for markup or script.
HOSTILE = (
    "<script>document.title='pwned'</script>",
    "<img src=x onerror=\"document.title='pwned'\">",
    "</script><script>document.title='pwned'</script>",
    "<!--<script>",
    '"><svg onload="document.title=\'pwned\'">',
    "' onmouseover='document.title=1",
    "javascript:document.title='pwned'",
    "<a href=\"javascript:document.title='pwned'\">x</a>",
    "<style>*{display:none}</style>",
    "<iframe src=https://example.com>",
    "<meta http-equiv=refresh content=0;url=https://example.com>",
    "{{7*7}} ${7*7} $title $policy",
    "\u202eright to left\u2028and\u2029lines\x00\x1b[31m",
    "]]>&lt;b&gt;&amp;",
    "__proto__",
)


def picture(colour: str, form: str = "JPEG", size: tuple[int, int] = (160, 120)) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, form)
    return {"bytes": buffer.getvalue(), "path": None}


def scene(number: int, **changes: Any) -> dict[str, Any]:
    """A row with a caption, two regions and an object; every third one has a zebra."""
    animal = "zebra" if number % 3 == 0 else "horse"
    concepts = [
        concept(f"an animal number {number}", "image"),
        concept(f"the {animal} on the left", "region", (0.25, 0.5, 0.4, 0.8)),
        concept("green grass", "region", (0.5, 0.9, 1.0, 0.2)),
        concept(animal, "object", (0.25, 0.5, 0.375, 0.75), ("striped",)),
    ]
    given = {"width": 160, "height": 120, "image": picture("seagreen")}
    given |= {"caption": concepts[0]["text"], "concepts": concepts}
    return row(number, **(given | changes))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty scenes of two sources, one of them with all that is hostile."""
    folder = tmp_path_factory.mktemp("page")
    rows = [scene(i) for i in range(60)]
    for i in range(40, 60):
        rows[i] |= {"source": "other", "id": f"other/{i}"}
    rows[7]["concepts"] += [concept(text, "region", attributes=(text,)) for text in HOSTILE]
    rows[7]["caption"] = rows[7]["concepts"][0]["text"] = HOSTILE[0]
    rows[8]["concepts"].append(concept("a big sky", "object", (0.5, 0.5, 1.0, 1.0)))
    rows[9]["image"] = {"bytes": None, "path": f"/nowhere/{HOSTILE[1]}.jpg"}
    info = INFO | {"name": HOSTILE[2], "licence": HOSTILE[1], "options": {HOSTILE[3]: HOSTILE[4]}}
    counts = {HOSTILE[1]: {"raw": 9, "kept": 8, "filtered": {HOSTILE[0]: 1}}}
    manifest = write_folder(folder / "made", rows[:30], rows[30:], info=info, counts=counts)
    return written(manifest, folder / "page.html")


def written(manifest: Path, out: Path, *options: object) -> Path:
    arguments = [str(part) for part in (manifest, "--html", out, *options)]
    result = CliRunner().invoke(inspect_command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return out


def opened(browser: Any, page: Path) -> Any:
    complaints(browser)  # those of an earlier page
    browser.get(page.as_uri())
    WebDriverWait(browser, 30).until(
        lambda _: browser.execute_script("return document.documentElement.dataset.ready")
    )
    return browser


def chosen(browser: Any) -> list[str]:
    """Concepts that are lit up in the dialog: the boxes, and the texts."""
    lit = browser.find_elements(By.CSS_SELECTOR, "dialog .box.on, dialog .concept.on")
    return [part.get_attribute("data-concept") for part in lit]


def test_shows_without_errors_and_asks_nobody(browser: Any, page: Path) -> None:
    browser.get_log("performance")
    opened(browser, page)
    assert complaints(browser) == []
    asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    addresses = {
        entry["params"]["request"]["url"].partition(":")[0]
        for entry in asked
        if entry["method"] == "Network.requestWillBeSent"
    }
    assert addresses <= {"file", "data", "chrome"}  # the last is the browser's own first page
    tiles = one(browser, "#summary").text
    for number in ("60", "59 embedded", "regions", "captions"):
        assert number in tiles
    pictures = browser.find_elements(By.CSS_SELECTOR, ".card img")
    wait(browser, lambda: all(image.get_property("complete") for image in pictures[:4]))
    assert [image.get_property("naturalWidth") for image in pictures[:4]] == [160] * 4


def test_filters_and_search(browser: Any, page: Path) -> None:
    opened(browser, page)
    assert len(ids(browser)) == 48
    one(browser, ".more button").click()
    wait(browser, lambda: len(ids(browser)) == 60)
    zebras = choose(browser, "ZEBRA", 20)
    assert {int(name.split("/")[1]) % 3 for name in zebras} == {0}
    assert one(browser, ".card mark").text.lower() == "zebra"
    source = Select(one(browser, "select[name=source]"))
    source.select_by_value("other")
    wait(browser, lambda: len(ids(browser)) == 6)
    assert all(name.startswith("other/") for name in ids(browser))
    source.select_by_value("")
    for name in ("with-image", "with-region"):
        one(browser, f"input[name={name}]").click()
    choose(browser, "left", 0)  # of regions alone
    assert "serve" in one(browser, ".status[aria-live]").text
    one(browser, "input[name=with-region]").click()
    wait(browser, lambda: len(ids(browser)) == 48)
    choose(browser, "", 48)
    least = one(browser, "input[name=least]")
    least.clear()
    least.send_keys("90")
    wait(browser, lambda: ids(browser) == ["made/8"])
    least.clear()
    least.send_keys("0")
    Select(one(browser, "select[name=kind]")).select_by_value("markup")
    wait(browser, lambda: ids(browser) == ["made/7"])
    assert complaints(browser) == []


def test_hovering_links_boxes_and_texts(browser: Any, page: Path) -> None:
    opened(browser, page)
    one(browser, ".card").click()
    actions = ActionChains(browser, duration=10)
    texts = browser.find_elements(By.CSS_SELECTOR, "dialog .concept.region")
    actions.move_to_element(texts[1]).perform()
    assert chosen(browser) == ["2", "2"]
    assert one(browser, "dialog .name").text == "green grass"
    box = one(browser, "dialog .box[data-concept='1']")
    # The middle of the object lies on top of the region's; its edge at the left is free.
    width = box.rect["width"]
    actions.move_to_element_with_offset(box, -int(width / 2) + 4, 0).perform()
    assert chosen(browser) == ["1", "1"]
    assert one(browser, "dialog .name").text == "the zebra on the left"
    actions.move_to_element(one(browser, "dialog h2")).perform()
    assert chosen(browser) == []


def test_boxes_lie_where_the_manifest_says(browser: Any, page: Path) -> None:
    opened(browser, page)
    one(browser, ".card").click()
    laid_out = "return document.querySelector('dialog .picture').style.width"
    wait(browser, lambda: browser.execute_script(laid_out))
    frame, box = (one(browser, f"dialog {s}").rect for s in (".picture", ".box[data-concept='3']"))
    assert frame["width"] / frame["height"] == pytest.approx(160 / 120, rel=0.01)
    cx, cy, w, h = 0.25, 0.5, 0.375, 0.75
    assert box["x"] == pytest.approx(frame["x"] + (cx - w / 2) * frame["width"], abs=3)
    assert box["y"] == pytest.approx(frame["y"] + (cy - h / 2) * frame["height"], abs=3)
    assert box["width"] == pytest.approx(w * frame["width"], abs=6)
    assert box["height"] == pytest.approx(h * frame["height"], abs=6)


def test_all_of_it_with_the_keyboard(browser: Any, page: Path) -> None:
    opened(browser, page)

    def press(*keys: str) -> None:
        ActionChains(browser).send_keys(*keys).perform()

    def focused() -> Any:
        return browser.switch_to.active_element

    press(Keys.TAB)
    assert focused().text == "To the pictures"
    press("/")
    assert focused().get_attribute("id") == "search"
    press("zebra")
    wait(browser, lambda: len(ids(browser)) == 20)
    for _ in range(40):
        press(Keys.TAB)
        if "card" in (focused().get_attribute("class") or ""):
            break
    first = focused()
    assert first.get_attribute("aria-label").startswith("made/0: 1 caption, 2 regions, 1 object")
    press(Keys.ENTER)
    assert one(browser, "dialog").get_property("open")
    press(Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    assert chosen(browser) == ["2", "2"]
    press(Keys.ARROW_RIGHT)
    assert one(browser, "dialog h2").text == "made/3"
    press(Keys.ARROW_LEFT)
    assert one(browser, "dialog h2").text == "made/0"
    for _ in range(30):  # focus stays in the dialog, or goes to the browser itself
        press(Keys.TAB)
        inside = browser.execute_script(
            "const d = document.querySelector('dialog'), a = document.activeElement;"
            "return d.contains(a) || a === document.body"
        )
        assert inside
    press(Keys.ESCAPE)
    assert not one(browser, "dialog").get_property("open")
    assert focused() == first


def test_hostile_texts_are_texts(browser: Any, page: Path) -> None:
    opened(browser, page)
    title = browser.title
    assert title == f"{HOSTILE[2]} - xvlm"
    choose(browser, "<script>", 1)
    one(browser, ".card").click()
    found = browser.find_elements(By.CSS_SELECTOR, "dialog .concept.region > bdi")
    # What HTML itself cannot hold is the null character.
    expected = [text.replace("\x00", "\ufffd") for text in HOSTILE]
    shown = [part.get_attribute("textContent") for part in found]
    assert [text.replace("\x00", "\ufffd") for text in shown[2:]] == expected
    for item in browser.find_elements(By.CSS_SELECTOR, "dialog .concept"):
        ActionChains(browser, duration=10).move_to_element(item).perform()
    browser.execute_script("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    alien = browser.execute_script(
        "return document.querySelectorAll('#app script, #app style, iframe, #app a[href^=java], "
        "[onerror], [onload], [onmouseover], body meta, img[src=x]').length"
    )
    assert alien == 0
    assert browser.title == title
    assert complaints(browser) == []


def test_the_policy_stops_scripts_and_requests(browser: Any, page: Path) -> None:
    """Even if markup got in, nothing of it would run."""
    opened(browser, page)
    refused = browser.execute_script(
        "try { document.body.insertAdjacentHTML('beforeend', '<b>x</b>'); } "
        "catch (error) { return error.name; }"
    )
    assert refused == "TypeError"  # trusted types
    browser.execute_script(
        "const s = document.createElement('a');"
        "try { s.setAttribute('onclick', 'document.title=1'); } catch { /* trusted types */ }"
        "document.body.append(s); s.click();"
        "const i = new Image(); i.src = 'https://example.invalid/a.png'; document.body.append(i);"
    )
    wait(browser, lambda: len(complaints(browser)) > 0)
    assert browser.title != "1"


def test_nobody_is_kept_out(browser: Any, page: Path) -> None:
    """The rules of axe-core, which we did not write, in light and dark, page and dialog."""
    axe = pytest.importorskip("axe_core_python")
    script = (Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    opened(browser, page)
    browser.execute_script(script)
    for theme in ("light", "dark"):
        browser.execute_script(f"document.documentElement.dataset.theme = '{theme}'")
        for show in ("dialog", "page"):
            if show == "dialog":
                one(browser, ".card").click()
            found = browser.execute_async_script(
                "const done = arguments[arguments.length - 1];"
                "axe.run({resultTypes: ['violations']}).then((r) => done(r.violations.map((v) => "
                "`${v.id}: ${v.nodes.slice(0, 3).map((n) => n.html + n.failureSummary)}`)));"
            )
            assert found == [], (theme, show)
            if show == "dialog":
                ActionChains(browser).send_keys(Keys.ESCAPE).perform()


def test_light_and_dark_follow_the_system(browser: Any, page: Path) -> None:
    seen = []
    for scheme in ("light", "dark"):
        feature = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", feature)
        opened(browser, page)
        style = "return getComputedStyle(document.body).backgroundColor"
        seen.append(sum(map(int, re.findall(r"\d+", browser.execute_script(style)))))
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert seen[0] > 600 and seen[1] < 150
    one(browser, "nav .button").click()
    assert sum(map(int, re.findall(r"\d+", browser.execute_script(style)))) not in (seen[0], 0)


def test_expected_counts_stand_beside_ours(browser: Any, tmp_path: Path) -> None:
    """A recipe beside the manifest is found, and its figures are shown."""
    write_folder(
        tmp_path / "made",
        [scene(i) for i in range(4)],
        rows=4,
        concepts={"image": 4, "region": 8, "object": 4},
    )
    (tmp_path / "recipe.yaml").write_text(
        "name: mine\nsources: {made: {expect: {images: {official: 4}, regions: {paper: 10}}}}\n"
        "streams: {image_text: {entries: [{source: made, granularity: [image]}]}}\n"
    )
    opened(browser, written(tmp_path / "made", tmp_path / "page.html"))
    verdicts = [part.text for part in browser.find_elements(By.CSS_SELECTOR, ".verdict")]
    assert verdicts == [
        "✓ expected 4\n+0 % · within 1 % off",
        "✗ expected 10\n−20 % · more than 5 % off",
    ]
    assert "recipe mine" in one(browser, "#summary").text


def test_several_manifests_have_their_expected_counts_in_a_table(
    browser: Any, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        rows = [scene(i) for i in range(3)]
        write_folder(tmp_path / name, rows, rows=3, concepts={"image": 3, "region": 6, "object": 3})
    (tmp_path / "recipe.yaml").write_text(
        "name: mine\nsources:\n  one: {expect: {images: {official: 3}}}\n"
        "  two: {expect: {images: {official: 9}}}\n"
        "streams: {image_text: {entries: [{source: one, granularity: [image]}]}}\n"
    )
    opened(browser, written(tmp_path / "one", tmp_path / "page.html", tmp_path / "two"))
    table = [part.text for part in browser.find_elements(By.CSS_SELECTOR, "#summary tbody tr")]
    assert table == ["one images 3 3 ok", "two images 9 3 outside"]


def test_a_picture_of_unknown_size_has_its_own_shape(browser: Any, tmp_path: Path) -> None:
    tall = scene(0, image=picture("navy", size=(60, 120)), width=0, height=0)
    opened(browser, written(write_folder(tmp_path / "made", [tall]), tmp_path / "page.html"))

    def shape() -> float:
        size = one(browser, ".card .picture").rect
        return float(size["width"] / size["height"])

    wait(browser, lambda: shape() == pytest.approx(0.5, rel=0.02))


def test_a_recipe_that_knows_nothing_of_it_is_refused(tmp_path: Path) -> None:
    manifest = write_folder(tmp_path / "made", [scene(0)])
    recipe = tmp_path / "other.txt"
    recipe.write_text(
        "name: mine\nsources: {coco: {}}\n"
        "streams: {image_text: {entries: [{source: coco, granularity: [image]}]}}\n"
    )
    with pytest.raises(UserError, match=r"knows none of these manifests; its sources are coco"):
        written(manifest, tmp_path / "page.html", "--recipe", recipe)
    assert not (tmp_path / "page.html").exists()


def test_pages_stay_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise is what compresses worst: pictures are made smaller until they fit, or left out."""
    image = Image.frombytes("RGB", (640, 480), random.Random(0).randbytes(640 * 480 * 3))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=60)
    cell = {"bytes": buffer.getvalue(), "path": None}
    rows = [scene(i, image=cell, width=640, height=480) for i in range(6)]
    rows[0]["concepts"] = [concept(f"{'x' * 700} {i}", "region") for i in range(5000)]
    manifest = write_folder(tmp_path / "made", rows)
    shown = []
    for budget in (6 << 20, 200_000, 60_000):
        monkeypatch.setattr("xvlm_data.inspect.page.BUDGET", budget)
        out = written(manifest, tmp_path / "page.html")
        assert out.stat().st_size < budget + 500_000
        found = data_of(out)["rows"]
        shown.append([len(entry["image"] or "") for entry in found])
        assert all(entry["image"] or "no room" in entry["problem"] for entry in found)
    assert min(shown[0]) > max(shown[1]) > 0
    assert min(shown[1]) > 0 and shown[2].count(0) in range(1, 6)
    (first,) = [entry for entry in found if entry["row"] == 0]
    assert len(first["concepts"]) + first["hidden"] == 5000 and first["hidden"] >= 4800


def data_of(page: Path) -> Any:
    text = page.read_text(encoding="utf-8")
    return json.loads(text.partition('id="data">')[2].partition("</script>")[0])


def test_the_only_less_than_signs_are_the_pages_own(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    block = text.partition('id="data">')[2].partition("</script>")[0]
    assert "<" not in block
    assert json.loads(block)["rows"][7]["concepts"][4][2] == HOSTILE[0]


def test_a_page_without_rows_opens(browser: Any, tmp_path: Path) -> None:
    opened(browser, written(write_folder(tmp_path / "made", []), tmp_path / "page.html"))
    assert complaints(browser) == []


def test_titles_are_escaped() -> None:
    text = render("<script>", {"rows": []}).decode()
    assert "<title>&lt;script&gt; - xvlm</title>" in text


def test_html_stands_alone(tmp_path: Path) -> None:
    manifest = write_folder(tmp_path / "made", [scene(0)])
    result = CliRunner().invoke(inspect_command, [str(manifest), "--html", "x.html", "--validate"])
    assert result.exit_code == 2 and "--html writes a page alone" in result.output
    result = CliRunner().invoke(inspect_command, [str(manifest), "--recipe", "x.yaml"])
    assert result.exit_code == 2 and "--recipe belongs to --html" in result.output
    with pytest.raises(UserError, match="cannot write"):
        written(manifest, tmp_path / "none" / "page.html")
