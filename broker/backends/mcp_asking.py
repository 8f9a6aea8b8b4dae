"""Asking a call's caller for what its server wants: only what the caller declared, and with a deadline that stands
still meanwhile.

A server of a handshake era asks while it works. One of the 2026-07-28 revision answers that it needs input; for a
caller of a handshake era `answered` asks it then and sends the request again, round by round.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from secrets import token_urlsafe
from typing import Any, cast

import anyio

from broker.data import dataclass
from broker.errors import AnswerWithheld, BrokerError, Rejected
from broker.model.back import ASKABLE, INPUT_REQUIRED, Ask, Back, Declined, undeclared

ROUNDS = 10
QUESTIONS = 16  # in one round
PAUSE_S, LONGEST_PAUSE_S = 0.05, 0.25  # before a round without questions
INVALID_REQUEST = -32600

Send = Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]]
"""(further params of the request) → its raw result. Raises BrokerError."""


def guarded(back: Back, capabilities: Mapping[str, Any]) -> Back:
    """The same way back, over which only what the caller declared is asked."""
    asked = back.ask
    if asked is None:
        return back

    async def ask(method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        if needed := undeclared(method, params, capabilities):
            raise Declined(INVALID_REQUEST, f"This client did not declare {_path(needed)}, so it is not asked.", needed)
        return await asked(method, params)

    return replace(back, ask=ask)


def _path(needed: Mapping[str, Any]) -> str:
    words: list[str] = []
    while needed:
        word, needed = next(iter(needed.items()))
        words.append(word)
    return ".".join(words)


@dataclass(slots=True)
class _Stopped:
    """asking: how many questions are open. left_s: of the deadline when it was stopped."""

    asking: int = 0
    left_s: float = 0.0


def patient(ask: Ask, scope: anyio.CancelScope, last_moment: float) -> Ask:
    """The same, with the deadline of this scope standing still while it is awaited, but no later than last_moment."""
    stopped = _Stopped()

    async def asked(method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        if not stopped.asking:
            stopped.left_s = scope.deadline - anyio.current_time()
            scope.deadline = last_moment
        stopped.asking += 1
        try:
            return await ask(method, params)
        finally:
            stopped.asking -= 1
            if not stopped.asking:
                scope.deadline = min(anyio.current_time() + stopped.left_s, last_moment)

    return asked


def questions(backend: str, result: Mapping[str, Any], capabilities: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What this `input_required` result asks: name → {method, params}. Raises AnswerWithheld when it asks for what the
    caller did not declare, or is no such result at all."""
    asked: Any = result.get("inputRequests") or {}
    state: Any = result.get("requestState")
    if not isinstance(asked, Mapping) or not isinstance(state, str | None) or not (asked or state):
        raise _withheld(backend, "asks for input without saying which")
    found = cast("Mapping[str, Any]", asked)
    if len(found) > QUESTIONS:
        raise _withheld(backend, f"asks more than {QUESTIONS} things at once")
    for question in found.values():
        method: Any = cast("Mapping[str, Any]", question).get("method") if isinstance(question, Mapping) else None
        if method not in ASKABLE:
            raise _withheld(backend, "asks for something that is no client's to give")
        params: Any = cast("Mapping[str, Any]", question).get("params") or {}
        if needed := undeclared(method, params, capabilities):
            raise _withheld(backend, f"asks for what this client did not declare ({_path(needed)})")
    return dict(found)


async def answered(backend: str, first: dict[str, Any], ask: Ask, send: Send, capabilities: Mapping[str, Any]) -> Any:
    """The result at the end of all rounds. Raises Rejected when the caller declines to answer with an error."""
    result, pause_s = first, PAUSE_S
    for _ in range(ROUNDS):
        if result.get("resultType") != INPUT_REQUIRED:
            return result
        asked = questions(backend, result, capabilities)
        further: dict[str, Any] = {}
        if asked:
            further["inputResponses"] = await _all(backend, asked, ask)
        else:
            await anyio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        if isinstance(state := result.get("requestState"), str):
            further["requestState"] = state
        result = await send(further)
    raise _withheld(backend, f"still asks for input after {ROUNDS} rounds")


async def _all(backend: str, asked: Mapping[str, Mapping[str, Any]], ask: Ask) -> dict[str, Any]:
    """All answers, one question after the other: a person reads one at a time."""
    given: dict[str, Any] = {}
    for name, question in asked.items():
        try:
            given[name] = await ask(str(question["method"]), _of_handshake(question.get("params") or {}))
        except Declined as refusal:
            words = "the caller was asked and gave an error instead of an answer"
            raise Rejected(
                f"Backend {backend!r} needs an answer, and {words} (code {refusal.code}).", said=refusal.message
            ) from None
    return given


def _of_handshake(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """A modern server's question as the handshake eras have it: there a URL to visit has an id."""
    return {"elicitationId": token_urlsafe(16), **params} if params.get("mode") == "url" else params


def _withheld(backend: str, why: str) -> BrokerError:
    return AnswerWithheld(
        f"Backend {backend!r} answered, but its answer {why}.",
        next_step="Do not send it again; ask the tool's owner.",
    )
