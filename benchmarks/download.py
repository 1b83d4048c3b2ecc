"""Images a second of `xvlm-data download`, beside img2dataset where it is installed.

A server on this machine (processes of its own) gives small JPEGs after a fixed delay, as the web
does; both download the same list from it, one after the other, in every case into Parquet with the
images' bytes:

* ``original``: bytes kept as they are, decoded by both to check them (img2dataset:
  `resize_mode=no`, `skip_reencode`);
* ``resized``: shortest side 288 (``--shortest-side``), JPEG quality 90, by both.

What is compared is throughput on a good network with healthy links, the easy case for both. The
loopback address stands for many hosts, so the per-host limit is lifted. Peak memory is the largest
sum of resident sets over the process tree.

    python benchmarks/download.py --images 5000 --concurrency 32 --concurrency 128
    python benchmarks/download.py --peer-python other-venv/bin/python --json > download.json

img2dataset needs an older pandas than we do, so it usually lives in an environment of its own:
``--peer-python`` is that environment's interpreter.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

_KINDS = 64  # different pictures; the list names them again and again under different URLs


def pictures(side: int) -> list[bytes]:
    """JPEGs of smooth noise, with bytes a pixel as photographs have them."""
    made = []
    for seed in range(_KINDS):
        coarse = np.random.default_rng(seed).integers(0, 255, (24, 32, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((side * 4 // 3, side), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85)
        made.append(buffer.getvalue())
    return made


class _Protocol(asyncio.Protocol):
    """As little of HTTP as a server can do, so that it is not what is measured."""

    def __init__(self, answers: list[bytes], delay: float) -> None:
        self._answers, self._delay, self._head = answers, delay, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._head += data
        if not self._head.endswith(b"\r\n\r\n"):
            return
        number = int(self._head.split(b" ", 2)[1].rpartition(b"/")[2].partition(b".")[0])
        self._head = b""
        answer = self._answers[number % len(self._answers)]
        asyncio.get_running_loop().call_later(self._delay, self._transport.write, answer)  # type: ignore[attr-defined]


def serve(port: int, side: int, delay: float) -> None:
    """The server; several processes may listen on one port."""
    answers = [
        b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(body)
        + body
        for body in pictures(side)
    ]

    async def run() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: _Protocol(answers, delay), "127.0.0.1", port, reuse_port=True, backlog=4096
        )
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    asyncio.run(run())


class _Peak(threading.Thread):
    """Resident memory of a process and its descendants, by /proc; MB."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.peak, self.over = pid, 0.0, threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.1):
            self.peak = max(self.peak, sum(map(_resident, _tree(self.pid))))


def _tree(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found, queue = [], [pid]
    while queue:
        found.append(queue.pop())
        queue += children.get(found[-1], [])
    return found


def _resident(pid: int) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def timed(command: list[str]) -> dict[str, float]:
    """Wall and processor seconds, and peak memory of a command that must succeed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    watch = _Peak(process.pid)
    watch.start()
    output = process.communicate()[0]
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    watch.over.set()
    if process.returncode:
        raise click.ClickException(f"{' '.join(command[:4])} … failed:\n{output[-2000:]}")
    return {
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu, 3),
        "peak_mb": round(watch.peak, 1),
    }


def ours(urls: Path, out: Path, concurrency: int, side: int | None) -> list[str]:
    """Our command."""
    command = [sys.executable, "-m", "xvlm_data", "download", str(urls), "--out", str(out)]
    command += ["--url-column", "url", "--caption-column", "caption", "--allow-private"]
    command += ["--concurrency", str(concurrency), "--per-host", str(concurrency), "--json"]
    return command + (["--shortest-side", str(side)] if side else [])


def peer(python: str, urls: Path, out: Path, concurrency: int, side: int | None) -> list[str]:
    """img2dataset's: as many threads in all, over a process a core, as its README advises."""
    cores = os.cpu_count() or 1
    arguments = {
        "url_list": str(urls),
        "output_folder": str(out),
        "input_format": "parquet",
        "url_col": "url",
        "caption_col": "caption",
        "output_format": "parquet",
        "processes_count": cores,
        "thread_count": max(1, concurrency // cores),
        "number_sample_per_shard": 1000,
        "resize_mode": "keep_ratio" if side else "no",
        "skip_reencode": side is None,
        "image_size": side or 256,
        "encode_quality": 90,
        "enable_wandb": False,
        "retries": 2,
        "timeout": 60,
        "incremental_mode": "incremental",
        "compute_hash": None,
    }
    program = (
        f"from img2dataset import download\nif __name__ == '__main__': download(**{arguments!r})"
    )
    return [python, "-c", program]


def rows_of(out: Path) -> int:
    """Images that arrived, by the files themselves."""
    files = [f for f in out.glob("*.parquet") if not f.name.startswith("rejects")]
    total = 0
    for file in files:
        names = pq.read_schema(file).names
        if "status" in names:
            total += pq.read_table(file, columns=["status"])["status"].to_pylist().count("success")
        else:
            total += pq.read_metadata(file).num_rows
    return total


@click.command(help=__doc__)
@click.option("--images", default=5000, show_default=True)
@click.option("--side", default=640, show_default=True, help="Pixels of the shorter side served.")
@click.option("--shortest-side", default=288, show_default=True, help="Pixels after resizing.")
@click.option("--delay", default=0.05, show_default=True, help="Seconds before each answer.")
@click.option("--concurrency", multiple=True, type=int, default=(32, 128), show_default=True)
@click.option("--servers", default=1, show_default=True, help="Server processes.")
@click.option("--peer-python", help="Interpreter that has img2dataset [this one, if it has].")
@click.option("--json", "as_json", is_flag=True)
@click.option("--serve", "serve_port", type=int, hidden=True)
def main(
    images: int,
    side: int,
    shortest_side: int,
    delay: float,
    concurrency: tuple[int, ...],
    servers: int,
    peer_python: str | None,
    as_json: bool,
    serve_port: int | None,
) -> None:
    """See the module."""
    if serve_port is not None:
        serve(serve_port, side, delay)
        return
    peer_python = peer_python or sys.executable
    have_peer = not subprocess.run(
        [peer_python, "-c", "import img2dataset"], capture_output=True, check=False
    ).returncode
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        port, running = 0, []
        try:
            for _ in range(servers):
                command = [sys.executable, __file__, "--serve", str(port), "--side", str(side)]
                command += ["--delay", str(delay)]
                running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
                assert running[-1].stdout is not None
                port = int(running[-1].stdout.readline())
            urls = Path(scratch) / "urls.parquet"
            listed = {
                "url": [f"http://127.0.0.1:{port}/{n}.jpg" for n in range(images)],
                "caption": [f"picture {n}" for n in range(images)],
            }
            pq.write_table(pa.table(listed), urls)
            for wanted in concurrency:
                for mode, small in (("original", None), ("resized", shortest_side)):
                    commands = {"xvlm": ours(urls, Path(scratch) / "out", wanted, small)}
                    if have_peer:
                        commands["img2dataset"] = peer(
                            peer_python, urls, Path(scratch) / "out", wanted, small
                        )
                    for tool, command in commands.items():
                        shutil.rmtree(Path(scratch) / "out", ignore_errors=True)
                        (Path(scratch) / "out").mkdir()
                        result: dict[str, Any] = timed(command)
                        arrived = rows_of(Path(scratch) / "out")
                        result |= {"tool": tool, "mode": mode, "concurrency": wanted}
                        result |= {"arrived": arrived}
                        result["images_per_second"] = round(arrived / result["seconds"], 1)
                        results.append(result)
                        if not as_json:
                            click.echo(
                                f"{tool:12} {mode:9} concurrency {wanted:4}: "
                                f"{result['images_per_second']:8,.1f} images/s, "
                                f"{arrived:,} arrived, {result['seconds']:.1f} s, "
                                f"CPU {1e3 * result['cpu_seconds'] / images:.2f} ms/image, "
                                f"peak {result['peak_mb']:,.0f} MB"
                            )
        finally:
            for process in running:
                process.kill()
                process.wait()
    if as_json:
        about: dict[str, Any] = {
            "images": images,
            "side": side,
            "shortest_side": shortest_side,
            "delay": delay,
        }
        about |= {"cores": os.cpu_count() or 1}
        about |= {"python": platform.python_version(), "peer": have_peer}
        click.echo(json.dumps({"settings": about, "results": results}, indent=2))


if __name__ == "__main__":
    main()
