"""Reading manifests: one Parquet file, a folder of shards, a glob, or an fsspec URL.

Only footers are read on opening; rows come row group by row group, so that memory does not grow
with the manifest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from xvlm_data import mistaken
from xvlm_data.errors import ManifestError
from xvlm_data.images.decode import is_web_address
from xvlm_data.rows import Rows
from xvlm_data.schema import FIELDS, INFO_KEY, SCHEMA_VERSION, VERSION_KEY

SUMMARY_NAME = "manifest.json"
REJECTS_NAME = "rejects.parquet"
#: Bytes that are read of a column at a time.
_BITE = 1 << 20

Spec = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class Shard:
    """One Parquet file of a manifest.

    Attributes:
        url: where it lies.
        rows: in it.
        row_groups: the rows of each row group.
        info: of its footer (name, source, split, options, image_root, …).
        version: of its schema.
        further: its columns beyond those of every manifest.
    """

    url: str
    rows: int
    row_groups: tuple[int, ...]
    info: dict[str, Any]
    version: int = 1
    further: tuple[pa.Field, ...] = ()


class Manifest(Rows):
    """An opened manifest: :func:`xvlm_data.open`. Its rows are used as :class:`~.rows.Rows` says.

    Attributes:
        shards: the Parquet files, in name order.
        info: footer information of the first shard (name, source, split, options, image_root, …).
        summary: content of ``manifest.json`` when opened as a folder, else None.
        image_root: folder that replaces the recorded image root of referenced images, or None.
    """

    def __init__(
        self, shards: list[Shard], summary: dict[str, Any] | None, image_root: str | None
    ) -> None:
        self.shards = shards
        self.summary = summary
        self.image_root = image_root
        self.info = shards[0].info
        super().__init__(self, range(sum(shard.rows for shard in shards)))

    @property
    def schema_version(self) -> int:
        """The newest version among the shards; all were checked on opening."""
        return max(shard.version for shard in self.shards)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the names and row groups of the shards, equal wherever the folder lies."""
        digest = hashlib.sha256()
        for shard in self.shards:
            digest.update(json.dumps([Path(shard.url).name, shard.row_groups]).encode())
        return digest.hexdigest()[:16]

    def require_images(self) -> None:
        """Refuse a manifest of web addresses, whose images nobody has downloaded yet.

        Told by the first row of each build that the shards are of; the manifest is not read.

        Raises:
            ManifestError: it is one.
        """
        seen = set()
        for shard in self.shards:
            name = shard.info.get("name")
            build = json.dumps(shard.info, sort_keys=True)
            if not shard.rows or build in seen:
                continue
            seen.add(build)
            with _open(shard.url) as file, _parquet_errors(shard.url):
                address = _first_address(pq.ParquetFile(file, pre_buffer=False))
            if address is not None:
                raise ManifestError(
                    f"manifest {name or shard.url}: its images are web addresses ({address[:80]})",
                    "fetch them with `xvlm-data download`, and take the manifest that it makes",
                )

    def read_row_group(
        self, shard: int, group: int, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """One row group as a table.

        Raises:
            ManifestError: the file is gone, cut off or damaged.
        """
        url = self.shards[shard].url
        with _open(url) as file, _parquet_errors(url):
            # From a store in few requests; from a disk in small bites: all columns at once would
            # take the row group's memory twice, and most of the time goes into getting it.
            whole = not _is_local(url)
            parquet = pq.ParquetFile(file, pre_buffer=whole, buffer_size=0 if whole else _BITE)
            table = parquet.read_row_group(group, columns=_list(columns))
            return self._localise(table, self.shards[shard])

    def batches(
        self,
        columns: Sequence[str] | None = None,
        batch_size: int = 1024,
        groups: Sequence[Sequence[int]] | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Rows in order, in batches of at most ``batch_size``; raises as `read_row_group`.

        Args:
            columns: which, or all.
            batch_size: rows.
            groups: for each shard the row groups to read; without, all rows are.
        """
        for number, shard in enumerate(self.shards):
            chosen = None if groups is None else list(groups[number])
            if chosen == []:
                continue
            with _open(shard.url) as file, _parquet_errors(shard.url):
                # Buffered ahead, a shard with embedded images would be in memory as a whole.
                parquet = pq.ParquetFile(file, pre_buffer=False)
                for batch in parquet.iter_batches(batch_size, chosen, columns=_list(columns)):
                    table = self._localise(pa.Table.from_batches([batch]), shard)
                    yield from table.to_batches()

    def _localise(self, table: pa.Table, shard: Shard) -> pa.Table:
        """Replace the recorded image root by the one given, for manifests that were moved."""
        recorded = shard.info.get("image_root")
        if not self.image_root or not recorded or "image" not in table.column_names:
            return table
        image = table["image"].combine_chunks()
        index = image.type.get_field_index("path")
        if index < 0:
            return table
        paths = [
            None if path is None else _moved(path, recorded, self.image_root)
            for path in image.field(index).to_pylist()
        ]
        fields = [image.field(i) for i in range(image.type.num_fields)]
        fields[index] = pa.array(paths, pa.string())
        moved = pa.StructArray.from_arrays(fields, names=[f.name for f in image.type])
        return table.set_column(table.column_names.index("image"), "image", moved)


def open_manifest(spec: Spec, *, image_root: str | None = None) -> Manifest:
    """Open a manifest and check that it is one.

    Args:
        spec: a ``.parquet`` file, a folder with ``manifest.json``, a glob of either, an fsspec URL
            of any of these, or a list of them. What a glob matches beside manifests (recipes,
            texts, hidden files) is passed over; a folder that is no manifest is not.
        image_root: where referenced images lie now, when not where they lay at build time.

    Raises:
        ManifestError: nothing there, not Parquet, damaged, not a manifest, or of a newer schema.
    """
    specs = [spec] if isinstance(spec, str | Path) else list(spec)
    urls: list[str] = []
    summary = None
    for item in specs:
        found, summary = _resolve(str(item))
        urls += found
    shards = [_read_footer(url) for url in urls]
    return Manifest(shards, summary if len(specs) == 1 else None, image_root)


def _resolve(spec: str) -> tuple[list[str], dict[str, Any] | None]:
    """The shard URLs behind one spec, and its ``manifest.json`` if it is a folder."""
    try:
        fs, path = fsspec.core.url_to_fs(spec)
    except (ValueError, ImportError) as error:
        raise ManifestError(f"{spec}: {error}", "give a path or an fsspec URL") from error
    if any(mark in path for mark in "*?[") and not fs.exists(path):
        return _resolve_glob(fs, path, spec)
    if fs.isdir(path):
        return _resolve_folder(fs, path, spec)
    if not fs.exists(path):
        near = mistaken.near_path(fs, path, spec)
        raise ManifestError(
            f"{spec}: no such manifest",
            f"did you mean {near}?" if near else "build it with `xvlm-data build`",
        )
    if other := mistaken.other_file(path, spec):
        raise ManifestError(*other)
    return [fs.unstrip_protocol(path)], None


def _resolve_glob(fs: Any, pattern: str, spec: str) -> tuple[list[str], dict[str, Any] | None]:
    """The shards of all manifests that match; the summary where they are one folder."""
    urls: list[str] = []
    summaries = []
    matches = 0
    try:
        found_paths = sorted(fs.glob(pattern))
    except ValueError as error:
        raise ManifestError(f"{spec}: {error}", "check the pattern") from error
    for path in found_paths:
        hidden = path.count("/.") > pattern.count("/.")  # what an unfinished build has staged
        if hidden or path.endswith(REJECTS_NAME) or mistaken.is_document(path):
            continue
        folder = fs.isdir(path)
        if spec.endswith("/") and not folder:
            continue
        matches += 1
        if folder:
            found, summary = _resolve_folder(fs, path.rstrip("/"), path)
            summaries.append(summary)
            urls += found
        else:
            urls.append(fs.unstrip_protocol(path))
    if not matches:
        raise ManifestError(f"{spec}: no file matches", "check the pattern (quote it)")
    return list(dict.fromkeys(urls)), summaries[0] if matches == len(summaries) == 1 else None


def _resolve_folder(fs: Any, path: str, spec: str) -> tuple[list[str], dict[str, Any]]:
    name = f"{path.rstrip('/')}/{SUMMARY_NAME}"
    if not fs.exists(name):
        raise ManifestError(*mistaken.folder_without_summary(fs, path.rstrip("/"), spec))
    try:
        summary = json.loads(fs.cat_file(name))
        files = [str(shard["file"]) for shard in summary["shards"]]
    except (ValueError, TypeError, KeyError) as error:
        raise ManifestError(f"{name}: damaged ({error!r})", "build the manifest again") from error
    _check_version(summary.get("schema_version"), spec)
    if escaped := [file for file in files if "/" in file or file.startswith("..")]:
        raise ManifestError(
            f"{name}: shard {escaped[0]!r} lies outside the folder", "take it from who built it"
        )
    missing = [file for file in files if not fs.exists(f"{path.rstrip('/')}/{file}")]
    if missing:
        raise ManifestError(
            f"{spec}: {len(missing)} of {len(files)} shards are missing, first {missing[0]}",
            "copy them too, or build the manifest again",
        )
    if not files:
        raise ManifestError(f"{spec}: the manifest has no shards", "see its rejects.parquet")
    return [fs.unstrip_protocol(f"{path.rstrip('/')}/{file}") for file in files], summary


def _read_footer(url: str) -> Shard:
    with _open(url) as file, _parquet_errors(url):
        parquet = pq.ParquetFile(file)
        metadata, schema = parquet.metadata, parquet.schema_arrow
        groups = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
    footer = schema.metadata or {}
    if VERSION_KEY not in footer:
        raise ManifestError(
            f"{url}: Parquet, but no xvlm manifest (no {VERSION_KEY.decode()})",
            "build one with `xvlm-data build`; for a table of URLs, see `xvlm-data download`",
        )
    version = _check_version(footer[VERSION_KEY].decode(errors="replace"), url)
    for field in FIELDS:
        index = schema.get_field_index(field.name)
        if index < 0 or not _same_type(schema.field(index).type, field.type):
            raise ManifestError(
                f"{url}: column {field.name!r} is missing or not {field.type}",
                "build the manifest again",
            )
    try:
        info = json.loads(footer.get(INFO_KEY, b"{}"))
    except ValueError as error:
        raise ManifestError(f"{url}: damaged footer ({error})", "copy or build it again") from error
    further = tuple(field for field in schema if field.name not in FIELDS.names)
    return Shard(url, metadata.num_rows, groups, info, version, further)


def _first_address(parquet: pq.ParquetFile) -> str | None:
    """The web address that a shard's first row has in the place of an image, if it has one."""
    for batch in parquet.iter_batches(1, columns=["image.path"]):
        (image,) = batch.column(0).to_pylist()
        path = (image or {}).get("path") or ""
        if not is_web_address(path):
            return None
        break
    # Downloaded images keep their addresses beside their bytes.
    (row,) = next(parquet.iter_batches(1, columns=["image"])).column(0).to_pylist()
    return None if row["bytes"] is not None else str(path)


def _same_type(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Types are compared by their leaves: other writers name list items and index widths freely."""
    if pa.types.is_dictionary(found):
        found = found.value_type
    if pa.types.is_dictionary(wanted):
        wanted = wanted.value_type
    if pa.types.is_struct(wanted):
        return pa.types.is_struct(found) and all(
            (i := found.get_field_index(field.name)) >= 0
            and _same_type(found.field(i).type, field.type)
            for field in wanted
        )
    if pa.types.is_fixed_size_list(wanted) or pa.types.is_list(wanted):
        is_list = any(
            check(found)
            for check in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
        )
        return is_list and _same_type(found.value_type, wanted.value_type)
    if pa.types.is_string(wanted):
        return pa.types.is_string(found) or pa.types.is_large_string(found)
    if pa.types.is_binary(wanted):
        return pa.types.is_binary(found) or pa.types.is_large_binary(found)
    return bool(found == wanted)


def _check_version(found: Any, where: str) -> int:
    try:
        version = int(found)
    except (TypeError, ValueError):
        raise ManifestError(
            f"{where}: unreadable schema version {found!r}", "build the manifest again"
        ) from None
    if version > SCHEMA_VERSION:
        raise ManifestError(
            f"{where}: schema version {version}, this xvlm reads up to {SCHEMA_VERSION}",
            "upgrade xvlm",
        )
    if version < 1:
        raise ManifestError(
            f"{where}: schema version {version} does not exist", "build the manifest again"
        )
    return version


def _moved(path: str, recorded: str, root: str) -> str:
    """``path`` below ``root`` instead of ``recorded``; paths outside the image root are refused."""
    relative = Path(path)
    if relative.is_absolute():
        try:
            relative = relative.relative_to(recorded)
        except ValueError:
            raise ManifestError(
                f"image {path!r} lies outside the image root {recorded!r}",
                "--image-root moves the images of one root; build the manifest again",
            ) from None
    if ".." in relative.parts:
        raise ManifestError(f"image {path!r} leaves the image root", "build the manifest again")
    return f"{root.rstrip('/')}/{relative.as_posix()}"


def _is_local(url: str) -> bool:
    return url.startswith("file://") or "://" not in url


def _open(url: str) -> BinaryIO:
    try:
        # Arrow reads by itself: through a file of Python, row groups take five times as long.
        path = url.removeprefix("file://")
        file: BinaryIO = pa.OSFile(path) if _is_local(url) else fsspec.open(url, "rb").open()
    except FileNotFoundError:
        raise ManifestError(f"{url}: no such file", "was the manifest moved?") from None
    except PermissionError:
        raise ManifestError(f"{url}: not readable", "check its permissions") from None
    except OSError as error:
        why = error.strerror or str(error) or type(error).__name__
        raise ManifestError(f"{url}: {why.splitlines()[0]}", "give a .parquet file") from None
    return file


@contextmanager
def _parquet_errors(url: str) -> Iterator[None]:
    """Turns what pyarrow raises on damaged files into one line."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ManifestError(
            f"{url}: not a readable Parquet file ({first})", "copy or build it again"
        ) from error


def _list(columns: Sequence[str] | None) -> list[str] | None:
    return None if columns is None else list(columns)
