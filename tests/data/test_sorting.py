"""The order of integers, against NumPy's own stable sort."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xvlm_data.sorting import stable_order

NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.integers(-70_000, 70_000),
    st.integers(-(2**40), 2**40),
    st.integers(-(2**62), 2**62),
)


@given(st.lists(NUMBERS, max_size=60))
def test_the_order_is_that_of_a_stable_sort(values: list[int]) -> None:
    keys = np.array(values, np.int64)
    assert stable_order(keys).tolist() == np.argsort(keys, kind="stable").tolist()


@pytest.mark.parametrize("kind", [np.int8, np.int32, np.uint16])
def test_narrow_integers_too(kind: type) -> None:
    info = np.iinfo(kind)
    keys = np.random.default_rng(0).integers(info.min, info.max, 5000, kind, endpoint=True)
    assert stable_order(keys).tolist() == np.argsort(keys, kind="stable").tolist()
