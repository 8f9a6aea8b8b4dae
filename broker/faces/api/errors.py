"""How an error looks over REST: the one table from code to HTTP status, and the JSON object every refusal is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from broker.errors import BrokerError

STATUS: Mapping[str, int] = {
    "malformed_request": 400,
    "unauthenticated": 401,
    "insufficient_scope": 403,
    "forbidden": 403,
    "unknown_tool": 404,
    "unknown_hold": 404,
    "conflict": 409,
    "in_flight": 409,
    "denied_by_reviewer": 409,
    "hold_expired": 409,
    "hold_withdrawn": 409,
    "outcome_unknown": 409,
    "refused": 409,
    "state_spent": 409,
    "invalid_arguments": 422,
    "over_quota": 429,
    "held": 202,
    "task_required": 422,
    "unknown_task": 404,
    "under_way": 202,
    "cancelled": 409,
    "overloaded": 503,
    "record_unavailable": 503,
    "backend_unavailable": 503,
    "backend_rejected": 502,
    "backend_broken": 502,
    "backend_error": 502,
    "answer_withheld": 502,
    "backend_timed_out": 504,
    "internal": 500,
    "manifest_error": 500,
    "settings_error": 500,
}


def as_object(error: BrokerError) -> dict[str, Any]:
    """message, code, stage, effect, retryable, and the facts of the error beside them."""
    return {
        **{name: fact for name, fact in error.facts.items() if name != "rpc_code"},
        "message": error.sentence,
        "code": error.code,
        "stage": error.stage,
        "effect": error.effect,
        "retryable": error.retryable,
    }
