"""Which URLs are this broker itself: the resources its tokens are for, and the spellings of loopback.

A base URL has a scheme and an authority and nothing else: `http://127.0.0.1:8750`, `https://broker.example`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import urlsplit

ENDPOINTS: tuple[str, ...] = ("/mcp", "/sse", "/api", "")
"""Paths of the protected resources under the base URL; "" is the broker as a whole."""

DOORS: Mapping[str, frozenset[str]] = {
    "agents": frozenset({"/mcp", "/sse", ""}),
    "api": frozenset({"/api", ""}),
}
"""Which of them open which door. A token for the agents' endpoints does not decide holds, nor the other way round."""

_LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")


def base_url(public_url: str, host: str, port: int) -> str:
    """Where clients find this broker: its public URL, or where it listens."""
    return public_url.rstrip("/") or f"http://{f'[{host}]' if ':' in host else host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether a host name or literal (IPv6 with or without brackets) is this machine. Names are not resolved."""
    name = host.strip("[]").lower()
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def is_loopback_url(url: str) -> bool:
    try:
        return is_loopback(urlsplit(url).hostname or "")
    except ValueError:
        return False


def spellings(base_url: str) -> tuple[str, ...]:
    """The base URL as clients may write it, itself first: on loopback the names of loopback are interchangeable."""
    if not is_loopback_url(base_url):
        return (base_url,)
    parts = urlsplit(base_url)
    port = f":{parts.port}" if parts.port else ""
    return (base_url, *(url for name in _LOOPBACK_NAMES if (url := f"{parts.scheme}://{name}{port}") != base_url))


def as_called(base_url: str, host: str) -> str:
    """The base URL in the spelling of this Host header, when that is one of `spellings`; else as it is."""
    scheme = urlsplit(base_url).scheme
    called = f"{scheme}://{host.lower()}"
    return called if called in spellings(base_url) else base_url


def resources(base_url: str) -> tuple[str, ...]:
    """Every value of `aud` that means this broker, the canonical ones first. Compared exactly, never by prefix."""
    return tuple(base + path for base in spellings(base_url) for path in ENDPOINTS)


def endpoints_in(base_url: str, audience: Iterable[str]) -> frozenset[str]:
    """The paths of those of our resources that this audience names; empty when it names none of them."""
    named = frozenset(audience)
    return frozenset(path for path in ENDPOINTS for base in spellings(base_url) if base + path in named)


def canonical_resource(base_url: str, resource: str) -> str | None:
    """One of `resources` for what a client asked by RFC 8707, or None. A bare base may end in a slash."""
    known: Sequence[str] = resources(base_url)
    if resource in known:
        return resource
    bare = resource.removesuffix("/")
    return bare if resource.endswith("/") and bare in spellings(base_url) else None
