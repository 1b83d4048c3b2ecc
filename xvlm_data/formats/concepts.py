"""The concepts of a row on their way out, of whatever writer the manifest is."""

from __future__ import annotations

from typing import Any

import numpy as np

from xvlm_data.errors import UserError
from xvlm_data.schema import IMAGE


def checked_concepts(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The concepts of a manifest's row, each with text, granularity and a box.

    The box of a whole image's text may be missing.

    Raises:
        UserError: one of them cannot be written.
    """
    concepts: list[dict[str, Any]] = row["concepts"] or []
    for number, concept in enumerate(concepts):
        if problem := _problem(concept):
            raise UserError(
                f"{row['id']}: concept {number} {problem}", "see `xvlm-data inspect --validate`"
            )
    return concepts


def _problem(concept: dict[str, Any] | None) -> str | None:
    """Why a concept cannot be written."""
    if concept is None:
        return "is null"
    for name in ("text", "granularity"):
        if concept[name] is None:
            return f"has no {name}"
    box = concept["box"]
    if box is None and concept["granularity"] != IMAGE:
        return "has no box"
    if box is not None and not np.isfinite(np.array(box, np.float64)).all():
        return "has a box that is not finite"
    return None
