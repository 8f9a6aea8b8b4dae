"""What the strict reader takes, and what it refuses: the table, and the public suite of JSON texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import Malformed
from broker.faces.mcp.strict import INVALID_REQUEST, PARSE_ERROR, read_json, read_message
from broker.settings import Limits

LIMITS = Limits()
SUITE = Path(__file__).resolve().parents[3] / "shared" / "data" / "JSONTestSuite" / "test_parsing"


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def message(**members: Any) -> bytes:
    return orjson.dumps({"jsonrpc": "2.0", "id": 1, "method": "m", **members})


ACCEPTED: dict[str, tuple[bytes, Any]] = {
    "an object": (b'{"a": [1, 2.5, true, null, "x"]}', {"a": [1, 2.5, True, None, "x"]}),
    "an integer no float can hold": (b"[9007199254740993]", [9007199254740993]),
    "the least integer": (b"[-9223372036854775808]", [-(2**63)]),
    "the greatest integer": (b"[18446744073709551615]", [2**64 - 1]),
    "a NUL, which is data": (b'["\\u0000"]', ["\0"]),
    "a pair of surrogates": (b'["\\ud83d\\ude00"]', ["\U0001f600"]),
    "equal keys in two objects": (b'[{"a": 1}, {"a": 2}]', [{"a": 1}, {"a": 2}]),
    "nesting at the limit": (nested(64), None),
    "values at the limit": (b"[" + b"0," * 99_998 + b"0]", None),
    "commas inside a string": (orjson.dumps([',\\",' * 60_000]), None),
}

REFUSED: dict[str, tuple[bytes, int]] = {
    "nothing": (b"", PARSE_ERROR),
    "NaN": (b"[NaN]", PARSE_ERROR),
    "Infinity": (b"[Infinity]", PARSE_ERROR),
    "minus Infinity": (b"[-Infinity]", PARSE_ERROR),
    "a number beyond floats": (b"[1e400]", PARSE_ERROR),
    "a number beyond floats, alone": (b"-1e400", PARSE_ERROR),
    "a key twice": (b'{"a": 1, "a": 1}', PARSE_ERROR),
    "a key twice, once escaped": (b'{"a": 1, "\\u0061": 1}', PARSE_ERROR),
    "a key twice, deep": (b'{"x": [{"a": 1, "b": 2, "a": 3}]}', PARSE_ERROR),
    "a lone surrogate": (b'["\\ud800"]', PARSE_ERROR),
    "reversed surrogates": (b'["\\ude00\\ud83d"]', PARSE_ERROR),
    "a lone surrogate in a key": (b'{"\\udfff": 1}', PARSE_ERROR),
    "a byte order mark": (b"\xef\xbb\xbf{}", PARSE_ERROR),
    "UTF-16": ('{"a":1}'.encode("utf-16"), PARSE_ERROR),
    "UTF-16 without a mark": ('{"a":1}'.encode("utf-16-be"), PARSE_ERROR),
    "UTF-32": ('{"a":1}'.encode("utf-32-le"), PARSE_ERROR),
    "UTF-7": ('{"ä":1}'.encode("utf-7").replace(b'"', b"+ACI-"), PARSE_ERROR),
    "Latin-1": ('["ä"]'.encode("latin-1"), PARSE_ERROR),
    "an overlong encoding": (b'["\xc0\xaf"]', PARSE_ERROR),
    "a raw control character": (b'["\x01"]', PARSE_ERROR),
    "two values": (b"{} {}", PARSE_ERROR),
    "a comma at the end": (b"[1,]", PARSE_ERROR),
    "a comment": (b"[1] // x", PARSE_ERROR),
    "ten thousand digits": (b"[" + b"1" * 10_000 + b"]", PARSE_ERROR),
    "2^64": (b"[18446744073709551616]", INVALID_REQUEST),
    "-2^63-1": (b"[-9223372036854775809]", INVALID_REQUEST),
    "nesting one over the limit": (nested(65), INVALID_REQUEST),
    "nesting 1,000": (nested(1000), INVALID_REQUEST),
    "nesting 100,000": (nested(100_000), INVALID_REQUEST),
    "values one over the limit": (b"[" + b"0," * 99_999 + b"0]", INVALID_REQUEST),
    "a million elements": (b"[" + b"0," * 999_999 + b"0]", INVALID_REQUEST),
    "a million keys": (b"{" + b",".join(b'"%x":1' % i for i in range(400_000)) + b"}", INVALID_REQUEST),
    "many empty arrays": (b"[" + b",".join([b"[]"] * 100_000) + b"]", INVALID_REQUEST),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_json_for_everybody_is_read_exactly(name: str) -> None:
    body, expected = ACCEPTED[name]
    assert read_json(body, LIMITS) == (orjson.loads(body) if expected is None else expected)


@pytest.mark.parametrize("name", REFUSED)
def test_what_two_readers_could_read_in_two_ways_is_refused(name: str) -> None:
    body, code = REFUSED[name]
    with pytest.raises(Malformed) as refusal:
        read_json(body, LIMITS)
    assert refusal.value.facts["rpc_code"] == code
    assert len(refusal.value.sentence) < 300


NUMBERS = st.one_of(
    st.integers(-(2**65), 2**65).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.sampled_from(["-0", "-0.0", "1e400", "-1E400", "1E5", "1e-400", "0.1e1", "01", "1.", "1e16", "100000.0", "NaN"]),
)
TEXTS = st.one_of(
    st.text().map(lambda text: orjson.dumps(text).decode()), st.sampled_from(['"\\u0041"', '"\\/"', '"\\ud800"'])
)
KEYS = st.sampled_from(['"a"', '"b"', '"\\u0061"', '"\u00e9"'])


def _array(items: list[str]) -> str:
    return f"[{','.join(items)}]"


def _object(pairs: list[tuple[str, str]]) -> str:
    return "{" + ",".join(f"{key}:{value}" for key, value in pairs) + "}"


JSON = st.recursive(
    NUMBERS | TEXTS | st.sampled_from(["true", "null", "nil", ""]),
    lambda inner: st.lists(inner, max_size=4).map(_array) | st.lists(st.tuples(KEYS, inner), max_size=4).map(_object),
)


def told(body: bytes, limits: Limits) -> Any:
    """What is read, to the kind of its last number; or why not."""
    try:
        return repr(read_json(body, limits))
    except Malformed as refusal:
        return refusal.facts


@given(st.lists(st.tuples(KEYS, JSON), max_size=4).map(_object), st.integers(4, 40))
def test_what_comes_as_it_would_be_written_is_read_as_anything_else(text: str, most: int) -> None:
    """A blank at its end means nothing, but the quick way is not for it."""
    for limits in (LIMITS, Limits.model_construct(json_depth=3, json_nodes=most, json_string_bytes=12, id_bytes=9)):
        body = text.encode("utf-8", "surrogatepass")
        assert told(body, limits) == told(body + b" ", limits)


@pytest.mark.parametrize("name", [*ACCEPTED, *REFUSED])
def test_a_blank_at_the_end_changes_nothing(name: str) -> None:
    body = (ACCEPTED.get(name) or REFUSED[name])[0]
    assert told(body, LIMITS) == told(body + b" ", LIMITS)


def test_a_refusal_names_its_limit() -> None:
    small = Limits(json_string_bytes=1024)
    for body, limit in (
        (nested(65), "json_depth"),
        (b"[" + b"0," * 100_000 + b"0]", "json_nodes"),
        (orjson.dumps([{"a": "x" * 1025}]), "json_string_bytes"),
        (orjson.dumps({"é" * 513: 1}), "json_string_bytes"),
    ):
        with pytest.raises(Malformed) as refusal:
            read_json(body, small)
        assert refusal.value.facts["limit"] == limit
        assert limit in refusal.value.sentence


def test_a_string_at_the_limit_is_read_however_long_the_message() -> None:
    body = orjson.dumps(["x" * 1024, "é" * 512])
    assert read_json(body, Limits(json_string_bytes=1024)) == orjson.loads(body)


def test_a_refusal_quotes_nothing_of_what_was_sent() -> None:
    with pytest.raises(Malformed) as refusal:
        read_json(b'{"hunter2": 1, "hunter2": "hunter3"}', LIMITS)
    assert "hunter" not in refusal.value.sentence
    assert "twice" in refusal.value.sentence


ENVELOPES: dict[str, tuple[bytes, str]] = {
    "a request": (message(), "request"),
    "a request with a text id": (message(id="x" * 256), "request"),
    "a request without params": (message(params=None), "request"),
    "a notification": (b'{"jsonrpc": "2.0", "method": "m"}', "notification"),
    "a response": (b'{"jsonrpc": "2.0", "id": 1, "result": {}}', "response"),
    "an error": (b'{"jsonrpc": "2.0", "id": 1, "error": {"code": -1, "message": "no"}}', "response"),
}
NO_ENVELOPES: dict[str, bytes] = {
    "a batch": b"[" + message() + b"]",
    "a number": b"1",
    "no version": b'{"id": 1, "method": "m"}',
    "version 1.0": message(jsonrpc="1.0"),
    "id null": message(id=None),
    "id float": message(id=1.0),
    "id true": message(id=True),
    "id object": message(id={}),
    "id of 257 bytes": message(id="x" * 257),
    "id of 1 MB": message(id="x" * 1_000_000),
    "id of few characters and many bytes": message(id="\U0001f600" * 65),
    "method null": message(method=None),
    "params as an array": message(params=[]),
    "a result and an error": b'{"jsonrpc": "2.0", "id": 1, "result": {}, "error": {}}',
    "a result that is a number": b'{"jsonrpc": "2.0", "id": 1, "result": 5}',
    "an error that is a number": b'{"jsonrpc": "2.0", "id": 1, "error": 5}',
    "an error without code and message": b'{"jsonrpc": "2.0", "id": 1, "error": {}}',
    "an error whose code is true": b'{"jsonrpc": "2.0", "id": 1, "error": {"code": true, "message": "no"}}',
    "a result without an id": b'{"jsonrpc": "2.0", "result": {}}',
    "nothing at all": b"{}",
}


@pytest.mark.parametrize("name", ENVELOPES)
def test_one_json_rpc_message_is_told_by_its_kind(name: str) -> None:
    body, kind = ENVELOPES[name]
    assert read_message(body, LIMITS).kind == kind


@pytest.mark.parametrize("name", NO_ENVELOPES)
def test_anything_else_is_an_invalid_request(name: str) -> None:
    with pytest.raises(Malformed) as refusal:
        read_message(NO_ENVELOPES[name], LIMITS)
    assert refusal.value.facts["rpc_code"] == INVALID_REQUEST


def json_values() -> st.SearchStrategy[Any]:
    text = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
    scalars = (
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    )
    return st.recursive(
        scalars | text,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
        max_leaves=20,
    )


@given(json_values())
def test_whatever_a_strict_writer_writes_is_read_back_unchanged(value: Any) -> None:
    assert read_json(orjson.dumps(value), LIMITS) == value


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused_and_nothing_else(body: bytes) -> None:
    try:
        value = read_json(body, LIMITS)
    except Malformed:
        return
    assert orjson.loads(body) == value


def suite(verdict: str) -> list[Path]:
    return sorted(SUITE.glob(f"{verdict}_*.json"))


@pytest.mark.skipif(not SUITE.is_dir(), reason=f"JSONTestSuite is not at {SUITE}")
def test_the_public_suite_is_read_as_it_says() -> None:
    """y: must be accepted (or refused by a named limit); n: must be refused; i: either, without a crash."""
    assert len(suite("n")) > 180
    for path in suite("y"):
        read_or_limit(path)
    for path in suite("i"):
        try:
            read_or_limit(path)
        except Malformed:
            continue
    for path in suite("n"):
        with pytest.raises(Malformed):
            read_json(path.read_bytes(), LIMITS)


def read_or_limit(path: Path) -> None:
    try:
        read_json(path.read_bytes(), LIMITS)
    except Malformed as refusal:
        if "limit" not in refusal.facts:
            raise
