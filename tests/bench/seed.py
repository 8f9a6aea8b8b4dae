"""A database full of records, written by the store's own functions: what a broker has after years, in minutes.

    python tests/bench/seed.py FOLDER --calls 1000000 --held 20

The rows and entries are those of `admission.admit`, `hold.*` and `outcome.finish`, in their own encoding and chain;
only the commits are rarer and not synced, because nothing here has to survive a crash. The result verifies, and what
sums and words are found by is in step, as it is in a broker that had a quiet hour. The mix is made from the number of
the call alone, so that the same size is the same history: 20 agents for 50 users in 3 tenants, 30 tools of 6 backends;
of 100 calls 4 refused, 3 failed, 1 held, approved and collected; the last ones wait. Times are spread evenly over the
DAYS days before now.

Into FOLDER it writes `broker.db` and its key file; a `broker.yaml` there, or the defaults, finds them.
"""

from __future__ import annotations

import argparse
import os
import socket
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import orjson
from uuid_utils import uuid7

from broker.model.canonical import canonical, digest_of
from broker.model.hold import HoldTerms, Review
from broker.model.invocation import Called, Caller, Intent, Outcome
from broker.model.principal import Principal
from broker.model.quota import Charge
from broker.model.tool import ToolEffect
from broker.stores.sqlite import admission, digest, hold, outcome
from broker.stores.sqlite.database import connect, migrate
from broker.stores.sqlite.ledger import Ledger
from broker.stores.sqlite.rows import Rows
from broker.stores.sqlite.schema import MIGRATIONS
from broker.stores.sqlite.seal import Seal
from broker.stores.sqlite.transaction import Transaction

DAYS = 365
DAY_MS = 86_400_000
BATCH = 5_000
BACKENDS = ("orders", "mail", "files", "git", "weather", "crm")
VERBS = ("find", "read", "create", "refund", "delete")
REFUSALS = (
    ("forbidden", "authorise", "Refused: rule refunds/large forbids this call."),
    ("over_quota", "admit", "Quota daily for agent=agent-01: 0 of 100 calls left."),
    ("unknown_tool", "resolve", "Unknown tool: orders_drop"),
    ("invalid_arguments", "validate", "Refused: the arguments are not valid: $.amount is less than 0."),
)


def seed(path: Path, calls: int, *, held: int = 0, now_ms: int = 0, days: int = DAYS) -> int:
    """Fill a new database with so many calls, and so many that wait for a person. The number of its entries."""
    now_ms = now_ms or int(time.time() * 1000)
    migrate(path, MIGRATIONS)
    with closing(connect(path)) as db:
        db.execute("pragma synchronous = off")
        db.row_factory = None
        tx = _transaction(db, path, now_ms - days * DAY_MS)
        step_ms = days * DAY_MS / max(1, calls + held)
        intents = _intents(calls + held, now_ms - days * DAY_MS, step_ms)
        for number, intent in enumerate(intents):
            if number % BATCH == 0:
                if number:
                    db.execute("commit")
                db.execute("begin immediate")
            _call(tx, number, intent, waits=number >= calls)
        tx.ledger.append("chain_end", "", now_ms, {})
        db.execute("update writer set ended_at_ms = ?", (now_ms,))
        while digest.step(tx, BATCH):
            db.execute("commit")
            db.execute("begin immediate")
        db.execute("commit")
        db.execute("pragma wal_checkpoint(truncate)")
        (entries,) = db.execute("select count(*) from entry").fetchone()
        return int(entries)


def _transaction(db: sqlite3.Connection, path: Path, at_ms: int) -> Transaction:
    def register(_: int) -> None:
        db.execute(
            "insert into writer (chain, host, pid, started_at_ms, lease_until_ms) values (?, ?, ?, ?, ?)",
            (chain, socket.gethostname(), os.getpid(), at_ms, at_ms),
        )

    chain = str(uuid7())
    seal = Seal(path.with_name(path.name + ".key"))
    return Transaction(rows := Rows(db), Ledger(rows, chain, register), seal, open_per_agent=100_000)


def _intents(calls: int, start_ms: int, step_ms: float) -> Iterator[Intent]:
    for number in range(calls):
        agent, user = f"agent-{number % 20:02}", f"user-{number * 7 % 50:02}"
        tenant = ("acme", "globex", "initech")[number % 3]
        principal = Principal(agent=agent, user=user, tenant=tenant, issuer="https://issuer.example")
        backend, verb = BACKENDS[number % 6], VERBS[number * 3 % 5]
        tool = f"{backend}_{verb}"
        at_ms = int(start_ms + number * step_ms)
        effect: ToolEffect = "read" if verb in ("find", "read") else "write"
        credential = f"jti-{number // 6_000}-{number % 300}"  # each caller makes twenty calls with one
        note = "as agreed by telephone"
        arguments = canonical({"amount": number * 37 % 500, "note": note, "order_id": number % 9973})
        yield Intent(
            call_id=_id(at_ms, number),
            at_ms=at_ms,
            caller=Caller("mcp-http", agent, user, tenant, principal.issuer, principal.key, credential),
            called=Called(
                tool,
                "1",
                effect,
                digest_of(tool.encode()),
                backend,
                f"{backend}/usual",
                digest_of(b"policy"),
                "redacted",
            ),
            request_id=str(number),
            trace_id=f"{number:032x}",
            arguments_digest=digest_of(arguments),
            kept=arguments,
            kept_digest=digest_of(arguments),
            laps_us={"resolve": 3, "validate": 9, "authorise": 14},
        )


def _id(at_ms: int, number: int) -> str:
    """A UUIDv7 (RFC 9562) of this time, always the same for the same call."""
    return str(UUID(int=at_ms << 80 | 7 << 76 | 2 << 62 | number))


def _call(tx: Transaction, number: int, intent: Intent, *, waits: bool) -> None:
    """One call's whole life, at once."""
    kind, at_ms = number % 100, intent.at_ms
    if kind < len(REFUSALS) and not waits:
        code, stage, message = REFUSALS[kind]
        admission.admit(tx, replace(intent, refusal=(code, stage, message)))
        return
    if kind == len(REFUSALS) or waits:
        kept = canonical({**orjson.loads(intent.kept or b"{}"), "n": number})
        intent = replace(
            intent,
            terms=HoldTerms("a person must look", expires_in_ms=30 * DAY_MS, scopes=("broker.review",)),
            arguments=intent.kept or b"{}",
            principal=orjson.dumps({"agent": intent.caller.agent, "user": intent.caller.user, "owner": ""}),
            kept=kept,
            kept_digest=digest_of(kept),
            arguments_digest=digest_of(b"%d" % number),
            called=intent.called._replace(rule=f"{intent.called.backend}/large"),
        )
        admission.admit(tx, intent)
        if waits:
            return
        hold.review(tx, Review(intent.call_id, "approve", "rita@example", "seen the receipt", at_ms + 1, "console"))
        hold.claim(tx, (intent.call_id, at_ms + 2))
        outcome.finish(tx, _outcome(intent, number, result=b'{"content":[]}'))
        hold.collected(tx, (intent.call_id, at_ms + 500))
        return
    admission.admit(tx, replace(intent, charges=(_daily(intent),)))
    outcome.finish(tx, _outcome(intent, number))


def _daily(intent: Intent) -> Charge:
    day = intent.at_ms // DAY_MS * DAY_MS
    return Charge("daily", f"agent={intent.caller.agent}", "count", 10**9, starts_at_ms=day, resets_at_ms=day + DAY_MS)


def _outcome(intent: Intent, number: int, *, result: bytes = b"") -> Outcome:
    bad = number % 100 in (50, 60, 70)
    return Outcome(
        call_id=intent.call_id,
        at_ms=intent.at_ms + 40,
        state="failed" if bad else "succeeded",
        effect="done",
        code="backend_rejected" if bad else "",
        message="The backend answered HTTP 422." if bad else "",
        backend_status="HTTP 422" if bad else "HTTP 200",
        result_digest=digest_of(b"%d" % number),
        result_bytes=number % 4096,
        result=result,
        laps_us={**intent.laps_us, "admit": 900, "dispatch": 2_000 + number * 7919 % 300_000},
        is_plain=intent.terms is None,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Fill a new database with records.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--held", type=int, default=20, help="calls that wait for a person")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    path = options.folder / "broker.db"
    if path.exists():
        print(f"{path} is there already", file=sys.stderr)
        return 2
    began = time.perf_counter()
    entries = seed(path, options.calls, held=options.held)
    size = path.stat().st_size
    print(
        f"{options.calls + options.held:,} calls, {entries:,} entries, {size / 2**20:,.0f} MiB, "
        f"{size / (options.calls + options.held):,.0f} bytes a call, in {time.perf_counter() - began:.1f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
