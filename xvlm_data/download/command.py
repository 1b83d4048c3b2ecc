"""``xvlm-data download`` and the table that closes it."""

from __future__ import annotations

import json
import os
import re
from functools import partial
from pathlib import Path
from typing import Any

import click

from xvlm_data.download.options import Manners, ProductOptions
from xvlm_data.option_types import Number

_PRODUCT, _MANNERS = ProductOptions(), Manners()


@click.command("download")
@click.argument("manifest", metavar="MANIFEST")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder of the new manifest."
)
@click.option(
    "--url-column",
    help="MANIFEST is a .parquet, .csv or .tsv file, and this its column of URLs: a name, or in a "
    "text file without header a number from 1.",
)
@click.option("--caption-column", help="Likewise, its column of captions [none].")
@click.option("--source", help="Likewise, first part of the ids [name of the file].")
@click.option("--split", default="train", show_default=True, help="Likewise, the split.")
@click.option("--limit", type=click.IntRange(1), help="Take the first so many rows, to try.")
@click.option(
    "--concurrency",
    type=click.IntRange(1, 10_000),
    default=_MANNERS.concurrency,
    show_default=True,
    help="Requests at the same time.",
)
@click.option(
    "--per-host",
    type=click.IntRange(1),
    default=_MANNERS.per_host,
    show_default=True,
    help="Of these, to one host name.",
)
@click.option(
    "--retries",
    type=click.IntRange(0),
    default=_MANNERS.retries,
    show_default=True,
    help="Further attempts after time-outs, lost connections, 429 and 5xx, each after twice the "
    "wait, with jitter; a server's Retry-After is honoured.",
)
@click.option(
    "--backoff",
    type=Number(0),
    default=_MANNERS.backoff,
    show_default=True,
    help="Seconds before the second attempt.",
)
@click.option(
    "--max-wait",
    type=Number(0),
    default=_MANNERS.max_wait,
    show_default=True,
    help="Longest wait between attempts; who asks for more is not asked again.",
)
@click.option(
    "--connect-timeout",
    type=Number(0, min_open=True),
    default=_MANNERS.connect_timeout,
    show_default=True,
    help="Seconds for name, connection and TLS.",
)
@click.option(
    "--timeout",
    type=Number(0, min_open=True),
    default=_MANNERS.timeout,
    show_default=True,
    help="Seconds for a whole request.",
)
@click.option(
    "--min-speed",
    type=Number(0),
    default=_MANNERS.min_speed,
    show_default=True,
    help="Bytes a second, on average, below which a body is given up.",
)
@click.option(
    "--host-failures",
    type=click.IntRange(0),
    default=_MANNERS.host_failures,
    show_default=True,
    help="Requests in a row without answer, or answered by 429 or 503, after which a host is given "
    "up; 0: never.",
)
@click.option(
    "--max-image-mb",
    type=click.IntRange(1),
    default=_PRODUCT.limits.max_bytes >> 20,
    show_default=True,
    help="Reject larger files.",
)
@click.option(
    "--max-pixels",
    type=click.IntRange(1),
    default=_PRODUCT.limits.max_pixels,
    show_default=True,
    help="Reject larger images (decompression bombs).",
)
@click.option(
    "--max-redirects",
    type=click.IntRange(0),
    default=_PRODUCT.max_redirects,
    show_default=True,
    help="Hops from one address to the next.",
)
@click.option(
    "--shortest-side",
    type=click.IntRange(1),
    help="Re-encode as JPEG, this many pixels short [original bytes]. Images are never enlarged, "
    "and small JPEGs stay as they are.",
)
@click.option(
    "--quality",
    type=click.IntRange(1, 100),
    help=f"Of the JPEG then [{_PRODUCT.quality}].",
)
@click.option(
    "--user-agent", default=_MANNERS.user_agent, show_default=True, help="Sent with every request."
)
@click.option(
    "--ignore-noai",
    is_flag=True,
    help="Keep images whose X-Robots-Tag says noai, noimageai, noindex or noimageindex, or whose "
    "TDM-Reservation is 1.",
)
@click.option(
    "--allow-private", is_flag=True, help="Ask private, loopback and link-local addresses too."
)
@click.option(
    "--shard-rows",
    type=click.IntRange(1, 2**31 - 1),
    default=_PRODUCT.shard_rows,
    show_default=True,
    help="Rows of the input a file.",
)
@click.option("--workers", type=click.IntRange(1), help="Processes that decode [all cores].")
@click.option(
    "--retry",
    is_flag=True,
    help="The manifest is finished: try again what failed for reasons that may pass.",
)
@click.option(
    "--restart", is_flag=True, help="Throw away what an earlier run left, and begin anew."
)
@click.option("--force", is_flag=True, help="Write into a folder that holds something else.")
@click.option("--json", "as_json", is_flag=True, help="Print the closing table as JSON.")
def download_command(
    manifest: str,
    out: Path,
    url_column: str | None,
    caption_column: str | None,
    source: str | None,
    split: str,
    quality: int | None,
    max_image_mb: int,
    max_pixels: int,
    workers: int | None,
    retry: bool,
    restart: bool,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Download the images of a list of URLs into a manifest that holds them.

    MANIFEST is a manifest whose images are URLs, or with --url-column any table. Rows keep their
    ids, captions and order. What does not arrive is in rejects.parquet with its reason: dead links
    (http_404, dns, timeout, …), pages instead of images, broken or too large images, images whose
    server forbids this use (noai), and addresses that are not public.

    It may be killed at any moment: the same command goes on, and asks for nothing twice that
    arrived or is gone for good.

    \b
    Examples:
      xvlm-data build --source cc3m --images url --out manifests/cc3m_urls
      xvlm-data download manifests/cc3m_urls --out manifests/cc3m --shortest-side 288
      xvlm-data download manifests/cc3m_urls --out manifests/cc3m --shortest-side 288 --retry
      xvlm-data download cc12m.tsv --url-column 1 --caption-column 2 --out manifests/cc12m
      xvlm-data download list.parquet --url-column url --limit 1000 --out /tmp/try
    """
    from xvlm_data.download.lists import ListSpec
    from xvlm_data.download.run import Request, download
    from xvlm_data.images.decode import Limits
    from xvlm_data.nothing_kept import refuse_empty

    if retry and restart:
        raise click.UsageError("--retry goes on with what --restart throws away")
    if url_column is None and (caption_column or source):
        raise click.UsageError("--caption-column and --source belong to --url-column")
    if quality is not None and options["shortest_side"] is None:
        raise click.UsageError("--quality belongs to --shortest-side; else images stay as they are")
    spec: str | ListSpec = manifest
    if url_column is None:
        _refuse_text(manifest)
    else:
        path = Path(manifest)
        name = source or re.sub(r"\W+", "_", path.stem).strip("_") or "list"
        spec = ListSpec(path, url_column, caption_column, name, split)
    manners = {key: options.pop(key) for key in list(options) if hasattr(_MANNERS, key)}
    product = ProductOptions(
        limits=Limits(max_image_mb << 20, max_pixels),
        quality=_PRODUCT.quality if quality is None else quality,
        **options,
    )
    request = Request(
        spec,
        out,
        retry=retry,
        restart=restart,
        force=force,
        workers=workers or os.cpu_count() or 1,
        quiet=as_json,
    )
    summary = download(request, product, Manners(**manners))
    if as_json:
        click.echo(json.dumps(summary, ensure_ascii=False))
    else:
        _print(summary, out)
    refuse_empty(summary, out, _advice(summary), raw="list")


def _advice(summary: dict[str, Any]) -> str:
    """What to do when no image arrived at all."""
    from xvlm_data.download.reasons import TRANSIENT
    from xvlm_data.nothing_kept import main_reason

    if main_reason(summary) in TRANSIENT:
        return "is this machine on the net? The same command with --retry asks again"
    return "open one of the addresses in a browser; is it the column of URLs?"


def _refuse_text(spec: str) -> None:
    """A text list is no manifest, and does not say which column is which."""
    from xvlm_data.download.lists import SEPARATORS, first_cells
    from xvlm_data.errors import UserError
    from xvlm_data.mistaken import text_list

    path = Path(spec)
    if path.suffix.lower() in SEPARATORS and path.is_file():
        raise UserError(*text_list(spec, first_cells(path)))


def _print(summary: dict[str, Any], out: Path) -> None:
    from xvlm_data.console import stdout
    from xvlm_data.download.reasons import TRANSIENT

    images, run = summary["counts"]["images"], summary["run"]
    say = partial(stdout.print, soft_wrap=True)  # paths stay whole
    stdout.print(closing_table(summary))
    if run["finished"]:
        say(f"{out}: was finished already; nothing was asked for")
    else:
        speed = run["tried"] / max(run["seconds"], 1e-9)
        say(
            f"{out}: {summary['rows']:,} images in {len(summary['shards'])} file(s); this run "
            f"tried {run['tried']:,} URLs in {run['seconds']:,.1f} s ({speed:,.0f}/s, "
            f"{run['received_bytes'] / 1e6:,.1f} MB)"
        )
    if summary["rejects"]:
        say(f"{summary['rejects']:,} rows left out, listed in {out}/rejects.parquet")
    again = sum(n for reason, n in images["rejected"].items() if reason in TRANSIENT)
    if again:
        say(f"{again:,} of them may arrive another time: the same command with --retry")


def closing_table(summary: dict[str, Any]) -> Any:
    """What became of the rows, reason by reason, most frequent first."""
    from rich.table import Table

    images = summary["counts"]["images"]
    table = Table(title=summary["name"])
    table.add_column("")
    table.add_column("images", justify="right")
    table.add_column("share", justify="right")

    def row(label: str, count: int, style: str | None = None) -> None:
        table.add_row(label, f"{count:,}", f"{count / max(images['raw'], 1):.1%}", style=style)

    row("in the list", images["raw"])
    for reason, count in sorted(images["rejected"].items(), key=lambda pair: (-pair[1], pair[0])):
        row(f"rejected: {reason}", count, "red")
    table.add_section()
    row("in the manifest", images["kept"], "bold")
    return table
