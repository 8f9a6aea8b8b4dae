"""Answers that stand in the manifest: house rules, notes, a tool while its real backend is being built. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import orjson
from pydantic import Field, model_validator

from broker.backends.spec import Section
from broker.errors import Unavailable
from broker.model.answer import Answer
from broker.model.call import Call
from broker.model.sketch import Sketch
from broker.model.tool import Tool
from broker.ports import BackendContext, Health, Offer


class Spec(Section):
    """`static: {}`: there is nothing to set."""


class Action(Section):
    text: str | None = Field(default=None, description="The answer as text.")
    structured: dict[str, Any] | None = Field(default=None, description="The answer as a JSON object.")

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.text is None and self.structured is None:
            raise ValueError("a static answer has `text`, `structured` or both")
        return self


class StaticBackend:
    kind = "static"

    def __init__(self, name: str, context: BackendContext) -> None:
        self.name = name
        self._clock = context.clock
        self._health = Health("starting", since_ms=context.clock.now_ms())

    async def open(self) -> None:
        self._health = Health("up", since_ms=self._clock.now_ms())

    async def call(self, tool: Tool, arguments: Mapping[str, Any], call: Call) -> Answer:  # noqa: ARG002 – the port's
        if self._health.state != "up":
            raise Unavailable(f"Backend {self.name!r} is closed. Nothing was sent.")
        if not isinstance(tool.action, Answer):
            raise TypeError(f"{tool.name} was compiled for another kind of backend")
        return tool.action

    def sketch(self, tool: Tool, arguments: Mapping[str, Any], call: Call) -> Sketch:  # noqa: ARG002 – the port's
        """Nothing leaves: the answer stands in the manifest."""
        return Sketch("answer", f"the manifest's own answer of {tool.name}")

    async def aclose(self) -> None:
        self._health = Health("down", "closed", self._clock.now_ms())

    @property
    def health(self) -> Health:
        return self._health

    @property
    def offer(self) -> Offer | None:
        return None


class StaticKind:
    name = "static"
    Spec = Spec
    Action = Action

    def compile(self, action: Action, input_schema: Mapping[str, Any], injected: Sequence[str]) -> Answer:  # noqa: ARG002
        """The whole answer, made once; arguments are validated by the pipeline and change nothing."""
        text = action.text if action.text is not None else orjson.dumps(action.structured).decode()
        return Answer(content=({"type": "text", "text": text},), structured=action.structured, status="static")

    def compile_import(self, entry: Mapping[str, Any]) -> object:
        raise ValueError(f"a static backend offers no tools to import (asked for {entry.get('name')!r})")

    def build(self, name: str, spec: Spec, context: BackendContext) -> StaticBackend:  # noqa: ARG002 – nothing to set
        return StaticBackend(name, context)


KIND = StaticKind()
