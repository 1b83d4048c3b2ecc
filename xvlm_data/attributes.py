"""Attributes of objects: brought to them from another file (VG), and cleaned."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from xvlm_data.records import ABSENT, ATTRIBUTES, OBJECT, column
from xvlm_data.sorting import stable_order
from xvlm_data.text import normalise_texts

Int64s = npt.NDArray[np.int64]


def join_attributes(
    annotations: pa.Table, attributes: pa.Table, aliases: pa.Table | None
) -> tuple[pa.Table, pa.Table]:
    """Give objects the attributes that another file has under their ids.

    Args:
        annotations: of some images, with the column ``ordinal``.
        attributes: of the same images; an object may have several rows, whose lists are joined.
            What has no id joins nothing.
        aliases: ids of objects that were merged into another.

    Returns:
        The annotations, and the attributes of objects that are not among them.
    """
    ordinals = attributes["ordinal"].to_numpy()
    ids = _numbers(attributes, "annotation_id")
    if aliases is not None and len(aliases):
        ids = _resolved(ordinals, ids, aliases)
    objects = np.flatnonzero(column(annotations, "kind").to_numpy() == OBJECT)
    object_ids = _numbers(annotations, "annotation_id")[objects]
    object_ordinals = annotations["ordinal"].to_numpy()[objects]
    # (image, id) pairs of both tables as numbers that can be compared.
    codes, object_codes = _codes(ordinals, ids, object_ordinals, object_ids)
    order = stable_order(codes)
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
    hit &= object_ids != ABSENT
    of_row = np.full(len(annotations), -1, np.int64)
    of_row[objects[hit]] = places[hit]
    given = lists.take(pa.array(of_row, mask=of_row < 0))
    own = column(annotations, "attributes")
    if own.null_count < len(own):
        given = pa.chunked_array([pc.if_else(own.is_valid(), own, given)]).combine_chunks()
    if "attributes" in annotations.column_names:
        annotations = annotations.drop_columns("attributes")
    known = np.sort(object_codes)
    places = np.searchsorted(known, codes)
    places[places == len(known)] = 0
    loose = known[places] != codes if len(known) else np.ones(len(codes), bool)
    loose |= ids == ABSENT
    return annotations.append_column("attributes", given), attributes.filter(pa.array(loose))


def _numbers(table: pa.Table, name: str) -> Int64s:
    """An id column; no id is ABSENT, and names nothing."""
    return pc.fill_null(column(table, name), ABSENT).to_numpy()


def _codes(
    ordinals: Int64s, ids: Int64s, other_ordinals: Int64s, other_ids: Int64s
) -> tuple[Int64s, Int64s]:
    """(image, id) pairs as numbers that are equal where the pairs are."""
    low = min(ordinals.min(initial=0), other_ordinals.min(initial=0))
    images = int(max(ordinals.max(initial=0), other_ordinals.max(initial=0)) - low)
    largest = int(max(ids.max(initial=0), other_ids.max(initial=0)))
    smallest = min(ids.min(initial=0), other_ids.min(initial=0))
    bits = largest.bit_length()
    if smallest < 0 or bits + images.bit_length() > 63:  # ids that are absent, or huge
        _, dense = np.unique(np.concatenate([ids, other_ids]), return_inverse=True)
        ids, other_ids = dense[: len(ids)], dense[len(ids) :]
        bits = int(dense.max(initial=0)).bit_length()
    return (ordinals - low) << bits | ids, (other_ordinals - low) << bits | other_ids


def _resolved(ordinals: Int64s, ids: Int64s, aliases: pa.Table) -> Int64s:
    """Each id, or the (smallest) one that it was merged into."""
    targets = _numbers(aliases, "annotation_id")
    codes, alias_codes = _codes(
        ordinals, ids, aliases["ordinal"].to_numpy(), aliases["alias"].to_numpy()
    )
    order = stable_order(targets)
    order = order[stable_order(alias_codes[order])]
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
