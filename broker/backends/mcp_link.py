"""The link to one downstream MCP server: one connection at a time, kept up by one task, used by many calls at once.

    starting ──(negotiated, tools listed)──> up or degraded ──(peer gone)──> starting again, at once the first time
        └──────(cannot, or not in time)────> down ──(1, 2, 4 … 60 s)──> starting

The SDK's connections live in cancel scopes, which the task that entered them must leave; so the link's own task does
both, and a call only hands it a request and waits. A request runs as a task of the connection and not of the caller,
for the same reason and one more: a caller at its deadline leaves at once, while telling the peer may take a moment.

A call that finds the link starting waits; one that finds it down is refused at once. Why it is down, in the server's
own words, is for operators (`health`) and not for agents.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import anyio
from anyio.abc import TaskGroup
from pydantic import ValidationError

from broker.backends import sdk
from broker.backends.exchange import Exchange
from broker.backends.mcp_asking import patient
from broker.backends.mcp_carrier import Carrier, Reports
from broker.backends.mcp_connection import Connection
from broker.backends.mcp_greeting import negotiate, shake_hands
from broker.backends.mcp_modern import Progress
from broker.backends.mcp_offer import read_offer
from broker.backends.mcp_watch import Subscribe, Watched
from broker.backends.mcp_words import said
from broker.backends.pace import Pace
from broker.errors import AnswerWithheld, BrokerError, Rejected, TimedOut, Unavailable
from broker.model.back import ASKING_S, Back, Declined
from broker.ports import Clock, Health, Offer

ENDING_S = 4.0  # to leave a connection, whatever the peer does
STEADY_S = 10.0  # a connection that was up this long did not fail at starting
LONGEST_PAUSE_S = 60.0
REFRESH_S = 1.0  # at most one new list of tools in this time
REFRESH_ODD_S = 10.0  # the same for a server whose lists cannot all be used: they may be without measure
LISTEN_AGAIN_S = 5.0
ACK_S = 10.0

State = Literal["starting", "up", "degraded", "down"]


class Link:
    """carrier: makes one, before each connection; may raise ChildError or LookupError. label: what to call the server.
    start_s: to connect, negotiate and list. idle_s: after which an unused connection is left until the next call (0 =
    never). on_change: the offer or the health changed. declared: what servers may ask over it; a link that declares
    anything is one agent's own, speaks a handshake era (the modern one declares with each request) and lists nothing.
    """

    def __init__(
        self,
        name: str,
        carrier: Callable[[Reports], Awaitable[Carrier]],
        *,
        label: str,
        clock: Clock,
        start_s: float,
        idle_s: float,
        max_tools: int,
        on_change: Callable[[], None] = lambda: None,
        on_updated: Callable[[str], None] = lambda _uri: None,
        declared: Mapping[str, Any] | None = None,
    ) -> None:
        self._name = name
        self._carrier = carrier
        self._label = label
        self._clock = clock
        self._start_s = start_s
        self._idle_s = idle_s
        self._max_tools = max_tools
        self._on_change = on_change
        self._on_updated = on_updated
        self._declared = declared
        self.refuses_handshake = False  # it answered the handshake with an error
        self.watched = Watched(name)
        self._current: Connection | None = None  # being made or used
        self._usable: Connection | None = None
        self._legacy = False  # the era found last; tried first
        self._wake = anyio.Event()
        self._changed = anyio.Event()
        self._over = anyio.Event()
        self._attempt: anyio.CancelScope | None = None
        self._stopping = False
        self._wanted = False
        self._used_at = 0.0
        self._refresh_from = -math.inf
        self._notes = ""  # what was left out of the offer
        self.offer: Offer | None = None
        self.health = Health("starting", since_ms=clock.now_ms())

    # ------------------------------------------------------------------------------------------------------ the task

    async def run(self) -> None:
        """Keep the link up until `stop`. Shielded: the house may be going down, but children are ended in order."""
        failures, pace = 0, Pace()
        with anyio.CancelScope(shield=True):
            while not self._stopping:
                began_up, words = await self._one_connection(pace)
                if self._stopping:
                    break
                if not words:  # asleep
                    await self._until(lambda: self._wanted, math.inf)
                    continue
                steady = began_up is not None and anyio.current_time() - began_up > STEADY_S
                failures = 1 if steady else failures + 1
                if began_up is None or failures > 1:
                    what = "could not start" if began_up is None else "stopped"
                    self._become("down", f"{self._label} {what}: {words}")
                    await self._until(lambda: False, min(2.0 ** (failures - 1), LONGEST_PAUSE_S))
        self._become("down", "closed")
        self._over.set()

    async def stop(self) -> None:
        """End the connection and the task. Calls still waiting get an error."""
        self._stopping = True
        self._wake.set()
        if self._attempt is not None and self._usable is None:
            self._attempt.cancel()
        await self._over.wait()

    async def _until(self, met: Callable[[], bool], within_s: float) -> None:
        with anyio.move_on_after(within_s):
            while not (met() or self._stopping):
                self._wake = anyio.Event()
                await self._wake.wait()

    def _nudge(self) -> None:
        self._wake.set()

    def _become(self, state: State, detail: str = "") -> None:
        if (state, detail) != (self.health.state, self.health.detail):
            self.health = Health(state, detail, self._clock.now_ms())
        self._changed.set()
        self._changed = anyio.Event()
        self._on_change()

    async def _one_connection(self, pace: Pace) -> tuple[float | None, str]:
        """Make a connection and serve it to its end. Returns when it came up (None: never), why it ended ("": idle)."""
        self._become("starting")
        up_at: float | None = None
        words = ""
        try:
            carrier = await self._carrier(self)
            with anyio.move_on_after(self._start_s) as self._attempt:
                async with carrier.streams() as streams:
                    session = sdk.Session(
                        streams,
                        on_end=self.lost,
                        on_changed=self._stale,
                        on_updated=self._updated,
                        on_asked=self._asked,
                        on_told=self._told,
                        hears=self._hears,
                        declared=self._declared or {},
                        pace=pace,
                    )
                    async with session, anyio.create_task_group() as tasks:
                        is_own = self._declared is not None
                        connection = Connection(
                            self._name, session, tasks, marks_left=carrier.marks_left, is_own=is_own
                        )
                        self._current = connection
                        try:
                            await self._greet(connection)
                            connection.calls = carrier.calls(pace) if session.is_modern else None
                            self._attempt.deadline = math.inf
                            up_at = anyio.current_time()
                            await self._live(connection, tasks)
                            if connection.over:
                                words = await carrier.last_words() or "the connection ended"
                        except (sdk.MCPError, BrokerError, ValidationError, RuntimeError) as error:
                            ended = connection.over or (
                                isinstance(error, sdk.MCPError) and sdk.what_happened(error) == "ended"
                            )
                            words = (await carrier.last_words() if ended else "") or said(error)
                        finally:
                            connection.over = True
                            self._usable = None
                            self._attempt.deadline = anyio.current_time() + ENDING_S
                            tasks.cancel_scope.cancel()
            if up_at is None and not words:
                words = f"it did not speak MCP within {self._start_s:g} s. {carrier.words}".strip()
        except Exception as error:  # noqa: BLE001 – whatever a transport raises becomes the health's words, never a crash
            words = words or said(error)
        finally:
            self._current = self._usable = None
            self._attempt = None
        return up_at, words

    async def _greet(self, connection: Connection) -> None:
        """Negotiate and list. Raises what the last request failed with."""
        try:
            if self._declared is not None:
                await shake_hands(connection.session, self._start_s)
                return
            await negotiate(connection.session, self._start_s, legacy_first=self._legacy)
        except (sdk.MCPError, BrokerError) as error:
            self._legacy = False
            if isinstance(error, sdk.MCPError):
                self.refuses_handshake = sdk.what_happened(error) == "refused"
            raise
        self._legacy = not connection.session.is_modern
        await self._list(connection)

    async def _live(self, connection: Connection, tasks: TaskGroup) -> None:
        """Serve until the connection is over, the link is stopped, or nobody has called for `idle_s`."""
        self._usable = connection
        self._wanted = False
        self._used_at = anyio.current_time()
        if connection.session.is_modern and connection.session.announces_changes:
            tasks.start_soon(self._hear, connection)
        if connection.session.tells_updates:
            tasks.start_soon(self.watched.keep, connection.session, self._subscriber(connection))
        self._show(connection)
        while not connection.over and not self._stopping:
            idle_s = self._used_at + self._idle_s - anyio.current_time() if self._idle_s else math.inf
            if idle_s <= 0 and connection.is_idle and not self.watched.any:
                self._become("up", "asleep until it is called")
                return
            await self._until(lambda: connection.over or connection.stale, max(idle_s, 0.01))
            if connection.stale and not connection.over and not self._stopping:
                await self._refresh(connection)

    async def _hear(self, connection: Connection) -> None:
        while True:
            await connection.session.hear_changes(ACK_S)
            # The stream is gone: the server restarted, or its list changed while nobody listened. Looking tells.
            await anyio.sleep(LISTEN_AGAIN_S)
            self._stale()

    async def _asked(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        if self._current is None:
            raise Declined(sdk.types.INVALID_REQUEST, "Nothing has been asked of this server.")
        return await self._current.asked(method, params)

    async def _told(self, method: str, params: Mapping[str, Any]) -> None:
        if self._current is not None:
            await self._current.told(method, params)

    def _hears(self, method: str) -> bool:
        return self._current is not None and self._current.hears(method)

    def roots_changed(self) -> None:
        """The agent this link belongs to says that its roots changed."""
        if self._usable is not None and "roots" in (self._declared or {}):
            self._usable.start(self._usable.session.notify_roots_changed)

    def _updated(self, uri: str) -> None:
        if self.watched.has(uri):
            self._on_updated(uri)

    def _subscriber(self, connection: Connection) -> Subscribe:
        async def ask(method: str, uri: str) -> None:
            exchange = Exchange(anyio.current_time() + ACK_S)
            with anyio.move_on_after(ACK_S):
                await connection.send(method, {"uri": uri}, exchange, None)
            if exchange.error is not None:
                raise exchange.error
            if exchange.result is None:
                raise exchange.overdue(self._name, ACK_S)

        return ask

    async def watch(self, uri: str, *, deadline: float, timeout_s: float) -> Callable[[], None]:
        """Have updates of this resource told to `on_updated`; returns the way to stop. Raises as `request` does."""
        try:
            with anyio.fail_after(deadline - anyio.current_time()):
                connection = await self._reach()
                if not connection.session.tells_updates:
                    raise Rejected(f"Backend {self._name!r} does not tell when its resources change.")
                return await self.watched.add(uri)
        except TimeoutError:
            raise Exchange(deadline).overdue(self._name, timeout_s) from None

    # ----------------------------------------------------------------------------------------------------- the offer

    async def _list(self, connection: Connection) -> None:
        """Read what it offers. Raises BrokerError."""
        self.offer, self._notes = await read_offer(connection, self._name, self._start_s, self._max_tools)

    def _show(self, connection: Connection) -> None:
        if not connection.over:
            self._become("degraded" if self._notes else "up", self._notes)

    async def _refresh(self, connection: Connection) -> None:
        """List again, at most once in a while. A server that refuses keeps its old offer; one that is gone ends."""
        await self._until(lambda: connection.over, self._refresh_from - anyio.current_time())
        connection.stale = False
        if connection.over or self._stopping:
            return
        try:
            await self._list(connection)
        except (Rejected, AnswerWithheld) as error:
            self._notes = f"its lists could not be read again: {error.message}"
        self._refresh_from = anyio.current_time() + (REFRESH_ODD_S if self._notes else REFRESH_S)
        self._show(connection)

    def _stale(self) -> None:
        if self._current is not None:
            self._current.stale = True
            self._nudge()

    # ------------------------------------------------------------------------------------------------------- reports

    def lost(self) -> None:
        """See Reports."""
        if self._current is not None:
            self._current.over = True
            self._nudge()

    def unreadable(self, request_id: int, why: str) -> None:
        """See Reports."""
        if self._current is not None:
            self._current.unreadable(request_id, why)

    # ------------------------------------------------------------------------------------------------------ requests

    async def request(
        self,
        method: str,
        params: dict[str, Any],
        *,
        deadline: float,
        timeout_s: float,
        headers: Mapping[str, str],
        progress: Progress | None,
        back: Back | None = None,
        told: Mapping[str, Any] = {},
    ) -> dict[str, Any]:
        """One request and its result. Raises Unavailable, Rejected, TimedOut, Broken, AnswerWithheld.

        deadline: in anyio's clock; timeout_s: the same as it is told to people. While `back.ask` is awaited the
        deadline stands still. told: as of Session.stamp. On cancel: the peer is told, in the background. Nobody but the
        server can keep a plain call waiting, so its connection keeps the deadline: a scope costs more than all else.
        """
        exchange = Exchange(deadline, headers, is_exact=True, told=told)
        connection = self._usable
        try:
            if connection is not None and connection.is_plain(method) and progress is None and back is None:
                self._used_at = anyio.current_time()
                try:
                    return await connection.call(params, exchange)
                except Unavailable:
                    if not connection.over:
                        self._stale()  # look whether it is there
                        raise
            with anyio.fail_after(deadline - anyio.current_time()) as scope:
                last_moment = deadline
                if back is not None and back.ask is not None:
                    last_moment += ASKING_S
                    back = replace(back, ask=patient(back.ask, scope, last_moment))
                for last in (False, True):
                    connection = await self._reach()
                    if self._declared is not None and back is not None:
                        await connection.set_level(back.session.log_level if back.session else back.log_level, deadline)
                    exchange = Exchange(last_moment, headers, back=back, told=told)
                    await connection.send(method, dict(params), exchange, progress)
                    self._used_at = anyio.current_time()
                    if exchange.error is None:
                        break
                    # Nothing of it was done and the connection turned out to be gone: a new one may carry it.
                    if last or not (isinstance(exchange.error, Unavailable) and connection.over):
                        break
        except (TimeoutError, TimedOut):
            raise exchange.overdue(self._name, timeout_s) from None
        if exchange.error is not None:
            if isinstance(exchange.error, Unavailable):
                self._stale()  # look whether it is there
            raise exchange.error
        return exchange.result or {}

    async def is_modern(self, *, deadline: float, timeout_s: float) -> bool:
        """Which era it speaks, once that is known. Raises Unavailable."""
        if self._usable is not None and not self._usable.over:
            return self._usable.session.is_modern
        try:
            with anyio.fail_after(deadline - anyio.current_time()):
                return (await self._reach()).session.is_modern
        except TimeoutError:
            raise Exchange(deadline).overdue(self._name, timeout_s) from None

    @property
    def is_idle(self) -> bool:
        return self._current is None or self._current.is_idle

    async def _reach(self) -> Connection:
        """A connection that can be used; waits while one is being made. Raises Unavailable when there is none."""
        self._used_at = anyio.current_time()
        while True:
            if self._usable is not None and not self._usable.over:
                return self._usable
            if self._stopping or self.health.state == "down":
                raise Unavailable(
                    f"Backend {self._name!r} is {'closed' if self._stopping else 'down'}. Nothing was sent.",
                    next_step="Try again later; the operator sees the cause in the backend's health.",
                )
            self._wanted = True
            self._nudge()
            await self._changed.wait()
