"""Slack, mail, Teams and a hundred others, by the `notify` extra (apprise). Its URL holds the credential: a reference.

apprise is synchronous and brings `requests`: it is imported at the first notice and runs in a thread of its own.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import anyio
import anyio.to_thread

from broker.model.notice import Notice
from broker.ports import NotDelivered
from broker.settings import NotifyTo


class Apprise:
    """See ports.Notifier."""

    def __init__(self, to: NotifyTo) -> None:
        self._url = to.url
        self._one = anyio.CapacityLimiter(1)

    async def send(self, notice: Notice) -> None:
        try:
            sent = await anyio.to_thread.run_sync(self._send, notice, limiter=self._one, abandon_on_cancel=True)
        except NotDelivered:
            raise
        except Exception as error:  # noqa: BLE001 – a hundred plug-ins of others must not end what tells people
            raise NotDelivered(f"apprise failed ({type(error).__name__})", for_good=False) from None
        if not sent:
            raise NotDelivered("apprise could not deliver it", for_good=False)

    def _send(self, notice: Notice) -> bool:
        try:
            apprise: Any = import_module("apprise")
        except ImportError:
            raise NotDelivered("apprise is not installed: pip install 'broker[notify]'", for_good=False) from None
        to = apprise.Apprise()
        if not to.add(self._url):
            raise NotDelivered("apprise does not know this kind of URL", for_good=False)
        send = partial(to.notify, title=notice.title, body=notice.text, body_format="text", interpret_escapes=False)
        return bool(send())

    async def aclose(self) -> None:
        return
