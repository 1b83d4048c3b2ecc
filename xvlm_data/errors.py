"""The one exception that reaches a person: what is wrong, where, and what to do about it."""

from __future__ import annotations


class UserError(Exception):
    """Bad input or environment, told in one line.

    Commands print ``error: <message>`` and exit with status 2; nothing else in the code base is
    allowed to end a command with a traceback.

    Args:
        what: what is wrong, and where (a path, a row, a field).
        fix: what to do about it; appended after a semicolon.
    """

    def __init__(self, what: str, fix: str | None = None) -> None:
        super().__init__(f"{what}; {fix}" if fix else what)
        self.what = what
        self.fix = fix


class ManifestError(UserError):
    """A manifest that is missing, broken, or of a schema version this code does not know."""
