"""The HTTP client the MCP SDK is given: our wire, our headers, and failures the SDK can survive.

The SDK lets an exception of one POST end the whole connection, and with it every other call. So a POST never raises
here: what happened is told to the call's own exchange, and the SDK gets an ordinary error status. A GET (the standing
stream of events) raises, because there the SDK knows what to do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import httpx2
import orjson

from broker.backends.credential import Outbound
from broker.backends.decoding import ACCEPT_ENCODING, LARGE_BYTES, excerpt, is_json, media_type, strict_json_cut
from broker.backends.exchange import EXCHANGE, Cut, Exchange
from broker.backends.rejection import rejected
from broker.backends.transport import USER_AGENT, Signed, Wire
from broker.errors import BrokerError, Unavailable

STANDING_S = 0.5


class McpClient(httpx2.AsyncClient):
    """most: how many entries of a list are of interest. on_lost: called when the server does not know our session any
    more, or (SSE) a message could not be delivered.
    """

    def __init__(
        self,
        backend: str,
        wire: Wire,
        auth: Outbound | None,
        *,
        sse: bool,
        most: int,
        now_ms: Callable[[], int],
        on_lost: Callable[[], None],
    ) -> None:
        super().__init__(
            transport=wire,
            auth=None if auth is None else Signed(auth),
            headers={"User-Agent": USER_AGENT, "Accept-Encoding": ACCEPT_ENCODING},
            trust_env=False,
            follow_redirects=False,
            timeout=None,
        )
        self._backend = backend
        self._outbound = auth
        self._sse = sse
        self._most = most
        self._now_ms = now_ms
        self._on_lost = on_lost
        self._stands = anyio.Event()  # the server has answered, one way or the other, to the standing stream

    async def send(self, request: httpx2.Request, **kwargs: Any) -> httpx2.Response:
        if request.method == "GET":
            return await self._stand(request, **kwargs)
        exchange = EXCHANGE.get()
        if exchange is not None:
            request.headers.update(exchange.send)
            if exchange.back is not None and "mcp-session-id" in request.headers:
                await self._standing()
        try:
            response = await self._cut(await super().send(request, **kwargs))
        except Cut as cut:
            return self._failed(request, exchange, cut.error)
        except BrokerError as error:
            return self._failed(request, exchange, error)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            known = exchange or Exchange(0.0)
            broke = known.unanswered(f"Backend {self._backend!r} cannot be asked", type(error).__name__)
            return self._failed(request, exchange, broke)
        if response.status_code >= 300:
            await self._refused(request, response, exchange)
        return response

    async def _cut(self, response: httpx2.Response) -> httpx2.Response:
        """A JSON answer whose lists are no longer than anybody wants to read. Raises Cut."""
        if response.status_code != 200 or not is_json(media_type(response.headers.get("content-type", ""))[0]):
            return response
        body = await response.aread()
        if len(body) <= LARGE_BYTES:
            return response
        try:
            message, cut = strict_json_cut(body, self._most)
        except ValueError:
            return response  # the SDK finds out as well
        if not cut:
            return response
        return httpx2.Response(200, headers=response.headers, content=orjson.dumps(message), request=response.request)

    async def _stand(self, request: httpx2.Request, **kwargs: Any) -> httpx2.Response:
        """A stream that belongs to no call, whoever's task opens it; or the rest of a call's, which its server ended
        in order to be asked for it again: then the agent's own stream need not stand meanwhile either.
        """
        exchange = EXCHANGE.get() if "last-event-id" in request.headers else None
        if exchange is not None and exchange.back is not None and not exchange.is_settled and exchange.back.retake:
            await exchange.back.retake()
        mark = EXCHANGE.set(None)
        try:
            return await super().send(request, **kwargs)
        finally:
            EXCHANGE.reset(mark)
            self._stands.set()

    async def _standing(self) -> None:
        """The SDK opens a session's standing stream beside what is sent, in no order. A server that asks back may do so
        on that stream, so a call in whose middle it may ask is not sent before the stream stands (or is refused).
        """
        if not self._stands.is_set():
            with anyio.move_on_after(STANDING_S):
                await self._stands.wait()
            self._stands.set()

    def _failed(self, request: httpx2.Request, exchange: Exchange | None, error: BrokerError) -> httpx2.Response:
        if exchange is not None:
            exchange.fail(error)
        if self._sse:
            self._on_lost()
        return httpx2.Response(503, request=request)

    async def _refused(self, request: httpx2.Request, response: httpx2.Response, exchange: Exchange | None) -> None:
        """401, 403, 429 and the like keep their meaning: the SDK would make one and the same error of them all."""
        status = response.status_code
        if status == 404 and (self._sse or "mcp-session-id" in request.headers):
            self._on_lost()
            if exchange is not None:
                exchange.fail(Unavailable(f"Backend {self._backend!r} forgot our session. Nothing was done."))
            return
        if self._sse:
            self._on_lost()
        if exchange is None:
            return
        try:
            body = await response.aread()
        except Cut:
            body = b""
        # A JSON-RPC error in the body says more than its status; the SDK passes it on. Not so for these statuses, which
        # a proxy in front may have answered.
        if status in (401, 403, 429) or self._sse or b'"jsonrpc"' not in body:
            masked = self._outbound.masked if self._outbound else ()
            words = excerpt(body, response.headers.get("content-type", ""), masked)
            exchange.fail(rejected(self._backend, status, response.headers, words, self._now_ms()))
