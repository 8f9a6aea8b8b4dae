"""`requestState` of calls that their server asks back about: sealed on the way out, opened once on the way in.

A state comes back from whoever holds it, so it is encrypted and names everything it is for: the principal, what was
called, with which arguments, until when. Whatever does not fit is refused in one sentence that does not say why. That
it is used once is remembered by the store, in the very database that several processes share, and not in memory: any of
them may be the one that is asked again.

The keys are the settings' (`request_state_keys`), newest first, so that they can be changed without a call being lost;
else one key of the database's own, which all its processes have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from secrets import token_urlsafe
from typing import Any, cast

import orjson

from broker.errors import Malformed
from broker.faces.mcp.agreement import INVALID_PARAMS
from broker.faces.mcp.ports import Clock
from broker.faces.mcp.sealing import Keys, Seal
from broker.model.answer import Answer
from broker.model.back import INPUT_REQUIRED, Round
from broker.model.call import Call
from broker.model.canonical import canonical
from broker.model.hold import Confirming

LIFETIME_MS = 600_000
STATE_CHARACTERS = 1_048_576
QUESTION = "confirm"
"""The broker's own question to a client, in `inputRequests`: to have its user confirm the call (`confirming`)."""


class Rounds:
    def __init__(self, keys: Keys, clock: Clock) -> None:
        self._seal = Seal(keys, "requestState v1")
        self._clock = clock

    def begin(self, call: Call, params: Mapping[str, Any]) -> None:
        """Give the call what it was sent along with, when it is asked again. Raises Malformed (fact `rpc_code`)."""
        state, responses = params.get("requestState"), params.get("inputResponses")
        if state is None and responses is None:
            return
        if not isinstance(responses, dict | None):
            raise Malformed("params.inputResponses must be an object", rpc_code=INVALID_PARAMS)
        given = cast("dict[str, Any] | None", responses)
        if any(not isinstance(one, dict) for one in (given or {}).values()):
            raise Malformed("every one of params.inputResponses must be an object", rpc_code=INVALID_PARAMS)
        if state is None:
            call.round = Round(given)
            return
        sealed = self._seal.open(state, most=STATE_CHARACTERS)
        if sealed is None or sealed["for"] != _meant(call) or sealed["until"] <= self._clock.now_ms():
            raise Malformed("Invalid or expired requestState", rpc_code=INVALID_PARAMS)
        if hold_id := sealed.get("hold"):
            said: Any = (given or {}).get(QUESTION, {})
            call.confirming = Confirming(hold_id, said.get("action") == "decline", sealed["once"], sealed["until"])
            return
        call.round = Round(given, sealed["state"], sealed["once"], sealed["until"])

    def result(self, answer: Answer, call: Call) -> dict[str, Any]:
        """The answer as a result; one that asks for input with its state sealed."""
        result = answer.result()
        if result.get("resultType") == INPUT_REQUIRED:
            del result["content"], result["isError"]
            if isinstance(state := result.get("requestState"), str):
                result["requestState"] = self._sealed(state, call)
        return result

    def confirming(self, hold_id: str, call: Call) -> str:
        """The state of a call whose own user is asked to confirm it: nothing of a server's, but which hold it is."""
        return self._sealed("", call, hold=hold_id)

    def _sealed(self, state: str, call: Call, **more: str) -> str:
        until = self._clock.now_ms() + LIFETIME_MS
        claims = {"state": state, "for": _meant(call), "once": token_urlsafe(16), "until": until, **more}
        return self._seal.close(claims)


def _meant(call: Call) -> str:
    """What a state is good for: this caller's call of this thing with these arguments, and no other."""
    meant = [call.principal.key, call.asked, call.name, hashlib.sha256(canonical(call.arguments)).hexdigest()]
    return hashlib.sha256(orjson.dumps(meant)).hexdigest()
