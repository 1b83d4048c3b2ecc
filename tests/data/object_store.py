"""An S3-style object store on this machine, for tests."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver

import pytest

#: The server takes any; clients want some.
KEYS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextmanager
def object_store(*buckets: str) -> Iterator[dict[str, str]]:
    """A server with some buckets; gives the environment in which clients find it."""
    s3fs = pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # each request would be a line
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = KEYS | {"AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            s3fs.S3FileSystem.clear_instance_cache()
            # Workers have the environment of their server, which an earlier test may have started.
            forkserver._forkserver._stop()  # type: ignore[attr-defined]
            for bucket in buckets:
                s3fs.S3FileSystem().mkdir(bucket)
            yield environment
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()
