"""Where an issuer's public keys come from: the directory for the embedded issuer, HTTP for the others.

A token names a key by `kid`. An unknown one makes the source look again, once per interval however many ask; known keys
never wait for the network. When the issuer cannot be reached its keys are good until their age is up, then nothing of
it is accepted: closed, not open.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol, cast

import anyio
import jiter
import structlog
from anyio import to_thread
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey
from joserfc.util import urlsafe_b64decode

from broker.auth.documents import FETCH_S, Documents, UnreachableError
from broker.ports import Directory

if TYPE_CHECKING:
    import httpx2

UNKNOWN_KEY_S = 30.0  # between two looks for an unknown kid
RETRY_S = 10.0  # between two looks while there are no keys at all
DEFAULT_AGE_S = 3600.0
LEAST_AGE_S, MOST_AGE_S = 60.0, 86_400.0
KEYS = 100
RSA_BITS = range(2048, 8193)

_KINDS: Mapping[str, type[ECKey] | type[RSAKey] | type[OKPKey]] = {"EC": ECKey, "RSA": RSAKey, "OKP": OKPKey}
_MAX_AGE = re.compile(r"(?:^|[\s,])max-age=(\d{1,9})(?:$|[\s,])", re.IGNORECASE)

log = structlog.get_logger("broker.auth.keys")


class KeySource(Protocol):
    async def key(self, key_id: str) -> Key | None:
        """The public key of this id; None when the issuer has none such, or cannot be asked and was not lately."""
        ...

    async def aclose(self) -> None: ...


def public_keys(document: Any) -> dict[str, Key]:
    """Usable signature keys of a JWKS by kid. What we do not understand or trust is left out, as RFC 7517 asks.

    Raises UnreachableError when it is no JWKS at all.
    """
    entries = cast("Mapping[str, Any]", document).get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise UnreachableError("it is not a JWK set")
    found: dict[str, Key] = {}
    for entry in cast("list[Any]", entries)[:KEYS]:
        key = _public_key(cast("dict[str, Any]", entry)) if isinstance(entry, dict) else None
        if key is not None and key.kid:
            found.setdefault(key.kid, key)
    return found


def _public_key(jwk: dict[str, Any]) -> Key | None:
    kind, key_id = str(jwk.get("kty")), jwk.get("kid")
    if kind not in _KINDS or not isinstance(key_id, str) or jwk.get("use", "sig") != "sig":
        return None
    try:
        if kind == "RSA" and int.from_bytes(urlsafe_b64decode(jwk["n"].encode())).bit_length() not in RSA_BITS:
            return None
        return _KINDS[kind].import_key({name: value for name, value in jwk.items() if name != "d"})
    except (JoseError, ValueError, TypeError, OverflowError, KeyError, AttributeError):
        return None  # one bad key must not take the good ones with it


class DirectoryKeys:
    """The embedded issuer's keys, without HTTP. A new key of another process is found at the first token it signed."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._keys: dict[str, Key] = {}
        self._read_at = float("-inf")
        self._lock = anyio.Lock()

    async def key(self, key_id: str) -> Key | None:
        if self._is_stale(key_id):
            async with self._lock:  # who comes meanwhile waits for this look; without it a good token would be refused
                if self._is_stale(key_id):
                    asked_at = monotonic()
                    stored = await to_thread.run_sync(self._directory.signing_keys)
                    self._keys = public_keys({"keys": [jiter.from_json(key.private_jwk.encode()) for key in stored]})
                    self._read_at = asked_at
        return self._keys.get(key_id)

    def _is_stale(self, key_id: str) -> bool:
        age_s = monotonic() - self._read_at
        return age_s > LEAST_AGE_S or (key_id not in self._keys and age_s > 1.0)

    async def aclose(self) -> None:
        """Nothing is open."""


class HttpKeys:
    """An external issuer's keys. jwks_uri "": from its metadata document. Where they may come from: documents."""

    def __init__(self, issuer: str, jwks_uri: str, client: Callable[[], httpx2.AsyncClient]) -> None:
        self._issuer = issuer
        self._jwks_uri = jwks_uri
        self._documents = Documents(issuer, client, named=jwks_uri)
        self._keys: dict[str, Key] = {}
        self._age_s = DEFAULT_AGE_S
        self._fetched_at = float("-inf")
        self._asked_at = float("-inf")
        self._lock = anyio.Lock()

    async def key(self, key_id: str) -> Key | None:
        found = self._usable().get(key_id)
        if found is None:
            await self._look(RETRY_S if not self._usable() else UNKNOWN_KEY_S)
        elif monotonic() - self._fetched_at > self._age_s / 2 and not self._lock.locked():
            await self._look(UNKNOWN_KEY_S)  # early, so that an issuer's short absence is never noticed
        return self._usable().get(key_id)

    async def aclose(self) -> None:
        await self._documents.aclose()

    def _usable(self) -> dict[str, Key]:
        return self._keys if monotonic() - self._fetched_at <= self._age_s else {}

    async def _look(self, interval_s: float) -> None:
        async with self._lock:
            if monotonic() - self._asked_at < interval_s:
                return
            self._asked_at = monotonic()
            try:
                with anyio.fail_after(FETCH_S):
                    keys, age_s = await self._fetch()
            except (UnreachableError, TimeoutError) as error:
                log.warning("keys of an issuer cannot be read", issuer=self._issuer, reason=str(error) or "timeout")
                return
            self._keys, self._age_s, self._fetched_at = keys, age_s, self._asked_at

    async def _fetch(self) -> tuple[dict[str, Key], float]:
        where = self._jwks_uri or (await self._documents.metadata()).get("jwks_uri")
        if not isinstance(where, str):
            raise UnreachableError("its metadata names no jwks_uri")
        document, headers = await self._documents.get(where)
        match = _MAX_AGE.search(headers.get("cache-control", ""))
        age_s = float(match.group(1)) if match else DEFAULT_AGE_S
        return public_keys(document), min(max(age_s, LEAST_AGE_S), MOST_AGE_S)
