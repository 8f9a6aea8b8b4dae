"""What of an answer is handed on, and what of arguments a record keeps."""

from __future__ import annotations

from typing import Any, cast

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from broker.catalog.schema import Checker
from broker.errors import AnswerWithheld
from broker.model.answer import Answer
from broker.policies.answer import AnswerSpec, Shape


def shape(**keys: Any) -> Shape:
    spec = AnswerSpec.model_validate(keys)
    faults = Checker.compile(spec.output).faults if spec.output is not None else None
    return Shape.compile(spec, faults)


def json_answer(value: Any, **more: Any) -> Answer:
    structured = cast("dict[str, Any]", value) if isinstance(value, dict) else {"result": value}
    return Answer(content=({"type": "text", "text": orjson.dumps(value).decode()},), structured=structured, **more)


def texts(answer: Answer) -> list[str]:
    return [block["text"] for block in answer.content]


def test_an_answer_without_wishes_is_handed_on_as_it_is() -> None:
    answer = json_answer({"a": 1}, meta={"x": 1}, more={"y": 2})
    assert shape().inspect(answer) is answer


@pytest.mark.parametrize(
    ("body", "select", "structured", "text"),
    [
        ({"id": 1, "secret": 2}, "{id: id}", {"id": 1}, '{"id":1}'),
        ([{"id": 1}, {"id": 2}], "[].id", {"result": [1, 2]}, "[1,2]"),
        ([{"id": 1}], "{ids: [].id}", {"ids": [1]}, '{"ids":[1]}'),
        ({"id": 1}, "nothing", {"result": None}, "null"),
        ("plain", "@", {"result": "plain"}, "plain"),
    ],
)
def test_a_selection_is_over_the_body_as_it_was(body: Any, select: str, structured: Any, text: str) -> None:
    found = shape(result={"select": select}).inspect(json_answer(body, status="HTTP 200", spent={"calls": 1}))
    assert (found.structured, texts(found)) == (structured, [text])
    assert (found.status, found.spent) == ("HTTP 200", {"calls": 1})


def test_the_text_for_the_model_may_be_selected_too() -> None:
    found = shape(result={"select": "{id: id}", "text": "join(' ', ['Order', to_string(id)])"}).inspect(
        json_answer({"id": 7})
    )
    assert (found.structured, texts(found)) == ({"id": 7}, ["Order 7"])


def test_a_text_that_is_no_json_is_the_body_itself() -> None:
    answer = Answer(content=({"type": "text", "text": "hello"},))
    assert texts(shape(result={"select": "@"}).inspect(answer)) == ["hello"]


def test_a_selection_that_cannot_work_withholds_the_answer_and_says_it_was_done() -> None:
    with pytest.raises(AnswerWithheld) as error:
        shape(result={"select": "join(',', a)"}).inspect(json_answer({"a": 5}))
    assert error.value.effect == "done"
    assert "5" not in error.value.sentence


OUTPUT = {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]}


def test_the_output_schema_is_kept_or_the_answer_withheld() -> None:
    checked = shape(output=OUTPUT)
    assert checked.inspect(json_answer({"id": 1})).structured == {"id": 1}
    for wrong in (json_answer({"id": "canary"}), json_answer({}), Answer(content=({"type": "text", "text": "x"},))):
        with pytest.raises(AnswerWithheld) as error:
            checked.inspect(wrong)
        assert "canary" not in error.value.sentence
    failed = Answer(content=({"type": "text", "text": "no such order"},), is_error=True)
    assert checked.inspect(failed) is failed


def test_an_answer_at_the_cap_is_handed_on_and_above_it_is_withheld_even_as_an_error() -> None:
    answer = json_answer({"a": "x" * 100})
    size = len(orjson.dumps(answer.result()))
    assert shape(caps={"result_bytes": size}).inspect(answer) is answer
    for big in (answer, json_answer({"a": "x" * 100}, is_error=True)):
        with pytest.raises(AnswerWithheld) as error:
            shape(caps={"result_bytes": size - 2}).inspect(big)
        assert error.value.facts["most_bytes"] == size - 2


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(_JSON)
def test_an_answer_of_json_text_is_written_as_any_other(value: Any) -> None:
    answer = Answer.of_json(value, orjson.dumps(value), status="HTTP 200")
    assert answer.encoded() == orjson.dumps(answer.result())
    assert answer.structured == (value if isinstance(value, dict) else {"result": value})


def test_what_json_cannot_carry_is_withheld() -> None:
    with pytest.raises(AnswerWithheld, match="cannot carry"):
        shape().inspect(Answer(structured={"a": 2**70}))


@pytest.mark.parametrize(
    "keys",
    [
        {"result": {"select": "a["}}, {"result": {"text": "foo("}}, {"result": {"select": ""}}, {"redact": ["a b"]},
        {"redact": ["a..b"]}, {"record": "all"}, {"caps": {"timeout": "0s"}}, {"caps": {"result_bytes": 0}},
        {"caps": {"result_bytes": "64KB"}},
    ],
)  # fmt: skip
def test_wishes_that_cannot_be_kept_are_refused_at_load(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AnswerSpec.model_validate(keys)
