"""One request of a person who is signed in, as a page gets it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from broker.data import dataclass
from broker.faces.console import PAGES, rendering
from broker.faces.console.sessions import Session
from broker.faces.office import Office
from broker.model.principal import Principal


@dataclass(frozen=True, slots=True)
class Verified:
    """What the verifier found: in one sentence, and what that does not prove."""

    ok: bool
    told: str
    limits: tuple[str, ...]
    at_ms: int


@dataclass(frozen=True, slots=True)
class Visit:
    """form: its fields when it is a POST, which has been checked to be ours. verify: walks through the whole record."""

    request: Request
    who: Principal
    session: Session
    office: Office
    verify: Callable[[], Awaitable[Verified]]
    form: dict[str, str]

    async def page(self, template: str, *, status: int = 200, **values: Any) -> Response:
        return rendering.page(
            template,
            status=status,
            visit=self,
            pages=PAGES,
            path=self.request.url.path,
            waiting=await self.office.how_many(self.who),
            now_ms=self.office.clock.now_ms(),
            **values,
        )

    def go(self, path: str) -> Response:
        return RedirectResponse(path, 303, dict(rendering.HEADERS))
