"""Payloads nobody may read in the file: AES-256-GCM under a key that lies beside the database, not in it.

A copy of the database alone (a backup, a support case) shows no held arguments and no results. Bytes: nonce (12),
ciphertext and tag. Associated data: call id, newline, part; so a sealed payload opens only where it was put.

The key file is made at first use, whole or not at all, because several processes may be first at once.
"""

from __future__ import annotations

import hmac
from pathlib import Path
from secrets import token_bytes
from typing import TYPE_CHECKING

from broker.secrets import derived, keep

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
NONCE_BYTES = 12


class SealBroken(Exception):
    """The payload does not open: the key file is gone or another, or the payload was changed."""


class Seal:
    """path: of the key file. given: the key itself, where the settings have one; there is no file then."""

    def __init__(self, path: Path, given: bytes = b"") -> None:
        self._path = path
        self._key = given
        self._cipher: AESGCM | None = None
        self._mac_key = b""

    def mac(self, name: bytes, value: bytes) -> bytes:
        """A keyed digest of 32 bytes (HMAC-SHA256 under a key derived from this one). Raises OSError."""
        if not self._mac_key:
            self._mac_key = hmac.digest(self._known(make=True), b"broker.argument.1", "sha256")
        return hmac.digest(self._mac_key, name + b"\n" + value, "sha256")

    def close(self, call_id: str, part: str, clear: bytes) -> bytes:
        """Seal a payload. Raises OSError when the key file can neither be read nor made."""
        nonce = token_bytes(NONCE_BYTES)
        return nonce + self._open(make=True).encrypt(nonce, clear, _bound_to(call_id, part))

    def open(self, call_id: str, part: str, sealed: bytes) -> bytes:
        """Raises SealBroken."""
        from cryptography.exceptions import InvalidTag  # late, as in `_open`

        try:
            cipher = self._open(make=False)
            return cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _bound_to(call_id, part))
        except (InvalidTag, OSError) as error:
            raise SealBroken(
                f"A sealed payload does not open with the key in {self._path.name}; restore this database's key file."
            ) from error

    def derived(self, purpose: str) -> bytes:
        """32 further secret bytes, the same in every process (HKDF, RFC 5869). Raises OSError as `close` does."""
        return derived(self._known(make=True), purpose.encode())

    def _open(self, *, make: bool) -> AESGCM:
        if self._cipher is None:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # late: no start needs it

            self._cipher = AESGCM(self._known(make=make))
        return self._cipher

    def _known(self, *, make: bool) -> bytes:
        if not self._key:
            if make and not self._path.exists():
                keep(self._path, token_bytes(KEY_BYTES))
            self._key = self._read()
        return self._key

    def _read(self) -> bytes:
        key = self._path.read_bytes()
        if len(key) != KEY_BYTES:
            raise OSError(f"{self._path.name} is not a key file of {KEY_BYTES} bytes")
        if self._path.stat().st_mode & 0o077:
            self._path.chmod(0o600)
        return key


def _bound_to(call_id: str, part: str) -> bytes:
    return f"{call_id}\n{part}".encode()
