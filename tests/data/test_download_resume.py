"""Downloads that are killed, refused, finished, and tried again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.data.downloads import folder_bytes, kept, run, write_list
from tests.data.hostile_server import HostileServer, picture
from xvlm_data.download.lists import ListSpec
from xvlm_data.errors import UserError
from xvlm_data.inspect.validate import validate
from xvlm_data.manifest import open_manifest


@pytest.fixture(scope="module")
def server() -> Iterator[HostileServer]:
    with HostileServer() as server:
        yield server


@pytest.fixture
def fresh() -> Iterator[HostileServer]:
    with HostileServer() as server:
        yield server


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
