"""Downloads from a server that misbehaves: every good image arrives, none of the bad, and why."""

from __future__ import annotations

import hashlib
import io
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.data.hostile_server import HOSTS, HostileServer, bomb_png, picture, turned_picture
from tests.data.inspect_manifests import concept
from tests.data.raw_releases import build_all
from xvlm_data.download.lists import ListSpec
from xvlm_data.download.options import Manners, ProductOptions
from xvlm_data.download.run import Request, download
from xvlm_data.errors import UserError
from xvlm_data.images.decode import Limits
from xvlm_data.inspect.validate import validate
from xvlm_data.manifest import open_manifest
from xvlm_data.schema import manifest_schema

LIMITS = Limits(max_bytes=1 << 20)
PRODUCT = ProductOptions(limits=LIMITS, allow_private=True)
MANNERS = Manners(
    concurrency=64,
    per_host=64,
    retries=1,
    backoff=0.05,
    max_wait=3.0,
    connect_timeout=2.0,
    timeout=1.0,
    host_failures=0,
)


@pytest.fixture(scope="module")
def server() -> Iterator[HostileServer]:
    with HostileServer() as server:
        yield server


@pytest.fixture
def fresh() -> Iterator[HostileServer]:
    with HostileServer() as server:
        yield server


def write_list(path: Path, urls: list[str], captions: list[str] | None = None) -> ListSpec:
    captions = captions or [f"caption {n}" for n in range(len(urls))]
    pd.DataFrame({"url": urls, "text": captions}).to_parquet(path)
    return ListSpec(path, "url", "text", "web", "train")


def run(spec: str | ListSpec, out: Path, **changes: Any) -> dict[str, Any]:
    """With the options above, changed by name."""
    product = {k: changes.pop(k) for k in list(changes) if hasattr(PRODUCT, k)}
    manners = {k: changes.pop(k) for k in list(changes) if hasattr(MANNERS, k)}
    return download(
        Request(spec, out, quiet=True, **changes),
        ProductOptions(**(vars(PRODUCT) | product)),
        Manners(**(vars(MANNERS) | manners)),
    )


def kept(out: Path) -> dict[str, dict[str, Any]]:
    """Rows of the manifest by the path of their URL, read by pandas."""
    rows = pd.concat(pd.read_parquet(f) for f in sorted(out.glob("manifest-*.parquet")))
    return {"/" + r["image"]["path"].split("/", 3)[3]: r for r in rows.to_dict("records")}


def rejected(out: Path) -> dict[str, str]:
    """Reasons by the path of the URL."""
    found = {}
    for row in pd.read_parquet(out / "rejects.parquet").to_dict("records"):
        parts = row["message"].split(" ")[0].rstrip(":").split("/", 3)
        found["/" + parts[-1]] = row["reason"]
    return found


GOOD = {
    "/good/1.jpg": picture(1),
    "/chunked": picture(5),
    "/until_closed": picture(8),
    "/wrong_type": picture(10),
    "/png": picture(11, form="PNG"),
    "/large": picture(12, (400, 300)),
    "/turned": turned_picture(),
    "/hops/3": picture(7),
    "/busy_seconds/21": picture(21),
    "/busy_date/22": picture(22),
    "/noai_other": picture(17),
    "/cookie": picture(19),
    "/once_reset/23": picture(23),
    "/gzip_good": picture(20),
    "/good/4.jpg?a=%2F&b=ä": picture(4),
    "/good/5 with space.jpg": picture(5),
}
BAD = {
    "/silent": {"timeout"},
    "/drip": {"timeout"},
    "/cut": {"cut_off"},
    "/promises_more": {"cut_off"},
    # The rest of the body looks like the next answer, when it comes in one piece with the first.
    "/promises_less": {"corrupt_image", "bad_response"},
    "/open_chunks": {"cut_off"},
    "/gzip_cut": {"cut_off"},
    "/gigabyte": {"image_too_big"},
    "/endless": {"image_too_big"},
    "/gzip_bomb": {"image_too_big"},
    "/brotli": {"bad_encoding"},
    "/html": {"not_an_image"},
    "/junk": {"not_an_image"},
    "/truncated": {"corrupt_image"},
    "/bomb_png": {"too_many_pixels"},
    "/empty": {"empty_image"},
    "/circle/a": {"redirect_loop"},
    "/growing_circle/": {"too_many_redirects"},
    "/hops/9": {"too_many_redirects"},
    "/to_file": {"bad_url"},
    "/to_nowhere": {"bad_url"},
    "/no_location": {"http_302"},
    "/gone_picture": {"placeholder"},
    "/s403": {"http_403"},
    "/s404": {"http_404"},
    "/s410": {"http_410"},
    "/s204": {"http_204"},
    "/s500": {"http_5xx"},
    "/s503": {"http_5xx"},
    "/noai": {"noai"},
    "/noai_us": {"noai"},
    "/tdm": {"noai"},
    "/reset": {"reset"},
    "/garbage": {"bad_response"},
    "/long_header": {"bad_response"},
}


@pytest.fixture(scope="module")
def done(
    server: HostileServer, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], list[str]]:
    folder = tmp_path_factory.mktemp("all")
    # Good and bad take turns, so that the bad ones are in the way of the good ones.
    paths = [*GOOD, *BAD]
    order = np.random.default_rng(0).permutation(len(paths)).tolist()
    urls = [server.url(paths[i]) for i in order]
    urls += [server.url("/busy_for_hours", HOSTS[2]), "ftp://example.org/a.jpg", "no url", ""]
    urls += [f"http://127.0.0.1:{free_port()}/refused", "http://nowhere.invalid/x.jpg"]
    spec = write_list(folder / "list.parquet", urls)
    before = len(server.asked)
    summary = run(spec, folder / "out", workers=2)
    asked = [asked.path for asked in server.asked[before:]]
    return folder / "out", summary, asked


class TestEverythingAtOnce:
    """One download of everything that can go wrong, looked at from many sides."""

    def test_every_good_image_arrives_byte_by_byte(self, done) -> None:
        rows = kept(done[0])
        assert rows.keys() == GOOD.keys()
        for path, data in GOOD.items():
            assert rows[path]["image"]["bytes"] == data, path

    def test_sizes_are_those_that_are_seen(self, done) -> None:
        rows = kept(done[0])
        assert (rows["/large"]["width"], rows["/large"]["height"]) == (400, 300)
        assert (rows["/turned"]["width"], rows["/turned"]["height"]) == (36, 48)

    def test_every_bad_one_has_its_reason(self, done) -> None:
        found = rejected(done[0])
        wrong = {path: found.get(path) for path, ok in BAD.items() if found.get(path) not in ok}
        assert not wrong
        assert found["/busy_for_hours"] == "http_429"
        assert found["/refused"] == "connect"
        assert found["/x.jpg"] == "dns"

    def test_the_sums_add_up(self, done) -> None:
        out, summary, _ = done
        images = summary["counts"]["images"]
        assert images["raw"] == len(GOOD) + len(BAD) + 6
        assert images["kept"] == len(GOOD) == summary["rows"]
        rejects = pd.read_parquet(out / "rejects.parquet")
        assert len(rejects) == images["raw"] - images["kept"] == summary["rejects"]
        assert images["rejected"] == rejects["reason"].value_counts().to_dict()
        assert images["rejected"]["bad_url"] == 2 + 3  # two redirects, two that are none, one empty
        captions = summary["counts"]["captions"]
        assert captions["raw"] == captions["kept"] + sum(captions["rejected"].values())

    def test_it_is_a_manifest(self, done) -> None:
        findings = validate(open_manifest(done[0]), decode=True)
        assert findings.ok, findings.to_dict()

    def test_captions_stay_with_their_images(self, done) -> None:
        for path, row in kept(done[0]).items():
            listed = pd.read_parquet(done[0].parent / "list.parquet")
            (mine,) = listed[listed["url"].str.endswith(path)]["text"]
            assert row["caption"] == mine == row["concepts"][0]["text"]
            digest = hashlib.sha256(row["image"]["path"].encode()).hexdigest()
            assert row["id"] == f"web/{digest[:32]}"

    def test_only_what_may_pass_is_asked_again(self, done) -> None:
        times = Counter(done[2])
        again = {"/silent", "/drip", "/cut", "/promises_more", "/open_chunks", "/gzip_cut"}
        again |= {"/s500", "/s503", "/reset", "/busy_seconds/21", "/busy_date/22", "/once_reset/23"}
        for path in [p for p in BAD if "circle" not in p and "hops" not in p]:
            if path in again:
                assert times[path] >= 2, path
            else:
                assert times[path] == 1, path
        assert times["/busy_for_hours"] == 1  # it asked for two hours

    def test_a_server_says_when_to_come_again(self, server: HostileServer, done) -> None:
        for path, wait in (("/busy_seconds/21", 1.0), ("/busy_date/22", 0.9)):
            first, second = [asked.at for asked in server.asked if asked.path == path]
            assert second - first >= wait

    def test_requests_are_honest_and_carry_nothing_else(self, server: HostileServer, done) -> None:
        for asked in server.asked:
            assert asked.headers["user-agent"].startswith("xvlm/")
            assert asked.headers["accept-encoding"] == "identity"
            assert not {"cookie", "authorization", "referer"} & asked.headers.keys()


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_memory_does_not_grow_with_the_bodies(server: HostileServer, tmp_path: Path) -> None:
    urls = [server.url(f"/{kind}/{n}") for n in range(16) for kind in ("endless", "gzip_bomb")]
    write_list(tmp_path / "list.parquet", urls)
    code = f"""if True:
        import resource
        from pathlib import Path
        from tests.data.test_download import ListSpec, run
        spec = ListSpec(Path({str(tmp_path / "list.parquet")!r}), "url", "text", "web", "train")
        start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        summary = run(spec, Path({str(tmp_path / "out")!r}), timeout=20.0)
        assert summary["counts"]["images"]["rejected"] == {{"image_too_big": 32}}, summary
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) // 1024)
    """
    grown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd()
    )
    # 16 endless bodies and 16 x 200 MB of bombs against a limit of 1 MB each.
    assert int(grown.stdout) < 200


def test_images_are_made_smaller_on_the_way(server: HostileServer, tmp_path: Path) -> None:
    urls = [server.url(path) for path in ("/large", "/png", "/turned", "/good/1.jpg")]
    run(write_list(tmp_path / "list.parquet", urls), tmp_path / "out", shortest_side=40)
    rows = kept(tmp_path / "out")
    sizes = {path: (row["width"], row["height"]) for path, row in rows.items()}
    assert sizes == {
        "/large": (53, 40),
        "/png": (48, 36),
        "/turned": (36, 48),
        "/good/1.jpg": (48, 36),
    }
    for path, row in rows.items():
        image = Image.open(io.BytesIO(row["image"]["bytes"]))
        assert (image.format, image.size) == ("JPEG", sizes[path])
    assert rows["/good/1.jpg"]["image"]["bytes"] == picture(1)
    assert validate(open_manifest(tmp_path / "out"), decode=True).ok


def test_noai_can_be_ignored(server: HostileServer, tmp_path: Path) -> None:
    spec = write_list(tmp_path / "list.parquet", [server.url("/noai"), server.url("/tdm")])
    assert run(spec, tmp_path / "out", ignore_noai=True)["rows"] == 2


def test_a_host_is_never_asked_by_more_than_agreed(fresh: HostileServer, tmp_path: Path) -> None:
    urls = [fresh.url(f"/slow/{n}", host) for n in range(20) for host in HOSTS]
    spec = write_list(tmp_path / "list.parquet", urls)
    assert run(spec, tmp_path / "out", per_host=3)["rows"] == len(urls)
    assert dict(fresh.busiest) == dict.fromkeys(HOSTS, 3)


def test_concurrency_bounds_all_hosts_together(fresh: HostileServer, tmp_path: Path) -> None:
    urls = [fresh.url(f"/slow/{n}", host) for n in range(20) for host in HOSTS]
    spec = write_list(tmp_path / "list.parquet", urls)
    run(spec, tmp_path / "out", per_host=4, concurrency=5)
    begun = sorted(asked.at for asked in fresh.asked)
    # Each answer takes 0.03 s: within any 0.03 s no more than five can begin, and five more end.
    assert all(late - early > 0.02 for early, late in zip(begun, begun[10:], strict=False))


def test_a_host_that_never_answers_is_given_up(fresh: HostileServer, tmp_path: Path) -> None:
    urls = [fresh.url(f"/silent/{n}", HOSTS[1]) for n in range(40)]
    urls += [fresh.url(f"/good/{n}") for n in range(40)]
    spec = write_list(tmp_path / "list.parquet", urls)
    options = {"per_host": 4, "host_failures": 4, "retries": 0, "timeout": 0.3}
    summary = run(spec, tmp_path / "out", **options)
    assert summary["rows"] == 40
    reasons = summary["counts"]["images"]["rejected"]
    assert reasons.keys() == {"timeout", "host_down"}
    assert reasons["timeout"] == sum(asked.host == HOSTS[1] for asked in fresh.asked) <= 8


def test_one_url_many_times_is_one_image_with_all_captions(
    fresh: HostileServer, tmp_path: Path
) -> None:
    urls = [fresh.url("/good/1.jpg"), fresh.url("/good/2.jpg")] * 3
    spec = write_list(tmp_path / "list.parquet", urls, ["a", "b", "c", "  ", "a", "d\te"])
    summary = run(spec, tmp_path / "out")
    rows = kept(tmp_path / "out")
    texts = {path: [c["text"] for c in row["concepts"]] for path, row in rows.items()}
    assert texts == {"/good/1.jpg": ["a", "c", "a"], "/good/2.jpg": ["b", "d e"]}
    assert [asked.path for asked in fresh.asked].count("/good/1.jpg") == 1
    assert summary["counts"]["captions"] == {
        "raw": 6,
        "kept": 5,
        "filtered": {},
        "rejected": {"empty_text": 1},
    }


def test_text_files(server: HostileServer, tmp_path: Path) -> None:
    one, two = server.url("/good/1.jpg"), server.url("/good/2.jpg")
    (tmp_path / "a.csv").write_text(f'text,link\n"a ""dog"", big\nand",{one}\nno link\nx,{two}\n')
    (tmp_path / "b.tsv").write_bytes(f'{one}\ta "dog\n{two}\tb\tc\n\xff\n'.encode("latin-1"))
    run(ListSpec(tmp_path / "a.csv", "link", "text", "a", "val"), tmp_path / "a")
    run(ListSpec(tmp_path / "b.tsv", "1", "2", "b", "train"), tmp_path / "b")
    assert [r["caption"] for r in kept(tmp_path / "a").values()] == ['a "dog", big and', "x"]
    assert [r["caption"] for r in kept(tmp_path / "b").values()] == ['a "dog']
    for name, count in (("a", 1), ("b", 2)):
        rejects = pd.read_parquet(tmp_path / name / "rejects.parquet")
        assert rejects["reason"].tolist() == ["malformed"] * count
    with pytest.raises(UserError, match=r"no column 'url'; its columns are text, link"):
        run(ListSpec(tmp_path / "a.csv", "url", None, "a", "val"), tmp_path / "c")


def write_urls(folder: Path, urls: list[str], **changes: Any) -> Path:
    """A manifest of URLs as ``build --images url`` writes it, in two shards."""
    folder.mkdir()
    info = {"name": "cc3m-train", "source": "cc3m", "split": "train", "licence": "see Google"}
    rows = [
        {
            "id": f"cc3m/{n}",
            "source": "cc3m",
            "split": "train",
            "image": {"bytes": None, "path": url},
            "width": 0,
            "height": 0,
            "caption": f"caption {n}",
            "concepts": [concept(f"caption {n}", "image"), concept(f"second {n}", "image")],
        }
        | changes
        for n, url in enumerate(urls)
    ]
    half = len(rows) // 2
    shards = []
    for number, part in enumerate((rows[:half], rows[half:])):
        file = folder / f"manifest-{number:05d}.parquet"
        pq.write_table(pa.Table.from_pylist(part, manifest_schema(info)), file, row_group_size=7)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        shards.append({"file": file.name, "rows": len(part), "sha256": digest})
    summary = {"name": info["name"], "schema_version": 1, "shards": shards}
    (folder / "manifest.json").write_text(json.dumps(summary))
    return folder


def test_a_manifest_of_urls(server: HostileServer, tmp_path: Path) -> None:
    urls = [server.url(f"/good/{n}.jpg") if n % 5 else server.url(f"/s404/{n}") for n in range(40)]
    summary = run(str(write_urls(tmp_path / "urls", urls)), tmp_path / "out", shard_rows=9)
    assert [shard["rows"] for shard in summary["shards"]] == [7, 7, 7, 7, 4]
    rows = list(kept(tmp_path / "out").values())
    assert [row["id"] for row in rows] == [f"cc3m/{n}" for n in range(40) if n % 5]
    for row in rows:
        number = row["id"].removeprefix("cc3m/")
        assert row["image"]["bytes"] == picture(int(number))
        texts = [c["text"] for c in row["concepts"]]
        assert texts == [f"caption {number}", f"second {number}"]
    manifest = open_manifest(tmp_path / "out")
    assert manifest.info["licence"] == "see Google"
    assert summary["counts"]["captions"]["rejected"] == {"http_404": 16}
    rejects = pd.read_parquet(tmp_path / "out" / "rejects.parquet")
    assert rejects["record_id"].tolist() == [f"cc3m/{n}" for n in range(0, 40, 5)]
    assert rejects["location"].tolist() == [f"row {n}" for n in range(0, 40, 5)]


def test_from_the_release_to_the_images(server: HostileServer, tmp_path: Path) -> None:
    """``build --images url`` writes what this reads."""
    lines = [f"caption {n}\t{server.url(f'/good/{n}.jpg')}" for n in range(5)]
    lines += [f"gone\t{server.url('/s410/5')}", f"again\t{server.url('/good/2.jpg')}"]
    root = tmp_path / "raw"
    root.mkdir()
    (root / "Train_GCC-training.tsv").write_text("\n".join(lines) + "\n")
    build_all("cc3m", root, tmp_path / "urls", images="url")
    summary = run(str(tmp_path / "urls"), tmp_path / "out")
    assert summary["counts"]["images"]["rejected"] == {"http_410": 1}
    rows = kept(tmp_path / "out")
    assert [row["image"]["bytes"] for row in rows.values()] == [picture(n) for n in range(5)]
    assert [c["text"] for c in rows["/good/2.jpg"]["concepts"]] == ["caption 2", "again"]
    assert {row["source"] for row in rows.values()} == {"cc3m"}
    manifest = open_manifest(tmp_path / "out")
    assert validate(manifest, decode=True).ok
    assert manifest.info["licence"] == open_manifest(tmp_path / "urls").info["licence"]


def test_further_columns_are_carried_along(server: HostileServer, tmp_path: Path) -> None:
    folder = write_urls(tmp_path / "urls", [server.url(f"/good/{n}") for n in range(4)])
    for number, file in enumerate(sorted(folder.glob("*.parquet"))):
        table = pq.read_table(file)
        scores = pa.array([number * 2 + 0.5, number * 2 + 1.5])
        pq.write_table(table.append_column("score", scores), file)
    (folder / "manifest.json").unlink()
    summary = run(str(folder / "*.parquet"), tmp_path / "out")
    assert summary["rows"] == 4
    assert [row["score"] for row in kept(tmp_path / "out").values()] == [0.5, 1.5, 2.5, 3.5]


def test_boxes_hold_the_image_to_its_size(server: HostileServer, tmp_path: Path) -> None:
    size = {"width": 48, "height": 36, "concepts": [concept()], "caption": None}
    urls = [server.url("/good/1.jpg"), server.url("/large")]
    summary = run(str(write_urls(tmp_path / "urls", urls, **size)), tmp_path / "out")
    assert summary["counts"]["images"]["rejected"] == {"size_mismatch": 1}
    assert summary["counts"]["regions"]["kept"] == 1


def test_manifests_of_files_are_refused(tmp_path: Path) -> None:
    folder = write_urls(tmp_path / "urls", ["/data/coco/1.jpg", "/data/coco/2.jpg"])
    with pytest.raises(UserError, match="are files or embedded already"):
        run(str(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_first_rows_only(server: HostileServer, tmp_path: Path) -> None:
    urls = [server.url(f"/good/{n}.jpg") for n in range(30)]
    summary = run(write_list(tmp_path / "l.parquet", urls), tmp_path / "out", limit=4)
    assert summary["rows"] == 4 == len(kept(tmp_path / "out"))


class TestPrivateAddresses:
    """Without --allow-private nothing of this network is asked."""

    def test_nothing_is_asked(self, fresh: HostileServer, tmp_path: Path) -> None:
        hosts = ["127.0.0.1", "localhost", "2130706433", "0177.0.0.1", "0x7f.1", "127.1"]
        hosts += ["[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]", "0"]
        hosts += ["169.254.169.254", "10.0.0.1", "192.168.1.1", "172.16.0.1", "224.0.0.1"]
        urls = [f"http://{host}:{fresh.port}/good/{n}" for n, host in enumerate(hosts)]
        spec = write_list(tmp_path / "l.parquet", urls)
        summary = run(spec, tmp_path / "out", allow_private=False, timeout=5.0)
        rejects = pd.read_parquet(tmp_path / "out" / "rejects.parquet")
        wrong = rejects[rejects["reason"] != "private_address"]
        assert wrong.empty, wrong["message"].tolist()
        assert summary["rows"] == 0
        assert not fresh.asked

    def test_redirects_lead_nowhere_private(
        self, fresh: HostileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # One address of this machine is taken for a public one; the others stay what they are.
        from xvlm_data.download import addresses

        true = addresses.is_public
        monkeypatch.setattr(addresses, "is_public", lambda ip: ip == HOSTS[0] or true(ip))
        hosts = [
            HOSTS[1],
            "10.0.0.1",
            "[::1]",
            "2130706434",
            "169.254.1.1",
        ]
        urls = [fresh.url(f"/to/{host}") for host in hosts]
        urls += [fresh.url("/good/1.jpg"), fresh.url(f"/to/{HOSTS[0]}")]
        spec = write_list(tmp_path / "l.parquet", urls)
        summary = run(spec, tmp_path / "out", allow_private=False, timeout=5.0)
        assert summary["rows"] == 2
        reasons = summary["counts"]["images"]["rejected"]
        assert reasons == {"private_address": len(hosts)}
        assert {asked.host for asked in fresh.asked} == {HOSTS[0]}

    def test_passwords_in_urls_stay_here(self, fresh: HostileServer, tmp_path: Path) -> None:
        url = fresh.url("/good/1.jpg").replace("http://", "http://me:secret@")
        assert run(write_list(tmp_path / "l.parquet", [url]), tmp_path / "out")["rows"] == 1
        assert "authorization" not in fresh.asked[0].headers


def folder_bytes(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(out.iterdir()) if p.is_file()}


class TestInterrupted:
    ROWS, SHARD = 150, 30

    def command(self, spec: Path, out: Path, *more: str) -> list[str]:
        command = [sys.executable, "-m", "xvlm_data", "download", str(spec), "--out", str(out)]
        command += ["--url-column", "url", "--caption-column", "text", "--source", "web"]
        command += ["--allow-private", "--concurrency", "4", "--shard-rows", str(self.SHARD)]
        return [*command, "--max-image-mb", "1", "--workers", "1", *more]

    def start(self, server: HostileServer, requests: int, command: list[str]) -> subprocess.Popen:
        """Start, and wait until so many requests have come."""
        before = len(server.asked)
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 30
        while len(server.asked) - before < requests:
            assert process.poll() is None, "it ended too early"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        return process

    def kill(self, process: subprocess.Popen) -> None:
        process.send_signal(signal.SIGKILL)
        process.communicate()

    def test_killed_and_started_again(self, fresh: HostileServer, tmp_path: Path) -> None:
        spec, out = tmp_path / "l.parquet", tmp_path / "out"
        paths = [f"/late/{n}.jpg" if n % 7 else f"/s404/{n}" for n in range(self.ROWS)]
        whole = write_list(spec, [fresh.url(path) for path in paths])
        run(whole, tmp_path / "whole", shard_rows=self.SHARD)
        killed_after = (20, 45, 45)
        for requests in killed_after:
            self.kill(self.start(fresh, requests, self.command(spec, out)))
            assert not (out / "manifest.json").exists()
        finished = [int(p.stem.split("-")[1]) for p in (out / ".building").glob("shard-*.json")]
        assert finished
        start = len(fresh.asked)
        subprocess.run(self.command(spec, out, "--json"), check=True, capture_output=True)
        assert folder_bytes(out) == folder_bytes(tmp_path / "whole")
        assert not (out / ".building").exists()
        asked = [asked.path for asked in fresh.asked[start:]]
        rows = [row for shard in finished for row in range(shard * 30, shard * 30 + 30)]
        assert not set(asked) & {paths[row] for row in rows}
        # Of the shard that was open, only what was on its way at each kill is asked for again.
        assert len(asked) <= self.ROWS - sum(killed_after) + 8 * len(killed_after)

    def test_what_is_refused_while_one_is_unfinished(
        self, fresh: HostileServer, tmp_path: Path
    ) -> None:
        spec, out = tmp_path / "l.parquet", tmp_path / "out"
        urls = [fresh.url(f"/late/{n}") for n in range(40)]
        urls += [fresh.url(f"/silent/{n}") for n in range(4)]
        write_list(spec, urls)
        first = self.start(fresh, 44, self.command(spec, out))
        decoders = self.children(first.pid)
        assert decoders or not Path("/proc/self/task").exists()
        second = subprocess.run(self.command(spec, out), capture_output=True, text=True)
        assert second.returncode == 2
        assert "another process is building here" in second.stderr
        self.kill(first)
        deadline = time.monotonic() + 10
        while any(Path(f"/proc/{pid}").exists() for pid in decoders):
            assert time.monotonic() < deadline, "decoders outlive their parent"
            time.sleep(0.01)
        more = ["--shortest-side", "20"]
        refused = subprocess.run(self.command(spec, out, *more), capture_output=True, text=True)
        assert refused.returncode == 2
        assert "options.shortest_side: None there, 20 now" in refused.stderr
        assert refused.stderr.count("\n") == 1
        write_list(spec, [*urls, fresh.url("/good/1")])
        with pytest.raises(UserError, match="an unfinished run with other settings lies here"):
            run(ListSpec(spec, "url", "text", "web", "train"), out, shard_rows=self.SHARD)
        more = ["--restart", "--json", "--timeout", "0.3", "--retries", "0"]
        again = subprocess.run(self.command(spec, out, *more), capture_output=True)
        assert json.loads(again.stdout)["rows"] == 41

    def children(self, pid: int) -> list[int]:
        found: list[int] = []
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            found += [int(child) for child in task.read_text().split()]
        return found

    def test_a_full_disk(self, fresh: HostileServer, tmp_path: Path) -> None:
        spec, out = tmp_path / "l.parquet", tmp_path / "out"
        write_list(spec, [fresh.url(f"/good/{n}") for n in range(40)])
        command = self.command(spec, out, "--shard-rows", "40")
        limited = ["sh", "-c", 'ulimit -f 20; exec "$@"', "sh", *command]  # 10 or 20 kB a file
        full = subprocess.run(limited, capture_output=True, text=True)
        assert full.returncode == 2
        assert full.stderr.startswith(f"error: {out}: no space left to write the manifest")
        assert full.stderr.count("\n") == 1
        before = len(fresh.asked)
        again = subprocess.run([*command, "--json"], capture_output=True, check=True)
        assert json.loads(again.stdout)["rows"] == 40
        assert len(fresh.asked) - before < 40

    def test_ctrl_c_ends_cleanly(self, fresh: HostileServer, tmp_path: Path) -> None:
        spec, out = tmp_path / "l.parquet", tmp_path / "out"
        urls = [fresh.url(f"/late/{n}") for n in range(40)]
        write_list(spec, [*urls, *[fresh.url(f"/silent/{n}") for n in range(4)]])
        process = self.start(fresh, 44, self.command(spec, out))
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=20)
        assert process.returncode == 130
        assert error == "error: interrupted\n"
        start = len(fresh.asked)
        done = run(
            ListSpec(spec, "url", "text", "web", "train"),
            out,
            shard_rows=self.SHARD,
            retries=0,
            timeout=0.3,
        )
        assert done["rows"] == 40
        assert len(fresh.asked) - start == 4


class TestRetry:
    def test_only_what_may_pass_is_tried_again(self, fresh: HostileServer, tmp_path: Path) -> None:
        # `once_500` answers the second time, which is the second run.
        kinds = ["good", "s404", "once_500", "s503", "good"]
        paths = [f"/{kinds[n % 5]}/{n}" for n in range(40)]
        spec = write_list(tmp_path / "l.parquet", [fresh.url(path) for path in paths])
        out = tmp_path / "out"
        options: dict[str, Any] = {"shard_rows": 15, "retries": 0}
        first = run(spec, out, **options)
        assert first["counts"]["images"]["rejected"]["http_5xx"] == 16
        idle = run(spec, out, **options)
        assert idle["run"]["finished"] and idle["rows"] == first["rows"]
        start = len(fresh.asked)
        second = run(spec, out, retry=True, **options)
        asked = Counter(asked.path.split("/")[1] for asked in fresh.asked[start:])
        assert asked == {"once_500": 8, "s503": 8}
        assert second["counts"]["images"]["rejected"] == {"http_404": 8, "http_5xx": 8}
        rows = kept(out)
        assert list(rows) == [p for p in paths if not p.startswith(("/s404", "/s503"))]
        for path, row in rows.items():
            assert row["image"]["bytes"] == picture(int(path.split("/")[2]))
        assert len(pd.read_parquet(out / "rejects.parquet")) == 16
        assert validate(open_manifest(out), decode=True).ok

    def test_a_retry_that_gains_nothing_changes_no_image(
        self, fresh: HostileServer, tmp_path: Path
    ) -> None:
        paths = ["/good/1", "/s503/2", "/good/3", "/s404/4"]
        spec = write_list(tmp_path / "l.parquet", [fresh.url(path) for path in paths])
        run(spec, tmp_path / "out", retries=0)
        before = folder_bytes(tmp_path / "out")
        summary = run(spec, tmp_path / "out", retries=0, retry=True)
        assert summary["run"]["tried"] == 1
        assert folder_bytes(tmp_path / "out") == before

    def test_killed_while_it_is_moved_into_place(
        self, fresh: HostileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whichever file was the last to be moved, the same command ends with the same manifest."""
        paths = [
            f"/{'once_500' if n % 4 == 1 else 's404' if n == 6 else 'good'}/{n}" for n in range(9)
        ]
        spec = write_list(tmp_path / "l.parquet", [fresh.url(path) for path in paths])
        options: dict[str, Any] = {"shard_rows": 3, "retries": 0}
        true, moves = Path.replace, [0]

        class Killed(BaseException):
            pass

        def replace(self: Path, target: Path) -> Path:
            moves[0] -= 1
            if not moves[0]:
                raise Killed
            return true(self, target)

        results = []
        for when in range(100):
            fresh.forget()
            out = tmp_path / f"out-{when}"
            run(spec, out, **options, host_failures=0)
            monkeypatch.setattr(Path, "replace", replace)
            moves[0] = when + 1
            try:
                run(spec, out, retry=True, **options)
            except Killed:
                monkeypatch.setattr(Path, "replace", true)
                manifest = out / "manifest.json"
                if manifest.is_file():  # a whole one, the old or the new
                    assert validate(open_manifest(out)).ok
                run(spec, out, retry=True, **options)
                results.append(folder_bytes(out))
            else:
                break
            finally:
                monkeypatch.setattr(Path, "replace", true)
        whole = folder_bytes(out)
        assert len(results) > 10
        assert all(result == whole for result in results)
        assert json.loads(whole["manifest.json"])["rows"] == 8

    def test_without_a_manifest(self, fresh: HostileServer, tmp_path: Path) -> None:
        spec = write_list(tmp_path / "l.parquet", [fresh.url("/good/1")])
        with pytest.raises(UserError, match="no finished manifest to retry"):
            run(spec, tmp_path / "out", retry=True)


def test_a_folder_of_something_else_is_left_alone(server: HostileServer, tmp_path: Path) -> None:
    spec = write_list(tmp_path / "l.parquet", [server.url("/good/1.jpg")])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty and not a manifest"):
        run(spec, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_the_bomb_is_one() -> None:
    """The server's decompression bomb is small, and valid as far as its header goes."""
    assert len(bomb_png()) < 200
    assert Image.open(io.BytesIO(bomb_png())).size == (60_000, 60_000)
