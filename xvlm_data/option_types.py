"""Types of command-line options beside click's own."""

from __future__ import annotations

import math
from typing import Any

import click


class Number(click.FloatRange):
    """A finite number in a range; click's lets ``nan`` through, which no comparison holds for."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """The number; fails as click's do."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number
