"""An S3-style object store on this machine, for tests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver

import pytest

from tests.ports import free_port

#: The server takes any; clients want some.
KEYS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextmanager
def object_store(*buckets: str) -> Iterator[dict[str, str]]:
    """A server with some buckets; gives the environment in which clients find it.

    It is a process of its own: each has its own state, and none shares threads with its clients.
    """
    s3fs = pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(server, port)
        with pytest.MonkeyPatch.context() as patch:
            environment = KEYS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
            for name, value in environment.items():
                patch.setenv(name, value)
            s3fs.S3FileSystem.clear_instance_cache()
            _stop_fork_server()
            for bucket in buckets:
                s3fs.S3FileSystem().mkdir(bucket)
            yield environment
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.kill()
        server.wait()


def _wait_for(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            return
        except OSError:
            assert server.poll() is None, "the object store did not start"
            assert time.monotonic() < deadline, "the object store does not answer"
            time.sleep(0.05)


def _stop_fork_server() -> None:
    """Workers have the environment of their server, which an earlier test may have started.

    It is killed, since it ends by itself only once no fork of this process is left.
    """
    forks = forkserver._forkserver  # type: ignore[attr-defined]
    if forks._forkserver_pid is not None:
        os.kill(forks._forkserver_pid, signal.SIGKILL)
    forks._stop()
