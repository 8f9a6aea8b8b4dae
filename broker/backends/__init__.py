"""The other side: one module per kind of backend, and what they share (transport, credentials, bulkhead, breaker).

A kind is one row here: `"module:KIND"`, an object that keeps `ports.BackendKind`. `tests/contracts/test_backends.py`
runs over this table. Nothing is imported before a kind is asked for, so that start-up pays for what is used.

What must not live in this folder: who may call, how often, and what is recorded. A backend gets a call that has been
decided and makes it once.
"""

from __future__ import annotations

from collections.abc import Mapping

BACKENDS: Mapping[str, str] = {
    "http": "broker.backends.http:KIND",
    "mcp": "broker.backends.mcp:KIND",
    "static": "broker.backends.static:KIND",
}
