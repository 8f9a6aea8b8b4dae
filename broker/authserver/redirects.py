"""Which redirect URIs a client may have, and when a requested one is the registered one.

Compared as text, exactly; only the port of a loopback URI is free, because a native client takes the port it gets
(RFC 8252 section 7.3). What could be read in two ways (user info, fragments, backslashes, blanks) is refused.
"""

from __future__ import annotations

import re
from urllib.parse import SplitResult, urlsplit

from broker.model.address import is_loopback

CHARS = 2000

_PLAIN = re.compile(r"[\x21-\x7e]+")
_SCHEME = re.compile(r"[a-z][a-z0-9+.\-]{1,63}")
_NOT_AN_APP = frozenset(
    {"about", "blob", "chrome", "data", "file", "filesystem", "ftp", "ftps", "gopher", "jar", "javascript", "mailto"}
    | {"ms-its", "news", "res", "resource", "sftp", "sms", "ssh", "tel", "telnet", "urn", "vbscript", "view-source"}
    | {"ws", "wss"}
)


def problem(uri: str) -> str:
    """What is wrong with a redirect URI, as the end of a sentence; "" when it is acceptable."""
    if not _PLAIN.fullmatch(uri) or len(uri) > CHARS or re.search(r'[\\"<>^`{|}]', uri):
        return "has characters that do not belong in a URI, or too many"
    try:
        parts = urlsplit(uri)
        _ = parts.port
    except ValueError:
        return "is not a URI"
    if parts.fragment or "#" in uri:
        return "has a fragment"
    if parts.scheme in ("http", "https"):
        return _web_problem(parts)
    if not _SCHEME.fullmatch(parts.scheme) or parts.scheme in _NOT_AN_APP or not (parts.netloc or parts.path):
        return "has a scheme that is no application's own"
    return ""


def _web_problem(parts: SplitResult) -> str:
    if not parts.hostname or "@" in parts.netloc:
        return "has no plain host"
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        return "is http and not on loopback"
    return ""


def matches(requested: str, registered: str) -> bool:
    """Whether the requested URI is the registered one."""
    if requested == registered:
        return True
    if problem(requested):
        return False
    one, other = urlsplit(requested), urlsplit(registered)
    return (
        one.scheme == other.scheme == "http"
        and one.hostname == other.hostname
        and is_loopback(one.hostname or "")
        and (one.path, one.query) == (other.path, other.query)
    )


def form_action(uri: str) -> str:
    """The CSP source that lets a form's answer lead to this URI."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return f"{parts.scheme}:"
    if "[" in parts.netloc:
        return "http:"  # CSP has no form for IPv6 hosts
    return f"{parts.scheme}://{parts.netloc}"
