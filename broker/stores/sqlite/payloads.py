"""What is kept of arguments apart from the record: sealed for the auditor, or findable without being readable.

What is kept in clear is admission's, because most calls have it. Every deletion says in an entry what is gone.
"""

from __future__ import annotations

from typing import Any

from broker.model.canonical import digest_of
from broker.stores.sqlite.transaction import Transaction

FULL = "full"


def keep(tx: Transaction, call_id: str, sealed: bytes, macs: tuple[bytes, ...]) -> dict[str, Any]:
    """Write them, in the place of what was there; what the entry says of them: the digest of what is sealed, as it is
    stored."""
    tx.db.executemany(
        "insert into argument_mac (mac, call_id) values (?, ?) on conflict do nothing", [(mac, call_id) for mac in macs]
    )
    if not sealed:
        return {}
    closed = tx.seal.close(call_id, FULL, sealed)
    tx.db.execute("insert or replace into payload (call_id, part, body) values (?, ?, ?)", (call_id, FULL, closed))
    return {"sealed": digest_of(closed)}


def read(tx: Transaction, argument: tuple[str, int, str, str]) -> None:
    """Say that somebody is about to read a call's sealed arguments: (call_id, now_ms, by, via)."""
    call_id, now_ms, by, via = argument
    tx.ledger.append("payload_read", "", now_ms, {"call_id": call_id, "by": by, "via": via})
