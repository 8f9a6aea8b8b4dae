"""HTTP headers as an agent's request may carry them: one reading of each, or a refusal.

A header that decides something must not appear twice: the first and the last copy would be two requests. Media types
are compared whole, never by prefix; Host and Origin are parsed by their grammar and looked up, never searched.

What must not live here: what a header means for MCP (`agreement`), and credentials beyond their grammar.
"""

from __future__ import annotations

import base64
import binascii
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

# Decide something, so at most one copy each. Names as ASGI gives them: lower case.
SINGLE = frozenset(
    {
        b"host",
        b"origin",
        b"authorization",
        b"content-type",
        b"content-length",
        b"content-encoding",
        b"mcp-protocol-version",
        b"mcp-session-id",
        b"mcp-method",
        b"mcp-name",
        b"last-event-id",
    }
)

_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # RFC 9110 section 5.6.2  # noqa: S105 – a grammar
_PARAMETER = re.compile(rf'[ \t]*;[ \t]*({_TOKEN})=({_TOKEN}|"[^"\\]*")')
_JSON_TYPE = re.compile(rf'application/json((?:[ \t]*;[ \t]*{_TOKEN}=(?:{_TOKEN}|"[^"\\]*"))*)[ \t]*', re.IGNORECASE)
_HOST = re.compile(rb"(?:\[[0-9a-f:.]{2,45}\]|[a-z0-9](?:[a-z0-9._-]{0,252}))(?::[0-9]{1,5})?")
_BEARER = re.compile(rb"bearer +([A-Za-z0-9\-._~+/]+=*)", re.IGNORECASE)  # RFC 6750 section 2.1
_BASE64_VALUE = re.compile(r"=\?base64\?(.*)\?=")

CREDENTIAL_BYTES = 16_384
LENGTH_DIGITS = 18


def read_headers(raw: Iterable[tuple[bytes, bytes]]) -> tuple[dict[bytes, bytes], bytes]:
    """The headers by name, and the name of one that came twice and must not (b"" when there is none).

    Other headers that come several times are joined with commas (RFC 9110 section 5.3).
    """
    headers: dict[bytes, bytes] = {}
    twice = b""
    for name, value in raw:
        if name in headers:
            if name in SINGLE:
                twice = name
            headers[name] = headers[name] + b", " + value
        else:
            headers[name] = value
    return headers, twice


def json_content(headers: Mapping[bytes, bytes]) -> tuple[int, str]:
    """(0, "") when the body is declared as JSON in UTF-8, otherwise the HTTP status and why not."""
    coded = headers.get(b"content-encoding", b"identity").lower() != b"identity"
    if coded or headers.get(b"transfer-encoding", b"chunked").lower() != b"chunked":
        return 415, "the body must not be compressed"
    raw = headers.get(b"content-type")
    if raw == b"application/json":
        return 0, ""
    kind = _JSON_TYPE.fullmatch((raw or b"").decode("latin-1").strip())
    if kind is None:
        return 415, "the Content-Type must be application/json"
    for name, value in _PARAMETER.findall(kind.group(1)):
        if name.lower() == "charset" and value.strip('"').lower() not in ("utf-8", "utf8"):
            return 400, "the charset must be UTF-8"
    return 0, ""


def accepts(headers: Mapping[bytes, bytes]) -> tuple[bool, bool]:
    """Whether JSON and an event stream may be answered. No Accept header accepts nothing, as in the SDK."""
    raw = headers.get(b"accept", b"")
    if raw == b"application/json, text/event-stream":
        return True, True
    json = stream = False
    for part in raw.decode("latin-1").lower().split(","):
        kind, *parameters = (piece.strip() for piece in part.split(";"))
        if any(parameter.replace(" ", "") in ("q=0", "q=0.0", "q=0.00", "q=0.000") for parameter in parameters):
            continue
        json = json or kind in ("application/json", "application/*", "*/*")
        stream = stream or kind in ("text/event-stream", "text/*", "*/*")
    return json, stream


def bearer(headers: Mapping[bytes, bytes]) -> str | None:
    """The bearer credential, "" when there is a header that is not one, None when there is no header."""
    raw = headers.get(b"authorization")
    if raw is None:
        return None
    found = _BEARER.fullmatch(raw) if len(raw) <= CREDENTIAL_BYTES else None
    return found.group(1).decode("ascii") if found else ""


def content_length(headers: Mapping[bytes, bytes]) -> int:
    """The declared length in bytes, 0 when there is none.

    Longer than any body when it is no number, or one of so many digits that Python will not read it.
    """
    digits = headers.get(b"content-length", b"0").lstrip(b"0") or b"0"
    return int(digits) if digits.isdigit() and len(digits) <= LENGTH_DIGITS else sys.maxsize


def query_has(query: bytes, name: str) -> bool:
    """Whether the query carries this parameter, in any spelling of its name."""
    if not query:
        return False
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    return any(key.strip().lower() == name for key, _ in pairs)


def decoded(value: bytes | None) -> str | None:
    """The text of an `Mcp-Name` header, which may be wrapped as `=?base64?…?=`. None when absent or badly wrapped.

    Source: 2026-07-28, streamable HTTP, "value encoding". Only the canonical base64 of UTF-8 text counts.
    """
    if value is None:
        return None
    text = value.decode("latin-1")
    wrapped = _BASE64_VALUE.fullmatch(text)
    if wrapped is None:
        return text
    try:
        content = base64.b64decode(wrapped.group(1), validate=True)
        return content.decode() if base64.b64encode(content).decode() == wrapped.group(1) else None
    except (binascii.Error, UnicodeDecodeError):
        return None


class Places:
    """Which Host and Origin values are ours. base_url and hosts may name other places than the socket's own."""

    def __init__(
        self, *, loopback: bool, public: Callable[[], str], hosts: Iterable[str], origins: Iterable[str]
    ) -> None:
        """public: the URL clients use, or "". hosts: `name` (any port) or `name:port`. origins: exact."""
        self._loopback = loopback
        self._public = public
        self._hosts = frozenset(host.lower().encode() for host in hosts)
        self._origins = frozenset(origin.lower().rstrip("/").encode() for origin in origins)
        self._known: dict[Any, tuple[frozenset[bytes], frozenset[bytes]]] = {}

    def host_status(self, headers: Mapping[bytes, bytes], server: Any) -> int:
        """0 when the Host header is ours, 400 when it is none, 421 when it is somebody else's.

        server: (address, port) of the socket the request came in on.
        """
        host = headers.get(b"host", b"").lower()
        if host in self._own(server)[0] or host in self._hosts:
            return 0
        if _HOST.fullmatch(host) is None:
            return 400
        return 0 if host.rpartition(b":")[0] in self._hosts else 421

    def origin_allowed(self, origin: bytes, server: Any) -> bool:
        origin = origin.lower()
        return origin in self._origins or origin in self._own(server)[1]

    def _own(self, server: Any) -> tuple[frozenset[bytes], frozenset[bytes]]:
        """Hosts and origins of one listening socket, worked out once."""
        known = self._known.get(server)
        if known is None:
            known = self._known[server] = self._work_out(server)
        return known

    def _work_out(self, server: Any) -> tuple[frozenset[bytes], frozenset[bytes]]:
        address, port = (str(server[0]), server[1]) if server else ("", None)
        names: set[str] = {"127.0.0.1", "localhost", "[::1]"} if self._loopback else set()
        if address and port is not None:
            # An address cannot be rebound by DNS, so the socket's own is safe to be called by; probes do that.
            names.add(f"[{address}]" if ":" in address else address)
        hosts: set[str] = {f"{name}:{port}" for name in names} | (names if port == 80 else set())
        origins = {f"http://{host}" for host in hosts}
        public = urlsplit(self._public())
        if public.hostname:
            standard = {"http": 80, "https": 443}.get(public.scheme)
            bare = public.netloc.rpartition("@")[2].lower()
            hosts.add(bare)
            origins.add(f"{public.scheme}://{bare}")
            if public.port in (None, standard):
                name = f"[{public.hostname}]" if ":" in public.hostname else public.hostname
                hosts.update((name, f"{name}:{standard}"))
                origins.add(f"{public.scheme}://{name}")
        return frozenset(host.encode() for host in hosts), frozenset(origin.encode() for origin in origins)
