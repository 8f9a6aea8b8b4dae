"""What is asked of many calls at once, kept in step with the records beside the calls' own way: sums by day, the
calls of each user, and the words of the arguments that are kept.

A call is taken in some seconds after it was recorded, by `step`: a job of the writer's that looks at the next few, so
that admitting one costs no statement more. Questions lose nothing by that: what is not yet taken in (`id > upto`) and
what had not ended when it was (`digest_late`) is looked at itself (see questions.py). Everything here can be made anew
from the records (`forget`), belongs to no chain, and promises nothing that is not there.

The index of words has no text of its own (FTS5, contentless). When a payload goes or changes, triggers note what the
index must forget, so that nobody who erases has to know of it; from then on it is not found, and the next steps take it
out of the index and of the file. The triggers cannot do that themselves: a schema that is not trusted may not touch a
virtual table.
"""

from __future__ import annotations

import sqlite3

from broker.stores.sqlite.transaction import Transaction

TABLES = (
    """create table digest (
        day integer not null,
        tenant text not null,
        agent text not null,
        tool text not null,
        backend text not null,
        rule text not null,
        state text not null,
        code text not null,
        calls integer not null,
        sent integer not null,
        dispatch_us integer not null,
        slowest_us integer not null,
        primary key (day, tenant, agent, tool, backend, rule, state, code)
    ) strict, without rowid""",
    # What a call cost, when it cost something: as its backend reported it, else the estimate.
    """create table spent (
        call_id text not null,
        unit text not null,
        amount integer not null,
        primary key (call_id, unit)
    ) strict, without rowid""",
    """create table digest_spent (
        day integer not null,
        tenant text not null,
        agent text not null,
        tool text not null,
        backend text not null,
        rule text not null,
        state text not null,
        code text not null,
        unit text not null,
        amount integer not null,
        primary key (day, tenant, agent, tool, backend, rule, state, code, unit)
    ) strict, without rowid""",
    "create table digest_late (id integer primary key) strict",
    """create table digest_at (
        one integer primary key check (one = 1),
        upto integer not null,
        has_forgotten integer not null
    ) strict""",
    "insert into digest_at values (1, 0, 0)",
    # A person's calls. Not an index of the records, because every one of those costs each call a page of the disk.
    """create table digest_user (
        "user" text not null,
        id integer not null,
        primary key ("user", id)
    ) strict, without rowid""",
    "create virtual table search using fts5(words, content='', tokenize='unicode61 remove_diacritics 2')",
    # What the index still has and must forget: the text it was given, which FTS5 needs to be told again, until `step`.
    "create table search_gone (id integer primary key, words text not null) strict",
    """create trigger search_forgets before delete on payload when old.part = 'kept' begin
        insert or ignore into search_gone select i.id, cast(old.body as text) from invocation i
            where i.call_id = old.call_id and i.id <= (select upto from digest_at);
    end""",
    """create trigger search_follows before update of body on payload when old.part = 'kept' begin
        insert or ignore into search_gone select i.id, cast(old.body as text) from invocation i
            where i.call_id = old.call_id and i.id <= (select upto from digest_at);
    end""",
)

# The same by who calls for whom, added later. What is in the digest already is taken into it when it is made. There are
# more rows of it, so it lies in the order in which it is mostly asked for, and nothing has to be sorted.
PERSONS = (
    """create table digest_person (
        day integer not null,
        tenant text not null,
        agent text not null,
        "user" text not null,
        state text not null,
        calls integer not null,
        sent integer not null,
        dispatch_us integer not null,
        slowest_us integer not null,
        primary key ("user", state, day, tenant, agent)
    ) strict, without rowid""",
    """create table digest_person_spent (
        day integer not null,
        tenant text not null,
        agent text not null,
        "user" text not null,
        state text not null,
        unit text not null,
        amount integer not null,
        primary key ("user", unit, state, day, tenant, agent)
    ) strict, without rowid""",
)

DAY_MS = 86_400_000
OPEN = "('held', 'approved', 'dispatching', 'outcome_unknown')"  # states that may still become another
_MERGED = 2  # a merge that changes less had nothing to do (FTS5, 6.6)

DIGESTS = {  # table -> the facts of a call that it keeps apart, besides the day; that of what they cost ends in _spent
    "digest": ("tenant", "agent", "tool", "backend", "rule", "state", "code"),
    "digest_person": ("tenant", "agent", '"user"', "state"),
}
_ADD = """insert into {table}
    select at_ms / 86400000, {facts}, count(*), count(dispatch_us),
        total(dispatch_us), coalesce(max(dispatch_us), 0)
    from (select *, laps_us ->> '$.dispatch' as dispatch_us from {records} where {chosen}) where true
    group by at_ms / 86400000, {facts}
    on conflict do update set calls = calls + excluded.calls, sent = sent + excluded.sent,
        dispatch_us = dispatch_us + excluded.dispatch_us, slowest_us = max(slowest_us, excluded.slowest_us)"""
_ADD_SPENT = """insert into {table}_spent
    select at_ms / 86400000, {facts}, unit, sum(amount)
    from {records} join spent using (call_id) where {chosen}
    group by at_ms / 86400000, {facts}, unit on conflict do update set amount = amount + excluded.amount"""
_CHOSEN = f"id > ?1 and id <= ?2 and state not in {OPEN}"


def _additions(table: str, chosen: str) -> list[str]:
    facts = DIGESTS[table]
    records = "record" if "backend" in facts else "invocation"  # the view, for what no column of the table says
    return [
        add.format(table=table, records=records, facts=", ".join(facts), chosen=chosen) for add in (_ADD, _ADD_SPENT)
    ]


_NEW = [statement for table in DIGESTS for statement in _additions(table, _CHOSEN)]
_USERS = """insert into digest_user select "user", id from invocation where id > ? and id <= ? and "user" <> ''"""
_INDEX = """insert into search (rowid, words) select i.id, cast(k.body as text) from invocation i
    join payload k on k.call_id = i.call_id and k.part = 'kept' where i.id > ? and i.id <= ?"""
# cross join: the few late ones are gone through, never all records (the planner has no figures to choose by).
_BEHIND = f"""select exists (select 1 from digest_at where has_forgotten or exists
        (select 1 from invocation where id > upto))
    or exists (select 1 from search_gone)
    or exists (select 1 from digest_late l cross join invocation i on i.id = l.id where i.state not in {OPEN})"""  # noqa: S608
_SETTLED = f"select l.id from digest_late l cross join invocation i on i.id = l.id where i.state not in {OPEN} limit ?"  # noqa: S608 – constants of this file


def is_in_step(db: sqlite3.Connection) -> bool:
    """Whether `step` would have nothing to do. For readers, so that nobody takes the lock of writers for nothing."""
    return db.execute(_BEHIND).fetchone() == (0,)


def step(tx: Transaction, most: int) -> int:
    """Take in the next calls, at most so many; how many there were. 0: all is in step."""
    db = tx.db
    (upto,) = db.execute("select upto from digest_at").fetchone()
    last = db.execute("select max(id) from (select id from invocation where id > ? order by id limit ?)", (upto, most))
    (last,) = last.fetchone()
    if last is None:
        return _late(tx, most) or _gone(tx, most) or _merge(tx, most)
    for statement in _NEW:
        db.execute(statement, (upto, last))
    db.execute(
        f"insert into digest_late select id from invocation where id > ? and id <= ? and state in {OPEN}",  # noqa: S608
        (upto, last),
    )
    db.execute(_USERS, (upto, last))
    db.execute(_INDEX, (upto, last))
    db.execute("update digest_at set upto = ?", (last,))
    return int(last) - int(upto)


def _late(tx: Transaction, most: int) -> int:
    """Those that had not ended when they were taken in, and now have."""
    ids = [row[0] for row in tx.db.execute(_SETTLED, (most,))]
    for one in ids:
        for statement in _NEW:
            tx.db.execute(statement, (one - 1, one))
        tx.db.execute("delete from digest_late where id = ?", (one,))
    return len(ids)


def _gone(tx: Transaction, most: int) -> int:
    """Take out of the index what is not kept any more; what was replaced is taken in anew."""
    db = tx.db
    gone = db.execute("select id, words from search_gone limit ?", (most,)).fetchall()
    for one, words in gone:
        db.execute("insert into search (search, rowid, words) values ('delete', ?, ?)", (one, words))
        db.execute(_INDEX, (one - 1, one))
        db.execute("delete from search_gone where id = ?", (one,))
        db.execute("update digest_at set has_forgotten = 1")
    return len(gone)


def _merge(tx: Transaction, most: int) -> int:
    """After something was forgotten: rewrite the index without it, some pages at a time."""
    db = tx.db
    if db.execute("select has_forgotten from digest_at").fetchone() == (0,):
        return 0
    before = db.total_changes
    db.execute("insert into search (search, rank) values ('merge', ?)", (-most,))
    if db.total_changes - before >= _MERGED:
        return 1
    db.execute("update digest_at set has_forgotten = 0")
    return 0


def forget(tx: Transaction, _: None) -> None:
    """Make all of it anew, from the first call on."""
    tables = [name for table in DIGESTS for name in (table, table + "_spent")]
    for table in (*tables, "digest_late", "digest_user", "search_gone"):
        tx.db.execute(f"delete from {table}")  # noqa: S608 – as above
    tx.db.execute("insert into search (search) values ('delete-all')")
    tx.db.execute("update digest_at set upto = 0, has_forgotten = 0")


def add_persons(db: sqlite3.Connection) -> None:
    """Of a database with a digest: what that has got to, by who calls for whom, too."""
    for statement in PERSONS:
        db.execute(statement)
    taken = "id <= (select upto from digest_at) and id not in (select id from digest_late)"
    for statement in _additions("digest_person", taken):
        db.execute(statement)
