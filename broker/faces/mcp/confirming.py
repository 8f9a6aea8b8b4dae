"""Held calls that their own user may confirm: where the user can do so, told by elicitation in URL mode.

A client of the 2026-07-28 revision is answered that input is required, with a state that is sealed, for this caller's
very call, and good once; it comes back with it when its user has been there. One of a handshake era is asked while the
call waits. Nothing that a client says confirms anything: the one place for that is the console, where the person is
signed in; so the URL is no secret and there is nothing in it but which call it is about.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import anyio

from broker.errors import Held
from broker.faces.mcp.ports import House
from broker.faces.mcp.rounds import QUESTION
from broker.model.answer import Answer
from broker.model.back import ASKING_S, INPUT_REQUIRED, Declined
from broker.model.call import Call
from broker.model.hold import Confirming


async def elicited(house: House, held: Held, call: Call) -> Answer | dict[str, Any]:
    """The answer of the call once it was confirmed, or the question to its client. Raises what a call may end with:
    Held when its user has decided nothing."""
    hold_id = str(held.facts["hold_id"])
    params = {"mode": "url", "message": held.message, "url": f"{house.base_url()}/console/holds/{hold_id}"}
    if call.back is None or call.back.session is None:
        question = {"method": "elicitation/create", "params": params}
        asked = {"resultType": INPUT_REQUIRED, "inputRequests": {QUESTION: question}}
        return {**asked, "requestState": house.rounds.confirming(hold_id, call)}
    if call.back.ask is None:
        raise held
    try:
        with anyio.fail_after(ASKING_S):
            given = await call.back.ask("elicitation/create", {**params, "elicitationId": hold_id})
    except (Declined, TimeoutError):
        raise held from None
    if given.get("action") == "cancel":
        raise held
    declined = given.get("action") != "accept"
    return await house.pipeline.perform(replace(call, confirming=Confirming(hold_id, declined)))
