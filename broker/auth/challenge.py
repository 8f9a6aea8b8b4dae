"""What an HTTP face says and reads around a bearer token: header in, challenge and metadata out. Pure functions.

Sources: RFC 6750 (bearer tokens), RFC 9728 (protected-resource metadata), MCP authorization.
What must not live here: judging a credential.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from broker.errors import Malformed

WELL_KNOWN = "/.well-known/oauth-protected-resource"

_BEARER = re.compile(r"bearer +([A-Za-z0-9\-._~+/]+=*)", re.IGNORECASE)  # RFC 6750 section 2.1: b64token
_UNQUOTABLE = re.compile(r'[^\x20-\x7e]|["\\]')


def bearer(authorization: Sequence[str]) -> str | None:
    """The credential in the values of all `Authorization` headers of a request; None when there is no such header.

    Raises Malformed when there are several, or one that is not exactly `Bearer` and a token: what two readers could
    read in two ways is read in none.
    """
    if not authorization:
        return None
    match = _BEARER.fullmatch(authorization[0]) if len(authorization) == 1 else None
    if match is None:
        raise Malformed(
            "The Authorization header is not one bearer token.",
            next_step="Send exactly one header: Authorization: Bearer TOKEN.",
        )
    return match.group(1)


def metadata_url(base_url: str, endpoint_path: str) -> str:
    """Where the metadata of this endpoint is (RFC 9728 section 3.1). endpoint_path: "/mcp", "/sse" or ""."""
    return f"{base_url}{WELL_KNOWN}{endpoint_path}"


def protected_resource(
    base_url: str, endpoint_path: str, *, issuers: Iterable[str], scopes: Iterable[str]
) -> dict[str, Any]:
    """The RFC 9728 document of one endpoint. base_url: in the spelling the client used (`address.as_called`)."""
    document: dict[str, Any] = {
        "resource": base_url + endpoint_path,
        "authorization_servers": list(issuers),
        "bearer_methods_supported": ["header"],
        "resource_name": "broker",
    }
    listed = sorted(scopes)
    return {**document, "scopes_supported": listed} if listed else document


def challenge(
    *,
    resource_metadata: str,
    scopes: Iterable[str] = (),
    error: str = "",
    description: str = "",
) -> str:
    """A `WWW-Authenticate` value.

    401 without a credential: no error. 401 with a bad one: error="invalid_token". 403 for missing scopes:
    error="insufficient_scope" and in scopes everything the operation needs. resource_metadata: `metadata_url(...)`.
    """
    fields = {
        "error": error,
        "error_description": description,
        "scope": " ".join(sorted(scopes)),
        "resource_metadata": resource_metadata,
    }
    return "Bearer " + ", ".join(f'{name}="{_UNQUOTABLE.sub("?", value)}"' for name, value in fields.items() if value)


def at(base_url: str, path: str, *, error: str = "", description: str = "", scopes: Iterable[str] = ()) -> str:
    """The challenge of an endpoint of this broker: `challenge`, with where this endpoint's metadata is."""
    return challenge(
        resource_metadata=metadata_url(base_url, path), scopes=scopes, error=error, description=description
    )
