"""Header and body of a 2026-07-28 request must say the same, or an intermediary could be shown another call.

The ladder is the specification's (streamable HTTP, "header validation"; basic, "per-request protocol fields"), in its
order, with its codes; the SDK climbs the same one, and a test compares the two answers. It stands here because the
gate's own answer to a `tools/call` does not pass the SDK.

What must not live here: which methods exist, and `Mcp-Param-*` (both are the SDK's to check; `direct` leaves tools that
use the latter to it).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from broker.data import dataclass
from broker.faces.mcp.headers import decoded
from broker.faces.mcp.strict import Message
from broker.model.task import METHODS

MODERN = ("2026-07-28",)
HANDSHAKE = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
_HANDSHAKE_BYTES = frozenset(version.encode() for version in HANDSHAKE)

INVALID_PARAMS = -32602
HEADER_MISMATCH = -32020
UNSUPPORTED_VERSION = -32022

VERSION_KEY = "io.modelcontextprotocol/protocolVersion"
CAPABILITIES_KEY = "io.modelcontextprotocol/clientCapabilities"
CLIENT_KEY = "io.modelcontextprotocol/clientInfo"
SERVER_KEY = "io.modelcontextprotocol/serverInfo"
LOG_LEVEL_KEY = "io.modelcontextprotocol/logLevel"
SUBSCRIPTION_KEY = "io.modelcontextprotocol/subscriptionId"

NAMED: Mapping[str, str] = {
    "tools/call": "name",
    "prompts/get": "name",
    "resources/read": "uri",
    **dict.fromkeys(METHODS, "taskId"),  # SEP-2663, routing headers
}


@dataclass(frozen=True, slots=True)
class Disagreement:
    code: int
    message: str
    data: Any = None


def is_modern(headers: Mapping[bytes, bytes]) -> bool:
    """The era, by MCP-Protocol-Version alone: whatever is not a handshake revision has to answer as a modern one.

    `Mcp-Method` and the like decide nothing: a handshake-era request may carry them with any content.
    """
    version = headers.get(b"mcp-protocol-version")
    return version is not None and version not in _HANDSHAKE_BYTES


def disagreement(headers: Mapping[bytes, bytes], message: Message) -> Disagreement | None:
    """Why this modern request is refused (HTTP 400), or None when header and body agree and the version is served."""
    raw_meta = message.params.get("_meta")
    if not isinstance(raw_meta, dict):
        return Disagreement(
            INVALID_PARAMS, f"params._meta must be an object with {VERSION_KEY!r} and {CAPABILITIES_KEY!r}"
        )
    meta = cast("dict[str, Any]", raw_meta)
    if missing := [key for key in (VERSION_KEY, CAPABILITIES_KEY) if key not in meta]:
        return Disagreement(INVALID_PARAMS, f"params._meta is missing the required {', '.join(missing)}")
    version = meta[VERSION_KEY]
    if headers.get(b"mcp-protocol-version", b"").decode("latin-1") != version:
        return Disagreement(HEADER_MISMATCH, f"The MCP-Protocol-Version header differs from _meta {VERSION_KEY}")
    if headers.get(b"mcp-method", b"").decode("latin-1") != message.method:
        return Disagreement(HEADER_MISMATCH, "The Mcp-Method header is missing or differs from the method")
    key = NAMED.get(message.method)
    if key and (named := message.params.get(key)) is not None and decoded(headers.get(b"mcp-name")) != named:
        return Disagreement(HEADER_MISMATCH, f"The Mcp-Name header is missing or differs from params.{key}")
    return unsupported(version)


def contradiction(headers: Mapping[bytes, bytes], message: Message) -> Disagreement | None:
    """Where mirroring headers are not required (HTTP+SSE): a header that is there and lies."""
    said, named = headers.get(b"mcp-method"), headers.get(b"mcp-name")
    if said is not None and said.decode("latin-1") != message.method:
        return Disagreement(HEADER_MISMATCH, "The Mcp-Method header differs from the method")
    key = NAMED.get(message.method, "name")
    if named is not None and decoded(named) != message.params.get(key):
        return Disagreement(HEADER_MISMATCH, f"The Mcp-Name header differs from params.{key}")
    return None


def unsupported(version: str) -> Disagreement | None:
    """The -32022 answer for a version that is not served, naming those that are."""
    if version in MODERN:
        return None
    data = {"supported": list(MODERN), "requested": version[:64]}
    return Disagreement(UNSUPPORTED_VERSION, "Unsupported protocol version", data)
