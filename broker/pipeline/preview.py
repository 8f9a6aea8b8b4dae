"""The safe call that is made before a held call is shown: as its caller, by every rule and quota, with its own record.

Whatever happens to it, the call that is to be held is held: a preview informs, it neither blocks nor decides. It is
bounded in time and size, is never held itself, and cannot be asked back.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
from uuid_utils import uuid7

from broker.catalog.catalog import Entry, Shelf
from broker.errors import BrokerError
from broker.model.answer import Answer
from broker.model.call import PREVIEW_FACE, TASK_META, Call
from broker.model.canonical import digest_of
from broker.model.hold import Preview

LONGEST_S = 10.0
MOST_BYTES = 65_536
SAID_CHARS = 500

Perform = Callable[[Call], Awaitable[Answer]]


async def made(entry: Entry, call: Call, shelf: Shelf, perform: Perform) -> tuple[Preview | None, bytes]:
    """(what the hold says of it, its MCP result as JSON); (None, b"") for a tool without a preview; the result is b""
    where it failed. perform: `Pipeline.perform`. On cancel: the call is recorded as cut off, like any other."""
    if entry.preview is None:
        return None, b""
    asked = Call(
        id=str(uuid7()),
        name=entry.preview.tool,
        arguments=entry.preview.arguments(call.arguments),
        principal=call.principal,
        face=PREVIEW_FACE,
        received_at_ms=call.received_at_ms,
        request_id=call.id,  # so that its record leads to the call it was made for
        trace_parent=call.trace_parent,
        meta={TASK_META: call.task} if call.task else {},
        may_wait=False,
    )
    found = shelf.current.named(asked.name)
    if found is not None and found.tool.effect != "read":
        return Preview(asked.name, "", failed=f"{asked.name} does not only read here, so it was not called"), b""
    failed, result = f"it took longer than {LONGEST_S:g} s", b""
    with anyio.move_on_after(LONGEST_S):
        try:
            answer = await perform(asked)
        except BrokerError as error:
            failed = error.sentence
        else:
            failed, result = _judged(answer)
    if failed:
        return Preview(asked.name, asked.id, failed=failed[:SAID_CHARS]), b""
    return Preview(asked.name, asked.id, digest_of(result)), result


def _judged(answer: Answer) -> tuple[str, bytes]:
    """(why it is of no use, "" when it is; its bytes)."""
    result = answer.encoded()
    if answer.is_error:
        said: Any = answer.content[0].get("text", "") if answer.content else ""
        return f"it answered with an error: {said}", b""
    if not answer.is_final:
        return "its server wants to be asked again, which a preview cannot do", b""
    if len(result) > MOST_BYTES:
        return f"its answer has {len(result)} bytes, and a preview {MOST_BYTES} at most", b""
    return "", result
