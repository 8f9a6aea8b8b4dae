"""Strict YAML: what is read, what is refused, and that everything refused says where."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, ValidationError

from broker.document import Parsed, parse, parse_file, parse_value, problems_in, read_documents
from broker.errors import ConfigurationError


def read(text: str) -> Any:
    parsed = parse(text.encode(), "f.yaml")
    assert not parsed.problems, parsed.problems
    return parsed.documents[0].data


def wrong(text: str | bytes) -> list[str]:
    data = text.encode() if isinstance(text, str) else text
    return [str(problem) for problem in parse(data, "f.yaml").problems]


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("no", "no"), ("yes", "yes"), ("on", "on"), ("true", True), ("False", False), ("null", None), ("~", None),
        ("1:30", "1:30"), ("2026-01-01", "2026-01-01"), ("0o17", 15), ("0x1F", 31), ("+5", 5), ("-5", -5),
        ("1_000", "1_000"), ("1.0", 1.0), (".5", 0.5), ("1e3", 1000.0), ("'5'", "5"), ('"5"', "5"), ("=", "="),
        ("9223372036854775807", 2**63 - 1),
        ('"\\ud83d\\ude00"', "😀"), ("'{{7*7}}'", "{{7*7}}"), ("${env:X}", "${env:X}"), ("|\n  a\n  b\n", "a\nb\n"),
    ],
)  # fmt: skip
def test_scalars_are_read_by_the_core_schema_of_yaml_1_2(written: str, value: Any) -> None:
    found = read(f"key: {written}")["key"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "place", "word"),
    [
        ("a: 1\nb: 2\na: 3", "3:1", "duplicate key 'a'; it stands first in line 1"),
        ("x: {a: 1, a: 2}", "1:11", "duplicate key"),
        ("a: !!binary aGk=", "1:4", "tags"),
        ("a: !!python/object/apply:os.system [id]", "1:4", "tags"),
        ("a: ! x", "1:4", "tags"),
        ("a: !!str 5", "1:4", "tags"),
        ("%TAG ! tag:x,2000:\n---\na: 1", "2:1", "%TAG"),
        ("%YAML 1.1\n---\na: 1", "2:1", "1.2"),
        ("<<: {a: 1}", "1:1", "merge keys"),
        ("a: &x 1\nb: *x", "1:4", "anchors"),
        ("a: *x", "1:4", "aliases"),
        ("1: a", "1:1", 'a key must be text; write "1" in quotes'),
        ("true: a", "1:1", "a key must be text"),
        (": a", "1:1", "a key must be text"),
        ("? [a]\n: b", "1:3", "a key must be text"),
        ("? {a: 1}\n: b\nc: d", "1:3", "a key must be text"),
        ("a: .nan", "1:4", "finite"),
        ("a: -.inf", "1:4", "finite"),
        ("a: 1e400", "1:4", "finite"),
        ("a: 9223372036854775808", "1:4", "64 bits"),
        ("a: 012", "1:4", "begin with 0"),
        ('a: "\\ud800"', "1:4", "surrogate"),
        ("a: 'x", "1:6", "not valid YAML"),
        ("a: b: c", "1:5", "in quotes"),
        ("a:\n\t- b", "2:1", "spaces"),
        ("a: @x", "1:4", "in quotes"),
        ("a: [1, 2", "1:9", "not valid YAML"),
        ("a: \x07", "1:4", "U+0007"),
        ("a: \x00", "1:4", "U+0000"),
    ],
)
def test_what_is_not_plain_data_is_refused_with_its_place(text: str, place: str, word: str) -> None:
    assert any(told.startswith(f"f.yaml:{place}: ") and word in told for told in wrong(text)), wrong(text)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"\xef\xbb\xbfa: 1", "byte order mark"),
        ("a: 1".encode("utf-16"), "byte order mark"),
        ("a: 1".encode("utf-16-le"), "U+0000"),
        (b"a: 1\nb: \xff", "f.yaml:2:4: not UTF-8"),
        (b"a: " + b"x" * 1_048_576, "larger than 1048576 bytes"),
    ],
)
def test_another_encoding_or_too_many_bytes_are_refused(data: bytes, word: str) -> None:
    (told,) = wrong(data)
    assert word in told


def test_depth_and_number_of_values_are_accepted_at_the_limit_and_refused_above() -> None:
    assert not wrong("[" * 64 + "]" * 64)
    assert "deeper than 64" in wrong("[" * 65 + "]" * 65)[0]
    assert "deeper than 64" in wrong("[" * 500_000)[0]
    assert not wrong("- 1\n" * 99_999)
    assert "more than 100000 values" in wrong("- 1\n" * 100_001)[0]


def test_an_alias_bomb_costs_no_more_than_its_bytes() -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    many = "b:\n" + "- *a0\n" * 100_000
    tracemalloc.start()
    try:
        found = wrong("\n".join([*levels, many]))
        assert tracemalloc.get_traced_memory()[1] < 60_000_000
    finally:
        tracemalloc.stop()
    assert "anchors" in found[0]
    assert len(found) == 100
    assert "aliases" in wrong("a: &a [*a]")[1]


def test_every_problem_of_a_file_is_told_and_the_rest_is_still_read() -> None:
    parsed = parse(b"a: 1\na: 2\n---\nb: !!x 1\nc: 3\n---\n- d", "f.yaml")
    assert [problem.line for problem in parsed.problems] == [2, 4]
    assert [document.data for document in parsed.documents] == [{"a": 1}, {"b": "1", "c": 3}, ["d"]]


def test_documents_are_told_apart_and_empty_ones_left_out() -> None:
    parsed = parse(b"---\n---\na: 1\n...\n---\n# nothing\n---\nb: 2\n", "f.yaml")
    assert [(document.data, document.source) for document in parsed.documents] == [
        ({"a": 1}, "f.yaml:3"),
        ({"b": 2}, "f.yaml:8"),
    ]


def test_json_is_read_even_with_tabs() -> None:
    text = json.dumps({"a": [1, {"b": None}], "c": "x"}, indent="\t")
    assert parse(text.encode(), "f.json", json=True).documents[0].data == json.loads(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_characters="\x7f\ufffe\uffff", exclude_categories=("Cc", "Cs"))),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abcde", max_size=5), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(json_values)
def test_any_json_document_means_in_yaml_what_it_means_in_json(value: Any) -> None:
    for ascii_only in (True, False):
        parsed = parse(json.dumps([value], ensure_ascii=ascii_only).encode(), "f.json", json=True)
        assert not parsed.problems
        assert parsed.documents[0].data == [value]


@given(st.binary(max_size=200))
def test_any_bytes_end_in_documents_or_problems(data: bytes) -> None:
    assert isinstance(parse(data, "f"), Parsed)


@given(st.text("ab:-[]{}&*!|>'\"%@` \n#?,<~01.", max_size=60))
def test_any_text_of_yaml_signs_ends_in_documents_or_problems(text: str) -> None:
    assert isinstance(parse(text.encode(), "f"), Parsed)


def test_a_file_that_cannot_be_read_is_a_problem_and_one_that_can_is_not(tmp_path: Path) -> None:
    assert "No such file" in parse_file(tmp_path / "no.yaml").problems[0].message
    (tmp_path / "yes.yaml").write_text("a: 1")
    assert read_documents(tmp_path / "yes.yaml")[0].data == {"a": 1}
    (tmp_path / "bad.yaml").write_text("a: 1\na: 2")
    with pytest.raises(ConfigurationError, match="duplicate"):
        read_documents(tmp_path / "bad.yaml")


def test_one_value_is_read_as_in_a_file() -> None:
    assert parse_value("[a, 1, true]") == ["a", 1, True]
    assert parse_value("") is None
    with pytest.raises(ValueError, match="aliases"):
        parse_value("*a")


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    effect: str
    count: int = 0


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    items: list[Inner] = []
    named: dict[str, Inner] = {}
    maybe: Inner | None = None


def test_what_a_model_finds_wrong_is_told_at_its_place_with_the_nearest_known_key() -> None:
    text = (
        b"name: 5\nitems:\n  - {efect: x}\n  - {effect: x, count: '5'}\nnamed: {k: {effect: x, coutn: 1}}\nmaybe: {}\n"
    )
    document = parse(text, "f.yaml").documents[0]
    with pytest.raises(ValidationError) as error:
        Outer.model_validate(document.data, strict=True)
    assert [str(problem) for problem in sorted(problems_in(document, error.value, Outer))] == [
        "f.yaml:1:7: name: must be text; put it in quotes",
        "f.yaml:3:5: items[0].effect: missing key",
        "f.yaml:3:6: items[0]: unknown key 'efect'; did you mean 'effect'?",
        "f.yaml:4:24: items[1].count: must be a whole number",
        "f.yaml:5:24: named.k: unknown key 'coutn'; did you mean 'count'?",
        "f.yaml:6:8: maybe.effect: missing key",
    ]
