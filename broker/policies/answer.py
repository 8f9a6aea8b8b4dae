"""Answers: what an answer must look like to be handed on. What of arguments a record may keep is in record.py.

An answer is selected (JMESPath over the decoded body), held against its output schema and its size, and withheld whole
when it does not fit: half an answer reads like a whole one. The effect has happened by then, and the error says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Annotated, Any, cast

import orjson
from pydantic import AfterValidator, Field

from broker.data import dataclass, field
from broker.document import section
from broker.errors import AnswerWithheld
from broker.model.answer import Answer
from broker.policies.amount import reported, unit_of
from broker.policies.record import RecordSpec
from broker.policies.spec import Bytes, PolicyKind, Seconds, Spec, argument_path

_NO_JSON = "it holds what JSON cannot carry (a number beyond 64 bits, half of a character)"

DEFAULT_RESULT_BYTES = 1_048_576


def _compiled(source: str) -> Any:
    """Raises ValueError."""
    import jmespath  # by the first expression: most tools have none

    if len(source) > 4096:
        raise ValueError("a JMESPath expression has at most 4096 characters")
    try:
        return jmespath.compile(source)
    except ValueError as error:
        raise ValueError(f"not a JMESPath expression: {str(error).splitlines()[0]}") from None


def _jmespath(source: str) -> str:
    _compiled(source)
    return source


Usage = dict[Annotated[str, Field(pattern=r"^(tokens|[A-Z]{3})$")], Annotated[str, AfterValidator(_jmespath)]]


class CapsSpec(Spec):
    timeout: Seconds | None = Field(default=None, description="Total time of a call; at most the backend's.")
    result_bytes: Bytes = Field(default=DEFAULT_RESULT_BYTES, description="Largest result handed to the agent.")


class ResultSpec(Spec):
    select: Annotated[str, AfterValidator(_jmespath)] | None = Field(
        default=None, description="JMESPath over the decoded body: what the agent gets, as structured content."
    )
    text: Annotated[str, AfterValidator(lambda source: _jmespath(source) if source else source)] = Field(
        default="", description="JMESPath over what was selected: the text the model reads; empty: the JSON of it."
    )


class AnswerSpec(Spec):
    caps: CapsSpec = section(CapsSpec, "Time and size limits.")
    record: RecordSpec = section(RecordSpec, "What records keep of the arguments.")
    redact: list[Annotated[str, AfterValidator(argument_path)]] = Field(
        default=[], description="Further argument paths whose values records never keep, such as card.number."
    )
    result: ResultSpec = section(ResultSpec, "What of the backend's answer is handed on.")
    usage: Usage = Field(
        default={},
        description="What a call has used, for quotas that reserve: `tokens` or a currency, each with a JMESPath over "
        "the decoded body, or over `_meta` beside it.",
    )
    output: dict[str, Any] | None = Field(
        default=None, description="JSON Schema of the structured content; or {file: name.schema.json}."
    )


# ---------------------------------------------------------------------------------------------------------- the answer

Faults = Callable[[Any], tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Shape:
    """What an answer must be. faults: of the output schema; None: any structure will do. usage: unit -> parsed JMESPath
    of what the call has used."""

    most_bytes: int = DEFAULT_RESULT_BYTES
    select: Any = None  # a parsed JMESPath expression
    text: Any = None
    faults: Faults | None = None
    usage: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @staticmethod
    def compile(spec: AnswerSpec, faults: Faults | None = None) -> Shape:
        """Raises ValueError for expressions that are none."""
        chosen = spec.result
        if faults is None and not (chosen.select or chosen.text or spec.usage):
            return _any(spec.caps.result_bytes)
        return Shape(
            most_bytes=spec.caps.result_bytes,
            select=None if chosen.select is None else _compiled(chosen.select),
            text=_compiled(chosen.text) if chosen.text else None,
            faults=faults,
            usage={name: _compiled(path) for name, path in spec.usage.items()},
        )

    def inspect(self, answer: Answer) -> Answer:
        """The answer as it may be handed on. One that is itself an error, or a question, is only held against the size.

        Raises AnswerWithheld (the effect is done): it cannot be selected from, does not fit its schema, or is too big.
        """
        if self.usage:
            answer = replace(answer, spent={**answer.spent, **self._spent(answer)})
        if (self.select or self.text or self.faults) and not answer.is_error and answer.is_final:
            if self.select is not None or self.text is not None:
                answer = self._selected(answer)
            if self.faults is not None:
                self._conforms(answer)
        self._fits(answer)
        return answer

    def _spent(self, answer: Answer) -> dict[str, int]:
        """What the answer says in numbers; where it says nothing, or no number, the reserved estimate stands."""
        body = _decoded(answer)
        said: Any = {**cast("dict[str, Any]", body), "_meta": answer.meta} if isinstance(body, dict) else body
        spent: dict[str, int] = {}
        for name, path in self.usage.items():
            unit = unit_of(name)
            try:
                used = reported(path.search(said), unit)
            except ValueError:  # of JMESPath, whose errors are such
                continue
            if used is not None:
                spent[unit] = used
        return spent

    def _selected(self, answer: Answer) -> Answer:
        try:
            value = _decoded(answer)
            value = value if self.select is None else self.select.search(value)
            words = value if self.text is None else self.text.search(value)
        except ValueError as error:  # as above
            raise _withheld(f"its result cannot be selected from the answer ({type(error).__name__})") from None
        text = words if isinstance(words, str) else _json(words)
        structured = cast("dict[str, Any]", value) if isinstance(value, dict) else {"result": value}
        return Answer(
            content=({"type": "text", "text": text},),
            structured=structured,
            meta=answer.meta,
            more=answer.more,
            status=answer.status,
            spent=answer.spent,
        )

    def _conforms(self, answer: Answer) -> None:
        assert self.faults is not None  # noqa: S101 – asked for only then
        if answer.structured is None:
            raise _withheld("it has no structured content, which its output schema promises")
        if faults := self.faults(answer.structured):
            raise _withheld(f"it does not fit its output schema: {'; '.join(faults[:3])}")

    def _fits(self, answer: Answer) -> None:
        try:
            size = len(answer.encoded())
        except TypeError:
            raise _withheld(_NO_JSON) from None
        if size > self.most_bytes:
            raise AnswerWithheld(
                f"The answer was withheld: it has {size} bytes, and at most {self.most_bytes} are handed on.",
                next_step="It was done; do not repeat it to get the answer. Ask for less where the tool lets you.",
                size_bytes=size,
                most_bytes=self.most_bytes,
            )


@cache  # of the few sizes that are written
def _any(most_bytes: int) -> Shape:
    return Shape(most_bytes)


def _decoded(answer: Answer) -> Any:
    """The body as data. A backend may have wrapped what is no object, and then only its text has it as it was."""
    if len(answer.content) == 1 and answer.content[0].get("type") == "text":
        text = answer.content[0].get("text")
        try:
            return orjson.loads(text) if isinstance(text, str) else answer.structured
        except orjson.JSONDecodeError:
            return text if answer.structured is None else answer.structured
    return answer.structured


def _json(value: Any) -> str:
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        raise _withheld(_NO_JSON) from None


def _withheld(why: str) -> AnswerWithheld:
    return AnswerWithheld(
        f"The answer was withheld: {why}.",
        next_step="It was done; do not repeat it. Tell the tool's owner.",
    )


KIND = PolicyKind(
    "answer",
    "inspect",
    AnswerSpec,
    Shape.compile,
    {"caps": {"timeout": "5s", "result_bytes": "64KiB"}, "record": "redacted", "redact": ["card.number"]},
)
