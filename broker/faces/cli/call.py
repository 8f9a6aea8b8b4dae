"""`broker call`: one call through the whole pipeline, as an agent would make it."""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from broker.faces.cli import house, options
from broker.faces.cli.arguments import read_arguments
from broker.faces.cli.output import print_json, say, styled, tell
from broker.faces.text import rendered, safe
from broker.faces.words import span

if TYPE_CHECKING:
    from pathlib import Path

    from broker.assembly import Broker
    from broker.model.call import Call


def call(
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
    agent: options.As = "local",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait a while when the call is held.")] = True,
    config: options.Config = None,
    as_json: options.Json = False,
) -> None:
    """Call a tool as an agent, through the same pipeline: checked, metered, perhaps held, recorded.

    Prints the result, or the refusal's own sentence with exit code 1.

    Example:
      broker call house_rules
      broker call orders_refund order_id=A-1 amount=20 --as support-bot
      broker call orders_refund --args '{"order_id": "A-1", "amount": 20}' --json
    """
    house.run(_call, config, tool, pairs or [], arguments, agent, wait, as_json)


async def _call(
    config: Path | None, tool: str, pairs: list[str], document: str, agent: str, wait: bool, as_json: bool
) -> None:
    from uuid_utils import uuid7

    from broker.errors import BrokerError, Held
    from broker.faces.refusal import as_result
    from broker.model.call import Call

    async with house.tooled(config) as broker:
        tell_down(broker)
        one = Call(
            id=str(uuid7()),
            name=tool,
            arguments=read_arguments(pairs, document, broker.pipeline.input_schema(tool)),
            principal=house.caller(broker, agent),
            face="cli",
            received_at_ms=broker.clock.now_ms(),
            progress=_progress,
            may_wait=wait,
        )
        began = monotonic()
        try:
            answer = await broker.pipeline.perform(one)
        except BrokerError as error:
            if as_json:
                print_json({"call_id": one.id, "result": as_result(error, one.id)})
            else:
                tell(safe(error.sentence, lines=True), f"(call {one.id})", *_hint(broker, error.code, tool, agent))
                if isinstance(error, Held):
                    hold = error.facts.get("hold_id", one.id)
                    tell(f"A person decides: broker approve {hold}, or broker deny {hold} --reason …")
            raise typer.Exit(1) from error
        took_ms = (monotonic() - began) * 1000
    if as_json:
        print_json({"call_id": one.id, "result": answer.result()})
    else:
        _print(answer.result())
        _close(one, answer.is_error, took_ms)
    if answer.is_error:
        raise typer.Exit(1)


def _hint(broker: Broker, code: str, tool: str, agent: str) -> list[str]:
    """What the person at the shell can do where the agent, for whom the sentence is, can only ask."""
    if code == "insufficient_scope" and agent in ("local", broker.settings.stdio.agent):
        return [f"`{safe(agent)}` holds what `stdio` in the settings gives it; --as AGENT calls as another agent."]
    if code == "unknown_tool":
        return [f"`broker tools` lists the catalog; `broker explain {safe(agent)} {safe(tool)}` says what is amiss."]
    return []


def tell_down(broker: Broker) -> None:
    """Say which backends do not work, in their own words."""
    for name, backend in broker.backends.items():
        if backend.health.state != "up":
            tell(f"backend {safe(name)} is {backend.health.state}: {safe(backend.health.detail)}")


async def _progress(progress: float, total: float | None, message: str | None) -> None:
    tell(f"… {safe(message)}" if message else f"… {progress:g}{f' of {total:g}' if total else ''}")


def _close(one: Call, failed: bool, took_ms: float) -> None:
    word = styled("The tool says it failed", "failed") if failed else "Done"
    tell(f"{word} in {span(took_ms)} (call {one.id})")


def _print(result: Mapping[str, Any]) -> None:
    """The result for a person: its texts, else its structure; other blocks by what they are."""
    texts = 0
    for block in cast("list[Mapping[str, Any]]", result.get("content") or []):
        if block.get("type") == "text":
            texts += 1
            say(safe(str(block.get("text", "")), lines=True))
        else:
            kind, mime, data = block.get("type"), block.get("mimeType", ""), str(block.get("data", ""))
            say(safe(f"[{kind} {mime}{f', {len(data) * 3 // 4} bytes' if data else ''}]"))
    if not texts and result.get("structuredContent") is not None:
        say(*rendered(result["structuredContent"], cut=100_000))
