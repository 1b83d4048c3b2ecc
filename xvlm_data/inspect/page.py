"""One HTML file that shows a manifest: opens from disk, asks the network for nothing.

What comes from a manifest goes into one JSON block, which the page's script turns into text nodes
and attribute values; no markup is ever made of it. The policy in the page's head allows its own
script and style by their hashes and nothing else, so that even a fault there could run no script.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from xvlm_data import __version__
from xvlm_data.errors import UserError
from xvlm_data.inspect.gallery import choose_rows, gallery
from xvlm_data.inspect.look import MAX_ROWS, Stage, look
from xvlm_data.json_values import finite
from xvlm_data.manifest import Manifest
from xvlm_data.storage import write_bytes

PICTURES = 120
#: Bytes of all pictures as they are in the page; the rest of a page is far below a megabyte.
BUDGET = 6 << 20

_SHARED_SCRIPTS = ("dom.js", "charts.js", "pictures.js", "gallery.js", "sections.js")
_WEB = files("xvlm_data.inspect") / "web"


def write_page(
    manifest: Manifest,
    specs: Sequence[str],
    out: Path,
    *,
    pictures: int = PICTURES,
    recipe: Path | None = None,
    max_rows: int = MAX_ROWS,
    stage: Stage,
) -> int:
    """Write the page of a manifest.

    Args:
        manifest: opened from ``specs``.
        specs: the manifests, as they were given.
        out: the HTML file.
        pictures: how many rows to show, besides examples of what is suspicious.
        recipe: whose counts are expected; without, one that lies beside the manifest.
        max_rows: see :func:`look.look`.
        stage: opens a progress display.

    Returns:
        The page's size in bytes.

    Raises:
        UserError: the file cannot be written, or as :func:`look.look`.
    """
    if out.is_dir():
        raise UserError(f"{out}: a folder", "give --html a file, such as look.html")
    found = look(manifest, specs, recipe=recipe, max_rows=max_rows, stage=stage)
    even = choose_rows(manifest, pictures)
    wanted = sorted({*even, *found.examples})
    with stage("pictures", len(wanted), "rows") as advance:
        rows = gallery(manifest, wanted, BUDGET, advance)
    data = {"version": __version__, "document": found.document, "rows": rows, "even": even}
    page = render(str(found.document["about"]["name"] or specs[0]), data)
    try:
        if out.exists() and not out.is_file():  # a terminal, a pipe: not to be replaced by a file
            out.write_bytes(page)
        else:
            write_bytes(out.resolve(), page)
    except OSError as error:
        raise UserError(
            f"{out}: cannot write ({error.strerror or error})", "choose another file for --html"
        ) from error
    return len(page)


def render(title: str, data: dict[str, Any]) -> bytes:
    """The page for a document and its rows."""
    style = web_file("style.css")
    script = bundle("page.js")
    policy = "; ".join(
        (
            "default-src 'none'",
            "img-src data:",
            f"style-src '{_hash(style)}'",
            f"script-src '{_hash(script)}'",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )
    # In a script element only "<" can mean anything to the parser of HTML.
    block = json.dumps(finite(data), ensure_ascii=False, separators=(",", ":"))
    block = block.replace("<", "\\u003c")
    body = f'<script type="application/json" id="data">{block}</script>\n<script>{script}</script>'
    page = Template(web_file("page.html")).substitute(
        policy=policy,
        title=html.escape(f"{title} - xvlm"),
        style=f"<style>{style}</style>",
        body=body,
    )
    return page.encode("utf-8", "replace")


def bundle(last: str) -> str:
    """The shared scripts and one more, as one whose names are its own."""
    parts = "\n".join(web_file(name) for name in (*_SHARED_SCRIPTS, last))
    return f'"use strict";\n(() => {{\n{parts}\n}})();'


def web_file(name: str) -> str:
    """A file of the page's, as it is installed with the package."""
    return (_WEB / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
