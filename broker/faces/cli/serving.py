"""The broker at work in this process: faces put onto an open broker, and what a person is told when it is ready.

What must not live here: how requests are served (faces), what is opened and closed (assembly).
"""

from __future__ import annotations

import signal
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import anyio
import structlog

from broker import __version__
from broker.assembly import Broker, load
from broker.auth import challenge, local
from broker.authserver import unsafe
from broker.errors import ConfigurationError, Problem, SettingsError
from broker.faces import web
from broker.faces.cli.house import SETTINGS_FILE, unset
from broker.faces.cli.output import stamp, styled, tell
from broker.faces.cli.sums import Sums
from broker.faces.mcp.agents import AgentServer
from broker.faces.text import safe
from broker.faces.words import count, span

if TYPE_CHECKING:
    import socket

    from broker.model.principal import Principal
    from broker.settings import Settings

INSTRUCTIONS = (
    "Every tool here is governed: a call may be refused, throttled, or held for a person's decision. Each refusal says "
    "why, whether anything was done, and what to do next; do not repeat a call that says not to."
)

BESIDE = {
    "console": "broker.faces.cli.beside:console",
    "api": "broker.faces.cli.beside:api",
    "metrics": "broker.faces.cli.beside:metrics",
    "": "broker.faces.cli.beside:sign_in",
}
"""What is served beside the agents' endpoints, by the first word of its paths ("": of all others): "module:Name" of
what builds it on a broker. Imported when it is asked for: their libraries are a third of a start and of the memory."""

log = structlog.get_logger("broker.serve")


async def over_http(settings: Settings, bound: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT. Raises SettingsError (not safe to reach from outside), ManifestError,
    RecordUnavailable."""
    try:
        async with Broker.open(settings) as broker:
            faults = unsafe(settings, broker.directory)
            if faults:
                raise SettingsError([Problem(str(settings.directory / SETTINGS_FILE), 0, 0, fault) for fault in faults])
            broker.where.port = bound.getsockname()[1]
            async with application(broker) as app:
                lines = await _ready(broker, broker.where.base_url())
                await web.serve(app, settings, lambda _url: tell(*lines), bound=bound)
    finally:
        bound.close()


async def over_stdio(settings: Settings) -> None:
    """Serve one client to the end of its input, or until SIGTERM or SIGINT. Errors as `over_http`."""
    async with Broker.open(settings) as broker, _faced(broker) as agents, anyio.create_task_group() as tasks:
        tasks.start_soon(_until_signal, tasks.cancel_scope)
        tell(*await _ready(broker, ""))
        await agents.serve_stdio(local.principal(settings.stdio))
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def application(broker: Broker) -> AsyncGenerator[web.Web]:
    """Every face this broker has over HTTP, ready to be served where `broker.where` says."""
    async with _faced(broker) as agents, AsyncExitStack() as stack:
        yield web.build(
            agents,
            beside={word: partial(_beside, word, broker, stack) for word in BESIDE},
            not_ready=lambda: broker.not_ready,
            version=__version__,
            home="/console" if has_console(broker.settings) else "",
        )


def _beside(word: str, broker: Broker, stack: AsyncExitStack) -> web.Beside:
    return load(BESIDE[word])(broker, stack)


def has_console(settings: Settings) -> bool:
    """Whether anybody can sign in: an issuer is named for it, or the embedded one is not turned off."""
    return settings.auth.embedded.enabled or settings.console.issuer in [one.issuer for one in settings.auth.issuers]


@asynccontextmanager
async def _faced(broker: Broker) -> AsyncGenerator[AgentServer]:
    """The agents' server on this broker: told of catalog changes, its refusals noted in sum, SIGHUP followed."""
    sums = Sums(broker.store.note)

    def turned_away(kind: str) -> None:
        sums.add("requests_refused", kind)
        broker.pipeline.tally.turn_away(kind)

    broker.gatekeeper.on_refused = lambda reason, issuer: sums.add("authentication_refused", reason, issuer)

    def listed(principal: Principal, shown: int) -> None:
        sums.add("lists_filtered", principal.agent, shown, len(broker.shelf.current.entries))

    agents = AgentServer(
        broker.pipeline,
        broker.gatekeeper.authenticate,
        broker.settings,
        version=__version__,
        instructions=INSTRUCTIONS,
        challenge=challenge.at,
        base_url=broker.where.base_url,
        clock=broker.clock,
        on_refused=turned_away,
        on_listed=listed,
        state_keys=lambda: _state_keys(broker),
        task_keys=lambda: [broker.store.secret("task id")],
        remembered=broker.gatekeeper.remembered,
    )
    unsubscribe = broker.shelf.subscribe(agents.announce_tools_changed)
    broker.reconciler.on_resource_updated.add(agents.resource_updated)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sums.run)
        tasks.start_soon(_reload_on_hangup, broker)
        try:
            yield agents
        finally:
            unsubscribe()
            broker.reconciler.on_resource_updated.discard(agents.resource_updated)
            tasks.cancel_scope.cancel()
            with anyio.move_on_after(2, shield=True):
                await sums.flush()


def _state_keys(broker: Broker) -> list[bytes]:
    """What `requestState` is sealed with: the keys of the settings, or one of the database's."""
    return [key.encode() for key in broker.settings.request_state_keys] or [broker.store.secret("requestState")]


async def _reload_on_hangup(broker: Broker) -> None:
    if not hasattr(signal, "SIGHUP"):  # Windows
        return
    with anyio.open_signal_receiver(signal.SIGHUP) as signals:
        async for _ in signals:
            try:
                await broker.reconciler.reload("SIGHUP")
            except ConfigurationError as error:
                log.error("manifests not reloaded; the old ones are served", problems=error.message)


async def _until_signal(scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            scope.cancel()
            return


# ------------------------------------------------------------------------------------------------------ for people


async def _ready(broker: Broker, base_url: str) -> list[str]:
    """The last lines of a start: where it is, what it serves, what is wrong, where it records."""
    agents = 1 if not base_url else len([one for one in broker.directory.clients() if not one.disabled])
    waiting = (await broker.store.open_calls()).held
    settings, catalog = broker.settings, broker.shelf.current
    down = [backend for backend in broker.backends.values() if backend.health.state != "up"]
    up = len(broker.backends) - len(down)
    lines: list[str] = []
    for one in broker.recovered:
        ago = span(broker.clock.now_ms() - one.at_ms)
        lines.append(
            f"{styled('1 call with unknown outcome', 'bad')}: {safe(one.tool)} by {safe(one.agent)}, "
            f"started {stamp(one.at_ms)} ({ago} ago); `broker log {one.call_id}`"
        )
    for one in down:
        state = one.health.state
        lines.append(
            f"Backend {safe(one.name)} is {styled(state, state)}: {safe(one.health.detail) or 'no answer yet'}"
        )
    if base_url and settings.testing.open:
        lines.append(
            f"{styled('Warning: testing.open is on', 'bad')}: whoever reaches this port without a credential acts as "
            f"agent {safe(settings.stdio.agent)}. For tests only."
        )
    lines += [f"Note: {safe(note)}" for note in (*catalog.notes, *unset(catalog, settings))]
    lines += [f"broker {__version__}", f"  records   {safe(str((settings.directory / settings.database).resolve()))}"]
    lines.append(
        f"  serves    {count(len(catalog.entries), 'tool')} of {count(len(broker.backends), 'backend')} ({up} up) "
        f"to {count(agents, 'agent')}"
    )
    if waiting:
        lines.append(f"  holds     {count(waiting, 'call')} to decide: broker holds")
    if base_url:
        lines += [
            f"  health    {base_url}/readyz",
            f"  MCP       {base_url}/mcp  (SSE: {base_url}/sse)",
            *([f"  console   {base_url}/console"] if settings.auth.embedded.enabled else []),
            "  connect   broker connect claude-code",
        ]
    else:
        seen = len(catalog.listing(local.principal(settings.stdio)))
        who = f"agent {safe(settings.stdio.agent)}, who is shown {count(seen, 'tool')}"
        lines.append(f"  MCP       on stdin and stdout, as {who}")
        if catalog.entries and not seen:
            lines.append("  look      no tool is for this agent: `stdio` in the settings says who it is and its scopes")
    return lines
