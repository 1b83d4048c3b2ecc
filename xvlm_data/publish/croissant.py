"""``croissant.json``: what a manifest is, in the vocabulary of MLCommons' Croissant 1.1.

Data set searches index it, and ``mlcroissant`` reads rows by it:
``mlcroissant.Dataset("manifests/coco/croissant.json").records("images")``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from xvlm_data.storage import AnyPath, write_json

CROISSANT_NAME = "croissant.json"
RECORDS = "images"
_FILES = "manifest-files"

#: The JSON-LD context of the specification.
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}

_ABOUT = {
    "id": "Stable and unique: the source, a slash, and the image's name there.",
    "source": "The release that the image comes from.",
    "split": "Its part of the release.",
    "width": "Pixels that boxes refer to; 0 where not known.",
    "height": "Pixels that boxes refer to; 0 where not known.",
    "caption": "The first text of the whole image.",
    "concepts": "Every (box, text) of the image.",
    "concepts/box": "(centre x, centre y, width, height) in units of the image.",
    "concepts/text": "As released, in Unicode NFC.",
    "concepts/attributes": "Of an object.",
    "concepts/granularity": "image, region or object.",
}


def write_croissant(folder: AnyPath, summary: dict[str, Any], shard: AnyPath) -> None:
    """Write :data:`CROISSANT_NAME`.

    Args:
        folder: where to.
        summary: content of ``manifest.json``.
        shard: any shard of the manifest.
    """
    with shard.open("rb") as file:
        parquet = pq.ParquetFile(file)
        schema, embedded = parquet.schema_arrow, _is_embedded(parquet)
    write_json(folder / CROISSANT_NAME, describe(summary, schema, embedded=embedded), indent=2)


def describe(summary: dict[str, Any], schema: pa.Schema, *, embedded: bool) -> dict[str, Any]:
    """The description of a manifest, as JSON-LD.

    Args:
        summary: content of ``manifest.json``.
        schema: of the rows.
        embedded: whether rows hold pictures, or paths of pictures.
    """
    concepts = ", ".join(
        f"{number:,} {name} texts" for name, number in summary["concepts"].items() if number
    )
    about: dict[str, Any] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "name": str(summary["name"]),
        "description": f"{summary['rows']:,} images with {concepts or 'no texts'}; "
        "a multi-grained vision-language manifest of xvlm.",
        "license": summary.get("licence") or "unknown",
        "version": "1.0.0",
    }
    if homepage := summary.get("homepage"):
        about["url"] = homepage
    if citation := summary.get("citation"):
        about["citeAs"] = citation
    return about | {
        "distribution": [
            {
                "@type": "cr:FileSet",
                "@id": _FILES,
                "name": _FILES,
                "description": "One row an image.",
                "encodingFormat": "application/x-parquet",
                "includes": "manifest-*.parquet",
            }
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": RECORDS,
                "name": RECORDS,
                "key": {"@id": f"{RECORDS}/id"},
                "field": [_field(field, embedded) for field in schema],
            }
        ],
    }


def _field(field: pa.Field, embedded: bool) -> dict[str, Any]:
    source = {"fileSet": {"@id": _FILES}, "extract": {"column": field.name}}
    if field.name == "image":
        kind, part = ("sc:ImageObject", "bytes") if embedded else ("sc:Text", "path")
        return _leaf("image", kind, source | {"transform": {"jsonPath": part}}) | {
            "description": "The picture." if embedded else "Path of the picture."
        }
    return _typed(field.name, field.type, source)


def _typed(name: str, kind: pa.DataType, source: dict[str, Any]) -> dict[str, Any]:
    """A field of any type: lists are repeated, structs have sub-fields by JSON path."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _typed(name, kind.value_type, source) | {"repeated": True}
    if pa.types.is_fixed_size_list(kind):
        shape = {"isArray": True, "arrayShape": str(kind.list_size)}
        return _typed(name, kind.value_type, source) | shape
    if not pa.types.is_struct(kind):
        return _leaf(name, _data_type(kind), source)
    return {
        "@type": "cr:Field",
        "@id": f"{RECORDS}/{name}",
        "name": name,
        **_described(name),
        "subField": [
            _typed(
                f"{name}/{inner.name}",
                inner.type,
                source | {"transform": [*_transforms(source), {"jsonPath": inner.name}]},
            )
            for inner in kind
        ],
    }


def _leaf(name: str, data_type: str, source: dict[str, Any]) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": f"{RECORDS}/{name}",
        "name": name,
        **_described(name),
        "dataType": data_type,
        "source": source,
    }


def _described(name: str) -> dict[str, str]:
    return {"description": _ABOUT[name]} if name in _ABOUT else {}


def _transforms(source: dict[str, Any]) -> Iterable[dict[str, Any]]:
    found: list[dict[str, Any]] = source.get("transform", [])
    return found


def _data_type(kind: pa.DataType) -> str:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_integer(kind):
        return "sc:Integer"
    if pa.types.is_floating(kind):
        return "sc:Float"
    if pa.types.is_boolean(kind):
        return "sc:Boolean"
    return "sc:Text"


def _is_embedded(parquet: pq.ParquetFile) -> bool:
    """By the null counts that writers leave; a file without rows has references."""
    metadata = parquet.metadata
    for group in range(metadata.num_row_groups):
        of_group = metadata.row_group(group)
        for place in range(of_group.num_columns):
            column = of_group.column(place)
            if column.path_in_schema == "image.bytes" and column.statistics is not None:
                return bool(column.statistics.null_count < of_group.num_rows)
    return False
