"""What was given in the place of a manifest, and what to give instead.

Everything here runs only after something went wrong: it may look around, so that the one line that
a person gets says what really lies there. Pairs of texts are what is wrong, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

#: As ``manifest.SUMMARY_NAME``, ``manifest.REJECTS_NAME`` and ``build.JOURNAL_NAME``.
_SUMMARY, _REJECTS, _JOURNAL = "manifest.json", "rejects.parquet", ".building"
#: Files by which a raw release is known, in its folder or in its ``annotations/``. The first source
#: that has one counts, so those whose names others use too come last.
_RELEASES = {
    "vg": ("region_descriptions.json",),
    "objects365": ("zhiyuan_objv2_*.json", "objects365_*.json"),
    "openimages": ("*-annotations-bbox.csv",),
    "sbu": ("sbu-captions-all.json", "SBU_captioned_photo_dataset_*.txt"),
    "cc3m": ("*GCC-training.tsv*", "*GCC-1.1.0-Validation.tsv*"),
    "cc12m": ("cc12m.tsv",),
    "refcoco": ("refs(*).p",),
    "flickr30k": ("dataset_flickr30k.json",),
    "vqa": ("v2_OpenEnded_mscoco_*_questions.json",),
    "coco": ("instances_*.json", "captions_*.json", "dataset_coco.json"),
}
#: Kinds of files that lie beside manifests, and are none.
_DOCUMENTS = {
    ".yaml": "a YAML file, such as a recipe",
    ".yml": "a YAML file, such as a recipe",
    ".json": "a JSON file",
    ".md": "a text to read",
}
#: Kinds of files that hold lists of addresses.
_LISTS = (".tsv", ".tab", ".csv", ".txt")
#: Folders that are looked into, and names that are told, at most.
_MOST_FOLDERS, _MOST_NAMES = 100, 5


def near_name(name: str, names: Iterable[str]) -> str | None:
    """The one of ``names`` that was probably meant by ``name``, if any was."""
    near = difflib.get_close_matches(name.lower(), list(names), n=1)
    return near[0] if near else None


def is_document(path: str) -> bool:
    """Whether a file of this name lies beside manifests or in their folders, and is none."""
    return _suffix(path) in _DOCUMENTS


def near_path(fs: Any, path: str, spec: str) -> str | None:
    """What lies near a path at which there is nothing, under a similar name, as ``spec`` has it."""
    parent, _, name = path.rstrip("/").rpartition("/")
    given = spec.rstrip("/")
    before = given[: -len(name)] if given.endswith(name) else f"{parent}/"
    # Where it was looked for, and where manifests usually lie.
    for below in ("", "manifests/"):
        if near := _near_manifest(fs, f"{parent}/{below}".rstrip("/"), name):
            return f"{before}{below}{near}"
    above, _, folder = parent.rpartition("/")
    if before.rstrip("/").endswith(folder) and not fs.exists(parent):
        other = near_name(folder, _folders(fs, above))
        if other is not None and fs.exists(f"{above}/{other}/{name}"):
            return f"{before.rstrip('/')[: -len(folder)]}{other}/{name}"
    return None


def folder_without_summary(fs: Any, path: str, spec: str) -> tuple[str, str]:
    """Of a folder that is no manifest: unfinished, of manifests, of shards, or a raw release."""
    what = f"{spec}: a folder without {_SUMMARY}"
    given = spec.rstrip("/")
    names = _names(fs, path)
    if _JOURNAL in names:
        return what, "the build did not finish: run the same command again, it goes on"
    if shards := [n for n in names if n.endswith(".parquet") and n != _REJECTS]:
        return what, f"copy it too, or give its {len(shards)} file(s): '{given}/*.parquet'"
    folders = _folders(fs, path)[:_MOST_FOLDERS]
    if manifests := [name for name in folders if fs.exists(f"{path}/{name}/{_SUMMARY}")]:
        told = ", ".join(manifests[:_MOST_NAMES]) + ", …" * (len(manifests) > _MOST_NAMES)
        return what, f"it holds manifests ({told}): give {given}/{manifests[0]}, say"
    annotations = _names(fs, f"{path}/annotations") if "annotations" in names else []
    if source := _release([*names, *annotations]):
        build = f"xvlm-data build --source {source} --root {given} --out manifests/{source}"
        return f"{what}, which looks like the raw release of {source}", f"build it: `{build}`"
    if not names:
        return f"{what} or anything else", "build a manifest there with `xvlm-data build`"
    if any(_suffix(name) in (*_LISTS, ".json", ".jsonl", ".tar") for name in names):
        return what, "of raw data, make a manifest with `xvlm-data build` or `xvlm-data import`"
    return what, "give a folder that `xvlm-data build` wrote"


def other_file(path: str, spec: str) -> tuple[str, str] | None:
    """Of a file whose name says that it is no manifest; None of one that may be."""
    name, suffix = path.rpartition("/")[2], _suffix(path)
    if name in (_SUMMARY, "croissant.json"):
        folder = spec.rpartition("/")[0] or "."
        return f"{spec}: tells of a manifest, and is none", f"give its folder, {folder}"
    if suffix in _DOCUMENTS:
        return (
            f"{spec}: {_DOCUMENTS[suffix]}, not a manifest",
            f"give folders with {_SUMMARY}, such as manifests/coco or manifests/*/",
        )
    if suffix in _LISTS:
        return (
            f"{spec}: a text file, not a manifest",
            "if it is a list of URLs, see --url-column of `xvlm-data download`; "
            "if it is of a raw release, `xvlm-data build`",
        )
    return None


def text_list(spec: str, first: list[str]) -> tuple[str, str]:
    """Of a list of URLs that was given without saying which column they are in.

    Args:
        spec: the file.
        first: cells of its first line.
    """
    fix = "say where its URLs are with --url-column, and its captions with --caption-column"
    web = [number for number, cell in enumerate(first, 1) if "://" in cell]
    if web:
        rest = [number for number in range(1, len(first) + 1) if number not in web]
        caption = f" --caption-column {rest[0]}" if rest else ""
        fix += f"; by its first line: --url-column {web[0]}{caption}"
    elif first:
        fix += f"; its columns seem to be {', '.join(cell[:40] for cell in first[:10])}"
    return f"{spec}: a text list, not a manifest", fix


def data_in(folder: Path) -> str | None:
    """What a folder holds that is no place to write anything else into: a manifest, a release."""
    if (folder / _SUMMARY).is_file():
        return "a manifest"
    below = (folder, folder / "annotations")
    names = [path.name for place in below if place.is_dir() for path in place.iterdir()]
    source = _release(names)
    return f"the raw release of {source}" if source else None


def _release(names: list[str]) -> str | None:
    for source, patterns in _RELEASES.items():
        if any(fnmatch(name, pattern) for name in names for pattern in patterns):
            return source
    return None


def _near_manifest(fs: Any, folder: str, name: str) -> str | None:
    """A folder or Parquet file there that may be meant; endings say nothing of likeness."""
    ending = ".parquet"
    files = [n for n in _names(fs, folder) if n.endswith(ending) and n != _REJECTS]
    by_stem = {n.removesuffix(ending): n for n in [*files, *_folders(fs, folder)]}
    near = near_name(name.removesuffix(ending), by_stem)
    return None if near is None else by_stem[near]


def _folders(fs: Any, path: str) -> list[str]:
    return [name for name, is_folder in _listing(fs, path) if is_folder and name[0] != "."]


def _names(fs: Any, path: str) -> list[str]:
    return [name for name, _ in _listing(fs, path)]


def _listing(fs: Any, path: str) -> list[tuple[str, bool]]:
    """(name, whether it is a folder) of what a folder holds; nothing where it cannot be read."""
    try:
        found = fs.ls(path, detail=True)
    except Exception:  # stores fail in ways of their own, and there is an error to tell already
        return []
    listed = []
    for entry in found:
        name = str(entry["name"]).rstrip("/").rpartition("/")[2]
        linked = entry["type"] not in ("file", "directory") or entry.get("islink")
        if name:
            folder = fs.isdir(f"{path}/{name}") if linked else entry["type"] == "directory"
            listed.append((name, folder))
    return sorted(listed)


def _suffix(path: str) -> str:
    name = path.rpartition("/")[2].lower()
    return name[name.rfind(".") :] if "." in name else ""
