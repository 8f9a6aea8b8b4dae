"""Which connection carries a request, and who sees to its rounds, by the eras of the agent and of the server.

    agent       server      carried by
    modern      modern      the shared link; the agent's capabilities go with the request, rounds are the agent's own
    handshake   handshake   a link of the agent's session; what the server asks goes to the agent at once
    handshake   modern      the shared link; the rounds are driven here, the agent is asked at once (`mcp_asking`)
    modern      handshake   a link of the principal; the request is parked while the agent is asked (`mcp_park`)

A server with both eras is spoken to in the agent's. A call during which nobody can be asked or told anything – most
calls – goes over the shared link, whatever era that has.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import TaskGroup
from mcp_types import CLIENT_CAPABILITIES_META_KEY, LOG_LEVEL_META_KEY

from broker.backends.mcp_asking import answered, guarded
from broker.backends.mcp_link import Link
from broker.backends.mcp_own import Own
from broker.backends.mcp_park import Lot
from broker.data import dataclass
from broker.errors import Unavailable
from broker.model.back import AgentSession, Ask, Back, relayed
from broker.model.call import Call
from broker.model.canonical import canonical

if TYPE_CHECKING:
    from broker.backends.mcp_modern import Progress


@dataclass(slots=True)
class Errand:
    """One request as the backend wants it made. deadline: in anyio's clock; timeout_s: the same, as told to people.
    further: what the caller declares besides what it may be asked; told to servers of the modern era."""

    method: str
    params: dict[str, Any]
    deadline: float
    timeout_s: float
    headers: Mapping[str, str]
    progress: Progress | None
    further: Mapping[str, Any]

    def over(self, link: Link, back: Back | None = None, told: Mapping[str, Any] = {}) -> Awaitable[dict[str, Any]]:
        """The raw result. Raises as Link.request."""
        return link.request(
            self.method,
            self.params,
            deadline=self.deadline,
            timeout_s=self.timeout_s,
            headers=self.headers,
            progress=self.progress,
            back=back,
            told=told,
        )


class Routes:
    """shared: the link that lists, and carries what belongs to no agent in particular."""

    def __init__(
        self, backend: str, shared: Link, make: Callable[[Mapping[str, Any]], Link], tasks: TaskGroup, *, most: int
    ) -> None:
        self._backend = backend
        self._shared = shared
        self._own = Own(backend, make, tasks, most=most)
        self._lot = Lot(backend, tasks)
        self._is_modern_only = False

    def carry(self, call: Call, errand: Errand) -> Awaitable[dict[str, Any]]:
        """The raw result; of a modern caller perhaps one that asks for input. Raises BrokerError."""
        declared, back = relayed(call.capabilities) if call.capabilities else {}, call.back
        asks_nothing = not declared and call.round is None and (back is None or not back.log_level)
        if asks_nothing and not errand.further:
            return errand.over(self._shared) if call.comes_back else self._alone(errand)
        if back is None or back.session is None:
            return self._of_modern(call, errand, declared, asks_nothing=asks_nothing)
        return self._of_session(errand, declared, back, back.session)

    async def _alone(self, errand: Errand) -> dict[str, Any]:
        """For a caller of no era: of REST or the command line, or one that has gone while its call was held."""
        return await self._in_rounds(errand, lambda: errand.over(self._shared), _nobody, {})

    async def _in_rounds(
        self, errand: Errand, send: Callable[[], Awaitable[dict[str, Any]]], ask: Ask, declared: dict[str, Any]
    ) -> dict[str, Any]:
        params = errand.params

        async def again(further: Mapping[str, Any]) -> dict[str, Any]:
            errand.params = {**params, **further}
            return await send()

        return await answered(self._backend, await send(), ask, again, declared)

    async def _of_modern(
        self, call: Call, errand: Errand, declared: dict[str, Any], *, asks_nothing: bool
    ) -> dict[str, Any]:
        responses, state = (call.round.responses, call.round.state) if call.round else (None, None)
        if await self._shared.is_modern(deadline=errand.deadline, timeout_s=errand.timeout_s):
            if responses is not None:
                errand.params["inputResponses"] = dict(responses)
            if state is not None:
                errand.params["requestState"] = state
            return await errand.over(self._shared, call.back, _told(errand, declared, call.back))
        if asks_nothing:
            return await errand.over(self._shared)
        if state is not None:
            return await self._lot.resume(call, state, responses)
        link = self._own.link((call.principal.key, canonical(declared)), declared, None)

        async def run(back: Back, progress: Progress) -> dict[str, Any]:
            errand.progress = errand.progress and progress
            return await errand.over(link, back)

        return await self._lot.begin(call, run, lambda back: guarded(back, declared))

    async def _of_session(
        self, errand: Errand, declared: dict[str, Any], back: Back, session: AgentSession
    ) -> dict[str, Any]:
        back = guarded(back, declared)
        if (declared or session.log_level) and not self._is_modern_only:
            link = self._own.link(session, declared, session)
            try:
                return await errand.over(link, back)
            except Unavailable:
                if not link.refuses_handshake:
                    raise
                self._is_modern_only = True
                self._own.drop(session)
        if not await self._shared.is_modern(deadline=errand.deadline, timeout_s=errand.timeout_s):
            return await errand.over(self._shared, back)
        told, ask = _told(errand, declared, back), back.ask or _nobody

        async def patiently(method: str, asked: Mapping[str, Any]) -> dict[str, Any]:
            left_s = errand.deadline - anyio.current_time()
            try:
                return await ask(method, asked)
            finally:
                errand.deadline = anyio.current_time() + left_s

        return await self._in_rounds(errand, lambda: errand.over(self._shared, back, told), patiently, declared)

    async def aclose(self) -> None:
        await self._own.aclose()


async def _nobody(method: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Stands for who can be asked nothing: `answered` refuses to ask what was not declared."""
    raise NotImplementedError(method, params)


def _told(errand: Errand, declared: dict[str, Any], back: Back | None) -> dict[str, Any]:
    """The reserved `_meta` of one request to a modern server."""
    told: dict[str, Any] = {CLIENT_CAPABILITIES_META_KEY: {**errand.further, **declared}}
    if back is not None and back.log_level:
        told[LOG_LEVEL_META_KEY] = back.log_level
    return told
