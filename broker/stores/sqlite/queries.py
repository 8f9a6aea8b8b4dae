"""Reading records back: rows into Invocations, filters into SQL. Used on readers' connections and in jobs."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from typing import Any, cast

from broker.model.hold import Approval, Hold, Preview
from broker.model.invocation import OPEN, Invocation, InvocationQuery, Sight
from broker.ports import OpenCalls

_SELECT = """select i.call_id, i.state, i.at_ms, i.changed_at_ms, p.face, i.agent, i."user", i.tenant, p.issuer,
        p.principal_key, i.request_id, i.trace_id, i.tool, t.tool_version, t.tool_effect, t.definition, t.backend,
        i.rule, t.policy_version, i.arguments_digest, i.quotas, i.code, i.stage, i.message, i.effect,
        i.backend_status, i.result_digest, i.result_bytes, i.laps_us, i.writer, k.body,
        h.reason, h.expires_at_ms, h.scopes, h."groups", h.persons, h.reviewer, h.review_reason, h.reviewed_at_ms,
        h.collected_at_ms, h.terms, h.bound, h.votes
    from {source} cross join caller p on p.id = i.caller cross join called t on t.id = i.called
    left join hold h on h.call_id = i.call_id and i.held = 1
    left join payload k on k.call_id = i.call_id and k.part = 'kept'"""

_ONE = f"{_SELECT.format(source='invocation i')} where i.call_id = ?"
_OPEN = "(i.state = 'held' or i.state = 'approved' or i.state = 'dispatching')"  # that partial index's, word for word
_COUNT_OPEN = f"""select i.state, count(*), min(i.at_ms) from invocation i indexed by invocation_open
    where {_OPEN} group by i.state"""  # noqa: S608 – constants of this file
_WINDOW = "select count(*) from (select 1 from invocation where at_ms >= ? and at_ms < ? limit ?)"
_OF_USER = """i.id in (select id from digest_user where "user" = ? {within} union all
    select id from invocation where id > (select upto from digest_at) {within})"""
FEW = 20_000  # rows of a window of time that are looked through one by one
_CALLER = "i.caller in (select id from caller where {} = ?)"
_EQUAL = {  # filter of InvocationQuery -> its condition
    "agent": "i.agent = ?",
    "user": 'i."user" = ?',
    "tenant": "i.tenant = ?",
    "tool": "i.tool = ?",
    "backend": "i.called in (select id from called where backend = ?)",
    "rule": "i.rule = ?",
    "code": "i.code = ?",
    "principal_key": _CALLER.format("principal_key"),
    "trace_id": "i.trace_id = ?",
}


# A value is compared with its own kind only: SQLite would hold any text to be more than any number.
_TEXT = "cast(k.body as text)"
_KIND = f"json_type({_TEXT}, ?)"
_CONDITIONS: Mapping[type, str] = {
    bool: f"{_KIND} {{}} ? and {_KIND} in ('true', 'false')",
    int: f"json_extract({_TEXT}, ?) {{}} ? and {_KIND} in ('integer', 'real')",
    float: f"json_extract({_TEXT}, ?) {{}} ? and {_KIND} in ('integer', 'real')",
    str: f"json_extract({_TEXT}, ?) {{}} ? and {_KIND} = 'text'",
}
_OPERATORS = {"=": "=", "!=": "<>", "<": "<", "<=": "<=", ">": ">", ">=": ">="}


def one(db: sqlite3.Connection, call_id: str) -> Invocation | None:
    row = db.execute(_ONE, (call_id,)).fetchone()
    return None if row is None else _invocation(row)


def some(db: sqlite3.Connection, query: InvocationQuery) -> list[Invocation]:
    """In order of commit, newest first; with `after`, oldest first, so that who follows misses nothing."""
    conditions, values = where(query)
    select = _SELECT.format(source=source_of(db, query))
    order = "asc" if query.after or query.oldest_first else "desc"
    by = "search.rowid" if query.words else "i.id"  # the index of words gives its own in order, and need not give all
    sql = f"{select} where {' and '.join(conditions)} order by {by} {order} limit ?"
    return [_invocation(row) for row in db.execute(sql, (*values, query.limit))]


def open_calls(db: sqlite3.Connection) -> OpenCalls:
    rows = db.execute(_COUNT_OPEN)
    found = {state: (number, since_ms) for state, number, since_ms in rows}
    numbers = {state: found.get(state, (0, 0))[0] for state in OPEN}
    return OpenCalls(**numbers, oldest_hold_ms=found.get("held", (0, 0))[1])


def source_of(db: sqlite3.Connection, query: InvocationQuery) -> str:
    """Where to look for it. The planner knows nothing of how many rows fit, so what is surely few is said to it."""
    if query.words:
        return "search cross join invocation i on i.id = search.rowid"
    if query.states and OPEN.issuperset(query.states):
        return "invocation i indexed by invocation_open"
    if query.since_ms and not query.after:
        window = (query.since_ms, query.until_ms or 2**62, FEW)
        (number,) = db.execute(_WINDOW, window).fetchone()
        if number < FEW:
            return "invocation i indexed by invocation_at"
    return "invocation i"


_PLACE = "(select id from invocation where call_id = ?)"
_NEWEST = "(select max(id) + 1 from invocation)"
_EDGE = "select call_id, id = (select {last}(id) from invocation) from invocation where {scanned} order by id {order}"


def edge(db: sqlite3.Connection, query: InvocationQuery) -> str:
    """See ports.Store.edge."""
    scanned, values = _scanned(query, "id")
    last, order = ("max", "desc") if query.after else ("min", "asc")
    row = db.execute(f"{_EDGE.format(last=last, order=order, scanned=scanned)} limit 1", values).fetchone()
    return "" if row is None or row[1] else row[0]


def _scanned(query: InvocationQuery, column: str) -> tuple[str, list[Any]]:
    """Up to where a scan may look."""
    if query.after:
        return f"{column} <= {_PLACE} + ?", [query.after, query.scan]
    newest, values = (_PLACE, [query.before]) if query.before else (_NEWEST, [])
    return f"{column} >= {newest} - ?", [*values, query.scan]


def where(query: InvocationQuery) -> tuple[list[str], list[Any]]:
    """The filters as conditions on `invocation i`, at least one, and their values."""
    where, values = ["1 = 1"], list[Any]()
    for name, condition in _EQUAL.items():
        wanted = cast("str", getattr(query, name))
        if wanted:
            where.append(condition)
            values.append(wanted)
    if query.code:
        where.append("i.code <> ''")  # lets the partial index be used
    if query.user:  # the bounds of a scan are said inside too, or all of a person's calls would be gathered first
        condition, bound = _scanned(query, "id") if query.scan else ("", [])
        where.append(_OF_USER.format(within=f"and {condition}" if condition else ""))
        values += [query.user, *bound, *bound]
    if query.states:
        where.append(f"i.state in ({', '.join('?' * len(query.states))})")
        values.extend(query.states)
        if OPEN.issuperset(query.states):
            where.append(_OPEN)
    if query.since_ms:
        where.append("i.at_ms >= ?")
        values.append(query.since_ms)
    if query.until_ms:
        where.append("i.at_ms < ?")
        values.append(query.until_ms)
    if query.after:
        where.append("i.id > (select id from invocation where call_id = ?)")
        values.append(query.after)
    if query.scan:
        condition, bound = _scanned(query, "i.id")
        where.append(condition)
        values.extend(bound)
    if query.before:
        where.append("i.id < (select id from invocation where call_id = ?)")
        values.append(query.before)
    if query.within is not None:
        where.append("i.tenant = ?")
        values.append(query.within)
    if query.macs:
        marks = ", ".join("?" * len(query.macs))
        where.append(f"i.call_id in (select call_id from argument_mac where mac in ({marks}))")  # noqa: S608
        values.extend(query.macs)
    if query.held_only:
        where.append("i.call_id in (select call_id from hold)")  # few, beside all records
    if query.sight is not None:
        condition, names = _sieve(query.sight)
        where.append(condition)
        values.extend(names)
    if query.words:
        where.append("search match ? and i.id not in (select id from search_gone)")  # see source_of
        values.append(_match(query.words))
    for condition in query.where:
        where.append(_CONDITIONS[type(condition.value)].format(_OPERATORS[condition.operator]))
        path, value = "$" + "".join(f'."{step}"' for step in condition.path), condition.value
        values += [path, str(value).lower() if isinstance(value, bool) else value, path]
    return where, values


def _sieve(sight: Sight) -> tuple[str, list[Any]]:
    """One's own calls, and holds that name one; `person` is the identity checks' own (see database.connect)."""
    named = ['instr(h.scopes || h."groups" || h.terms, ?) > 0'] * len(sight.names)
    held = f"i.held = 1 and exists (select 1 from hold h where h.call_id = i.call_id and ({' or '.join(named)}))"  # noqa: S608 – constants
    user = f'{_CALLER.format("issuer")} and i."user" <> \'\' and person(i."user") = ?'
    own = f"{_CALLER.format('principal_key')} or ({user})"
    quoted = [json.dumps(name, ensure_ascii=False) for name in sight.names]
    whole = [own, held] if named else [own]
    return f"({' or '.join(whole)})", [sight.principal_key, sight.issuer, sight.user, *quoted]


def _match(words: str) -> str:
    """Plain words as a question to the index; whatever they hold, they are words (FTS5, 3.1)."""
    asked = " ".join(
        f'"{word.removesuffix("*")}"{"*" if word.endswith("*") else ""}'
        for word in words.translate({ord('"'): " ", 0: " "}).split()
        if word.strip("*")
    )
    return asked or '""'


def _invocation(row: Any) -> Invocation:
    (
        call_id, state, at_ms, changed_at_ms, face, agent, user, tenant, issuer, principal_key, request_id, trace_id,
        tool, tool_version, tool_effect, definition, backend, rule, policy_version, arguments_digest, quotas, code,
        stage, message, effect, backend_status, result_digest, result_bytes, laps_us, writer, kept, *held,
    ) = row  # fmt: skip
    return Invocation(
        call_id=call_id,
        state=state,
        at_ms=at_ms,
        changed_at_ms=changed_at_ms,
        face=face,
        agent=agent,
        user=user,
        tenant=tenant,
        issuer=issuer,
        principal_key=principal_key,
        request_id=request_id,
        trace_id=trace_id,
        tool=tool,
        tool_version=tool_version,
        tool_effect=tool_effect,
        definition=definition,
        backend=backend,
        rule=rule,
        policy_version=policy_version,
        arguments_digest=arguments_digest,
        quotas=tuple(json.loads(quotas)),
        code=code,
        stage=stage,
        message=message,
        effect=effect,
        backend_status=backend_status,
        result_digest=result_digest,
        result_bytes=result_bytes,
        laps_us=json.loads(laps_us),
        writer=writer,
        hold=None if held[0] is None else _hold(held),
        kept=None if kept is None else json.loads(kept),
    )


def _hold(row: Any) -> Hold:
    (
        reason, expires_at_ms, scopes, groups, persons, reviewer, review_reason, reviewed_at_ms, collected_at_ms,
        packed_terms, packed_bound, packed_votes,
    ) = row  # fmt: skip
    terms, bound = json.loads(packed_terms), json.loads(packed_bound)
    return Hold(
        reason=reason,
        expires_at_ms=expires_at_ms,
        scopes=tuple(json.loads(scopes)),
        groups=tuple(json.loads(groups)),
        persons=tuple(json.loads(persons)),
        reviewer=reviewer,
        review_reason=review_reason,
        reviewed_at_ms=reviewed_at_ms,
        collected_at_ms=collected_at_ms,
        quorum=terms.get("quorum", 1),
        reasons=tuple(terms.get("reasons", ("deny",))),
        escalates_at_ms=terms.get("escalates_at_ms", 0),
        escalation_scopes=tuple(terms.get("escalation_scopes", ())),
        escalation_groups=tuple(terms.get("escalation_groups", ())),
        on_expiry=terms.get("on_expiry", "reject"),
        on_collect=terms.get("on_collect", False),
        confirm=terms.get("confirm", False),
        approvals=tuple(_approval(vote) for vote in json.loads(packed_votes)),
        bound=bound.get("digest", ""),
        policy=bound.get("policy", ""),
        sketch_digest=bound.get("sketch", ""),
        preview=Preview(**bound["preview"]) if bound.get("preview") else None,
        edited_by=bound.get("edited_by", ""),
    )


def _approval(vote: dict[str, Any]) -> Approval:
    vote["persons"] = tuple(vote["persons"])
    return Approval(**vote)
