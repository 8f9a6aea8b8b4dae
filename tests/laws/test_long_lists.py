"""A list without measure in a server's answer is read only as far as anybody wants it, and says the same so far."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from broker.backends import decoding
from broker.backends.decoding import strict_json, strict_json_cut

INTEGERS = st.integers(-(2**63), 2**63 - 1)
NAMES = st.sampled_from(["tools", "resources", "resourceTemplates", "prompts", "content", "nextCursor"])
ENTRIES = st.lists(st.fixed_dictionaries({"name": st.text(max_size=12), "more": st.lists(INTEGERS, max_size=3)}))
VALUES = st.one_of(ENTRIES, st.none(), st.text(max_size=40), st.dictionaries(st.text(max_size=3), INTEGERS))
MESSAGES = st.one_of(
    st.fixed_dictionaries({"jsonrpc": st.just("2.0"), "id": INTEGERS, "result": st.dictionaries(NAMES, VALUES)}),
    st.fixed_dictionaries({"result": st.dictionaries(NAMES, VALUES), "id": INTEGERS}),
    st.fixed_dictionaries({"method": st.just("tools/list"), "params": st.dictionaries(NAMES, VALUES)}),
    VALUES,
)
LISTS = ("tools", "resources", "resourceTemplates", "prompts")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "LARGE_BYTES", 48)


def result_of(message: Any) -> dict[str, Any]:
    found: Any = cast("dict[str, Any]", message).get("result") if isinstance(message, dict) else None
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(message=MESSAGES, most=st.integers(0, 6), is_plain=st.booleans())
@example(message={"id": 1, "result": {"tools": [{"name": "é"}] * 60}}, most=3, is_plain=False)
def test_what_is_read_of_it_is_what_it_says(message: Any, most: int, is_plain: bool) -> None:
    body = json.dumps(message, ensure_ascii=is_plain).encode("utf-8", "replace")
    whole = strict_json(body)
    read, cut = strict_json_cut(body, most)
    if not cut:
        assert read == whole
        return
    assert len(body) > 48
    before, after = result_of(whole), result_of(read)
    assert read.get("id") == whole.get("id")
    cut_lists = [name for name in LISTS if isinstance(after.get(name), list) and after[name] != before[name]]
    assert any(after[name] == before[name][: most + 1] for name in cut_lists)
    assert [name for name in after if name not in cut_lists and after[name] != before[name]] in ([], [[*after][-1]])


@pytest.mark.parametrize(
    "rest",
    [b']},"id":1}', b'],"tools":[]},"id":1}', b"\x00", b"]]]", b""],
    ids=["sound", "twice", "zero", "shut", "cut"],
)
def test_what_comes_after_enough_is_not_looked_at(rest: bytes) -> None:
    entry = b'{"name":"t"}'
    read, cut = strict_json_cut(b'{"id":7,"result":{"tools":[' + b",".join([entry] * 100) + rest, 4)
    assert cut and read == {"id": 7, "result": {"tools": [{"name": "t"}] * 5}}


@pytest.mark.parametrize(
    "body",
    [
        b'{"id":7,"id":8,"result":{"tools":[%s]}}',
        b'{"id":7,"result":{"tools":[NaN,%s]}}',
        b'{"id":7,"result":{"tools":[{"name":"a","name":"b"},%s]}}',
        b'{"id":7,"result":{"tools":[\xff%s]}}',
        b'{"id":7,"result":{"tools":[{"name":1e400},%s]}}',
        b'{"id":7,"result":{"tools":[{"name":9223372036854775807000},%s]}}',
        b'{"result":{"tools":[%s]},"id":7,"id":8}',
    ],
)
def test_what_is_read_is_read_strictly(body: bytes) -> None:
    with pytest.raises(ValueError):
        strict_json_cut(body % b",".join([b'{"name":"t"}'] * 100), 4)
