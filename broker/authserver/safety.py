"""What must be in place before this broker may be reached from other machines."""

from __future__ import annotations

from urllib.parse import urlsplit

from broker.model.address import is_loopback
from broker.ports import Directory
from broker.settings import Settings


def is_exposed(settings: Settings) -> bool:
    """Whether others than this machine are meant to reach the broker: it listens there, or a proxy leads to it."""
    return bool(settings.public_url) or not is_loopback(settings.listen.host)


def unsafe(settings: Settings, directory: Directory) -> list[str]:
    """Why the broker must refuse to start, each with its remedy; empty when it may. Blocks on the disk."""
    if not is_exposed(settings):
        return []
    return [*_testing(settings), *_transport(settings), *_issuer(settings, directory)]


def _testing(settings: Settings) -> list[str]:
    problems: list[str] = []
    if settings.testing.open:
        problems.append("testing.open takes callers without a credential, which other machines could be: remove it.")
    if settings.testing.clock_file:
        problems.append("testing.clock_file lets a file say what time it is, and so what has expired: remove it.")
    return problems


def undeclared(settings: Settings) -> list[str]:
    """The part of `unsafe` that the settings alone decide. Touches no disk."""
    return _transport(settings) if is_exposed(settings) else []


def _transport(settings: Settings) -> list[str]:
    if not settings.public_url:
        return [
            f"listen.host is {settings.listen.host!r}, which other machines can reach, and no TLS is declared: {_TLS}",
        ]
    try:
        parts = urlsplit(settings.public_url)
        bare = not (parts.path.strip("/") or parts.query or parts.fragment or parts.username)
        if parts.scheme == "https" and parts.hostname and bare:
            return []
    except ValueError:
        pass  # not a URL at all gets the same advice
    return ["public_url is not an https URL without path: set it to what clients use, such as https://broker.example."]


def _issuer(settings: Settings, directory: Directory) -> list[str]:
    if settings.auth.issuers:
        return []
    if not settings.auth.embedded.enabled:
        return [f"Nobody issues access tokens: {_ISSUER}"]
    if not any(account.password_hash and not account.disabled for account in directory.accounts()):
        return [f"The embedded authorization server has no account: {_ISSUER}"]
    return []


_TLS = "put a proxy with TLS in front and set public_url to its https URL, or listen on 127.0.0.1."
_ISSUER = "name an issuer in auth.issuers, or enable auth.embedded and add an account with `broker user add NAME`."
