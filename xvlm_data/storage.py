"""Files and folders, here or in an object store: ``pathlib`` over fsspec, and atomic writes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, TypeAlias

from xvlm_data.errors import UserError

#: A local path, or one below a URL such as ``s3://bucket/raw/coco``: then it is a ``UPath``, which
#: has pathlib's methods without being one of its classes.
AnyPath: TypeAlias = Path

#: Protocols of stores whose paths begin with a bucket.
_BUCKETED = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")


def as_path(spec: str | AnyPath) -> AnyPath:
    """A path from what a person wrote; anything with ``://`` is an fsspec URL.

    Raises:
        UserError: it is no UTF-8, which manifests and their footers are.
    """
    if not isinstance(spec, str):
        return spec
    if not _is_text(spec):
        raise UserError(f"{spec!a}: not a name in UTF-8", "rename the folder, or make a link to it")
    if "://" not in spec:
        return Path(spec)
    from upath import UPath

    path: Any = UPath(spec)
    return path


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes of a file system that are no UTF-8
        return False
    return True


def is_local(path: AnyPath) -> bool:
    """Whether a path lies in this machine's file system."""
    found: object = path
    return isinstance(found, Path)


def missing_bucket(path: AnyPath) -> str | None:
    """The bucket of an object store that a path lies in, if there is none of that name.

    Making a folder would make the bucket too, so that a slip of the pen would not be noticed.
    """
    remote: Any = path
    if is_local(path) or remote.protocol not in _BUCKETED:
        return None
    bucket: str = remote.path.lstrip("/").split("/")[0]
    return None if remote.fs.exists(bucket) else bucket


def write_bytes(path: AnyPath, data: bytes) -> None:
    """Write a whole file or nothing: renamed into place here, one upload in an object store."""
    if not is_local(path):
        path.write_bytes(data)
        return
    # The name tells processes apart that write the same file, so that none sees half of another's.
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_bytes(data)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_json(path: AnyPath, value: Any, indent: int | None = None) -> None:
    """:func:`write_bytes` of JSON."""
    write_bytes(path, json.dumps(value, ensure_ascii=False, indent=indent).encode() + b"\n")


def read_json(path: AnyPath) -> Any:
    """The content of a JSON file; None where there is none, or it is no JSON."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def remove_tree(path: AnyPath) -> None:
    """Remove a folder with all that is in it, if it is there."""
    if is_local(path):
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists():
        remote: Any = path
        remote.fs.invalidate_cache()  # others have written there
        remote.fs.rm(remote.path, recursive=True)
