"""`xvlm-data serve`: what it answers, and above all what it does not."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.inspect_manifests import INFO, concept, manifest_of, png, row, write, write_folder
from xvlm_data.errors import UserError
from xvlm_data.inspect.validate import validate
from xvlm_data.manifest import Manifest, open_manifest
from xvlm_data.schema import GRANULARITIES, manifest_schema
from xvlm_data.serve.command import serve_command
from xvlm_data.serve.compare import compare_rows
from xvlm_data.serve.database import Database
from xvlm_data.serve.listen import listen
from xvlm_data.serve.search import Filter, all_rows, search
from xvlm_data.serve.selection import selection

uvicorn = pytest.importorskip("uvicorn")
from xvlm_data.serve.app import make_app  # noqa: E402
from xvlm_data.serve.catalogue import Catalogue  # noqa: E402

SECRET = b"root:x:0:0:secret"


class Server:
    """A real server of some manifests, in a thread."""

    def __init__(self, *specs: Path, image_root: str | None = None) -> None:
        catalogue = Catalogue.open([str(spec) for spec in specs], image_root)
        database = Database([(entry.name, entry.manifest) for entry in catalogue.entries])
        self.counting = catalogue.count(None, 0)
        self.socket, self.address = listen("127.0.0.1", 0)
        config = uvicorn.Config(make_app(catalogue, database), log_level="error", lifespan="off")
        self.uvicorn = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.uvicorn.run, args=([self.socket],), daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.uvicorn.should_exit = True
        self.thread.join(30)
        self.counting.join(30)

    def ask(
        self, path: str, method: str = "GET", body: Any = None, **headers: str
    ) -> tuple[int, bytes]:
        """Status and body; the path is sent as it is, dots and all."""
        port = self.socket.getsockname()[1]
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, body, given)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def json(self, path: str, **given: Any) -> Any:
        status, body = self.ask(f"{path}?{urlencode(given)}")
        assert status == 200, body
        return json.loads(body)

    def sql(self, text: str) -> tuple[int, Any]:
        status, body = self.ask("/api/sql", "POST", json.dumps({"sql": text}))
        return status, json.loads(body)


def files(folder: Path) -> dict[str, str]:
    """Every file below a folder, with a hash of its content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of references, some of which lead where they should not."""
    folder = tmp_path_factory.mktemp("serve")
    (folder / "root" / "deep").mkdir(parents=True)
    (folder / "root2").mkdir()
    (folder / "secret.txt").write_bytes(SECRET)
    (folder / "outside.png").write_bytes(png())
    (folder / "root2" / "near.png").write_bytes(png())
    (folder / "root" / "deep" / "good.png").write_bytes(png())
    (folder / "root" / "text.png").write_bytes(SECRET)
    (folder / "root" / "link.png").symlink_to(folder / "outside.png")
    (folder / "root" / "up").symlink_to(folder)
    os.mkfifo(folder / "root" / "pipe.png")
    root = folder / "root"
    paths = {
        "good": f"{root}/deep/good.png",
        "outside": f"{folder}/outside.png",
        "dots": f"{root}/../outside.png",
        "deep_dots": f"{root}/deep/../../outside.png",
        "link": f"{root}/link.png",
        "linked_folder": f"{root}/up/outside.png",
        "sibling": f"{folder}/root2/near.png",
        "text": f"{root}/text.png",
        "pipe": f"{root}/pipe.png",
        "folder": f"{root}",
        "etc": "/etc/passwd",
        "relative": "../outside.png",
        "url": "http://127.0.0.1:9/a.png",
        "file_url": f"file://{folder}/outside.png",
        "local_url": f"local://{folder}/outside.png",
        "zip_url": f"zip://x.png::{folder}/outside.png",
    }
    rows = [
        row(i, id=f"made/{name}", image={"bytes": None, "path": path})
        for i, (name, path) in enumerate(paths.items())
    ]
    write_folder(folder / "made", rows, info=INFO | {"image_root": str(root)})
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    server = Server(folder / "made")
    yield server
    server.stop()


def test_images_of_the_root_are_served_and_no_others(server: Server) -> None:
    rows = server.json("/api/manifests/0/rows")["rows"]
    served = {}
    for found in rows:
        status, body = server.ask(found["image"])
        served[found["id"]] = status
        assert SECRET not in body
        if status == 200:
            assert body.startswith(b"RIFF") and body[8:12] == b"WEBP"
    assert len(served) == 16
    assert [name for name, status in served.items() if status == 200] == ["made/good"]
    assert set(served.values()) == {200, 404}


def test_without_a_recorded_root_no_file_is_served(folder: Path, tmp_path: Path) -> None:
    good = str(folder / "root" / "deep" / "good.png")
    path = write(tmp_path / "made.parquet", [row(0, image={"bytes": None, "path": good})])
    server = Server(path)
    try:
        status, body = server.ask("/image/0/0")
        assert status == 404 and b"no image root" in body
    finally:
        server.stop()


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt",
        "/..%2fsecret.txt",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/etc/passwd",
        "/image/0/../../../etc/passwd",
        "/image/0/..%2f..%2fsecret.txt",
        "/image/0/%2fetc%2fpasswd",
        "/image/0/-1",
        "/image/0/99999",
        "/image/0/%D9%A3",
        "/image/7/0",
        "/image/x/0",
        "/style.css/../../secret.txt",
        "/static/../secret.txt",
        "/app.js%00.txt",
        "/api/manifests/0/../../../secret.txt",
        "/made/manifest.json",
        "/manifest-00000.parquet",
        "/api/manifests/0/chosen?rows=../../x",
    ],
)
def test_paths_lead_nowhere(server: Server, path: str) -> None:
    status, body = server.ask(path)
    assert status in (400, 404), body
    assert SECRET not in body and b"root:x:" not in body


def test_only_pages_of_this_machine_are_answered(server: Server) -> None:
    for host in ("evil.example", "127.0.0.1.evil.example", "evil.example:80", "", "[::2]:1"):
        assert server.ask("/api/manifests", Host=host)[0] == 403, host
    for host in ("localhost", "LOCALHOST:8765", "127.0.0.1:1", "[::1]:8765"):
        assert server.ask("/api/manifests", Host=host)[0] == 200, host
    for site in ("cross-site", "same-site"):
        assert server.ask("/api/manifests", Sec_Fetch_Site=site)[0] == 403
        assert server.ask("/image/0/0", Sec_Fetch_Site=site, Sec_Fetch_Mode="no-cors")[0] == 403
    # A link to the page may stand anywhere.
    assert server.ask("/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")[0] == 200
    for origin in ("https://evil.example", "null", f"{server.address}1"):
        body = json.dumps({"sql": "SELECT 1"})
        assert server.ask("/api/sql", "POST", body, Origin=origin)[0] == 403, origin
    assert server.ask("/api/sql", "POST", body, Origin=server.address)[0] == 200


def test_nothing_can_be_written(server: Server, folder: Path) -> None:
    before = files(folder)
    paths = ["/", "/api/manifests", "/api/manifests/0/rows", "/image/0/0", "/made/manifest.json"]
    for path in paths:
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            status, _ = server.ask(path, method, b"x")
            assert status in (404, 405), (path, method)
    shard = folder / "made" / "manifest-00000.parquet"
    for text in (
        f"COPY (SELECT 1) TO '{folder}/new.csv'",
        f"COPY images TO '{shard}'",
        f"ATTACH '{folder}/new.db'",
        f"EXPORT DATABASE '{folder}/new'",
        f"EXPLAIN ANALYZE COPY (SELECT 1) TO '{folder}/new.csv'",
        f"WITH x AS (SELECT 1) INSERT INTO images SELECT * FROM x; COPY x TO '{folder}/n'",
        "CREATE TABLE x AS SELECT 1",
        "DROP VIEW images",
        "INSERT INTO images VALUES (1)",
        "DELETE FROM images",
    ):
        status, answer = server.sql(text)
        assert status == 400 and "only one SELECT" in answer["error"], text
        status, _ = server.ask(
            "/api/manifests/0/selection", "POST", urlencode({"sql": text}).encode()
        )
        assert status == 400, text
    assert files(folder) == before


@pytest.mark.parametrize(
    "text",
    [
        "SELECT * FROM read_text('{secret}')",
        "SELECT * FROM read_blob('{secret}')",
        "SELECT * FROM read_csv('{secret}')",
        "SELECT * FROM read_parquet('{folder}/*/*.parquet')",
        "SELECT * FROM read_text('{folder}/made/manifest.json')",
        "SELECT * FROM read_text('{folder}/made/../secret.txt')",
        "SELECT * FROM glob('{folder}/*')",
        "SELECT * FROM '{secret}'",
        "SELECT * FROM 'http://127.0.0.1:9/x.csv'",
        "SELECT * FROM read_json('https://example.com/x.json')",
        "FROM sniff_csv('{secret}')",
        "SELECT * FROM query('COPY (SELECT 1) TO ''{folder}/new.csv''')",
        "SET enable_external_access = true",
        "RESET lock_configuration",
        "INSTALL httpfs",
        "LOAD httpfs",
        "PRAGMA database_list",
        "CALL pragma_version()",
        "SELECT 1; SELECT 2",
        "SELECT * FROM catalogue",
        "SELECT",
        "",
        ";",
        "\x00",
    ],
)
def test_sql_reads_the_manifest_and_nothing_else(server: Server, folder: Path, text: str) -> None:
    before = files(folder)
    status, answer = server.sql(text.format(secret=folder / "secret.txt", folder=folder))
    assert status == 400 and answer["error"]
    assert "secret" not in json.dumps(answer.get("rows", []))
    assert files(folder) == before


def test_sql_answers(server: Server) -> None:
    status, answer = server.sql("SELECT row, id, caption FROM images WHERE row = 2")
    assert status == 200
    assert answer == {
        "columns": ["row", "id", "caption"],
        "rows": [[2, "made/dots", "two shapes"]],
        "more": False,
    }
    _, answer = server.sql("SELECT count(*), min(area), max(place) FROM concepts")
    assert answer["rows"] == [[48, pytest.approx(0.04), 2]]
    _, answer = server.sql('SELECT text FROM "made".concepts WHERE row = 3 ORDER BY place')
    assert answer["rows"] == [["two shapes"], ["a red square"], ["circle"]]
    _, answer = server.sql("SELECT 'nan'::DOUBLE, 1::HUGEINT << 90, DATE '2026-01-02', '\x01'")
    assert answer["rows"] == [["nan", str(1 << 90), "2026-01-02", "\x01"]]
    _, answer = server.sql("SELECT * FROM range(2000)")
    assert len(answer["rows"]) == 500 and answer["more"]


def test_a_question_that_takes_too_long_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xvlm_data.serve.database.PATIENCE", 0.3)
    database = Database([("made", manifest_of(tmp_path, row(0)))])
    with pytest.raises(UserError, match="no answer within"):
        database.ask("SELECT count(*) FROM range(10000000000) a, range(99) b WHERE a.range % 7 = 1")
    assert database.ask("SELECT 1").rows == [[1]]  # and it still answers
    database.close()


def test_rows_know_their_numbers_in_several_shards(tmp_path: Path) -> None:
    paths = []
    for number, size in enumerate((4, 1, 5)):
        rows = [row(10 * number + i, id=f"made/{number}-{i}") for i in range(size)]
        paths.append(write(tmp_path / f"it's {number}.parquet", rows))
    manifest = open_manifest(paths)
    database = Database([('odd "name"', manifest)])
    found = database.ask("SELECT row, id FROM images ORDER BY row").rows
    ids = [name for batch in manifest.batches(["id"]) for name in batch.column(0).to_pylist()]
    assert found == [[i, name] for i, name in enumerate(ids)]
    assert database.rows("SELECT id FROM images WHERE id LIKE 'made/2-%'", 'odd "name"') == [
        *range(5, 10)
    ]
    database.close()


TEXTS = st.sampled_from(["a red dog", "A RED CAR", "x", "Straße", "é", "%_", "a.b", ""])
CONCEPTS = st.builds(
    concept,
    TEXTS,
    st.sampled_from([*GRANULARITIES, "other"]),
    st.sampled_from([(0.5, 0.5, 0.5, 0.5), (0.5, 0.5, 0.1, 0.1), (0.5, 0.5, 1.0, 1.0), None]),
    st.lists(st.sampled_from(["red", "big"]), max_size=2).map(tuple),
)
ROWS = st.lists(
    st.builds(
        row,
        st.integers(0, 99),
        source=st.sampled_from(["coco", "vg"]),
        concepts=st.none() | st.lists(CONCEPTS, max_size=3),
    ),
    max_size=12,
)
FILTERS = st.builds(
    Filter,
    st.sampled_from(["", "red", "RED", "straße", "%", ".", "made/1", "big", "é"]),
    st.sampled_from(["", "coco", "sbu"]),
    st.just(""),
    st.sampled_from([GRANULARITIES, ("region",), ("image", "object"), ()]),
    st.sampled_from([0.0, 0.02]),
    st.sampled_from([1.0, 0.5]),
)


def fits(wanted: Filter, one: dict[str, Any]) -> bool:
    """In plain Python what `gallery.js` does."""
    if wanted.source and one["source"] != wanted.source:
        return False
    if wanted == Filter(source=wanted.source):
        return True
    if wanted.text and wanted.text.lower() in one["id"].lower():
        return True
    for c in one["concepts"] or []:
        granularity, box, text = c["granularity"], c["box"], wanted.text.lower()
        if granularity in GRANULARITIES and granularity not in wanted.granularities:
            continue
        if text and not any(text in t.lower() for t in (c["text"], *c["attributes"])):
            continue
        if wanted.least > 0 or wanted.most < 1:
            if box is None or granularity == "image":
                continue
            if not wanted.least <= box[2] * box[3] <= wanted.most:
                continue
        return True
    return False


@settings(max_examples=60)
@given(ROWS, FILTERS, st.integers(0, 12), st.integers(1, 5), st.sampled_from([0.0, 9.0]))
def test_search_finds_what_fits(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[dict[str, Any]],
    wanted: Filter,
    start: int,
    limit: int,
    seconds: float,
) -> None:
    """From any row on, in pages of any size, interrupted by the clock or not."""
    manifest = manifest_of(tmp_path_factory.mktemp("made"), *rows)
    expected = [i for i, one in enumerate(rows) if fits(wanted, one)]
    assert list(all_rows(manifest, wanted)) == expected
    found: list[int] = []
    place: int | None = start
    while place is not None:
        page = search(manifest, wanted, start=place, limit=limit, seconds=seconds)
        assert len(page.rows) <= limit
        assert page.next is None or page.next > place
        found += page.rows
        place = page.next
    assert found == [i for i in expected if i >= start]


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"with": "pixel"}, "no granularity 'pixel'"),
        ({"kind": "odd"}, "no kind 'odd'"),
        ({"least": "x"}, "least and most are no numbers"),
    ],
)
def test_wrong_filters_are_told(server: Server, given_: dict[str, str], message: str) -> None:
    status, body = server.ask(f"/api/manifests/0/rows?{urlencode(given_)}")
    assert status == 400 and message in json.loads(body)["error"]


def taken(manifest: Manifest, rows: list[int], path: Path) -> Manifest:
    path.write_bytes(b"".join(selection(manifest, rows, "a test")))
    return open_manifest(path)


@settings(max_examples=20)
@given(st.sets(st.integers(0, 19), min_size=1))
def test_a_selection_is_a_manifest_of_these_rows(
    tmp_path_factory: pytest.TempPathFactory, chosen: set[int]
) -> None:
    folder = tmp_path_factory.mktemp("made")
    all_of_them = [row(i) for i in range(20)]
    paths = [write(folder / f"{i}.parquet", all_of_them[i : i + 7]) for i in (0, 7, 14)]
    manifest = open_manifest(paths)
    found = taken(manifest, sorted(chosen), folder / "some.parquet")
    read = [one for batch in found.batches() for one in batch.to_pylist()]
    whole = [one for batch in manifest.batches() for one in batch.to_pylist()]
    assert read == [whole[i] for i in sorted(chosen)]
    assert validate(found).ok
    assert found.info["selected_from"] == {
        "name": "made",
        "fingerprint": manifest.fingerprint,
        "rows": len(chosen),
        "how": "a test",
    }
    assert {**found.info, "selected_from": 0} == {
        **manifest.info,
        "name": "made-selection",
        "selected_from": 0,
    }


def test_a_selection_keeps_further_columns(tmp_path: Path) -> None:
    schema = manifest_schema(INFO)
    table = pa.Table.from_pylist([row(i) for i in range(5)], schema)
    table = table.append_column("questions", pa.array([[f"q{i}"] for i in range(5)]))
    schema = manifest_schema(INFO, pa.schema(list(table.schema)), version=2)
    pq.write_table(table.cast(schema), tmp_path / "made.parquet")
    found = taken(open_manifest(tmp_path / "made.parquet"), [1, 4], tmp_path / "some.parquet")
    read = pq.read_table(tmp_path / "some.parquet")
    assert read["questions"].to_pylist() == [["q1"], ["q4"]]
    assert found.schema_version == 2
    assert b"questions" in read.schema.metadata[b"huggingface"]


def test_selections_are_downloads(server: Server, tmp_path: Path) -> None:
    def export(**given: str) -> list[str]:
        body = urlencode(given).encode()
        status, data = server.ask("/api/manifests/0/selection", "POST", body)
        assert status == 200, data
        (tmp_path / "some.parquet").write_bytes(data)
        table = pq.read_table(tmp_path / "some.parquet")
        assert len(open_manifest(tmp_path / "some.parquet")) == len(table)
        return table["id"].to_pylist()

    assert len(export(text="circle")) == 16
    assert export(text="made/link") == ["made/link", "made/linked_folder"]
    assert export(sql="SELECT row FROM images WHERE row IN (3, 1, 3)") == [
        "made/outside",
        "made/deep_dots",
    ]
    assert export(sql="FROM images SELECT id, 1 ORDER BY id LIMIT 1;") == ["made/deep_dots"]
    body = urlencode({"text": "nowhere to be found"}).encode()
    status, data = server.ask("/api/manifests/0/selection", "POST", body)
    assert status == 400 and b"nothing to export" in data
    body = urlencode({"sql": "SELECT 1 AS one"}).encode()
    status, data = server.ask("/api/manifests/0/selection", "POST", body)
    assert status == 400 and b"neither a column row nor id" in data


NAMES = st.dictionaries(
    st.integers(0, 8),
    st.tuples(st.sampled_from(["x", None]), st.sampled_from(["a", "b", None])),
    min_size=1,
)


@settings(max_examples=25)
@given(NAMES, NAMES)
def test_comparison(
    tmp_path_factory: pytest.TempPathFactory, ours: dict[int, Any], theirs: dict[int, Any]
) -> None:
    folder = tmp_path_factory.mktemp("made")
    manifests = []
    for name, rows in (("ours", ours), ("theirs", theirs)):
        made = [
            row(i, caption=caption, concepts=text and [concept(text)])
            for i, (caption, text) in rows.items()
        ]
        manifests.append((name, open_manifest(write(folder / f"{name}.parquet", made))))
    database = Database(manifests)
    found = compare_rows(database, "ours", "theirs")
    database.close()
    both = ours.keys() & theirs.keys()
    assert found["both"] == len(both)
    assert found["only_one"] == len(ours.keys() - theirs.keys())
    assert found["only_other"] == len(theirs.keys() - ours.keys())
    assert found["changed"] == sum(ours[i] != theirs[i] for i in both)
    assert found["parts"]["caption"] == sum(ours[i][0] != theirs[i][0] for i in both)
    assert found["parts"]["concepts"] == sum(ours[i][1] != theirs[i][1] for i in both)
    assert found["parts"]["width"] == 0
    places = [list(ours).index(i) for i in ours.keys() - theirs.keys()]
    assert sorted(found["examples"]["only_one"]) == sorted(places)
    pairs = [[list(ours).index(i), list(theirs).index(i)] for i in both if ours[i] != theirs[i]]
    assert sorted(found["examples"]["changed"]) == sorted(pairs)


def test_long_questions_are_refused(server: Server) -> None:
    body = json.dumps({"sql": "SELECT 1 -- " + "x" * (5 << 20)})
    assert server.ask("/api/sql", "POST", body)[0] == 413
    assert server.ask("/api/sql", "POST", "not json")[0] == 400
    assert server.ask("/api/sql", "POST", "[1]")[0] == 400
    assert server.ask("/api/sql", "POST", "[" * 9000)[0] == 400
    assert server.ask(f"/api/manifests/{'1' * 5000}/rows")[0] == 404


def test_names_differ(tmp_path: Path) -> None:
    path = write(tmp_path / "made.parquet", [row(0)])
    names = [entry.name for entry in Catalogue.open([str(path)] * 3).entries]
    assert names == ["made", "made_2", "made_3"]


def test_the_command_tells_what_is_wrong(tmp_path: Path) -> None:
    path = write(tmp_path / "made.parquet", [row(0)])

    def fails(*arguments: object) -> str:
        with pytest.raises(UserError) as caught:
            serve_command.main([str(a) for a in arguments], standalone_mode=False)
        return str(caught.value)

    assert "no such manifest" in fails(tmp_path / "none")
    assert "no such recipe" in fails(path, "--recipe", tmp_path / "none.yaml")
    with socket.socket() as taken_port:
        taken_port.bind(("127.0.0.1", 0))
        taken_port.listen()
        port = taken_port.getsockname()[1]
        assert "cannot listen" in fails(path, "--port", port)
    assert "check --host" in fails(path, "--host", "240.0.0.1")
    result = CliRunner().invoke(serve_command, ["--help"])
    assert "Examples:" in result.output
