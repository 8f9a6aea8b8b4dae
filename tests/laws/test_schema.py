"""Schemas: what is accepted as one, what it may cost, and how faults are told."""

from __future__ import annotations

import gc
from typing import Any, cast

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.catalog.bounds import bounds_of, depth_exceeds
from broker.catalog.schema import KEPT_BYTES, Checker, Compiled, SchemaError

ORDER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "pattern": "^o-", "maxLength": 8},
        "amount": {"type": "integer", "minimum": 3},
        "day": {"type": "string", "format": "date"},
        "colour": {"enum": ["red", "blue"]},
        "who": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "lines": {"type": "array", "maxItems": 2, "uniqueItems": True, "items": {"type": "string"}},
        "to": {"type": "object", "properties": {"street": {"type": "string"}}, "additionalProperties": False},
        "kind": {"const": 5},
    },
    "required": ["id"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({}, "$.id is missing; add it"),
        ({"id": "o-1", "amout": 5}, "$.amout is not known here; did you mean amount?"),
        ({"id": "o-1", "zzz": 5}, "$.zzz is not known here; known: id, amount, day, colour, who, lines, to, kind"),
        ({"id": "o-1", "amount": "5"}, "$.amount must be an integer"),
        ({"id": "o-1", "amount": True}, "$.amount must be an integer"),
        ({"id": "o-1", "amount": 5.5}, "$.amount must be an integer"),
        ({"id": "o-1", "amount": 2}, "$.amount must be at least 3"),
        ({"id": "x"}, "$.id must match the pattern ^o-"),
        ({"id": "o-123456789"}, "$.id must have at most 8 characters"),
        ({"id": "o-1", "day": "tomorrow"}, "$.day must be a valid date"),
        ({"id": "o-1", "colour": "green"}, '$.colour must be one of "red", "blue"'),
        ({"id": "o-1", "who": 5}, "$.who must be a string or null"),
        ({"id": "o-1", "lines": ["a", 5]}, "$.lines[1] must be a string"),
        ({"id": "o-1", "lines": ["a", "a"]}, "$.lines must not have the same item twice"),
        ({"id": "o-1", "to": {"stret": "x"}}, "$.to.stret is not known here; did you mean street?"),
        ({"id": "o-1", "kind": 6}, "$.kind must be 5"),
    ],
)
def test_a_fault_says_where_what_and_what_would_be_right(arguments: dict[str, Any], told: str) -> None:
    assert told in Checker.compile(ORDER).faults(arguments)


@pytest.mark.parametrize("arguments", [{"id": "o-1"}, {"id": "o-1", "amount": 3.0, "who": None, "day": "2026-02-28"}])
def test_what_fits_has_no_fault(arguments: dict[str, Any]) -> None:
    assert Checker.compile(ORDER).faults(arguments) == ()


def test_no_fault_ever_shows_a_value() -> None:
    canary = "s3cr3t-canary"
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {
            "a": {"type": "integer"}, "b": {"enum": ["x"]}, "c": {"const": "x"}, "d": {"pattern": "^x"},
            "e": {"format": "uuid"}, "f": {"maxLength": 2}, "g": {"anyOf": [{"const": 1}, {"const": 2}]},
            "h": {"oneOf": [{"minLength": 20}, {"maxLength": 1}]}, "i": {"not": {"type": "string"}}, "j": False,
        },
        "propertyNames": {"maxLength": 1},
    }  # fmt: skip
    checker = Checker.compile(schema)
    for name in schema["properties"]:
        faults = checker.faults({name: canary})
        assert faults, name
        assert canary not in str(faults)
    assert canary not in str(checker.faults({"a": [canary] * 100}))


def test_hostile_names_in_faults_are_cut_and_escaped() -> None:
    faults = Checker.compile({"type": "object", "additionalProperties": False}).faults({"\u202e\nx" + "y" * 100_000: 1})
    assert len(faults[0]) < 200
    assert faults[0].isprintable()


def test_at_most_ten_faults_are_told() -> None:
    schema = {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(50)}}
    assert len(Checker.compile(schema).faults({f"p{n}": n for n in range(50)})) == 10


def test_what_the_broker_fills_in_is_not_the_callers_to_give() -> None:
    checker = Checker.compile({"type": "object"}, hidden=["tenant"])
    assert checker.faults({"tenant": "x"}) == ("$.tenant is filled in by the broker; leave it out",)
    assert checker.faults({"x": 1}) == ()


@pytest.mark.parametrize(
    ("schema", "word"),
    [
        ({"$ref": "http://127.0.0.1:9/x"}, "nothing is fetched"),
        ({"$ref": "file:///etc/passwd"}, "nothing is fetched"),
        ({"$ref": "other.json#/a"}, "nothing is fetched"),
        ({"$defs": {"unused": {"$ref": "https://example.com/x"}}}, "nothing is fetched"),
        ({"properties": {"a": {"$id": "http://example.com/", "$ref": "#/b"}}}, "$id"),
        ({"$ref": "#/$defs/none"}, "points to nothing"),
        ({"$ref": "#none"}, "$anchor"),
        ({"$dynamicRef": "#x"}, "$dynamicRef"),
        ({"properties": {"a": {"$recursiveRef": "#"}}}, "$recursiveRef"),
        ({"$schema": "http://example.com/mine"}, "$schema"),
        ({"type": "objekt"}, "not valid JSON Schema"),
        ({"properties": {"a": {"pattern": "("}}}, "regular expression"),
        ({"anyOf": [{"const": n} for n in range(10_000)]}, "10000 values"),
        ({"description": "x" * 262_144}, "262144 bytes"),
    ],
)
def test_what_is_not_a_bounded_schema_of_its_own_is_refused(schema: dict[str, Any], word: str) -> None:
    with pytest.raises(SchemaError) as error:
        Checker.compile(schema)
    assert word in str(error.value)


def test_references_within_a_schema_work() -> None:
    for reference in ("#/$defs/a~1b", "#here"):
        checker = Checker.compile(
            {"properties": {"x": {"$ref": reference}}, "$defs": {"a/b": {"$anchor": "here", "type": "string"}}}
        )
        assert checker.faults({"x": 1})
        assert not checker.faults({"x": "y"})


def test_an_older_dialect_is_taken_from_servers_only() -> None:
    old = {"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "string"}]}
    assert Checker.compile(old, foreign=True).faults([1])
    with pytest.raises(SchemaError):
        Checker.compile(old)


def nested(levels: int, part: dict[str, Any]) -> dict[str, Any]:
    for _ in range(levels):
        part = {"properties": {"a": part}}
    return part


def test_depth_is_accepted_at_the_limit_and_refused_above() -> None:
    assert Checker.compile(nested(23, {"type": "string"}))
    with pytest.raises(SchemaError, match="deeper than 48"):
        Checker.compile(nested(25, {"type": "string"}))
    with pytest.raises(SchemaError, match="deeper than 48"):
        Checker.compile(nested(5000, {}))


def doubling(levels: int) -> dict[str, Any]:
    defs: dict[str, Any] = {
        f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}, {"$ref": f"#/$defs/a{n + 1}"}]} for n in range(levels)
    }
    return {"$ref": "#/$defs/a0", "$defs": {**defs, f"a{levels}": {"type": "integer"}}}


def test_references_that_double_are_counted_out() -> None:
    assert Checker.compile(doubling(10)).faults("x")
    with pytest.raises(SchemaError, match="unfolds"):
        Checker.compile(doubling(25))


TREE = {"type": "object", "properties": {"l": {"$ref": "#"}, "r": {"$ref": "#"}, "of": {"items": {"$ref": "#"}}}}
TWICE: dict[str, Any] = {
    "$ref": "#/$defs/a",
    "$defs": {"a": {"anyOf": [{"properties": {"x": {"$ref": "#/$defs/a"}}, "required": ["q"]} for _ in range(2)]}},
}


def chain(levels: int, name: str = "x") -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {name: value}
    return value


def test_recursion_is_welcome_where_one_value_is_judged_once_per_level() -> None:
    assert bounds_of(TREE).branching == 1
    assert not Checker.compile(TREE).faults(chain(60, "l"))
    assert Checker.compile(TREE).faults({"l": {"r": 5}}) == ("$.l.r must be an object",)


def test_recursion_that_branches_on_one_value_is_bounded_by_depth() -> None:
    assert bounds_of(TWICE).branching == 2
    checker = Checker.compile(TWICE)
    assert "deeper than 16" in checker.faults(chain(60))[0]
    assert checker.faults(chain(14))
    assert checker.faults(chain(2))


def test_circles_of_references_end() -> None:
    circle = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}
    assert isinstance(Checker.compile(circle).faults({}), tuple)


def test_a_large_value_against_many_alternatives_is_refused_cheaply() -> None:
    checker = Checker.compile({"properties": {"q": {"anyOf": [{"const": n} for n in range(1000)]}}})
    assert "nearest" in checker.faults({"q": "a"})[0]
    assert checker.faults({"q": "a" * 100_000}) == ("$.q fails const of its schema",)
    assert "too large to say" in checker.faults({"q": "a" * 1_000_000})[0]


def test_a_pattern_cannot_be_made_to_run_away() -> None:
    assert Checker.compile({"pattern": "^(a+)+$"}).faults("a" * 30 + "!")
    assert not Checker.compile({"pattern": "^(?=a)(a+)+$"}).faults("a" * 30)


@given(
    st.recursive(
        st.integers(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
    )
)
def test_depth_is_counted_as_recursion_would(value: Any) -> None:
    def depth(value: Any) -> int:
        below: list[Any] = list(cast("dict[str, Any]", value).values()) if isinstance(value, dict) else []
        below += cast("list[Any]", value) if isinstance(value, list) else []
        return max((1 + depth(inner) for inner in below), default=0)

    found = depth(value)
    assert not depth_exceeds(value, found)
    assert found == 0 or depth_exceeds(value, found - 1)


# ------------------------------------------------------------------------------------------------------------ in memory


def test_schemas_that_say_the_same_are_one_and_others_are_not() -> None:
    first, second = ({"type": "object", "properties": {"n": {"minimum": 1}}} for _ in range(2))
    assert Checker.compile(first).schema is Checker.compile(second).schema
    for other in (
        {"properties": {"n": {"minimum": 1}}, "type": "object"},
        {**first, "properties": {"n": {"minimum": 1.0}}},
    ):
        assert orjson.dumps(Checker.compile(other).schema) == orjson.dumps(other)
    old = {"items": [{"type": "string"}], "type": "array"}
    assert Checker.compile({**old, "$schema": "http://json-schema.org/draft-07/schema"}, foreign=True).faults([1])
    hidden = Checker.compile(first, hidden=["n"])
    assert (Checker.compile(first).faults({"n": 1}), len(hidden.faults({"n": 1}))) == ((), 1)


def test_a_checker_judges_as_before_when_its_validator_has_made_room_for_others() -> None:
    def schema(number: int) -> dict[str, Any]:
        return {"type": "object", "properties": {f"p{number}": {"const": number, "description": "x" * 50_000}}}

    many = [Checker.compile(schema(number)) for number in range(40)]
    for _ in range(2):
        for number, checker in enumerate(many):
            assert checker.faults({f"p{number}": number}) == ()
            assert checker.faults({f"p{number}": -1}) == (f"$.p{number} must be {number}",)
    made = [one for one in gc.get_objects() if isinstance(one, Compiled) and one.validator is not None]
    assert 0 < sum(len(orjson.dumps(one.schema)) for one in made) <= KEPT_BYTES


def test_a_schema_the_engine_does_not_take_is_refused_each_time() -> None:
    for _ in range(2):
        with pytest.raises(SchemaError, match="regular expression"):
            Checker.compile({"type": "object", "properties": {"a": {"pattern": "("}}})
