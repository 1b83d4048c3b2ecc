"""The manifests that are served, and what is found out about them in the background."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xvlm_data.errors import UserError
from xvlm_data.inspect.look import Look, look
from xvlm_data.json_values import finite
from xvlm_data.manifest import Manifest, open_manifest


@dataclass
class Entry:
    """A manifest and how far it has been counted.

    Attributes:
        name: unlike that of any other.
        spec: as it was given.
        manifest: opened.
        stage, done, of: what is being done, and how far it has come.
        look: what was found, once it is.
        problem: why nothing was found, in words.
    """

    name: str
    spec: str
    manifest: Manifest
    stage: str = "waiting"
    done: int = 0
    of: int = 0
    look: Look | None = None
    problem: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """For the page."""
        return {
            "name": self.name,
            "spec": self.spec,
            "rows": len(self.manifest),
            "fingerprint": self.manifest.fingerprint,
            "stage": self.stage,
            "done": self.done,
            "of": self.of,
            "ready": self.look is not None,
            "problem": self.problem,
        }

    def document(self) -> dict[str, Any] | None:
        """What :mod:`look` found, or None while it is not there."""
        document: dict[str, Any] | None = finite(self.look.document) if self.look else None
        return document


@dataclass
class Catalogue:
    """All manifests of a server."""

    entries: list[Entry] = field(default_factory=list)

    @classmethod
    def open(cls, specs: Sequence[str], image_root: str | None = None) -> Catalogue:
        """Open them.

        Raises:
            ManifestError: one is not there, or no manifest.
        """
        catalogue = cls()
        taken: set[str] = set()
        for spec in specs:
            manifest = open_manifest(spec, image_root=image_root)
            base = str(manifest.info.get("name") or Path(spec).stem or "manifest")
            name, number = base, 1
            while name.lower() in taken:  # SQL does not tell apart what differs by case
                number += 1
                name = f"{base}_{number}"
            taken.add(name.lower())
            catalogue.entries.append(Entry(name, spec, manifest))
        return catalogue

    def count(self, recipe: Path | None, max_rows: int) -> threading.Thread:
        """Start counting all of them, one after the other, in the background."""
        thread = threading.Thread(target=self._count, args=(recipe, max_rows), daemon=True)
        thread.start()
        return thread

    def _count(self, recipe: Path | None, max_rows: int) -> None:
        for entry in self.entries:

            @contextmanager
            def stage(
                name: str, total: int | None, unit: str, entry: Entry = entry
            ) -> Iterator[Callable[[int], None]]:
                entry.stage, entry.done, entry.of = name, 0, total or 0

                def advance(rows: int) -> None:
                    entry.done += rows

                yield advance

            try:
                entry.look = look(
                    entry.manifest, [entry.spec], recipe=recipe, max_rows=max_rows, stage=stage
                )
            except UserError as error:
                entry.problem = str(error)
            except Exception as error:  # the rest of the page is of use without it
                entry.problem = f"{type(error).__name__}: {error}"
