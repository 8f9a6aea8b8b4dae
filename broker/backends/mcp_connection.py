"""One live connection to a downstream server, and the requests on it.

Each request is a task of the connection; whoever asked waits for its exchange to be settled, by the answer, by the
transport or by the end of the connection, whichever is first. A plain call that needs nothing of the connection
(mcp_modern.py) is made where it is asked for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import anyio
from anyio.abc import TaskGroup

from broker.backends import sdk
from broker.backends.exchange import EXCHANGE, Exchange
from broker.backends.mcp_modern import ModernCalls, Progress
from broker.backends.rejection import refused
from broker.errors import AnswerWithheld, Broken, BrokerError
from broker.model.back import Declined


class Connection:
    """backend: its name. tasks: ended by the link when the connection is over.

    calls: how plain calls are made without the session, where that is possible. marks_left: True when nothing else can
    tell whether bytes left, so that handing a request over counts as leaving.
    over: of no use any more. stale: the server may offer other tools than were read. level: of logs, as last set.
    is_own: all its requests are of one agent, so that what comes without saying to which of them it belongs may be
    told to the latest.
    """

    def __init__(self, backend: str, session: sdk.Session, tasks: TaskGroup, *, marks_left: bool, is_own: bool) -> None:
        self.session = session
        self.calls: ModernCalls | None = None
        self.over = False
        self.stale = False
        self.level = ""
        self._is_own = is_own
        self._backend = backend
        self._tasks = tasks
        self._marks_left = marks_left
        self._exchanges: dict[int, Exchange] = {}

    @property
    def is_idle(self) -> bool:
        return not self._exchanges

    def unreadable(self, request_id: int, why: str) -> None:
        """The answer to this request came and cannot be read."""
        exchange = self._exchanges.get(request_id)
        if exchange is not None:
            exchange.fail(self._withheld(why))

    # ------------------------------------------------------------------------------------ what the server says between

    async def asked(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """What it asks in the middle of a request goes to that request's caller. Raises Declined."""
        exchange = self._meant()
        if exchange is None or exchange.back is None or exchange.back.ask is None:
            raise Declined(sdk.types.INVALID_REQUEST, f"There is nobody who could be asked for {method}.")
        return await exchange.back.ask(method, params)

    async def told(self, method: str, params: Mapping[str, Any]) -> None:
        """A log message goes to the caller whose request it belongs to, if that caller wants such."""
        exchange = self._meant()
        if exchange is None or exchange.back is None:
            return
        if method == "notifications/message":
            await exchange.back.log(params)
        elif exchange.back.session is not None:
            await exchange.back.session.tell(method, params)

    def hears(self, method: str) -> bool:
        """Whether any caller may want what this method of `sdk.TOLD` says; `told` finds out whose it is."""
        is_log = method == "notifications/message"
        backs = (exchange.back for exchange in self._exchanges.values())
        return any(back is not None and (back.session or (is_log and back.log_level)) for back in backs)

    async def set_level(self, level: str, deadline: float) -> None:
        """Have the server log from this level on (handshake eras). A server that will not is left to its own level."""
        if level and level != self.level and self.session.logs:
            self.level = level
            await self.send("logging/setLevel", {"level": level}, Exchange(deadline), None)

    def start(self, task: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run something small beside the requests; it ends with the connection."""
        with contextlib.suppress(RuntimeError):  # it has just ended
            self._tasks.start_soon(task)

    def _meant(self) -> Exchange | None:
        """The request in whose middle this was said: HTTP knows it, a pipe does not."""
        current = EXCHANGE.get()
        if current is not None and current.back is not None and not current.is_settled:
            return current
        if not self._is_own:
            return None
        return next((one for one in reversed(self._exchanges.values()) if one.back is not None), None)

    async def send(
        self,
        method: str,
        params: dict[str, Any],
        exchange: Exchange,
        progress: Progress | None,
    ) -> None:
        """Have the connection carry it, and wait until the exchange is settled."""
        if self.calls is not None and method == "tools/call":
            try:
                exchange.result = await self.call(params, exchange, progress)
                exchange.error = None
            except BrokerError as error:
                exchange.error = error  # it knows better than what was noticed on the way
            return
        request_id = sdk.next_request_id()
        self._exchanges[request_id] = exchange
        scope = anyio.CancelScope()
        mark = EXCHANGE.set(exchange)  # the task that carries it starts with this context
        try:
            self._tasks.start_soon(self._carry, scope, exchange, method, params, request_id, progress)
        except RuntimeError:  # the connection's tasks have ended between two lines of ours
            self.over = True
            exchange.fail(exchange.unanswered(f"Backend {self._backend!r} is gone", "the connection ended"))
        finally:
            EXCHANGE.reset(mark)
        try:
            await exchange.settled()
        finally:
            scope.cancel()
            self._exchanges.pop(request_id, None)

    def is_plain(self, method: str) -> bool:
        """Whether `call` makes this request, if the connection is of use."""
        return self.calls is not None and method == "tools/call" and not self.over

    async def call(
        self, params: dict[str, Any], exchange: Exchange, progress: Progress | None = None
    ) -> dict[str, Any]:
        """The result of a plain call, made here and now. Raises as ModernCalls.call."""
        assert self.calls is not None, "is_plain"  # noqa: S101
        request_id = sdk.next_request_id()
        headers = self.session.stamp_call(params, exchange.told)
        if progress is not None:
            params["_meta"]["progressToken"] = request_id
        self._exchanges[request_id] = exchange
        try:
            return await self.calls.call(request_id, params, headers, exchange, progress)
        finally:
            del self._exchanges[request_id]

    async def _carry(  # noqa: PLR0917 – a task's arguments are positional
        self,
        scope: anyio.CancelScope,
        exchange: Exchange,
        method: str,
        params: dict[str, Any],
        request_id: int,
        progress: Progress | None,
    ) -> None:
        try:
            with scope:
                exchange.left = self._marks_left
                exchange.succeed(await self.session.relay(method, params, request_id, progress, exchange.told))
        except sdk.MCPError as error:
            self.over = self.over or sdk.is_closed(error)  # before anybody is told, who might ask again at once
            exchange.fail(self._told(error, exchange))
        except (OSError, RuntimeError, ValueError) as error:  # what is left of a connection that is being torn down
            exchange.fail(exchange.unanswered(f"Backend {self._backend!r} broke off", type(error).__name__))
        finally:
            exchange.fail(exchange.unanswered(f"Backend {self._backend!r} broke off", "the connection ended"))

    def _told(self, error: sdk.MCPError, exchange: Exchange) -> BrokerError:
        happened = sdk.what_happened(error)
        if happened == "ended" or self.over:
            return exchange.unanswered(f"Backend {self._backend!r} broke off", "the connection ended before an answer")
        if happened == "unreadable":
            return (
                self._withheld("cannot be read")
                if exchange.status < 300
                else Broken(f"Backend {self._backend!r} failed.")
            )
        return refused(self._backend, error.error.code, error.error.message, error.error.data)

    def _withheld(self, why: str) -> AnswerWithheld:
        return AnswerWithheld(
            f"Backend {self._backend!r} answered, but its answer {why}.",
            next_step="Do not send it again; ask the tool's owner.",
        )
