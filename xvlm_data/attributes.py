"""Attributes of objects: brought to them from another file (VG), and cleaned."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from xvlm_data.records import ATTRIBUTES, OBJECT, column
from xvlm_data.text import normalise_texts

Int64s = npt.NDArray[np.int64]


def join_attributes(
    annotations: pa.Table, attributes: pa.Table, aliases: pa.Table | None
) -> tuple[pa.Table, pa.Table]:
    """Give objects the attributes that another file has under their ids.

    Args:
        annotations: of some images, with the column ``ordinal``.
        attributes: of the same images; an object may have several rows, whose lists are joined.
        aliases: ids of objects that were merged into another.

    Returns:
        The annotations, and the attributes of objects that are not among them.
    """
    ordinals = attributes["ordinal"].to_numpy()
    ids = _numbers(attributes, "annotation_id")
    if aliases is not None:
        ids = _resolved(ordinals, ids, aliases)
    objects = np.flatnonzero(column(annotations, "kind").to_numpy() == OBJECT)
    object_ids = _numbers(annotations, "annotation_id")[objects]
    object_ordinals = annotations["ordinal"].to_numpy()[objects]
    # (image, id) pairs of both tables as numbers that can be compared.
    codes, object_codes = _codes(ordinals, ids, object_ordinals, object_ids)
    order = np.argsort(codes, kind="stable")
    joined = column(attributes, "attributes", ATTRIBUTES).take(pa.array(order))
    ordered = codes[order]
    begin = np.flatnonzero(np.diff(ordered, prepend=-1))
    offsets = joined.offsets.to_numpy()
    lists = pa.ListArray.from_arrays(
        pa.array(np.append(offsets[begin], offsets[-1]), pa.int32()), joined.values
    )
    places = np.searchsorted(ordered[begin], object_codes)
    places[places == len(begin)] = 0
    hit = ordered[begin][places] == object_codes if len(begin) else np.zeros(len(objects), bool)
    of_row = np.full(len(annotations), -1, np.int64)
    of_row[objects[hit]] = places[hit]
    given = lists.take(pa.array(of_row, mask=of_row < 0))
    own = column(annotations, "attributes")
    if own.null_count < len(own):
        given = pa.chunked_array([pc.if_else(own.is_valid(), own, given)]).combine_chunks()
    if "attributes" in annotations.column_names:
        annotations = annotations.drop_columns("attributes")
    loose = ~np.isin(codes, object_codes)
    return annotations.append_column("attributes", given), attributes.filter(pa.array(loose))


def _numbers(table: pa.Table, name: str) -> Int64s:
    """An id column; absent ids are told apart from all others."""
    return pc.fill_null(column(table, name), -(2**63)).to_numpy()


def _codes(
    ordinals: Int64s, ids: Int64s, other_ordinals: Int64s, other_ids: Int64s
) -> tuple[Int64s, Int64s]:
    _, dense = np.unique(np.concatenate([ids, other_ids]), return_inverse=True)
    base = int(dense.max(initial=0)) + 1
    return ordinals * base + dense[: len(ids)], other_ordinals * base + dense[len(ids) :]


def _resolved(ordinals: Int64s, ids: Int64s, aliases: pa.Table) -> Int64s:
    """Each id, or the (smallest) one that it was merged into."""
    targets = _numbers(aliases, "annotation_id")
    codes, alias_codes = _codes(
        ordinals, ids, aliases["ordinal"].to_numpy(), aliases["alias"].to_numpy()
    )
    order = np.lexsort((targets, alias_codes))
    ordered, targets = alias_codes[order], targets[order]
    places = np.searchsorted(ordered, codes)
    places[places == len(ordered)] = 0
    return np.where(ordered[places] == codes, targets[places], ids)


def clean_attributes(lists: pa.Array, wanted: npt.NDArray[np.bool_]) -> pa.Array:
    """Normalised, without empty ones and repeats, in raw order; empty lists for none.

    Args:
        lists: ``[N]`` lists of texts, or null.
        wanted: ``[N]`` where there are attributes at all; elsewhere lists are emptied.
    """
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy().astype(np.int64)
    rows = np.repeat(np.arange(len(lists)), lengths)
    texts = normalise_texts(pc.fill_null(lists.flatten(), ""))
    encoded = texts.dictionary_encode()
    codes = encoded.indices.to_numpy().astype(np.int64)
    filled = pc.greater(pc.binary_length(texts), 0).to_numpy(zero_copy_only=False)
    keep = np.flatnonzero(filled & wanted[rows])
    _, first = np.unique(
        rows[keep] * (len(encoded.dictionary) + 1) + codes[keep], return_index=True
    )
    keep = keep[np.sort(first)]
    counts = np.bincount(rows[keep], minlength=len(lists))
    return pa.ListArray.from_arrays(
        pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32()), texts.take(pa.array(keep))
    )
