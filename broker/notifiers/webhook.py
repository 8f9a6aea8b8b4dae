"""A signed webhook: one POST of JSON, proved by HMAC-SHA256 as the Standard Webhooks specification 1.0 has it.

    webhook-id          the notice's id, the same at every try
    webhook-timestamp   seconds since 1970; receivers refuse what is older than a few minutes: no replays
    webhook-signature   v1,<base64 of HMAC-SHA256(secret, "{id}.{timestamp}.{body}")>

The secret is text of at least 24 bytes, or `whsec_` and base64 as that specification writes it. Redirects are not
followed: a notice goes where the operator wrote it should.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from time import time

import httpx2
import orjson

from broker.model.notice import Notice
from broker.ports import NotDelivered
from broker.settings import NotifyTo

PREFIX = "whsec_"
SHORTEST = 24
ANSWER_S = 10.0
_AGAIN = frozenset({408, 425, 429})


def key_of(secret: str) -> bytes:
    """Raises ValueError (without the secret) when it is too short or no base64."""
    try:
        key = base64.b64decode(secret[len(PREFIX) :], validate=True) if secret.startswith(PREFIX) else secret.encode()
    except binascii.Error:
        raise ValueError(f"what follows {PREFIX} is not base64") from None
    if len(key) < SHORTEST:
        raise ValueError(f"a webhook's secret has at least {SHORTEST} bytes")
    return key


def signature(key: bytes, notice_id: str, timestamp: int, body: bytes) -> str:
    signed = f"{notice_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


class Webhook:
    """See ports.Notifier."""

    def __init__(self, to: NotifyTo) -> None:
        self._url = to.url
        self._key = key_of(to.secret)
        self._http = httpx2.AsyncClient(timeout=ANSWER_S, follow_redirects=False, trust_env=False)

    async def send(self, notice: Notice) -> None:
        body = orjson.dumps({"type": f"hold.{notice.what}", "id": notice.id, "data": notice.document})
        timestamp = int(time())
        headers = {
            "content-type": "application/json",
            "webhook-id": notice.id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature(self._key, notice.id, timestamp, body),
        }
        try:
            answer = await self._http.post(self._url, content=body, headers=headers)
        except httpx2.HTTPError as error:
            raise NotDelivered(type(error).__name__, for_good=False) from error
        status = answer.status_code
        if not 200 <= status < 300:
            raise NotDelivered(f"HTTP {status}", for_good=400 <= status < 500 and status not in _AGAIN)

    async def aclose(self) -> None:
        await self._http.aclose()
