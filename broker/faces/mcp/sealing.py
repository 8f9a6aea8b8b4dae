"""What is given to an agent to come back with, sealed: it can neither be read nor made nor changed by whoever holds it.

AES-256-GCM under keys derived for one purpose each. What a seal is bound to is not in it; who opens it has to know.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Sequence
from secrets import token_bytes
from typing import TYPE_CHECKING, Any

import orjson

from broker.secrets import derived

if TYPE_CHECKING:  # late where they run: no start needs them
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

NONCE_BYTES = 12

Keys = Callable[[], Sequence[bytes]]
"""Newest first: the first one seals, each of them opens. Each at least 32 bytes."""


class Seal:
    """keys: asked when the first thing is sealed or opened."""

    def __init__(self, keys: Keys, purpose: str) -> None:
        self._keys = keys
        self._purpose = purpose.encode()
        self._ciphers: tuple[AESGCM, ...] = ()

    def close(self, claims: Any, bound: str = "") -> str:
        """claims: JSON values. bound: whatever must be the same when it is opened. URL-safe text."""
        nonce = token_bytes(NONCE_BYTES)
        sealed = self._ring()[0].encrypt(nonce, orjson.dumps(claims), self._purpose + bound.encode())
        return urlsafe_b64encode(nonce + sealed).decode()

    def open(self, sealed: object, *, most: int, bound: str = "") -> Any:
        """The claims; None for whatever none of the keys has sealed for this, and for more than `most` characters."""
        if not isinstance(sealed, str) or not sealed.isascii() or len(sealed) > most:
            return None
        try:
            raw = urlsafe_b64decode(sealed)
        except ValueError:
            return None
        if urlsafe_b64encode(raw).decode() != sealed:  # Python decodes what is no base64 in part, and skips the rest
            return None
        from cryptography.exceptions import InvalidTag

        for cipher in self._ring() if len(raw) > NONCE_BYTES else ():
            try:
                return orjson.loads(
                    cipher.decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], self._purpose + bound.encode())
                )
            except InvalidTag:
                continue
        return None

    def _ring(self) -> tuple[AESGCM, ...]:
        if not self._ciphers:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM

            self._ciphers = tuple(AESGCM(derived(key, self._purpose)) for key in self._keys())
        return self._ciphers
