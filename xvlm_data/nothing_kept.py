"""The end of a command whose manifest came out without a single image.

The manifest is written all the same, because its ``rejects.parquet`` tells what is wrong; but
whoever called the command, a script above all, must not take it for a success.
"""

from __future__ import annotations

from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from xvlm_data.errors import UserError
from xvlm_data.manifest import REJECTS_NAME
from xvlm_data.rules import FILTERS
from xvlm_data.storage import AnyPath

#: Characters of an example that are shown, at most.
_LONGEST = 300


def main_reason(summary: dict[str, Any]) -> str | None:
    """Why most images of a release were left out; None where it had none."""
    return _main(summary)[1]


def refuse_empty(
    summary: dict[str, Any], out: AnyPath, fix: str, *, raw: str = "release", root: object = None
) -> None:
    """Raise unless the manifest that was just written has rows.

    Args:
        summary: content of its ``manifest.json``.
        out: its folder.
        fix: what to do where images were rejected.
        raw: what they were of.
        root: the folder in which images were looked for, if they were.

    Raises:
        UserError: it has none; tells the most frequent reason, and one example of it.
    """
    if summary["rows"]:
        return
    kind, reason = _main(summary)
    if reason is None:
        raise UserError(
            f"{out}: the manifest is empty: no images in the {raw}",
            "is it the right one, and the right --split?" if raw == "release" else fix,
        )
    counts = summary["counts"][f"{kind}s"]
    number = _reasons(counts)[reason]
    share = "" if number == counts["raw"] else f", {number:,} of them"
    example = _example(out, kind, reason)
    raise UserError(
        f"{out}: the manifest is empty: all {counts['raw']:,} {kind}s of the {raw} were left out"
        f"{share} as {reason}"
        + (f" (first: {example})" if example else "")
        + (f", looked for in {root}" if root and reason == "missing_image" else ""),
        (f"if that is not meant, see {FILTERS[reason]}" if reason in FILTERS else fix)
        + f"; {out}/{REJECTS_NAME} lists them all",
    )


def _main(summary: dict[str, Any]) -> tuple[str, str | None]:
    """(kind, reason) that most was lost of: images, or what is there in their place."""
    for kinds, counts in summary["counts"].items():
        if reasons := _reasons(counts):
            return kinds.removesuffix("s"), max(reasons, key=lambda name: (reasons[name], name))
    return "image", None


def _reasons(counts: dict[str, Any]) -> dict[str, int]:
    return {**counts["filtered"], **counts["rejected"]}


def _example(out: AnyPath, kind: str, reason: str) -> str | None:
    """What the first such reject says."""
    columns = ["kind", "reason", "record_id", "message"]
    with (out / REJECTS_NAME).open("rb") as file:
        for batch in pq.ParquetFile(file).iter_batches(1024, columns=columns):
            of_kind = pc.equal(batch["kind"].cast("string"), kind)
            chosen = pc.and_(of_kind, pc.equal(batch["reason"].cast("string"), reason))
            for row in batch.filter(chosen).slice(0, 1).to_pylist():
                told = ": ".join(text for text in (row["record_id"], row["message"]) if text)
                return told[:_LONGEST]
    return None
