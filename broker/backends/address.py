"""Where a backend may be: the origin in its manifest, and which IP addresses may stand behind its name.

Two checks, because a name says nothing about an address: `Origin.parse` judges the URL once, at load; `fault_of` judges
each address after resolution, immediately before the connection is made to that very address (transport.py). So a name
that answers with a public address first and with loopback later gains nothing.

Addresses fall into three kinds: never (metadata services of clouds, unspecified, multicast, reserved), private
(loopback, link-local, local networks: only with `allow_private`), and public. An IPv6 address that carries an IPv4
address is that address.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Self
from urllib.parse import urlsplit

from broker.data import dataclass

# The services that hand a machine's own cloud credentials to whoever asks: AWS (IMDS, ECS, EKS), Azure, Google,
# Oracle, Alibaba. Some lie in public or shared ranges, so no general rule finds them.
METADATA_ADDRESSES = frozenset(
    map(
        ip_address,
        (
            "169.254.169.254", "169.254.170.2", "169.254.170.23", "168.63.129.16", "192.0.0.192", "100.100.100.200",
            "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254",
        ),
    )
)  # fmt: skip
METADATA_NAMES = frozenset({"metadata", "metadata.google.internal", "metadata.goog", "instance-data"})
_NAT64 = IPv6Network("64:ff9b::/96")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_SEGMENT = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})+")


def fault_of(address: str, *, allow_private: bool) -> str:
    """Why this address must not be connected to; "" when it may. address: as the resolver gives it."""
    try:
        ip = ip_address(address)
    except ValueError:
        return "is not an IP address"
    for inner in _carried(ip) or (ip,):
        if inner in METADATA_ADDRESSES:
            return "is the address of a cloud's metadata service, which no backend may be"
        if _is_private(inner):
            if not allow_private:
                return "is loopback or in a private network; set allow_private: true when that is meant"
        elif inner.is_unspecified or inner.is_multicast or inner.is_reserved:
            return "is not the address of a server"
    return ""


def is_public(address: str) -> bool:
    """Whether anything on the way to this address could be outside the operator's own networks."""
    ip = ip_address(address)
    return not any(_is_private(inner) for inner in _carried(ip) or (ip,))


def _is_private(ip: IPv4Address | IPv6Address) -> bool:
    if ip.is_unspecified or ip.is_multicast:
        return False
    if ip.is_loopback or ip.is_link_local:
        return True
    if isinstance(ip, IPv6Address) and ip.is_site_local:
        return True
    return not ip.is_global and not ip.is_reserved


def _carried(ip: IPv4Address | IPv6Address) -> tuple[IPv4Address, ...]:
    """The IPv4 addresses an IPv6 address stands for: mapped, compatible, NAT64, 6to4, Teredo."""
    if isinstance(ip, IPv4Address):
        return ()
    if ip.ipv4_mapped is not None:
        return (ip.ipv4_mapped,)
    if ip.sixtofour is not None:
        return (ip.sixtofour,)
    if ip.teredo is not None:
        return ip.teredo
    low = int(ip) & 0xFFFF_FFFF
    if ip in _NAT64 or (int(ip) >> 32 == 0 and low > 1):
        return (IPv4Address(low),)
    return ()


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host and port that a backend is, and the path in front of all its paths ("" or "/like/this").

    host: lower case, without brackets. Everything is literal: there is no way to put an argument in here.
    """

    scheme: str
    host: str
    port: int
    prefix: str

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = {"http": 80, "https": 443}[self.scheme]
        return f"{self.scheme}://{host}{'' if self.port == default else f':{self.port}'}{self.prefix}"

    @classmethod
    def parse(cls, url: str, *, allow_private: bool) -> Self:
        """Raises ValueError with one sentence: not http(s), userinfo, query, fragment, template, odd host, ..."""
        if not re.fullmatch(r"[!-~]+", url) or any(sign in url for sign in "\\{}<>\"'^`|"):
            raise ValueError("a URL here is literal ASCII without spaces, braces, quotes or backslashes")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError("the URL starts with https:// (or http:// for a private address) and a host")
        if "@" in parts.netloc:
            raise ValueError("credentials do not belong in a URL; use `credential`")
        if "?" in url or "#" in url:
            raise ValueError("the URL has no query and no fragment")
        host, port = _host_and_port(parts.netloc, 80 if parts.scheme == "http" else 443)
        if parts.scheme == "http" and not allow_private:
            raise ValueError("http is for private addresses only (with allow_private: true); use https")
        if isinstance(_literal(host), IPv4Address | IPv6Address) and (
            fault := fault_of(host, allow_private=allow_private)
        ):
            raise ValueError(f"{host} {fault}")
        return cls(parts.scheme, host, port, _prefix(parts.path))


def _host_and_port(netloc: str, default: int) -> tuple[str, int]:
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]%]+)(?::([0-9]{1,5}))?", netloc)
    port = int(match[2]) if match and match[2] else default
    if match is None or not 0 < port < 65_536:
        raise ValueError(f"{netloc!r} is not a host or host:port")
    host = match[1].strip("[]").lower()
    if match[1].startswith("["):
        literal = _literal(host)
        if not isinstance(literal, IPv6Address):
            raise ValueError(f"[{host}] is not an IPv6 address")
        return str(literal), port
    if host in METADATA_NAMES:
        raise ValueError(f"{host} is a cloud's metadata service, which no backend may be")
    if _literal(host) is None:
        labels = host.split(".")
        # A resolver reads 2130706433, 0x7f.1 and 127.1 as addresses; a person reads a name.
        if re.fullmatch(r"[0-9]+|0x[0-9a-f]*", labels[-1]):
            raise ValueError(f"{host} is an address in an unusual spelling; write a.b.c.d")
        if not all(_LABEL.fullmatch(label) for label in labels) or len(host) > 253:
            raise ValueError(f"{host!r} is not a host name (no trailing dot; other scripts in their xn-- form)")
    return host, port


def _literal(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _prefix(path: str) -> str:
    prefix = path.rstrip("/")
    for segment in prefix.split("/")[1:]:
        if not _SEGMENT.fullmatch(segment) or segment.lower().replace("%2e", ".") in (".", ".."):
            raise ValueError(f"the path {path!r} has an empty, dotted or badly encoded segment")
    return prefix
