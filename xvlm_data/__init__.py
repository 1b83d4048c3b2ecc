"""Official vision-language releases in, one Parquet manifest out.

The flow is ``raw files -> records -> rules -> manifest``; :mod:`xvlm_data.schema` is the product,
and :func:`xvlm_data.open` reads it. This package never imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xvlm_data.manifest import Manifest, Spec

__version__ = "0.1.0"


def open(spec: Spec, *, image_root: str | None = None) -> Manifest:
    """Open a manifest: its rows are a sequence, and go on to pandas, Arrow, `datasets` or DuckDB.

    ::

        vg = xvlm_data.open("manifests/vg")
        len(vg), vg[0]["concepts"], vg.draw(0)
        vg[:1000].to_pandas(["id", "width", "height"])
        vg.relation().filter("len(concepts) > 20").limit(5)

    Args:
        spec: a ``.parquet`` file, a folder with ``manifest.json``, a glob, an fsspec URL of any of
            these, or a list of them.
        image_root: where referenced images lie now, when not where they lay at build time.

    Raises:
        ManifestError: nothing there, not Parquet, damaged, not a manifest, or of a newer schema.
    """
    from xvlm_data.manifest import open_manifest

    return open_manifest(spec, image_root=image_root)
