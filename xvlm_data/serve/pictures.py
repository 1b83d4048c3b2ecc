"""Pictures of rows, made anew from what is decoded: no file is ever handed out as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xvlm_data.images.decode import ImageError, load_row_image
from xvlm_data.inspect.concepts import locate
from xvlm_data.inspect.gallery import read_tables, small_picture
from xvlm_data.manifest import Manifest


def serve_picture(manifest: Manifest, row: int, side: int) -> bytes:
    """The picture of a row as WebP.

    Raises:
        ImageError: it has none, or it lies outside the manifest's image root.
        ManifestError: a file is damaged.
    """
    ((_, table),) = read_tables(manifest, [row], ["image", "width", "height"])
    cell: dict[str, Any] = table["image"][0].as_py() or {}
    if cell.get("bytes") is None and cell.get("path"):
        shard, _ = locate(manifest, row)
        info = next(one.info for one in manifest.shards if one.url == shard)
        root = manifest.image_root or info.get("image_root")
        cell = {"bytes": None, "path": inside(cell["path"], root)}
    image = load_row_image(cell, table["width"][0].as_py(), table["height"][0].as_py())
    return small_picture(image, side)


def inside(path: str, root: str | None) -> str:
    """The real path of an image file, if it lies below the real path of the image root.

    Raises:
        ImageError: it does not, it is no plain file, or no root is known.
    """
    path, root = _without_scheme(path), root and _without_scheme(root)
    if "://" in path or (root and "://" in root):
        below = bool(root) and path.startswith(f"{str(root).rstrip('/')}/")
        # A chain such as zip://a::file://b reads another place than it begins with.
        if not below or ".." in path.split("/") or "::" in path:
            raise ImageError("missing_image", "the image lies outside the manifest's image root")
        return path
    if not root:
        raise ImageError(
            "missing_image",
            "the manifest records no image root, so no image file is served",
            "give it with --image-root",
        )
    real = Path(path).resolve()
    if not real.is_relative_to(Path(root).resolve()):
        raise ImageError(
            "missing_image",
            "the image lies outside the manifest's image root",
            "links are followed; give the folder they lead to with --image-root",
        )
    if not real.is_file():
        raise ImageError("missing_image", "there is no such image file")
    return str(real)


def _without_scheme(path: str) -> str:
    """A path of this machine as such, however it is written."""
    for scheme in ("file://", "local://"):
        path = path.removeprefix(scheme)
    return path
