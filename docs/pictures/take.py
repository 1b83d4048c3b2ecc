"""Takes the pictures of this folder: ``python docs/pictures/take.py``; chromedriver is needed.

Makes a miniature of Visual Genome, writes its page, and photographs it.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from PIL import Image

from xvlm_data.serve.app import make_app
from xvlm_data.serve.catalogue import Catalogue
from xvlm_data.serve.database import Database
from xvlm_data.serve.listen import listen

HERE = Path(__file__).parent
_RECIPE = """\
name: miniature
sources:
  vg:
    expect:
      images: {official: 1600}
      regions: {official: 10400, tolerance: 0.1}
      objects: {official: 4000, tolerance: 0.1}
streams: {image_text: {entries: [{source: vg, granularity: [region]}]}}
"""


def main() -> None:
    """Make everything and take all pictures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        xvlm = [sys.executable, "-m", "xvlm_data"]
        raw, manifests = folder / "raw", folder / "manifests"
        sample = ["sample", "--out", raw, "--images", "1600", "--seed", "11", "--source"]
        for source in ("vg", "coco"):
            build = ["build", "--source", source, "--images", "embed", "--root", raw / source]
            for command in ([*sample, source], [*build, "--out", manifests / source]):
                subprocess.run([*xvlm, *map(str, command)], check=True, stdout=subprocess.DEVNULL)
        (manifests / "miniature.yaml").write_text(_RECIPE)
        page = folder / "vg.html"
        subprocess.run([*xvlm, "inspect", str(manifests / "vg"), "--html", str(page)], check=True)
        browser = _browser(folder / "profile")
        try:
            _page(browser, page)
            _live(browser, [str(manifests / "vg"), str(manifests / "coco")])
        finally:
            browser.quit()


def _page(browser: Any, page: Path) -> None:
    browser.get(page.as_uri())
    _shoot(browser, "page")
    browser.execute_script("document.querySelectorAll('.card')[2].click()")
    browser.execute_script("document.querySelectorAll('dialog .concept')[1].focus()")
    _shoot(browser, "viewer")
    browser.execute_script(
        "document.querySelector('dialog').close();"
        "document.documentElement.dataset.theme = 'dark';"
        "document.querySelector('#distributions').scrollIntoView()"
    )
    _shoot(browser, "distributions")


def _live(browser: Any, specs: list[str]) -> None:
    import uvicorn

    catalogue = Catalogue.open(specs)
    catalogue.count(None, 0).join()
    database = Database([(entry.name, entry.manifest) for entry in catalogue.entries])
    sock, address = listen("127.0.0.1", 0)
    config = uvicorn.Config(make_app(catalogue, database), log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    threading.Thread(target=server.run, args=([sock],), daemon=True).start()
    browser.get(address)
    browser.implicitly_wait(20)
    browser.find_element("css selector", "#suspicious")
    browser.execute_script(
        "document.querySelector('#sql').scrollIntoView();"
        "document.querySelector('#sql form .primary').click()"
    )
    browser.find_element("css selector", "#sql td")
    _shoot(browser, "serve")
    server.should_exit = True


def _browser(profile: Path) -> Any:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for option in ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(option)
    options.add_argument("--force-prefers-reduced-motion")
    options.add_argument("--window-size=1280,980")
    options.add_argument(f"--user-data-dir={profile}")
    return webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))


def _shoot(browser: Any, name: str) -> None:
    script = "setTimeout(arguments[arguments.length - 1], 600)"
    browser.execute_async_script(script)
    picture = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
    # 256 colours are enough for flat pages, and a quarter of the bytes.
    small = picture.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    small.save(HERE / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
