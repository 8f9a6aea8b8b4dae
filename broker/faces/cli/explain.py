"""`broker explain`: what would happen to a call, stage by stage, without making it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from broker.faces.cli import house, options
from broker.faces.cli.arguments import read_arguments
from broker.faces.cli.call import tell_down
from broker.faces.cli.output import print_json, say, styled
from broker.faces.text import safe
from broker.faces.words import span
from broker.model.part import RESOURCE
from broker.model.quota import room, spoken

if TYPE_CHECKING:
    from pathlib import Path

    from broker.assembly import Broker
    from broker.catalog.catalog import Entry
    from broker.model.principal import Principal

Step = dict[str, Any]


def explain(
    agent: Annotated[
        str, typer.Argument(metavar="AGENT", show_default=False, help="A registered client's id, or `local`.")
    ],
    tool: Annotated[str, typer.Argument(metavar="TOOL", show_default=False, help="The tool's name in the catalog.")],
    pairs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=VALUE]...",
            show_default=False,
            help="Arguments, typed by the tool's schema; NAME:=JSON as it is.",
        ),
    ] = None,
    arguments: Annotated[
        str,
        typer.Option(
            "--args",
            metavar="JSON",
            show_default=False,
            help="All arguments as one JSON object; @FILE, or - for stdin.",
        ),
    ] = "",
    config: options.Config = None,
    as_json: options.Json = False,
) -> None:
    """Say what would happen to a call, and by which rule, without making or recording it.

    Exit code 0 when it would be sent, 1 when it would be refused or held.

    Example:
      broker explain support-bot orders_refund order_id=A-1 amount=70
    """
    house.run(_explain, config, agent, tool, pairs or [], arguments, as_json)


async def _explain(config: Path | None, agent: str, tool: str, pairs: list[str], document: str, as_json: bool) -> None:
    async with house.tooled(config) as broker:
        tell_down(broker)
        caller = house.caller(broker, agent)
        given = read_arguments(pairs, document, broker.pipeline.input_schema(tool))
        if tool.startswith(RESOURCE):
            given.setdefault("uri", tool.removeprefix(RESOURCE))
        steps = [_authenticate(caller), *await _stages(broker, caller, tool, given)]
    outcome = steps[-1]["outcome"]
    if as_json:
        print_json({"agent": caller.agent, "tool": tool, "outcome": outcome, "steps": steps})
    else:
        say(*(line for step in steps for line in _lines(step)))
    if outcome != "allow":
        raise typer.Exit(1)


def _authenticate(caller: Principal) -> Step:
    scopes = " ".join(sorted(caller.scopes)) or "no scopes"
    groups = f", groups {' '.join(sorted(caller.groups))}" if caller.groups else ""
    return {
        "stage": "authenticate",
        "outcome": "ok",
        "why": f"{caller.agent}, vouched for by {caller.issuer}, with {scopes}{groups}",
    }


async def _stages(broker: Broker, caller: Principal, name: str, arguments: dict[str, Any]) -> list[Step]:
    catalog, now_ms = broker.shelf.current, broker.clock.now_ms()
    entry = catalog.resolve(name, caller) or catalog.resolve_part(name, caller, expanded=True)
    if entry is None:
        why = (
            "no tool of this name"
            if catalog.named(name) is None
            else "there is one, but this agent may not see it (toolsets, deny rules)"
        )
        return [{"stage": "resolve", "outcome": "refused", "code": "unknown_tool", "why": why}]
    tool = entry.tool
    steps: list[Step] = [
        {
            "stage": "resolve",
            "outcome": "ok",
            "why": f"{tool.name} version {tool.version}, {tool.effect}, backend {tool.backend} ({tool.source})",
        }
    ]
    faults = entry.faults(arguments)
    if faults:
        return [
            *steps,
            {"stage": "validate", "outcome": "refused", "code": "invalid_arguments", "why": "; ".join(faults)},
        ]
    steps.append({"stage": "validate", "outcome": "ok", "why": "the arguments fit the schema"})
    verdict = entry.decide(caller, arguments, now_ms)
    findings = [asdict(finding) for finding in entry.explain(caller, arguments, now_ms)]
    why = f"missing scopes: {' '.join(verdict.missing)}" if verdict.missing else verdict.reason
    steps.append(
        {"stage": "authorise", "outcome": verdict.outcome, "rule": verdict.rule, "why": why, "findings": findings}
    )
    if verdict.outcome == "deny":
        return steps
    return [*steps, *await _meter(broker, entry, caller, arguments, now_ms), _end(broker, entry, verdict.outcome)]


async def _meter(broker: Broker, entry: Entry, caller: Principal, arguments: dict[str, Any], now_ms: int) -> list[Step]:
    """Each charge the call would be, against what is used now. A quota that is short is told, and decides the end."""
    charges = entry.charges(caller, arguments, now_ms)
    steps: list[Step] = []
    for charge, state in zip(charges, await broker.store.left(charges, now_ms), strict=True):
        short = charge.amount > state.left or state.retry_after_ms > 0
        again = f"; resets in {span(state.resets_at_ms - now_ms)}" if state.resets_at_ms > now_ms else ""
        takes = spoken(charge.amount, charge.unit)[0]
        why = f"{charge.quota} [{charge.bucket}]: takes {takes}, {room(state.left, charge.limit, charge.unit)}{again}"
        steps.append({"stage": "meter", "outcome": "short" if short else "ok", "quota": charge.quota, "why": why})
    return steps


def _end(broker: Broker, entry: Entry, outcome: str) -> Step:
    backend = broker.backends.get(entry.tool.backend)
    state = (
        f"backend {entry.tool.backend} is {backend.health.state}"
        if backend
        else f"backend {entry.tool.backend} is gone"
    )
    if outcome == "hold":
        return {"stage": "hold", "outcome": "hold", "why": "a person would be asked; nothing is sent before"}
    return {"stage": "dispatch", "outcome": "allow", "why": f"it would be sent ({state})"}


_WORDS = {"ok": "ok", "allow": "allow", "hold": "hold", "deny": "deny", "refused": "bad", "short": "bad"}


def _lines(step: Step) -> list[str]:
    outcome = str(step["outcome"])
    lines = [f"{step['stage']:<13}{styled(f'{outcome:<8}', _WORDS[outcome])} {safe(_reason(step))}".rstrip()]
    for finding in step.get("findings", ()):
        mark = "→" if finding["decides"] else " "
        source = f"  when {finding['source']}" if finding["source"] else ""
        place = f"  ({finding['place']})" if finding["place"] else ""
        lines.append(safe(f"{'':11}{mark} {finding['rule']}: {_met(finding)}{source}{place}".strip("\n")))
    return lines


def _met(finding: Step) -> str:
    effect, reason = finding["effect"], finding["reason"]
    if effect == "show":
        return "shows it to this agent" if finding["met"] else "is not for this agent"
    if effect in ("scope", "meter") or finding["rule"] == "default":
        return reason or effect
    words = {True: f"{effect}: {reason}", False: f"does not {effect}", None: "cannot be evaluated, which denies"}
    return words[finding["met"]].rstrip(": ")


def _reason(step: Step) -> str:
    rule = f"{step['rule']}: " if step.get("rule") else ""
    return f"{rule}{step['why']}"
