"""The broker's own programs as clients of the embedded issuer: they are known without anybody registering them.

The command line is a public client (RFC 8252): it has no secret, comes back to a port of loopback that it takes for the
moment, and a person must consent as for any other client. An operator may disable or narrow it like any other.
"""

from __future__ import annotations

from dataclasses import replace

from broker.errors import Conflict
from broker.model.directory import Client
from broker.ports import Directory

COMMAND_LINE = Client(
    "broker-cli",
    name="broker command line",
    grants=("authorization_code", "refresh_token"),
    redirect_uris=("http://127.0.0.1/callback",),  # of any port: RFC 8252 section 7.3
    scopes=None,
)


def ensure(directory: Directory, wanted: Client) -> None:
    """Register it, or make it as it has to be; disabled stays disabled. Blocks. Raises Conflict when an account has its
    name."""
    known = directory.client(wanted.client_id)
    if known is None:
        directory.add_client(wanted)
    elif replace(wanted, created_at_ms=known.created_at_ms) != known:
        directory.update_client(replace(wanted, created_at_ms=known.created_at_ms, disabled=known.disabled))


def find(directory: Directory, client_id: str) -> Client | None:
    """The client of this id; the command line's is registered when it is first asked for. Blocks."""
    known = directory.client(client_id)
    if known is None and client_id == COMMAND_LINE.client_id:
        try:
            directory.add_client(COMMAND_LINE)
        except Conflict:
            return directory.client(client_id)  # another thread's, or none while an account has the name
        return COMMAND_LINE
    return known
