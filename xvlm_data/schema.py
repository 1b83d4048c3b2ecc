"""The manifest: one row an image, every (box, text) of it in one list.

This schema is a promise to people outside; it changes only with :data:`SCHEMA_VERSION`.
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

SCHEMA_VERSION = 1

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
        pa.field("source_file", pa.string()),
        pa.field("record_id", pa.string()),
        pa.field("location", pa.string()),
        pa.field("kind", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("message", pa.string()),
    ]
)


def _hf_features() -> dict[str, Any]:
    """The schema as Hugging Face features, so that ``load_dataset("parquet")`` shows images."""

    def value(dtype: str) -> dict[str, str]:
        return {"dtype": dtype, "_type": "Value"}

    def list_of(feature: Any, length: int = -1) -> dict[str, Any]:
        return {"feature": feature, "length": length, "_type": "List"}

    return {
        "id": value("string"),
        "source": value("string"),
        "split": value("string"),
        "image": {"_type": "Image"},
        "width": value("int32"),
        "height": value("int32"),
        "caption": value("string"),
        "concepts": list_of(
            {
                "box": list_of(value("float32"), 4),
                "text": value("string"),
                "attributes": list_of(value("string")),
                "granularity": value("string"),
            }
        ),
    }


def manifest_schema(info: dict[str, Any]) -> pa.Schema:
    """The Arrow schema with its footer: version, Hugging Face features and ``info``.

    Args:
        info: provenance that must be readable from a lone shard (name, source, split, options,
            image root, generator). Written with sorted keys so that equal builds give equal bytes.
    """
    return FIELDS.with_metadata(
        {
            VERSION_KEY: str(SCHEMA_VERSION).encode(),
            INFO_KEY: json.dumps(info, sort_keys=True, ensure_ascii=False).encode(),
            HF_KEY: json.dumps({"info": {"features": _hf_features()}}, sort_keys=True).encode(),
        }
    )
