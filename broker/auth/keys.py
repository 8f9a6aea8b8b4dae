"""Where an issuer's public keys come from: the directory for the embedded issuer, HTTP for the others.

A token names a key by `kid`. An unknown one makes the source look again, once per interval however many ask; known keys
never wait for the network. When the issuer cannot be reached its keys are good until their age is up, then nothing of
it is accepted: closed, not open.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

import anyio
import httpx2
import jiter
import structlog
from anyio import to_thread
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey
from joserfc.util import urlsafe_b64decode

from broker.model.address import is_loopback, is_loopback_url
from broker.ports import Directory

UNKNOWN_KEY_S = 30.0  # between two looks for an unknown kid
RETRY_S = 10.0  # between two looks while there are no keys at all
DEFAULT_AGE_S = 3600.0
LEAST_AGE_S, MOST_AGE_S = 60.0, 86_400.0
FETCH_S = 5.0
DOCUMENT_BYTES = 262_144
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


class UnreachableError(Exception):
    """A document could not be had, or is not what it should be. Says why, for the log."""


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
    """An external issuer's keys. jwks_uri "": from the issuer's metadata document.

    https, or http to loopback when the issuer itself is there; no redirects; bounded in time and size.
    """

    def __init__(self, issuer: str, jwks_uri: str, client: Callable[[], httpx2.AsyncClient]) -> None:
        self._issuer = issuer
        self._jwks_uri = jwks_uri
        self._make_client = client
        self._client: httpx2.AsyncClient | None = None
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
        if self._client is not None:
            await self._client.aclose()

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
            except (UnreachableError, httpx2.HTTPError, httpx2.InvalidURL, TimeoutError, ValueError) as error:
                log.warning("keys of an issuer cannot be read", issuer=self._issuer, reason=str(error) or "timeout")
                return
            self._keys, self._age_s, self._fetched_at = keys, age_s, self._asked_at

    async def _fetch(self) -> tuple[dict[str, Key], float]:
        where = self._jwks_uri or await self._discover()
        document, headers = await self._get(where)
        match = _MAX_AGE.search(headers.get("cache-control", ""))
        age_s = float(match.group(1)) if match else DEFAULT_AGE_S
        return public_keys(document), min(max(age_s, LEAST_AGE_S), MOST_AGE_S)

    async def _discover(self) -> str:
        """RFC 8414 section 3, then OpenID discovery. The document must name the very issuer (section 3.3)."""
        parts = urlsplit(self._issuer)
        path = parts.path.rstrip("/")
        origin = f"{parts.scheme}://{parts.netloc}"
        why = ""
        for url in (
            f"{origin}/.well-known/oauth-authorization-server{path}",
            f"{self._issuer.rstrip('/')}/.well-known/openid-configuration",
        ):
            try:
                document, _ = await self._get(url)
            except UnreachableError as error:
                why = str(error)
                continue
            if document.get("issuer") != self._issuer:
                raise UnreachableError(f"{url} names another issuer")
            if isinstance(where := document.get("jwks_uri"), str):
                return where
        raise UnreachableError(why or "its metadata names no jwks_uri")

    async def _get(self, url: str) -> tuple[dict[str, Any], Mapping[str, str]]:
        self._judge(url)
        if self._client is None:
            self._client = self._make_client()
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}  # a small document cannot be a bomb
        async with self._client.stream("GET", url, headers=headers) as response:
            if response.status_code != 200 or "content-encoding" in response.headers:
                raise UnreachableError(f"{url} answered {response.status_code}, or compressed")
            body = b""
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > DOCUMENT_BYTES:
                    raise UnreachableError(f"{url} is larger than {DOCUMENT_BYTES} bytes")
        document = jiter.from_json(body, allow_inf_nan=False, catch_duplicate_keys=True)
        if not isinstance(document, dict):
            raise UnreachableError(f"{url} is not a JSON object")
        return cast("dict[str, Any]", document), response.headers

    def _judge(self, url: str) -> None:
        """The operator named the issuer; what the issuer's documents name further may not reach deeper into our net."""
        parts = urlsplit(url)
        host = parts.hostname or ""
        loopback = is_loopback(host)
        if parts.username or parts.scheme not in ("https", "http") or (parts.scheme == "http" and not loopback):
            raise UnreachableError(f"{url} is neither https nor loopback")
        if loopback and not (is_loopback_url(self._issuer) or url == self._jwks_uri):
            raise UnreachableError(f"{url} is on this machine, its issuer is not")
        if _is_link_local(host):
            raise UnreachableError(f"{url} is a link-local address")


def _is_link_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_link_local
    except ValueError:
        return False


def http_client() -> httpx2.AsyncClient:
    return httpx2.AsyncClient(
        timeout=FETCH_S,
        follow_redirects=False,
        trust_env=False,
        limits=httpx2.Limits(max_connections=4, max_keepalive_connections=0),
    )
