"""What records keep of arguments: a mode for the tool and others for single fields, and no secret in any of them."""

from __future__ import annotations

import hashlib
import hmac
import re
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from broker.model.canonical import canonical
from broker.model.invocation import InvocationQuery
from broker.policies.detection import PATTERNS, is_suspect, scrubbed
from broker.policies.record import Kept, RecordSpec, Redaction, is_secret_name, secret_paths
from broker.ports import Store
from broker.verifier import verify
from tests import second_verifier
from tests.records import intent, open_store


def mac(path: str, value: Any) -> bytes:
    return hmac.digest(b"key", path.encode() + canonical(value), "sha256")


def taken(spec: Any, arguments: dict[str, Any], *paths: str) -> Kept:
    masks = [path.split(".") for path in paths]
    return Redaction.compile(RecordSpec.model_validate(spec), masks).kept(arguments, canonical(arguments), mac)


def kept(spec: Any, arguments: dict[str, Any], *paths: str) -> Any:
    found = taken(spec, arguments, *paths).clear
    return None if found is None else orjson.loads(found)


def test_the_mode_decides_what_is_kept() -> None:
    arguments = {"b": "x" * 2000, "a": 1}
    assert kept("none", arguments) is None
    assert kept("digest", arguments) is None
    assert kept("full", arguments) == {"a": "[sealed]", "b": "[sealed]"}
    assert orjson.loads(taken("full", arguments).sealed) == arguments
    assert kept("hmac", arguments) == {name: f"hmac:{mac(name, value).hex()}" for name, value in arguments.items()}
    assert kept("redacted", arguments) == {"a": 1, "b": "x" * 1024 + "… (2000 characters)"}


@pytest.mark.parametrize("mode", ["redacted", "full"])
def test_secrets_by_name_and_by_path_are_never_kept(mode: Any) -> None:
    arguments = {
        "password": "canary", "access_token": "canary", "apiKey": "canary", "X-Authorization": "canary",
        "PIN": "canary",
        "card": {"number": "canary", "brand": "visa"}, "lines": [{"iban": "canary", "n": 1}, {"iban": "canary"}],
        "deep": {"client-secret": {"any": "canary"}}, "tokens": 5, "keyboard": "qwertz",
    }  # fmt: skip
    took = taken(mode, arguments, "card.number", "lines.iban")
    assert b"canary" not in (took.clear or b"") + took.sealed
    if mode == "full":
        assert b"visa" in took.sealed
        return
    found = orjson.loads(took.clear or b"")
    assert found["card"] == {"number": "[redacted]", "brand": "visa"}
    assert found["lines"] == [{"iban": "[redacted]", "n": 1}, {"iban": "[redacted]"}]
    assert (found["tokens"], found["keyboard"]) == (5, "qwertz")


def test_a_short_path_wins_over_a_longer_one() -> None:
    for paths in (("card", "card.number"), ("card.number", "card")):
        assert kept("redacted", {"card": {"number": 1, "brand": 2}}, *paths) == {"card": "[redacted]"}


def test_many_arguments_are_not_kept_but_their_size_is() -> None:
    assert "[omitted]" in kept("redacted", {f"k{n}": "x" * 1000 for n in range(100)})


def test_what_the_schema_calls_secret_is_redacted() -> None:
    schema = {
        "properties": {
            "code": {"type": "string", "format": "password"},
            "list": {"type": "array", "items": {"properties": {"x": {"writeOnly": True}, "y": {}}}},
        }
    }
    assert secret_paths(schema) == [("code",), ("list", "x")]


@given(
    st.dictionaries(
        st.text(max_size=8), st.recursive(st.integers(-9, 9), lambda x: st.lists(x, max_size=2), max_leaves=4)
    )
)
def test_what_is_kept_is_the_same_however_the_arguments_were_ordered(arguments: dict[str, Any]) -> None:
    backwards = dict(reversed(arguments.items()))
    for mode in ("redacted", "hmac", "full"):
        assert taken(mode, arguments).clear == taken(mode, backwards).clear
    assert all(is_secret_name(name) or kept("redacted", arguments)[name] == arguments[name] for name in arguments)


def test_each_field_has_its_own_mode_and_a_longer_path_the_last_word() -> None:
    arguments = {
        "order_id": 123, "customer": {"id": "c-7", "name": "Ann", "note": "calls at night"}, "why": "broken",
        "lines": [{"sku": "a", "n": 1}, {"sku": "b", "n": 2}], "card": "4242", "api_token": "t-1",
    }  # fmt: skip
    fields = {
        "order_id": "hmac", "customer": "full", "customer.id": "hmac", "customer.note": "none", "lines.sku": "hmac",
        "card": "digest", "api_token": "hmac", "absent": "full",
    }  # fmt: skip
    took = taken({"default": "redacted", "fields": fields}, arguments)
    assert orjson.loads(took.clear or b"") == {
        "order_id": f"hmac:{mac('order_id', 123).hex()}",
        "customer": {"id": f"hmac:{mac('customer.id', 'c-7').hex()}", "name": "[sealed]"},
        "why": "broken",
        "lines": [{"sku": f"hmac:{mac('lines.sku', sku).hex()}", "n": n} for sku, n in (("a", 1), ("b", 2))],
        "card": "sha256:" + hashlib.sha256(b'"4242"').hexdigest(),
        "api_token": f"hmac:{mac('api_token', 't-1').hex()}",
    }
    assert orjson.loads(took.sealed) == {"customer": {"name": "Ann"}}
    assert len(took.macs) == 5
    assert kept({"default": "none", "fields": {"order_id": "hmac"}}, arguments).keys() == {"order_id"}
    assert kept({"default": "digest", "fields": {"why": "redacted"}}, arguments) == {"why": "broken"}


@pytest.mark.parametrize(
    "spec", ["all", {"default": "x"}, {"fields": {"a": "x"}}, {"fields": {"a b": "none"}}, {"field": {}}, 7]
)
def test_a_mode_that_is_none_is_refused(spec: Any) -> None:
    with pytest.raises(ValidationError):
        RecordSpec.model_validate(spec)


FOUND = {
    "private_key": "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA7\n-----END RSA PRIVATE KEY-----",
    "jwt": "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhbm4ifQ.c2lnbmF0dXJl",
    "api_key": "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
    "authorization": "Bearer mF_9.B5f-4.1JqM0mF",
    "url_password": "scott:tiger",
    "email": "ann.lee+x@mail.example.org",
    "iban": "DE89 3704 0044 0532 0130 00",
    "card": "4242 4242 4242 4242",
    "us_ssn": "078-05-1120",
    "phone": "+49 (30) 901820-00",
}
LEFT = (
    "order 4242 4242 4242 4243 of 2026-11-26", "DE00 3704 0044 0532 0130 00", "sk-short", "a@b", "12:30:45",
    "019abf90-a4ee-7000-8000-000000000005", "sha256:19ca09bfb7a579eff412c88cac112f2d9ae0640b50d81e55e6b02ce27dfda426",
    "https://example.com/a?b=c", "the bearer of news", "version 1.2.3.4",
)  # fmt: skip


def test_what_looks_like_a_secret_or_a_person_is_found_in_a_text() -> None:
    assert FOUND.keys() == PATTERNS.keys()
    for name, example in FOUND.items():
        frame = ("postgres://", "@db/x") if name == "url_password" else ("so: ", " and on")
        assert scrubbed(example.join(frame)) == f"[redacted: {name}]".join(frame)
        assert kept("redacted", {"text": example.join(frame)})["text"] == f"[redacted: {name}]".join(frame)
    for text in LEFT:
        assert scrubbed(text) == text


@given(st.sampled_from([*PATTERNS]).flatmap(lambda name: st.from_regex(re.compile(PATTERNS[name], re.ASCII))))
def test_no_text_with_anything_of_the_table_in_it_is_passed_over(text: str) -> None:
    assert is_suspect(text)


def test_a_secret_across_the_cut_is_no_half_secret() -> None:
    text = "x " * 505 + FOUND["jwt"] + " y" * 500
    assert "eyJ" not in kept("redacted", {"text": text})["text"]


@pytest.mark.parametrize("unit", ["a", "9", "9 ", "eyJa", "a.", "A0 ", "+1 ", "x@a.", "-", "://a:", "Bearer "])
def test_no_text_sends_the_patterns_astray(unit: str) -> None:
    """A pattern that backtracks would not come to an end; and what comes after such a text is found all the same."""
    assert scrubbed(unit * 5000 + " " + FOUND["jwt"]).endswith(" [redacted: jwt]")


# ------------------------------------------------------------------------------------------------------- in the store


async def found_by(store: Store, path: str, value: Any) -> list[str]:
    query = InvocationQuery(macs=(store.mac(path, value)[:16],))
    return [one.call_id for one in await store.invocations(query)]


def stored(redaction: Redaction, store: Store, arguments: dict[str, Any]) -> Any:
    took = redaction.kept(arguments, canonical(arguments), store.mac)
    return intent(arguments=arguments, kept=took.clear, sealed=took.sealed, macs=took.macs)


@pytest.mark.anyio
async def test_a_call_is_found_by_what_nobody_can_read_and_sealed_arguments_by_an_auditor_only(tmp_path: Path) -> None:
    spec = RecordSpec.model_validate({"default": "full", "fields": {"order_id": "hmac"}})
    redaction = Redaction.compile(spec, [])
    store = await open_store(tmp_path)
    first, second = (stored(redaction, store, {"order_id": n, "note": "canary-4711"}) for n in (123, 124))
    for one in (first, second):
        await store.admit(one)
    assert await found_by(store, "order_id", 123) == [first.call_id]
    assert await found_by(store, "order_id", "123") == []
    assert await found_by(store, "note", 123) == []
    told = await store.payload(first.call_id, by="olga", via="cli")
    assert orjson.loads(told or b"") == {"note": "canary-4711"}
    assert await store.payload("no-such-call", by="olga", via="cli") is None
    await store.aclose()
    database = tmp_path / "broker.db"
    assert b"canary" not in database.read_bytes()
    assert verify(database).ok
    assert second_verifier.judge(database) is None
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(database, isolation_level=None)) as db:
        read = [orjson.loads(row[0]) for row in db.execute("select body from entry where kind = 'payload_read'")]
        db.execute("update payload set body = cast(body || 'x' as blob) where part = 'full'")
    assert read == [{"by": "olga", "call_id": first.call_id, "via": "cli"}]
    fault = verify(database).fault
    assert fault is not None
    assert "sealed arguments" in fault.what


def test_another_key_finds_nothing(tmp_path: Path) -> None:
    async def macs(name: str, key: bytes = b"") -> bytes:
        (tmp_path / name).mkdir(exist_ok=True)
        store = await open_store(tmp_path / name, key=key)
        found = store.mac("order_id", 123)
        await store.aclose()
        return found

    one, again, other = (anyio.run(macs, name) for name in ("a", "a", "b"))
    assert one == again != other
    given = [anyio.run(macs, name, bytes(range(32))) for name in ("c", "d")]
    assert given[0] == given[1]
    assert not (tmp_path / "c" / "broker.db.key").exists()
