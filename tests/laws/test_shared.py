"""What is kept once is what was given: equal, in the same order, of the same types."""

from __future__ import annotations

from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from broker.model.shared import Pool, one

SCALARS = (
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from([0.0, -0.0, 1.0, 0.5]) | st.sampled_from("ab01")
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=8,
)


@given(st.lists(JSON, max_size=4))
def test_shared_values_read_as_they_were_given(values: list[Any]) -> None:
    pool = Pool()
    assert [orjson.dumps(pool.shared(value)) for value in values] == [orjson.dumps(value) for value in values]


def test_equal_parts_are_one_object() -> None:
    pool = Pool()
    first, second = (
        pool.shared(orjson.loads('{"a":{"type":"string","max":1000},"b":["x",{"type":"string","max":1000}]}'))
        for _ in range(2)
    )
    assert first is second
    assert first["a"] is first["b"][1]


def test_one_of_equal_values_is_of_its_own_type() -> None:
    assert one(frozenset({"a"})) is one(frozenset({"a"}))
    assert type(one(1.0)) is float
    assert type(one(1)) is int
