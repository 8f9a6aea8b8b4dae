"""`broker log`: who called what, and how it ended."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer
from anyio import move_on_after

from broker.faces.cli import house, options
from broker.faces.cli.invocation import HEADINGS, detail, find, line, row
from broker.faces.cli.output import print_json, print_json_line, print_table, say, stamp, tell
from broker.faces.cli.payload import show_payload
from broker.faces.cli.records import Records, open_source
from broker.faces.macs import macs_of
from broker.faces.words import as_document, span
from broker.model.invocation import OPEN, Invocation, InvocationQuery, State
from broker.model.question import FIRST, MOST_CONDITIONS, By, Condition, Group, Sort
from broker.model.quota import spoken

if TYPE_CHECKING:
    from pathlib import Path

    from broker.faces.cli.records import Reader
    from broker.faces.cli.remote import Remote
    from broker.ports import Store

PAGE = 1_000
SCAN = 10_000  # latest calls whose arguments are looked into when nothing else narrows the question: what takes 0.3 s
IN_STEP_S = 3.0
_AGO = re.compile(r"(\d+)\s*(s|m|h|d|w)")
_DAYS = {"today": 0, "yesterday": 1}
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def log(
    call: Annotated[
        str, typer.Argument(metavar="CALL", show_default=False, help="One call in detail: its id, or the end of it.")
    ] = "",
    agent: Annotated[str, typer.Option(help="Only this agent's calls.", show_default=False)] = "",
    user: Annotated[str, typer.Option(help="Only calls for this user.", show_default=False)] = "",
    tenant: Annotated[str, typer.Option(help="Only this tenant's calls.", show_default=False)] = "",
    tool: Annotated[str, typer.Option(help="Only calls of this tool.", show_default=False)] = "",
    backend: Annotated[str, typer.Option(help="Only calls to this backend.", show_default=False)] = "",
    rule: Annotated[str, typer.Option(help="Only calls this rule decided (policy/rule).", show_default=False)] = "",
    code: Annotated[str, typer.Option(help="Only calls that ended with this error code.", show_default=False)] = "",
    argument: Annotated[
        list[str] | None,
        typer.Option(
            "--arg",
            metavar="PATH=VALUE",
            show_default=False,
            help="Only calls with this argument, where the tool records a keyed digest of it (hmac); may be repeated: "
            "any of them.",
        ),
    ] = None,
    payload: Annotated[
        bool, typer.Option("--payload", help="With CALL: its sealed arguments, for an auditor; that is recorded.")
    ] = False,
    auditor: Annotated[
        str, typer.Option("--as", metavar="ACCOUNT", help="With --payload: whose account it is.", show_default=False)
    ] = "",
    password_stdin: Annotated[bool, typer.Option("--password-stdin", help="Read the account's password.")] = False,
    state: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STATE",
            show_default=False,
            help=f"Only calls in this state; may be repeated: {', '.join(get_args(State))}.",
        ),
    ] = None,
    since: Annotated[
        str,
        typer.Option(metavar="WHEN", help="30m, 2h, 1d ago, today, yesterday, or a date and time.", show_default=False),
    ] = "",
    until: Annotated[str, typer.Option(metavar="WHEN", help="As --since.", show_default=False)] = "",
    search: Annotated[
        str,
        typer.Option(
            metavar="WORDS",
            show_default=False,
            help="Only calls with all these words in the arguments that are kept in clear; `refun*` finds beginnings.",
        ),
    ] = "",
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            show_default=False,
            help="Only calls whose kept arguments fit, such as 'args.amount > 100'; may be repeated.",
        ),
    ] = None,
    by: Annotated[
        By | None,
        typer.Option("--by", show_default=False, help="Sums by this, instead of single calls."),
    ] = None,
    sort: Annotated[Sort, typer.Option("--sort", help="With --by: what comes first, by its largest.")] = "calls",
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Most calls to show, the latest ones.")] = 50,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with new calls and changes until interrupted.")
    ] = False,
    broker: options.At = "",
    config: options.Config = None,
    as_json: options.Json = False,
) -> None:
    """Show recorded calls, oldest first; with CALL, one of them from request to outcome.

    Example:
      broker log --agent support-bot --since 1h
      broker log --state denied --state held --json
      broker log 1c2b3a49
      broker log --agent support-bot --user ann --since yesterday --until today
      broker log --tool orders_refund --where 'args.amount > 100'
      broker log --state denied --by rule
      broker log --since 7d --by tool --sort cost
      broker log --by backend --sort time
      broker log 1c2b3a49 --payload --as olga
      broker log --arg order_id=123
      broker log --follow
    """
    states = tuple(state or ())
    for one in states:
        if one not in get_args(State):
            raise typer.BadParameter(
                f"there is no state {one!r}; states: {', '.join(get_args(State))}", param_hint="--state"
            )
    if broker and tenant:
        raise typer.BadParameter("a remote broker shows your own tenant's calls only", param_hint="--tenant")
    filters = (*states, agent, user, tenant, tool, backend, rule, code, since, until, search, where, argument)
    if call and (by or follow or any(filters)):
        raise typer.BadParameter("one call takes no filter, no --by and no --follow", param_hint="CALL")
    if follow and (by or until):
        raise typer.BadParameter("what goes on has no sums and no end: no --by, no --until", param_hint="--follow")
    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    query = InvocationQuery(
        states=cast("tuple[State, ...]", states),
        agent=agent,
        user=user,
        tenant=tenant,
        tool=tool,
        backend=backend,
        rule=rule,
        code=code,
        since_ms=moment(since, now_ms, "--since"),
        until_ms=moment(until, now_ms, "--until"),
        limit=limit,
        where=_conditions(where or ()),
        words=search,
    )
    if payload != bool(auditor) or (payload and not call):
        raise typer.BadParameter("it takes a CALL, and --as with an auditor's account", param_hint="--payload")
    if broker and (argument or payload):
        raise typer.BadParameter("a remote broker answers that in its API only", param_hint="--broker")
    if payload:
        house.run(show_payload, config, call, auditor, password_stdin)
    elif call:
        house.run(_one, config, broker, call, as_json)
    elif by:
        house.run(_sums, config, broker, query, argument or [], by, sort, as_json)
    else:
        house.run(_many, config, broker, query, argument or [], follow, as_json)


def _conditions(texts: Sequence[str]) -> tuple[Condition, ...]:
    """Raises BadParameter."""
    if len(texts) > MOST_CONDITIONS:
        raise typer.BadParameter(f"at most {MOST_CONDITIONS} conditions", param_hint="--where")
    try:
        return tuple(Condition.read(text) for text in texts)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--where") from error


def moment(text: str, now_ms: int, option: str) -> int:
    """Milliseconds UTC of `1h` (ago), the beginning of `today` or `yesterday`, or a date and time (local unless it says
    otherwise); 0 for "".

    Raises BadParameter.
    """
    if not text:
        return 0
    if text.strip() in _DAYS:
        midnight = datetime.fromtimestamp(now_ms / 1000).astimezone().replace(hour=0, minute=0, second=0, microsecond=0)
        return int((midnight - timedelta(days=_DAYS[text.strip()])).timestamp() * 1000)
    ago = _AGO.fullmatch(text.strip())
    try:
        if ago:
            return max(1, now_ms - int(ago[1]) * _UNIT_S[ago[2]] * 1000)  # 0 would be no bound
        return int(datetime.fromisoformat(text).astimezone().timestamp() * 1000)
    except (ValueError, OverflowError) as error:
        raise typer.BadParameter(
            f"{text[:64]!r} is neither like 30m, 2h, 1d, today, yesterday nor a date such as 2026-11-23T14:00",
            param_hint=option,
        ) from error


async def _one(config: Path | None, broker: str, call: str, as_json: bool) -> None:
    async with open_source(config, broker) as records:
        invocation = await find(records.store, call)
        if as_json:
            print_json(as_document(invocation))
        else:
            say(*detail(invocation))


async def _many(
    config: Path | None, broker: str, query: InvocationQuery, arguments: list[str], follow: bool, as_json: bool
) -> None:
    async with open_source(config, broker) as records:
        query = _with_macs(records, query, arguments)
        if follow:
            await _follow(records.store, query, as_json)
        query = await _bounded(records, query)
        found = list(reversed(await records.store.invocations(query)))
        if len(found) < query.limit:
            await _say_bound(records, query)
        if as_json:
            print_json([as_document(one) for one in found])
        elif found:
            short = sys.stdout.isatty()
            print_table(HEADINGS, [row(one, short=short) for one in found], styles={0: "dim", 2: "*"})
        else:
            say("No call fits." if query != InvocationQuery(limit=query.limit) else "No call yet.")


async def _sums(
    config: Path | None,
    broker: str,
    query: InvocationQuery,
    arguments: list[str],
    by: By,
    sort: Sort,
    as_json: bool,
) -> None:
    async with open_source(config, broker) as records:
        query = await _bounded(records, _with_macs(records, query, arguments))
        found = sorted(await records.store.sums(query, by), key=FIRST[sort])[: query.limit]
        await _say_bound(records, query)
    if as_json:
        print_json([{by: one.name, **_document(one)} for one in found])
    elif found:
        print_table(_headings(by), [_sum(one) for one in found])
    else:
        say("No call fits.")


def _document(one: Group) -> dict[str, Any]:
    return {key: value for key, value in asdict(one).items() if key != "name"}


def _headings(by: By) -> tuple[str, ...]:
    return (by.upper(), "CALLS", "REFUSED", "FAILED", "UNKNOWN", "MEAN", "SLOWEST", "COST")


def _sum(one: Group) -> list[str]:
    numbers = (str(number) if number else "" for number in (one.calls, one.refused, one.failed, one.unknown))
    times = (span(one.mean_ms), span(one.slowest_ms)) if one.sent else ("", "")
    return [
        one.name or "–",
        *numbers,
        *times,
        ", ".join(" ".join(spoken(number, unit)) for unit, number in one.spent.items()),
    ]


def _with_macs(source: Records | Remote, query: InvocationQuery, arguments: list[str]) -> InvocationQuery:
    try:
        return replace(query, macs=macs_of(cast("Store", source.store).mac, arguments)) if arguments else query
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--arg") from error


async def _bounded(source: Records | Remote, query: InvocationQuery) -> InvocationQuery:
    """A condition alone would have the arguments of all calls of all times read; a remote broker has its own bound.
    Before words are looked for, they are taken in."""
    if query.words:
        await _in_step(source)
    narrow = query.tool or query.user or query.code or query.words or query.macs or query.since_ms
    return replace(query, scan=SCAN) if query.where and not narrow and isinstance(source, Records) else query


async def _say_bound(source: Records | Remote, query: InvocationQuery) -> None:
    if not isinstance(source, Records) or not query.scan:
        return
    last = await source.store.invocation(await source.store.edge(query))
    if last is not None:
        tell(f"Only the latest {SCAN:,} calls were looked at, back to {stamp(last.at_ms)}; give --since or --tool.")


async def _in_step(source: Records | Remote) -> None:
    """Words are found in what has been taken in; a serving broker does that within seconds, and so do we."""
    with move_on_after(IN_STEP_S) as waited:
        while isinstance(source, Records) and await source.store.keep_in_step():
            pass
    if waited.cancelled_caught:
        tell("Not all calls are taken into the search yet; what is missing will be found later.")


async def _follow(store: Reader, query: InvocationQuery, as_json: bool) -> None:
    """Print what is there, then each new call and each change of an open one, for ever.

    States are compared here, not in the query: a call is in several of them while it is followed.
    """
    seen: dict[str, str] = {}

    def show(invocation: Invocation) -> None:
        if seen.get(invocation.call_id) == invocation.state:
            return
        seen[invocation.call_id] = invocation.state
        if query.states and invocation.state not in query.states:
            return
        if as_json:
            print_json_line(as_document(invocation))
        else:
            print(line(invocation, short=sys.stdout.isatty()), flush=True)

    newest = await store.invocations(InvocationQuery(limit=1))
    after = newest[0].call_id if newest else ""
    for one in reversed(await store.invocations(query)):
        show(one)
    while True:
        since = replace(query, states=(), after=after, since_ms=0, limit=PAGE, oldest_first=True)
        for one in await store.invocations(since):
            show(one)
            after = one.call_id
        for call_id in [call_id for call_id, state in seen.items() if state in OPEN]:
            now = await store.invocation(call_id)
            if now is not None:
                show(now)
        seen = {call_id: state for call_id, state in seen.items() if state in OPEN}
        await store.changed(1.0)
