"""Progress of one call to its caller."""

from __future__ import annotations

from typing import Any

import anyio
from mcp.server.context import ServerRequestContext


class Progress:
    """Only ever rising, and no error when the caller has gone."""

    def __init__(self, context: ServerRequestContext[Any, Any]) -> None:
        self._context = context
        self._last = float("-inf")

    async def report(self, progress: float, total: float | None, message: str | None) -> None:
        if progress <= self._last:
            return
        self._last = progress
        try:
            await self._context.session.report_progress(progress, total, message)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            return
