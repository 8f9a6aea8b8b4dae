"""Clients, that is agents: made by the operator, or registering themselves (RFC 7591).

Who registers itself proves nothing: its name is shown as its own claim, its id is random and marked, it has no scopes
of its own, and a person must consent each time. Only redirects of known kinds are taken.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from broker.authserver import redirects
from broker.errors import InvalidArguments
from broker.model.directory import Client, secret_hash
from broker.ports import Directory

GRANTS = ("authorization_code", "client_credentials", "refresh_token")
DYNAMIC_MARK = "dyn-"
PUBLIC = "none"  # the token endpoint's authentication method of a client without a secret

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]{0,63}", re.ASCII)


def create(directory: Directory, client: Client) -> tuple[Client, str]:
    """Store a client for the operator; returns it and its secret, "" for a public client. Blocks.

    A client is public when client_credentials is not among its grants and it has redirect URIs.
    Raises InvalidArguments; Conflict when the id is taken.
    """
    if not _ID.fullmatch(client.client_id) or client.client_id.startswith(DYNAMIC_MARK):
        raise InvalidArguments(
            f"A client's id has 1 to 64 letters, digits, dots, dashes or underscores, and does not start with "
            f"{DYNAMIC_MARK!r}."
        )
    unknown = sorted(set(client.grants) - set(GRANTS))
    if unknown or not client.grants:
        raise InvalidArguments(f"A client's grants are one or more of {', '.join(GRANTS)}.")
    for uri in client.redirect_uris:
        if wrong := redirects.problem(uri):
            raise InvalidArguments(f"The redirect URI {uri[:200]!r} {wrong}.")
    if "authorization_code" in client.grants and not client.redirect_uris:
        raise InvalidArguments("A client that signs people in needs a redirect URI.")
    secret = secrets.token_urlsafe(32) if "client_credentials" in client.grants else ""
    stored = replace(client, secret_hash=secret_hash(secret) if secret else "", dynamic=False)
    directory.add_client(stored)
    return stored, secret


def renew_secret(directory: Directory, client: Client) -> str:
    """Give a client a new secret; the old one ends at once. Blocks."""
    secret = secrets.token_urlsafe(32)
    directory.update_client(replace(client, secret_hash=secret_hash(secret)))
    return secret


class RefusedRegistrationError(Exception):
    """error: a code of RFC 7591 section 3.2.2. description: without anything the client sent."""

    def __init__(self, error: str, description: str) -> None:
        super().__init__(description)
        self.error = error
        self.description = description


class _Wanted(BaseModel):
    """RFC 7591 section 2; what we do not know is ignored, as it asks."""

    model_config = ConfigDict(extra="ignore", strict=True)

    redirect_uris: list[str] = Field(min_length=1, max_length=10)
    token_endpoint_auth_method: str = "client_secret_basic"  # noqa: S105 – a method, RFC 7591's default
    grant_types: list[str] = Field(["authorization_code"], max_length=20)
    response_types: list[str] = Field(["code"], max_length=20)
    client_name: str = Field("", max_length=10_000)


def register(directory: Directory, document: Any, now_ms: int) -> dict[str, Any]:
    """Register a client that asks for itself; returns the answer of RFC 7591 section 3.2.1. Blocks.

    Raises RefusedRegistrationError; Conflict when there are too many.
    """
    wanted = _wanted(document)
    public = wanted.token_endpoint_auth_method == PUBLIC
    secret = "" if public else secrets.token_urlsafe(32)
    name = shown_name(wanted.client_name)
    client = Client(
        client_id=_dynamic_id(name),
        name=name,
        secret_hash=secret_hash(secret) if secret else "",
        grants=("authorization_code", "refresh_token"),
        redirect_uris=tuple(wanted.redirect_uris),
        scopes=None,
        dynamic=True,
        created_at_ms=now_ms,
    )
    directory.add_client(client)
    answer: dict[str, Any] = {
        "client_id": client.client_id,
        "client_id_issued_at": now_ms // 1000,
        "client_name": name,
        "redirect_uris": list(client.redirect_uris),
        "grant_types": list(client.grants),
        "response_types": ["code"],
        "token_endpoint_auth_method": wanted.token_endpoint_auth_method,
    }
    return answer if public else {**answer, "client_secret": secret, "client_secret_expires_at": 0}


def _wanted(document: Any) -> _Wanted:
    try:
        wanted = _Wanted.model_validate(document)
    except ValidationError as error:
        where = ", ".join(sorted({str(problem["loc"][0]) for problem in error.errors() if problem["loc"]}))
        code = "invalid_redirect_uri" if where == "redirect_uris" else "invalid_client_metadata"
        raise RefusedRegistrationError(code, f"Not usable: {where or 'the document'}.") from None
    for uri in wanted.redirect_uris:
        if wrong := redirects.problem(uri):
            raise RefusedRegistrationError("invalid_redirect_uri", f"A redirect URI {wrong}.")
    if wanted.token_endpoint_auth_method not in (PUBLIC, "client_secret_basic", "client_secret_post"):
        raise RefusedRegistrationError("invalid_client_metadata", "This token_endpoint_auth_method is not supported.")
    if "code" not in wanted.response_types or "authorization_code" not in wanted.grant_types:
        raise RefusedRegistrationError(
            "invalid_client_metadata", "Only the authorization code grant can be registered."
        )
    return wanted


def shown_name(name: str) -> str:
    """A self-asserted name as it may be shown: visible characters only, and not many."""
    visible = "".join(char if char.isprintable() else " " for char in name)
    return " ".join(visible.split())[:64]


def _dynamic_id(name: str) -> str:
    """Readable in records, and unmistakably not a name the operator gave."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:32].strip("-") or "client"
    return f"{DYNAMIC_MARK}{slug}-{secrets.token_hex(8)}"
