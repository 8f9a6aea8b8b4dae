"""Calls of several rounds (2026-07-28): what each asks of the client, and what it says when it knows enough.

Pure functions of one request's params and the client's capabilities. `requestState` is plain here: the server's
boundary seals it on the way out and refuses what was changed on the way in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

Result = dict[str, Any]
Round = Callable[[Mapping[str, Any], Mapping[str, Any]], Result]
"""(the request's params, the client's capabilities) → a result as it goes over the wire."""


def text(said: str) -> Result:
    return {"content": [{"type": "text", "text": said}]}


def form(message: str, **properties: str) -> Result:
    """An elicitation in form mode. properties: name → JSON Schema type; all required."""
    fields = {name: {"type": kind} for name, kind in properties.items()}
    schema = {"type": "object", "properties": fields, "required": [*properties]}
    return {"method": "elicitation/create", "params": {"mode": "form", "message": message, "requestedSchema": schema}}


def sample(prompt: str, most_tokens: int) -> Result:
    message = {"role": "user", "content": {"type": "text", "text": prompt}}
    return {"method": "sampling/createMessage", "params": {"messages": [message], "maxTokens": most_tokens}}


ROOTS: Result = {"method": "roots/list", "params": {}}
NAME = form("What is your name?", name="string")


def ask(state: str | None = None, **requests: Result) -> Result:
    asked: Result = {"resultType": "input_required", "inputRequests": requests}
    return asked if state is None else {**asked, "requestState": state}


def _given(params: Mapping[str, Any], *names: str) -> list[Any] | None:
    """The client's responses of these names; None unless all are there."""
    responses: Mapping[str, Any] = params.get("inputResponses") or {}
    return [responses[name] for name in names] if all(name in responses for name in names) else None


def _field(response: Mapping[str, Any], name: str) -> str:
    content: Mapping[str, Any] = response.get("content") or {}
    return str(content.get(name, "somebody"))


def elicitation(params: Mapping[str, Any], _: Mapping[str, Any]) -> Result:
    given = _given(params, "user_name")
    return text(f"Hello, {_field(given[0], 'name')}!") if given else ask(user_name=NAME)


def sampling(params: Mapping[str, Any], _: Mapping[str, Any]) -> Result:
    given = _given(params, "capital_question")
    if not given:
        return ask(capital_question=sample("What is the capital of France?", 100))
    return text(f"The model answers: {json.dumps(given[0].get('content'))}")


def roots(params: Mapping[str, Any], _: Mapping[str, Any]) -> Result:
    given = _given(params, "client_roots")
    return text(f"The client's roots: {json.dumps(given[0].get('roots'))}") if given else ask(client_roots=ROOTS)


def request_state(params: Mapping[str, Any], _: Mapping[str, Any]) -> Result:
    if _given(params, "confirm") and params.get("requestState") == "asked once":
        return text("state-ok")
    return ask("asked once", confirm=form("Please confirm", ok="boolean"))


def multiple(params: Mapping[str, Any], _: Mapping[str, Any]) -> Result:
    if given := _given(params, "user_name", "greeting", "client_roots"):
        return text(f"Three answers for {_field(given[0], 'name')}.")
    return ask("all at once", user_name=NAME, greeting=sample("Generate a greeting", 50), client_roots=ROOTS)


def multi_round(params: Mapping[str, Any], _: Mapping[str, Any]) -> Result:
    """The name, kept in the state, then the colour. What comes out of turn starts again."""
    known: dict[str, Any] = json.loads(params.get("requestState") or "{}")
    if "name" in known and (colour := _given(params, "step2")):
        return text(f"{known['name']} likes {_field(colour[0], 'color')}.")
    if "asked" in known and (name := _given(params, "step1")):
        step2 = form("Step 2: What is your favorite color?", color="string")
        return ask(json.dumps({"name": _field(name[0], "name")}), step2=step2)
    return ask('{"asked": "name"}', step1=form("Step 1: What is your name?", name="string"))


def tampered_state(params: Mapping[str, Any], _: Mapping[str, Any]) -> Result:
    if params.get("requestState") == "sealed":
        return text("state-ok")
    return ask("sealed", confirm=form("Please confirm", ok="boolean"))


def capabilities(_: Mapping[str, Any], declared: Mapping[str, Any]) -> Result:
    """Asks for all that this client can answer."""
    able = {"sampling": sample("Say hello", 50), "elicitation": NAME, "roots": ROOTS}
    return ask("by capability", **{kind: request for kind, request in able.items() if kind in declared})


def prompt(params: Mapping[str, Any], _: Mapping[str, Any]) -> Result:
    given = _given(params, "user_context")
    if not given:
        return ask(user_context=form("What context should the prompt use?", context="string"))
    said = f"In this context: {_field(given[0], 'context')}"
    return {"messages": [{"role": "user", "content": {"type": "text", "text": said}}]}


TOOLS: Mapping[str, Round] = {
    "test_input_required_result_elicitation": elicitation,
    "test_input_required_result_sampling": sampling,
    "test_input_required_result_list_roots": roots,
    "test_input_required_result_request_state": request_state,
    "test_input_required_result_multiple_inputs": multiple,
    "test_input_required_result_multi_round": multi_round,
    "test_input_required_result_tampered_state": tampered_state,
    "test_input_required_result_capabilities": capabilities,
    "test_streaming_elicitation": elicitation,
}
