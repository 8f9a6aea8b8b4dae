"""The ledger in words: the kinds of its entries, and where its chains stand, as a checkpoint names it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from broker.data import dataclass


@dataclass(frozen=True, slots=True)
class Head:
    """The last entry of a chain. hash: 64 lower-case hex digits."""

    chain: str
    seq: int
    hash: str


@dataclass(frozen=True, slots=True)
class Heads:
    """Chains are in the order in which they began.

    heads: every open chain, and those that ended last. rest: SHA-256 (hex) over the lines `<chain> <seq> <hash>`, each
    ended by a newline, of all the other chains; so a checkpoint stays small however many there have been.
    """

    chains: int
    rest: str
    heads: tuple[Head, ...]


Subject = Literal["user", "agent", "tenant"]


@dataclass(frozen=True, slots=True)
class Retention:
    """How long payloads are kept; 0: for ever. budget_bytes: of all arguments, the oldest go first; 0: no bound.
    results_ms: of held calls, results that nobody collected."""

    arguments_ms: int = 0
    sealed_ms: int = 0
    budget_bytes: int = 0
    results_ms: int = 30 * 86_400_000

    @property
    def deletes(self) -> bool:
        """Whether so much goes that the file should become smaller."""
        return bool(self.arguments_ms or self.sealed_ms or self.budget_bytes)


@dataclass(frozen=True, slots=True)
class Erased:
    """calls: of which something was kept. rows: payloads that are gone. open: calls that still need theirs."""

    calls: int
    rows: int
    open: int


# Every kind of entry there is: its stable code, and what it says. docs/record.md shows this very table.
KINDS: Mapping[str, str] = {
    "chain": "a process began to write: host, pid, version, and how chains before it had ended (`seen`)",
    "chain_end": "the process ended in good order",
    "chain_died": "a process was found dead; where its chain ended (`seen`)",
    "outage": "records could not be written for a while, and why",
    "intent": "a call was admitted and is about to be sent",
    "denied": "a call was refused before anything was sent",
    "held": "a call waits for a person",
    "attached": "the same call was sent again while it waits, or waits to be collected",
    "replayed": "a call was sent again with its idempotency key, and was not done again",
    "review": "a person approved, rejected or withdrew a held call",
    "grant": "a standing grant was proposed, confirmed, rejected or revoked",
    "review_refused": "a person may not decide, and tried to",
    "escalation": "a held call waits still, and others may decide now, too",
    "expiring": "a held call waits still, and its time is nearly over",
    "expiry": "nobody decided in time",
    "withdrawal": "the broker withdrew a held call: what was asked for is no longer what would be done",
    "claim": "an approved call is about to be sent",
    "outcome": "how a call ended",
    "recovery": "a call was under way when its process died; nobody can say how it ended",
    "collected": "whoever asked was told how the held call ended",
    "payloads_deleted": "payloads were deleted: kept long enough, or beyond the budget",
    "erasure": "payloads of a person, an agent or a tenant were erased: whose, by whom, of which calls",
    "payload_read": "somebody is about to read the sealed arguments of a call: who, of which",
    "checkpoint": "checkpoints began to fail, or work again, at a place outside of the database",
    "reload": "another catalog is served: its digest, and what was added, removed and changed",
    "reload_refused": "manifests did not fit and were not taken",
    "requests_refused": "in sum: requests that never became a call, by reason",
    "authentication_refused": "in sum: credentials that were refused, by reason and issuer; never the credential",
    "lists_filtered": "in sum: lists of tools that were shown, by agent, and how many of all tools were in them",
    "sign_in": "a person signed in with the embedded issuer",
    "sign_in_refused": "a name or a password was not right",
    "sign_out": "a person signed out of the embedded issuer",
    "console_sign_in": "a person signed in to the console",
    "console_sign_out": "a person signed out of the console",
    "consent": "a person allowed a client to act, or did not",
    "client_registered": "a client registered itself",
    "token_issued": "an access token was given out: to whom, for what; never the token",
    "token_refused": "in sum: requests for a token that were refused, by reason",
    "token_revoked": "a token was revoked",
    "account_added": "an account was added by command",
    "account_removed": "an account was removed by command",
    "client_added": "a client was added by command",
    "client_removed": "a client was removed by command",
    "key_added": "an API key was made by command; never the key",
    "key_revoked": "an API key was revoked by command",
    "notified": "a receiver was told of a held call: whom, of what, after how many tries",
    "notice_failed": "a notice was given up, and why",
    "export": "records were exported: how, and how many",
    "doctor": "somebody asked whether records can be written",
}
