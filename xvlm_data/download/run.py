"""A download from its input to its manifest: shard by shard, resumable, tried again on demand."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from xvlm_data import __version__
from xvlm_data.download.decoders import Decoders, Encoding
from xvlm_data.download.fetch import Fetcher
from xvlm_data.download.lists import ListCounts, ListSpec, write_url_manifest
from xvlm_data.download.log import ShardLog
from xvlm_data.download.options import Manners, ProductOptions
from xvlm_data.download.product import PREVIOUS_NAME, file_is_there, publish, summarise
from xvlm_data.download.progress import Tally, shown
from xvlm_data.download.reasons import Failure
from xvlm_data.download.rows import UrlRows, file_digest, fingerprint, open_url_rows
from xvlm_data.download.shards import Shard, previous_shard
from xvlm_data.errors import UserError
from xvlm_data.journal import Journal, difference
from xvlm_data.manifest import SUMMARY_NAME
from xvlm_data.schema import manifest_schema
from xvlm_data.storage import read_json
from xvlm_data.write import check_out

WORK = ".building"
_SHARD = "shard-{:05d}"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
#: Rows that wait for their host, for a slot, or for another attempt, at the same time.
_WINDOW = 4096


@dataclass(frozen=True)
class Request:
    """What to download, and where to.

    Attributes:
        spec: a manifest of URLs, or a list.
        out: folder of the manifest.
        retry: try again what failed for reasons that may pass, in a finished manifest.
        restart: throw away what an earlier run left.
        force: write into a folder that holds something else.
        workers: processes that decode.
        quiet: show no progress.
    """

    spec: str | ListSpec
    out: Path
    retry: bool = False
    restart: bool = False
    force: bool = False
    workers: int = 1
    quiet: bool = False


def download(request: Request, product: ProductOptions, manners: Manners) -> dict[str, Any]:
    """Download everything; returns the content of ``manifest.json``, and ``run``: what it did.

    Raises:
        UserError: the input is no list of URLs, the folder holds something else or is in use, an
            unfinished run had other settings, or this machine has run out of something.
    """
    work = request.out / WORK
    plan = _plan(request.spec, product)
    unfinished = None if request.restart else read_json(work / "plan.json")
    previous = read_json(work / PREVIOUS_NAME) or read_json(request.out / SUMMARY_NAME)
    if unfinished is None:
        replace = request.restart and previous is not None
        check_out(request.out, plan["name"], force=request.force or replace)
    retried: dict[str, Any] | None = None
    if previous is not None and not request.restart and unfinished != plan:
        if previous.get("plan") != plan:
            raise UserError(
                f"{request.out}: holds a manifest of other settings "
                f"({difference(previous.get('plan') or {}, plan)})",
                "give another --out, or --restart to replace it",
            )
        if not request.retry and not (work / PREVIOUS_NAME).is_file():
            return previous | {"run": {"tried": 0, "kept": 0, "seconds": 0.0, "finished": True}}
        retried = previous
    elif request.retry and unfinished is None:
        raise UserError(f"{request.out}: no finished manifest to retry", "leave --retry out")
    of = {"retry_of": _digest(retried)} if retried is not None else {}
    with (
        _disk_errors(request.out),
        Journal(work, plan | of, restart=request.restart) as journal,
    ):
        if not journal.resumed and read_json(request.out / SUMMARY_NAME) != previous:
            journal.discard()
            raise UserError(
                f"{request.out}: another process has just finished it", "run the same command again"
            )
        rows, counts = _open_rows(request.spec, product.limit, journal)
        info = _info(rows, product, plan["name"])
        job = _Job(request, product, manners, journal, rows, info, retried)
        with _many_files():
            records, tally, seconds = job.run()
        summary = summarise(info, plan, request.spec, rows, counts, records)
        publish(
            journal,
            request.out,
            summary,
            records,
            from_list=counts is not None,
            keep_previous=retried is not None,
        )
        journal.discard()
    run = {"tried": tally.through, "kept": tally.kept, "received_bytes": tally.received}
    return summary | {"run": run | {"seconds": round(seconds, 3), "finished": False}}


def _plan(spec: str | ListSpec, product: ProductOptions) -> dict[str, Any]:
    """Everything that decides the product."""
    if isinstance(spec, ListSpec):
        if not spec.path.is_file():
            raise UserError(f"{spec.path}: no such file", "check the path")
        source: dict[str, Any] = {
            "files": {spec.path.name: file_digest(str(spec.path))},
            **spec.to_dict(),
        }
        name = f"{spec.source}-{spec.split}"
    else:
        rows = open_url_rows(spec)
        source = {"files": fingerprint(spec)}
        name = str(rows.info.get("name") or rows.name)
    plan = {"name": name, "input": source, "options": product.to_dict()}
    normal: dict[str, Any] = json.loads(json.dumps(plan))
    return normal


def _open_rows(
    spec: str | ListSpec, limit: int | None, journal: Journal
) -> tuple[UrlRows, ListCounts | None]:
    if not isinstance(spec, ListSpec):
        return open_url_rows(spec, limit), None
    try:
        done = journal.done("urls")
        if done is None:
            counts = write_url_manifest(spec, journal.folder)
            journal.record("urls", counts.to_dict())
        else:
            counts = ListCounts(**done)
        urls = str(journal.folder / "urls.parquet")
        return open_url_rows(urls, limit, listed=(spec.path, spec.url_column)), counts
    except UserError:
        if not journal.resumed:  # so that the right file, or column, can be given next
            journal.discard()
        raise


def _info(rows: UrlRows, product: ProductOptions, name: str) -> dict[str, Any]:
    """Provenance for the footers; the same in every run of a plan."""
    return {
        "name": name,
        "source": rows.info.get("source"),
        "split": rows.info.get("split"),
        "options": {"download": product.to_dict(), "build": rows.info.get("options")},
        "image_root": None,
        "generator": f"xvlm {__version__}",
        "licence": rows.info.get("licence"),
        "citation": rows.info.get("citation"),
        "homepage": rows.info.get("homepage"),
    }


class _Job:
    def __init__(
        self,
        request: Request,
        product: ProductOptions,
        manners: Manners,
        journal: Journal,
        rows: UrlRows,
        info: dict[str, Any],
        previous: dict[str, Any] | None,
    ) -> None:
        self._request, self._product, self._manners = request, product, manners
        self._journal, self._rows, self._info, self._previous = journal, rows, info, previous
        self._tally = Tally()
        self._open: dict[int, Shard] = {}

    def run(self) -> tuple[list[dict[str, Any]], Tally, float]:
        """All shards; their records, what this run did, and its seconds."""
        product = self._product
        encoding = Encoding(product.limits, product.shortest_side, product.quality)
        count = max(1, -(-self._rows.total // product.shard_rows))
        before = sum(self._done(number)["shard"]["input_rows"] for number in self._finished(count))
        try:
            with (
                ThreadPoolExecutor(1, thread_name_prefix="shards") as self._writer,
                Decoders(self._request.workers, encoding) as self._decoders,
            ):
                seconds = asyncio.run(self._all(count, before))
        except BaseExceptionGroup as group:
            raise _first(group) from None
        finally:
            for shard in self._open.values():
                shard.log.close()
        return [self._done(number) for number in range(count)], self._tally, seconds

    def _finished(self, count: int) -> Iterator[int]:
        for number in range(count):
            record = self._journal.done(_SHARD.format(number))
            if record and file_is_there(record["shard"], self._journal.folder, self._request.out):
                yield number

    def _done(self, number: int) -> dict[str, Any]:
        record = self._journal.done(_SHARD.format(number))
        assert record is not None, f"shard {number} has no record"
        return record

    async def _all(self, count: int, before: int) -> float:
        loop = asyncio.get_running_loop()
        started = loop.time()
        finished = set(self._finished(count))
        window = asyncio.Semaphore(max(_WINDOW, 8 * self._manners.concurrency))
        async with (
            Fetcher(self._product, self._manners) as self._fetcher,
            shown(self._tally, self._rows.total, before, quiet=self._request.quiet),
            asyncio.TaskGroup() as tasks,
        ):
            for number in range(count):
                if number in finished:
                    continue
                shard = await loop.run_in_executor(self._writer, self._begin, number)
                self._open[number] = shard
                self._tally.known += len(shard.table) - shard.left
                if not shard.left:
                    await self._finish(shard)
                for row in shard.waiting:
                    await window.acquire()
                    tasks.create_task(self._row(shard, row, window))
        return loop.time() - started

    def _begin(self, number: int) -> Shard:
        first = number * self._product.shard_rows
        stop = min(first + self._product.shard_rows, self._rows.total)
        previous = None
        if self._previous is not None:
            entries = self._previous["shards"]
            skip = sum(entry["rejects"] for entry in entries[:number])
            skip += self._previous.get("input_rejects", 0)
            previous = previous_shard(self._request.out, entries[number], skip)
        log = ShardLog(self._journal.folder / f"{_SHARD.format(number)}.log")
        return Shard(number, first, self._rows.read(first, stop), log, previous)

    async def _row(self, shard: Shard, row: int, window: asyncio.Semaphore) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with self._fetcher.image(shard.url(row)) as data:
                await loop.run_in_executor(self._decoders.threads, self._keep, shard, row, data)
            self._tally.kept += 1
        except Failure as failure:
            shard.log.add_failure(row, failure)
            self._tally.failed[failure.reason] += 1
        finally:
            window.release()
            self._tally.received = self._fetcher.received
        shard.left -= 1
        if not shard.left:
            await self._finish(shard)

    def _keep(self, shard: Shard, row: int, data: bytes) -> None:
        kept, size = self._decoders.decode(data, shard.size(row))
        shard.log.add_image(row, kept, size)

    async def _finish(self, shard: Shard) -> None:
        await asyncio.get_running_loop().run_in_executor(self._writer, self._write, shard)

    def _write(self, shard: Shard) -> None:
        schema = manifest_schema(self._info, self._rows.fields)
        record = shard.finish(self._journal.folder, schema, self._rows.name)
        self._journal.record(_SHARD.format(shard.number), record)
        del self._open[shard.number]
        shard.log.remove()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first exception of a group, however deep."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _digest(summary: dict[str, Any] | None) -> str:
    return hashlib.sha256(json.dumps(summary, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    """A full disk as one line."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        number = error.errno if isinstance(error, OSError) else None
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        if number in _FULL or "No space left" in text or "File too large" in text:
            raise UserError(
                f"{out}: no space left to write the manifest",
                "free some space and run the same command again: it goes on where it was",
            ) from error
        raise UserError(f"{out}: {text}", "run the same command again: it goes on") from error


@contextmanager
def _many_files() -> Iterator[None]:
    """As many open files as the system lets us have: each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # some systems say "unlimited" and refuse it
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
