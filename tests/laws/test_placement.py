"""Whatever the arguments are, a request parses back into exactly the declared structure, or there is none."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, unquote

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.backends.http import KIND, Action
from broker.backends.placement import TARGET_BYTES, Placed, Placements
from broker.errors import InvalidArguments

SCHEMA = {
    "type": "object",
    "properties": {"id": {"type": "string"}, "q": {}, "h": {}, "b": {}, "rest": {}},
    "required": ["id"],
    "additionalProperties": False,
}
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def compiled(action: dict[str, Any], schema: dict[str, Any] = SCHEMA, *inject: str) -> Placements:
    placements = KIND.compile(Action.model_validate(action), schema, inject)
    assert isinstance(placements, Placements)
    return placements


EVERYWHERE = compiled(
    {
        "method": "POST",
        "path": "/orders/{id}/v-{id}.json",
        "query": {"find": "q", "page[size]": {"const": 3}},
        "headers": {"X-Shop": "h"},
        "body": {"note": {"deep": "b"}, "fixed": {"const": {"arg": 1}}},
    }
)


@given(
    st.text(st.characters()),
    st.one_of(st.text(), st.integers(-(2**63), 2**64 - 1), st.booleans()),
    st.text(),
    JSON,
    JSON,
)
def test_any_argument_stays_in_its_place(identity: str, found: Any, shop: str, note: Any, rest: Any) -> None:
    arguments = {"id": identity, "q": found, "h": shop, "b": note, "rest": rest}
    try:
        placed = EVERYWHERE.place(arguments)
    except InvalidArguments as refused:
        assert refused.effect == "none"
        printable = all(" " <= sign <= "~" or "\xa0" <= sign <= "\xff" for sign in shop) and shop == shop.strip(" ")
        assert identity in ("", ".", "..") or not printable
        return
    assert path_and_query(placed) == (
        ["", "orders", identity, f"v-{identity}.json"],
        [("find", str(found).lower() if isinstance(found, bool) else str(found)), ("page[size]", "3")],
    )
    assert placed.target.isascii()
    assert placed.headers == (("X-Shop", shop),)
    assert placed.body is not None
    assert orjson.loads(placed.body) == {"note": {"deep": note}, "fixed": {"arg": 1}, "rest": rest}


def path_and_query(placed: Placed) -> tuple[list[str], list[tuple[str, str]]]:
    path, _, query = placed.target.partition("?")
    return [unquote(segment) for segment in path.split("/")], parse_qsl(
        query, keep_blank_values=True, strict_parsing=bool(query)
    )


HOSTILE = [
    "../admin", "..%2f", "a/b", "a?b#c", "%00", "\0", "a\r\nHost: evil", "'; DROP TABLE", "{{7*7}}", "${7*7}", "%s",
    "{0.__class__}", "{id}", "\\..\\", "ａ", "\u202e", "&x=1", "=", ";", "@evil", "//evil", "\U0001f600",
]  # fmt: skip


@pytest.mark.parametrize("value", HOSTILE)
def test_hostile_text_is_data(value: str) -> None:
    placements = compiled(
        {"path": "/a/{id}", "query": {"q": "q"}, "method": "GET"},
        {"properties": {"id": {}, "q": {}}, "required": ["id"]},
    )
    assert path_and_query(placements.place({"id": value, "q": value})) == (["", "a", value], [("q", value)])


@pytest.mark.parametrize("value", ["", ".", "..", None, [], {}, ["a"], "\ud800"])
def test_a_path_takes_one_segment_or_nothing(value: Any) -> None:
    placements = compiled({"path": "/a/{id}/b"}, {"properties": {"id": {}}, "required": ["id"]})
    with pytest.raises(InvalidArguments):
        placements.place({"id": value})
    assert placements.place({"id": "..."}).target == "/a/.../b"


def test_dots_put_together_from_two_arguments_are_refused_too() -> None:
    placements = compiled({"path": "/a/{x}{y}"}, {"properties": {"x": {}, "y": {}}, "required": ["x", "y"]})
    with pytest.raises(InvalidArguments):
        placements.place({"x": ".", "y": "."})
    assert placements.place({"x": "", "y": "b"}).target == "/a/b"


@pytest.mark.parametrize(
    "value", ["a\r\nX: y", "a\nb", "\0", "\x7f", "\x85", "€", " a", "a ", "\t", "x" * 100_000, {}, []]
)
def test_a_header_takes_printable_latin_1(value: Any) -> None:
    placements = compiled({"path": "/", "headers": {"X-A": "h"}}, {"properties": {"h": {}}})
    with pytest.raises(InvalidArguments):
        placements.place({"h": value})
    assert placements.place({"h": "é 5%"}).headers == (("X-A", "é 5%"),)


def test_a_target_has_a_length() -> None:
    placements = compiled(
        {"path": "/a/{id}", "query": {"q": "q"}, "method": "GET"},
        {"properties": {"id": {}, "q": {}}, "required": ["id"]},
    )
    room = TARGET_BYTES - len("/a/b?q=")
    assert len(placements.place({"id": "b", "q": "x" * room}).target) == TARGET_BYTES
    for long in ({"id": "b", "q": "x" * (room + 1)}, {"id": "x" * TARGET_BYTES}, {"id": "b", "q": ["é"] * room}):
        with pytest.raises(InvalidArguments, match="longer than"):
            placements.place(long)


def test_what_is_absent_is_left_out_and_lists_repeat() -> None:
    placements = compiled({"method": "GET", "path": "/"}, {"properties": {"a": {}, "b": {}, "c": {}}})
    assert placements.place({"a": ["x", 1, True], "b": None}).target == "/?a=x&a=1&a=true"


def test_arguments_without_a_place_go_into_the_query_or_the_body() -> None:
    schema: dict[str, Any] = {"properties": {"a": {}, "b": {}}}
    assert compiled({"method": "DELETE", "path": "/"}, schema).place({"a": 1, "b": 2}).target == "/?a=1&b=2"
    assert compiled({"method": "PATCH", "path": "/"}, schema).place({"a": 1}).body == b'{"a":1}'
    assert compiled({"method": "POST", "path": "/"}, {}).place({}).body is None
    assert compiled({"method": "POST", "path": "/"}, {}, "tenant").place({"tenant": "t"}).body == b'{"tenant":"t"}'


def test_one_argument_can_be_the_whole_body() -> None:
    placements = compiled({"method": "PUT", "path": "/", "body": {"arg": "b"}}, {"properties": {"b": {}}})
    assert placements.place({"b": [1, {"x": None}]}).body == b'[1,{"x":null}]'
    assert placements.place({}).body is None


def test_an_argument_nobody_declared_is_refused() -> None:
    with pytest.raises(InvalidArguments, match="no place"):
        compiled({"method": "POST", "path": "/"}, {"properties": {}}).place({"role": "admin"})


@pytest.mark.parametrize(
    ("action", "says"),
    [
        ({"path": "a"}, "starts with /"),
        ({"path": "/a//b"}, "empty segment"),
        ({"path": "/a/../b"}, "segment . or .."),
        ({"path": "/%2e%2e/b"}, "segment . or .."),
        ({"path": "/a?x=1"}, "not plain path text"),
        ({"path": "/a#x"}, "not plain path text"),
        ({"path": "/a b"}, "not plain path text"),
        ({"path": "/{+id}"}, "no argument '+id'"),
        ({"path": "/{ide}"}, "did you mean 'id'"),
        ({"path": "/{opt}"}, "required"),
        ({"path": "/{obj}"}, "not a single value"),
        ({"path": "/x/{id", "method": "GET"}, "not plain path text"),
        ({"path": "/", "query": {"a": "nope"}}, "no argument 'nope'"),
        ({"path": "/", "query": {"a": "obj"}}, "not a single value"),
        ({"path": "/", "query": {"a": {"const": {"x": 1}}}}, "not a single value"),
        ({"path": "/", "headers": {"Authorization": "id"}}, "credential"),
        ({"path": "/", "headers": {"cookie": "id"}}, "credential"),
        ({"path": "/", "headers": {"Mcp-Session-Id": "id"}}, "not for manifests"),
        ({"path": "/", "headers": {"X-Forwarded-For": "id"}}, "not for manifests"),
        ({"path": "/", "headers": {"X A": "id"}}, "not a header name"),
        ({"path": "/", "headers": {"X-A": {"const": "a\nb"}}}, "control characters"),
        ({"path": "/", "headers": {"X-A": "id", "x-a": "id"}}, "upper and lower case"),
        ({"path": "/", "method": "GET", "body": {"a": "id"}}, "GET has no body"),
        ({"path": "/", "method": "GET"}, "'obj' is not a single value"),
        ({"path": "/", "method": "POST", "body": {"arg": "obj"}}, "placed elsewhere"),
        ({"path": "/", "method": "POST", "body": {"id": {"const": 1}, "x": {"y": "opt"}}}, "field 'id' is taken"),
        ({"path": "/", "method": "POST", "body": {"a": 5}}, "an argument's name"),
    ],
)  # fmt: skip
def test_a_wrong_placement_is_found_at_load(action: dict[str, Any], says: str) -> None:
    schema = {
        "properties": {"id": {"type": "string"}, "opt": {"type": ["integer", "null"]}, "obj": {"type": "object"}},
        "required": ["id", "obj"],
    }
    with pytest.raises(ValueError, match=r"\w") as problem:
        compiled(action, schema)
    assert says in str(problem.value)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ValueError, match=r"\w") as problem:
        compiled({"path": "/{a}", "query": {"b": "b"}, "headers": {"Host": "c"}}, {})
    assert len(str(problem.value).splitlines()) >= 4
