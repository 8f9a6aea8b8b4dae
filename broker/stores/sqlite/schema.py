"""The tables of records, quotas and holds, as migrations. A change is a new function below; an old one is never edited.

Why it looks as it does: rows are narrow and appended, because two commits of a call are most of what a call costs.
`invocation` and `entry` are written in one order by one transaction after another, so both are in order of commit by
`id`, and `--follow` and the verifier need nothing but that order. What is asked of open calls only has a partial index.
"""

from __future__ import annotations

import sqlite3

from broker.stores.sqlite import context, digest, grant, reminder, spent
from broker.stores.sqlite.follow import TABLES as FOLLOWERS
from broker.stores.sqlite.migrations import Migrations

MIGRATIONS = Migrations("store")

_TABLES = (
    # The ledger. The columns are what is hashed; stores/sqlite/ledger.py says how, byte by byte.
    """create table entry (
        id integer primary key,
        chain text not null,
        seq integer not null,
        at_ms integer not null,
        kind text not null,
        call_id text not null,
        body text not null,
        prev blob not null,
        hash blob not null,
        unique (chain, seq)
    ) strict""",
    # One row a call: its current state, changed only together with an entry that says so.
    """create table invocation (
        id integer primary key,
        call_id text not null unique,
        state text not null,
        at_ms integer not null,
        changed_at_ms integer not null,
        face text not null,
        agent text not null,
        "user" text not null,
        tenant text not null,
        issuer text not null,
        principal_key text not null,
        credential_id text not null,
        request_id text not null,
        trace_id text not null,
        tool text not null,
        tool_version text not null,
        tool_effect text not null,
        definition text not null,
        backend text not null,
        rule text not null,
        policy_version text not null,
        arguments_digest text not null,
        record text not null,
        held integer not null,
        writer text not null,
        quotas text not null,
        code text not null,
        stage text not null,
        message text not null,
        effect text not null,
        laps_us text not null,
        backend_status text not null default '',
        result_digest text not null default '',
        result_bytes integer not null default 0
    ) strict""",
    "create index invocation_at on invocation (at_ms)",
    "create index invocation_agent on invocation (agent)",
    "create index invocation_tool on invocation (tool)",
    "create index invocation_code on invocation (code) where code <> ''",
    "create index invocation_open on invocation (state, agent) where state in ('held', 'approved', 'dispatching')",
    # What a held call has beside its invocation. act: digest of who, which definition, which arguments. charges: what
    # is taken only when the call runs. The partial index is the law: one act has one hold until it is collected.
    """create table hold (
        call_id text primary key references invocation (call_id),
        act text not null,
        reason text not null,
        expires_at_ms integer not null,
        scopes text not null,
        "groups" text not null,
        persons text not null,
        charges text not null,
        reviewer text not null default '',
        review_reason text not null default '',
        review_via text not null default '',
        reviewed_at_ms integer not null default 0,
        collected_at_ms integer not null default 0
    ) strict, without rowid""",
    "create unique index hold_act on hold (act) where collected_at_ms = 0",
    # part: kept (clear, what the tool's record mode allows) | arguments | principal | result (sealed, see seal.py).
    """create table payload (
        call_id text not null,
        part text not null,
        body blob not null,
        primary key (call_id, part)
    ) strict, without rowid""",
    "create index payload_result on payload (call_id) where part = 'result'",
    # One row a bucket and window. rate: `used` is the number of units ever admitted, `touched_at_ms` the bucket's own
    # time, which never goes back. count, cost: the calendar window. concurrency: one row, `reserved` only.
    """create table quota_counter (
        quota text not null,
        bucket text not null,
        kind text not null,
        starts_at_ms integer not null,
        resets_at_ms integer not null,
        unit text not null,
        most integer not null,
        window_ms integer not null,
        used integer not null,
        reserved integer not null,
        touched_at_ms integer not null,
        primary key (quota, bucket, kind, starts_at_ms)
    ) strict, without rowid""",
    # A row covers the units (position - amount, position] of its bucket, all admitted at at_ms.
    """create table quota_rate (
        quota text not null,
        bucket text not null,
        position integer not null,
        amount integer not null,
        at_ms integer not null,
        primary key (quota, bucket, position)
    ) strict, without rowid""",
    """create table reservation (
        call_id text not null,
        quota text not null,
        bucket text not null,
        kind text not null,
        starts_at_ms integer not null,
        unit text not null,
        amount integer not null,
        primary key (call_id, quota, bucket, kind)
    ) strict, without rowid""",
    # Processes that wrote. Who is alive is the kernel's to say (liveness.py); lease_until_ms is for when it cannot.
    """create table writer (
        chain text primary key,
        host text not null,
        pid integer not null,
        started_at_ms integer not null,
        lease_until_ms integer not null,
        ended_at_ms integer not null default 0
    ) strict, without rowid""",
    "create index writer_open on writer (chain) where ended_at_ms = 0",
)


# Which call an idempotency key stands for. key: SHA-256 of what the client sent, since that may say something.
_IDEMPOTENCY = (
    """create table idempotency (
        principal_key text not null,
        key text not null,
        call_id text not null references invocation (call_id),
        tool text not null,
        arguments_digest text not null,
        at_ms integer not null,
        primary key (principal_key, key)
    ) strict, without rowid""",
    "create index idempotency_call on idempotency (call_id)",
    "create index idempotency_at on idempotency (at_ms)",
)


# terms: what the rule asks besides who may review. bound: what an approval is for (its digest and parts), and the
# preview. votes: approvals given so far. Rows from before have none of these and mean the defaults of model.hold.Hold.
_HOLD_TERMS = (
    "alter table hold add column terms text not null default '{}'",
    "alter table hold add column bound text not null default '{}'",
    "alter table hold add column votes text not null default '[]'",
)


@MIGRATIONS
def tables(db: sqlite3.Connection) -> None:
    for statement in _TABLES:
        db.execute(statement)


@MIGRATIONS
def idempotency(db: sqlite3.Connection) -> None:
    for statement in _IDEMPOTENCY:
        db.execute(statement)


# until_ms: of a key that a tool derives, when it stands for its call no longer; 0: of a client's key, by its age.
# first: the id of the first call that took the key, by which backends know all its attempts.
_DERIVED_KEYS = (
    "alter table idempotency add column until_ms integer not null default 0",
    "alter table idempotency add column first text not null default ''",
)

# Breakers: how long nothing is let through. The indexes find counters that are kept no longer: those of sliding windows
# a week after their last use, so that no clock that was wrong loses one; those of repeated calls, of which there may be
# one for each call, after an hour.
IDLE_AT = """touched_at_ms + window_ms + cool_down_ms + case kind when 'repeat' then 3600000 else 604800000 end"""
IDLE = "(kind = 'rate' or kind = 'repeat' or kind = 'errors')"
_BREAKERS = (
    "alter table quota_counter add column cool_down_ms integer not null default 0",
    f"create index quota_idle on quota_counter ({IDLE_AT}) where kind in ('rate', 'repeat', 'errors')",
    "create index quota_over on quota_counter (resets_at_ms) where kind in ('count', 'cost') and reserved = 0",
)


@MIGRATIONS
def breakers(db: sqlite3.Connection) -> None:
    for statement in _BREAKERS:
        db.execute(statement)


@MIGRATIONS
def held_lately(db: sqlite3.Connection) -> None:
    """What people look at all the time: of one tenant, what was held, by its last change."""
    db.execute("create index invocation_held on invocation (tenant, changed_at_ms) where held = 1")


@MIGRATIONS
def hold_terms(db: sqlite3.Connection) -> None:
    for statement in _HOLD_TERMS:
        db.execute(statement)


@MIGRATIONS
def digests(db: sqlite3.Connection) -> None:
    for statement in digest.TABLES:
        db.execute(statement)


# By which keyed digests a call can be found: 16 bytes of each. A deleted payload takes them along.
_MACS = (
    """create table argument_mac (
        mac blob not null,
        call_id text not null,
        primary key (mac, call_id)
    ) strict, without rowid""",
    "create index argument_mac_call on argument_mac (call_id)",
    "create index entry_erasure on entry (id) where kind in ('erasure', 'payloads_deleted')",
)


@MIGRATIONS
def payloads(db: sqlite3.Connection) -> None:
    for statement in _MACS:
        db.execute(statement)


@MIGRATIONS
def spent_states(db: sqlite3.Connection) -> None:
    for statement in spent.TABLE:
        db.execute(statement)


@MIGRATIONS
def derived_keys(db: sqlite3.Connection) -> None:
    for statement in _DERIVED_KEYS:
        db.execute(statement)


@MIGRATIONS
def followers(db: sqlite3.Connection) -> None:
    for statement in FOLLOWERS:
        db.execute(statement)


@MIGRATIONS
def free_places(db: sqlite3.Connection) -> None:
    """Concurrency counters that nobody holds a place of, by their last use: they go, too."""
    db.execute("create index quota_free on quota_counter (touched_at_ms) where kind = 'concurrency' and reserved = 0")


@MIGRATIONS
def standing_grants(db: sqlite3.Connection) -> None:
    db.execute(grant.TABLE)
    db.execute(grant.INDEX)


@MIGRATIONS
def earlier_decisions(db: sqlite3.Connection) -> None:
    """What people decided on calls of one tool that one rule held, the last first, however many there are of others."""
    db.execute("create index invocation_judged on invocation (tenant, tool, rule, changed_at_ms, state) where held = 1")


@MIGRATIONS
def digest_of_persons(db: sqlite3.Connection) -> None:
    digest.add_persons(db)


@MIGRATIONS
def reminders(db: sqlite3.Connection) -> None:
    db.execute(reminder.TABLE)


@MIGRATIONS
def changes_by_part(db: sqlite3.Connection) -> None:
    """What reviewers changed, by itself, so that tidying does not walk through all arguments that are kept."""
    db.execute("create index payload_changes on payload (call_id) where part = 'changes'")


# `in (…)` of more than two makes a table at each change of a row, which cost more than the change did.
_CONDITIONS = (
    "drop index invocation_open",
    """create index invocation_open on invocation (state, agent)
        where (state = 'held' or state = 'approved' or state = 'dispatching')""",
    "drop index quota_idle",
    f"create index quota_idle on quota_counter ({IDLE_AT}) where {IDLE}",
)


@MIGRATIONS
def conditions_spelt_out(db: sqlite3.Connection) -> None:
    for statement in _CONDITIONS:
        db.execute(statement)


# One row a call: its current state, changed only together with an entry that says so. What it has in common with
# others stands in `caller` and `called`; all columns are in the view `record`. The table is made anew, since to drop
# nine columns would write a long one nine times.
_NARROW = (
    """create table narrow (
        id integer primary key,
        call_id text not null unique,
        state text not null,
        at_ms integer not null,
        changed_at_ms integer not null,
        caller integer not null,
        called integer not null,
        agent text not null,
        "user" text not null,
        tenant text not null,
        credential_id text not null,
        tool text not null,
        rule text not null,
        writer text not null,
        code text not null,
        held integer not null,
        effect text not null,
        request_id text not null,
        trace_id text not null,
        arguments_digest text not null,
        backend_status text not null default '',
        result_bytes integer not null default 0,
        result_digest text not null default '',
        stage text not null,
        message text not null,
        laps_us text not null,
        quotas text not null
    ) strict""",
    """insert into caller (face, issuer, principal_key)
        select face, issuer, principal_key from invocation group by 1, 2, 3 order by min(id)""",
    """insert into called (tool_version, tool_effect, definition, backend, policy_version, record)
        select tool_version, tool_effect, definition, backend, policy_version, record from invocation
        group by 1, 2, 3, 4, 5, 6 order by min(id)""",
    """insert into narrow
        select i.id, i.call_id, i.state, i.at_ms, i.changed_at_ms, p.id, t.id, i.agent, i."user", i.tenant,
            i.credential_id, i.tool, i.rule, i.writer, i.code, i.held, i.effect, i.request_id, i.trace_id,
            i.arguments_digest, i.backend_status, i.result_bytes, i.result_digest, i.stage, i.message, i.laps_us,
            i.quotas
        from invocation i
        cross join caller p using (face, issuer, principal_key)
        cross join called t using (tool_version, tool_effect, definition, backend, policy_version, record)
        order by i.id""",
    "drop table invocation",
    "pragma legacy_alter_table = on",  # or the triggers that name the table would have to find it meanwhile
    "alter table narrow rename to invocation",
    "pragma legacy_alter_table = off",
    "create index invocation_at on invocation (at_ms)",
    "create index invocation_agent on invocation (agent)",
    "create index invocation_tool on invocation (tool)",
    "create index invocation_code on invocation (code) where code <> ''",
    """create index invocation_open on invocation (state, agent)
        where (state = 'held' or state = 'approved' or state = 'dispatching')""",
    "create index invocation_held on invocation (tenant, changed_at_ms) where held = 1",
    "create index invocation_judged on invocation (tenant, tool, rule, changed_at_ms, state) where held = 1",
)


@MIGRATIONS
def common_columns(db: sqlite3.Connection) -> None:
    """Records become narrow. Takes about ten seconds for a million calls."""
    for statement in (*context.TABLES, *_NARROW, context.VIEW):
        db.execute(statement)
