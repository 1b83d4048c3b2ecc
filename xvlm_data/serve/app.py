"""The web application of ``xvlm-data serve``: a page, and the questions that it asks."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Collection, Mapping
from string import Template
from typing import Any
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from xvlm_data import __version__
from xvlm_data.errors import UserError
from xvlm_data.images.decode import ImageError
from xvlm_data.inspect.gallery import SHOWN, describe, read_tables
from xvlm_data.inspect.page import bundle, web_file
from xvlm_data.json_values import finite
from xvlm_data.serve.catalogue import Catalogue, Entry
from xvlm_data.serve.compare import compare_rows
from xvlm_data.serve.database import Database
from xvlm_data.serve.guard import LOOPBACK, Guard
from xvlm_data.serve.pictures import serve_picture
from xvlm_data.serve.search import Filter, all_rows, search
from xvlm_data.serve.selection import selection

#: Rows that one answer describes, the largest picture, and the largest question in bytes.
PAGE, SIDE, QUESTION = 48, 1600, 4 << 20


class _Bad(HTTPException):
    """A request that is not one of the page's."""

    def __init__(self, detail: str, status: int = 400) -> None:
        super().__init__(status, detail)


class Pages:
    """The answers. Each takes parameters as plain values, and is run in a thread."""

    def __init__(self, catalogue: Catalogue, database: Database | None) -> None:
        self.catalogue, self.database = catalogue, database

    def entry(self, number: str) -> Entry:
        """The manifest of this number."""
        return self.catalogue.entries[_number(number, len(self.catalogue.entries))]

    def about(self, given: Mapping[str, str]) -> Any:
        """All manifests, and how far they have been counted."""
        return {
            "version": __version__,
            "sql": self.database is not None,
            "manifests": [entry.to_dict() for entry in self.catalogue.entries],
        }

    def document(self, given: Mapping[str, str]) -> Any:
        """What was found about a manifest; null while it is being counted."""
        return self.entry(given["manifest"]).document()

    def rows(self, given: Mapping[str, str]) -> Any:
        """Rows that fit a filter, from a row on."""
        manifest = self.entry(given["manifest"]).manifest
        start = _number(given.get("from", "0"), len(manifest) + 1)
        found = search(manifest, Filter.of(given), start=start, limit=PAGE)
        return {"rows": self._described(given["manifest"], found.rows), "next": found.next}

    def chosen(self, given: Mapping[str, str]) -> Any:
        """Rows by their numbers."""
        total = len(self.entry(given["manifest"]).manifest)
        rows = [_number(row, total) for row in given.get("rows", "").split(",") if row]
        if len(rows) > 2 * PAGE:
            raise _Bad(f"at most {2 * PAGE} rows at a time")
        return {"rows": self._described(given["manifest"], rows), "next": None}

    def place(self, given: Mapping[str, str]) -> Any:
        """The row that has an id; null if none has."""
        entry = self.entry(given["manifest"])
        wanted = given.get("id", "")
        first = 0
        import pyarrow.compute as pc

        for batch in entry.manifest.batches(["id"], 65536):
            at = pc.index(batch.column(0), wanted).as_py()
            if at >= 0:
                return {"row": first + at}
            first += batch.num_rows
        return {"row": None}

    def sql(self, body: Mapping[str, Any]) -> Any:
        """The answer to a question in SQL."""
        answer = self._database().ask(str(body.get("sql", "")))
        return {"columns": answer.columns, "rows": answer.rows, "more": answer.more}

    def compare(self, given: Mapping[str, str]) -> Any:
        """Two manifests, row by row by their ids."""
        one, other = self.entry(given["manifest"]), self.entry(given["other"])
        return compare_rows(self._database(), one.name, other.name)

    def picture(self, given: Mapping[str, str]) -> Response:
        """The picture of a row."""
        manifest = self.entry(given["manifest"]).manifest
        row = _number(given["row"], len(manifest))
        side = min(SIDE, max(16, _number(given.get("side", "512"), 1 << 16)))
        try:
            data = serve_picture(manifest, row, side)
        except ImageError as error:
            raise _Bad(error.what, 404) from error
        return Response(
            data, media_type="image/webp", headers={"cache-control": "private, max-age=3600"}
        )

    def select(self, given: Mapping[str, Any]) -> Response:
        """Rows as a new manifest: those of a filter, or those that a SELECT names."""
        entry = self.entry(given["manifest"])
        if sql := str(given.get("sql", "")):
            rows, how = self._database().rows(sql, entry.name), f"SQL: {sql}"
        else:
            wanted = Filter.of(given)
            rows, how = list(all_rows(entry.manifest, wanted)), f"filter: {wanted}"
        total = len(entry.manifest)
        rows = [row for row in rows if 0 <= row < total]
        if not rows:
            raise UserError("no row fits, so there is nothing to export", "ask for more")
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", entry.name).strip("._") or "manifest"
        return StreamingResponse(
            selection(entry.manifest, rows, how),
            media_type="application/vnd.apache.parquet",
            headers={"content-disposition": f'attachment; filename="{name}-selection.parquet"'},
        )

    def _database(self) -> Database:
        if self.database is None:
            raise UserError("SQL reads manifests on this machine alone", "copy them here")
        return self.database

    def _described(self, number: str, rows: list[int]) -> list[dict[str, Any]]:
        entry = self.entry(number)
        tables = dict(read_tables(entry.manifest, rows, SHOWN))
        version = entry.manifest.fingerprint
        return [
            describe(row, tables[row])
            | {"image": f"/image/{number}/{row}?side=640&v={version}", "problem": None}
            for row in rows
        ]


def make_app(
    catalogue: Catalogue, database: Database | None, hosts: Collection[str] = LOOPBACK
) -> Starlette:
    """The application.

    Args:
        catalogue: what is served.
        database: over the same manifests; None where they are not on this machine.
        hosts: names that requests may be for.
    """
    pages = Pages(catalogue, database)
    page = Template(web_file("page.html")).substitute(
        # The policy of the response holds too; this one is for what it does not say.
        policy="base-uri 'none'",
        title=html.escape("xvlm manifests"),
        style='<link rel="stylesheet" href="/style.css">',
        body='<script src="/app.js"></script>',
    )
    fixed = {
        "/": (page, "text/html"),
        "/app.js": (bundle("live.js"), "text/javascript"),
        "/style.css": (web_file("style.css"), "text/css"),
    }

    def asked(answer: Callable[[Mapping[str, str]], Any]) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            given = {**request.query_params, **request.path_params}
            found = await run_in_threadpool(answer, given)
            return found if isinstance(found, Response) else JSONResponse(finite(found))

        return endpoint

    async def sql(request: Request) -> Response:
        try:
            body = json.loads(await _body(request))
        except (ValueError, RecursionError):
            raise _Bad("not JSON") from None
        if not isinstance(body, dict):
            raise _Bad("not an object")
        return JSONResponse(await run_in_threadpool(pages.sql, body))

    async def select(request: Request) -> Response:
        form = parse_qs((await _body(request)).decode("utf-8", "replace"))
        given = {key: values[0] for key, values in form.items()} | dict(request.path_params)
        found: Response = await run_in_threadpool(pages.select, given)
        return found

    async def user_error(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error)}, 400)

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    routes = [
        *(Route(path, _fixed(*content), methods=["GET"]) for path, content in fixed.items()),
        Route("/api/manifests", asked(pages.about)),
        Route("/api/manifests/{manifest}/document", asked(pages.document)),
        Route("/api/manifests/{manifest}/rows", asked(pages.rows)),
        Route("/api/manifests/{manifest}/chosen", asked(pages.chosen)),
        Route("/api/manifests/{manifest}/place", asked(pages.place)),
        Route("/api/manifests/{manifest}/compare/{other}", asked(pages.compare)),
        Route("/image/{manifest}/{row}", asked(pages.picture)),
        Route("/api/sql", sql, methods=["POST"]),
        Route("/api/manifests/{manifest}/selection", select, methods=["POST"]),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, hosts=hosts)],
        exception_handlers={UserError: user_error, HTTPException: refused},
    )


def _fixed(content: str, kind: str) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        return Response(content, media_type=kind, headers={"cache-control": "no-cache"})

    return endpoint


async def _body(request: Request) -> bytes:
    """The body of a request, within bounds."""
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > QUESTION:
            raise _Bad("too long", 413)
    return data


def _number(text: str, limit: int) -> int:
    if not re.fullmatch(r"[0-9]{1,15}", text) or int(text) >= limit:
        raise _Bad(f"not a number below {limit}", 404)
    return int(text)
