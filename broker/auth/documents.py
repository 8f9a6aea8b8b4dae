"""An issuer's documents over HTTP: its metadata, its keys, the answers of its endpoints. Bounded, and nowhere else.

The operator named the issuer. What the issuer's documents name further must be https, or loopback when the issuer is on
this machine itself; no redirects; small and in time. What must not live here: what the documents say (keys, sign_in).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import anyio
import jiter

from broker.model.address import is_loopback, is_loopback_url

if TYPE_CHECKING:
    import httpx2

FETCH_S = 5.0
DOCUMENT_BYTES = 262_144


class UnreachableError(Exception):
    """A document could not be had, or is not what it should be. Says why, for the log."""


class Documents:
    """issuer: as in its tokens. named: a URL that the operator wrote himself, good wherever it leads."""

    def __init__(self, issuer: str, client: Callable[[], httpx2.AsyncClient], *, named: str = "") -> None:
        self._issuer = issuer
        self._named = named
        self._make_client = client
        self._client: httpx2.AsyncClient | None = None

    async def metadata(self) -> Mapping[str, Any]:
        """RFC 8414 section 3, then OpenID discovery. The document must name the very issuer (section 3.3).

        Raises UnreachableError.
        """
        parts = urlsplit(self._issuer)
        path = parts.path.rstrip("/")
        origin = f"{parts.scheme}://{parts.netloc}"
        why = ""
        for url in (
            f"{origin}/.well-known/oauth-authorization-server{path}",
            f"{self._issuer.rstrip('/')}/.well-known/openid-configuration",
        ):
            try:
                document, _ = await self.get(url)
            except UnreachableError as error:
                why = str(error)
                continue
            if document.get("issuer") != self._issuer:
                raise UnreachableError(f"{url} names another issuer")
            return document
        raise UnreachableError(why)

    async def get(self, url: str) -> tuple[dict[str, Any], Mapping[str, str]]:
        """A JSON object and the headers it came with. Raises UnreachableError."""
        status, document, headers = await self._ask("GET", url)
        if status != 200:
            raise UnreachableError(f"{url} answered {status}")
        return document, headers

    async def post(
        self, url: str, form: Mapping[str, str], auth: tuple[str, str] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """The status and the JSON object it came with. auth: for HTTP Basic. Raises UnreachableError."""
        status, document, _ = await self._ask("POST", url, data=dict(form), auth=auth)
        return status, document

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def _ask(self, method: str, url: str, **more: Any) -> tuple[int, dict[str, Any], Mapping[str, str]]:
        import httpx2  # late: a broker without other issuers starts without it

        self._judge(url)
        if self._client is None:
            self._client = self._make_client()
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}  # a small document cannot be a bomb
        try:
            with anyio.fail_after(FETCH_S):
                async with self._client.stream(method, url, headers=headers, **more) as response:
                    if "content-encoding" in response.headers:
                        raise UnreachableError(f"{url} answered compressed")
                    body = b""
                    async for chunk in response.aiter_raw():
                        body += chunk
                        if len(body) > DOCUMENT_BYTES:
                            raise UnreachableError(f"{url} is larger than {DOCUMENT_BYTES} bytes")
            document: Any = jiter.from_json(body, allow_inf_nan=False, catch_duplicate_keys=True) if body else {}
        except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError, ValueError) as error:
            raise UnreachableError(f"{url}: {error or 'no answer in time'}") from error
        if not isinstance(document, dict):
            raise UnreachableError(f"{url} is not a JSON object")
        return response.status_code, cast("dict[str, Any]", document), response.headers

    def _judge(self, url: str) -> None:
        parts = urlsplit(url)
        host = parts.hostname or ""
        loopback = is_loopback(host)
        if parts.username or parts.scheme not in ("https", "http") or (parts.scheme == "http" and not loopback):
            raise UnreachableError(f"{url} is neither https nor loopback")
        if loopback and not (is_loopback_url(self._issuer) or url == self._named):
            raise UnreachableError(f"{url} is on this machine, its issuer is not")
        if _is_link_local(host):
            raise UnreachableError(f"{url} is a link-local address")


def _is_link_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_link_local
    except ValueError:
        return False


def http_client() -> httpx2.AsyncClient:
    import httpx2  # late, as above

    return httpx2.AsyncClient(
        timeout=FETCH_S,
        follow_redirects=False,
        trust_env=False,
        limits=httpx2.Limits(max_connections=4, max_keepalive_connections=0),
    )
