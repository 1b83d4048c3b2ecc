"""The manifest: one row an image, every (box, text) of it in one list.

This schema is a promise to people outside; it changes only with :data:`SCHEMA_VERSION`.
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

#: The newest version. A manifest says the lowest that can read it: 2 allows a width and height of
#: 0, "not known": nobody has looked at the image yet, which is an address or was not checked.
SCHEMA_VERSION = 2
SIZES_KNOWN, SIZES_UNKNOWN = 1, 2

#: Footer keys. ``huggingface`` is the name the `datasets` library looks for.
VERSION_KEY = b"xvlm.schema_version"
INFO_KEY = b"xvlm.info"
HF_KEY = b"huggingface"

IMAGE, REGION, OBJECT = "image", "region", "object"
GRANULARITIES = (IMAGE, REGION, OBJECT)

#: The box (cx, cy, w, h) of a whole image, exact in float32.
WHOLE_IMAGE_BOX = (0.5, 0.5, 1.0, 1.0)

BOX = pa.list_(pa.float32(), 4)
CONCEPT = pa.struct(
    [
        pa.field("box", BOX),
        pa.field("text", pa.string()),
        pa.field("attributes", pa.list_(pa.string())),
        pa.field("granularity", pa.string()),
    ]
)
_LABEL = pa.dictionary(pa.int32(), pa.string())
FIELDS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("source", _LABEL, nullable=False),
        pa.field("split", _LABEL, nullable=False),
        pa.field(
            "image", pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
        ),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("caption", pa.string()),
        pa.field("concepts", pa.list_(CONCEPT)),
    ]
)

#: What did not make it, and why: `kind` is image, caption, region, object or attributes; `location`
#: is the place in the source file (a line, or an element of an array and its id).
REJECTS = pa.schema(
    [
        pa.field("source_file", _LABEL),
        pa.field("record_id", pa.string()),
        pa.field("location", pa.string()),
        pa.field("kind", _LABEL),
        pa.field("reason", _LABEL),
        pa.field("message", pa.string()),
    ]
)


def _hf_features(schema: pa.Schema) -> dict[str, Any]:
    """The schema as Hugging Face features, so that ``load_dataset("parquet")`` shows images."""

    def feature(kind: pa.DataType) -> Any:
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if pa.types.is_struct(kind):
            return {field.name: feature(field.type) for field in kind}
        if pa.types.is_fixed_size_list(kind):
            return {"feature": feature(kind.value_type), "length": kind.list_size, "_type": "List"}
        if pa.types.is_list(kind):
            return {"feature": feature(kind.value_type), "length": -1, "_type": "List"}
        names = {"float": "float32", "double": "float64"}
        return {"dtype": names.get(str(kind), str(kind)), "_type": "Value"}

    return {
        field.name: {"_type": "Image"} if field.name == "image" else feature(field.type)
        for field in schema
    }


def manifest_schema(
    info: dict[str, Any], fields: pa.Schema = FIELDS, version: int = SIZES_KNOWN
) -> pa.Schema:
    """The Arrow schema with its footer: version, Hugging Face features and ``info``.

    Args:
        info: provenance that must be readable from a lone shard (name, source, split, options,
            image root, generator). Written with sorted keys so that equal builds give equal bytes.
        fields: :data:`FIELDS`, and any further column after them.
        version: of the schema.
    """
    features = {"info": {"features": _hf_features(fields)}}
    return fields.with_metadata(
        {
            VERSION_KEY: str(version).encode(),
            INFO_KEY: json.dumps(info, sort_keys=True, ensure_ascii=False).encode(),
            HF_KEY: json.dumps(features, sort_keys=True).encode(),
        }
    )
