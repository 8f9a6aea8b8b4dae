"""How an error looks to an agent: one MCP tool result, readable by a model whichever part its client shows it.

Real agents show their model only `structuredContent`, or only the text, or drop the error flag; so the whole sentence
stands in both, and its first word says what it is ("Refused", "Held"). A hold is not an error: nothing went wrong, and
`isError` would make agents retry at once. Only where the tool promises an output schema it is flagged all the same,
because clients that check would take the sentence for a broken promise.
"""

from __future__ import annotations

from typing import Any

from broker.errors import BrokerError, Held


def as_result(error: BrokerError, call_id: str) -> dict[str, Any]:
    """An MCP `CallToolResult` object: the sentence in content and structuredContent.message, with code, effect,
    retryable, call_id, and whatever facts the error carries (hold_id, retry_after_ms, rule, ...)."""
    # A call that attached to a hold, or was the retry of another by its key, has no record but that one's.
    call_id = error.facts.get("hold_id") or error.facts.get("call_id") or call_id
    structured: dict[str, Any] = {
        "message": error.sentence,
        "code": error.code,
        "stage": error.stage,
        "effect": error.effect,
        "retryable": error.retryable,
        "call_id": call_id,
        **error.facts,
    }
    return {
        "content": [{"type": "text", "text": f"{error.sentence} (call {call_id})"}],
        "structuredContent": structured,
        "isError": not isinstance(error, Held) or error.promised,
    }
