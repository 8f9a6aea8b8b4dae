"""Why a connection could not be made, or ended, in a few words for an operator. Agents are told less."""

from __future__ import annotations

from typing import cast

from pydantic import ValidationError

from broker.backends import sdk
from broker.backends.decoding import short
from broker.backends.exchange import Cut
from broker.backends.mcp_child import ChildError
from broker.errors import BrokerError


def said(error: BaseException) -> str:
    """One failure in a few words for an operator; of a group, its first."""
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        return said(group.exceptions[0])
    if isinstance(error, Cut):
        return said(error.error)
    if isinstance(error, BrokerError):
        return str(error.facts.get("reason") or error.message)
    if isinstance(error, sdk.MCPError):
        return f"{short(error.error.message)} (code {error.error.code})"
    if isinstance(error, ChildError):
        return str(error)
    if isinstance(error, LookupError):
        return str(error.args[0]) if error.args else "a secret is missing"
    if isinstance(error, ValidationError):
        return "its answer to the handshake is not MCP"
    return short(f"{type(error).__name__}: {error}")
