"""Secrets by reference: `${env:NAME}` and `${file:PATH}`, read when they are used and kept nowhere; and the file of a
secret that the broker makes itself.

What must not live here: secrets. A new source (a vault, a keyring) is one more word before the colon.
"""

from __future__ import annotations

import hmac
import os
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from secrets import token_hex

MAX_SECRET_BYTES = 65_536

REFERENCE = re.compile(r"\$\{([^{}]*)\}")


class Secrets:
    """ports.Secrets. directory: where relative paths start. environ: the process's environment unless given."""

    def __init__(self, directory: Path, environ: Mapping[str, str] | None = None) -> None:
        self._directory = directory
        self._environ = os.environ if environ is None else environ

    def resolve(self, reference: str) -> str:
        """The text with each reference in it replaced. Text without a reference is returned as it is.

        Raises LookupError naming the reference, never the value: an unset or empty variable, a file that is missing,
        not a regular file, unreadable, empty or over 64 KiB, bytes that are not UTF-8, an unknown kind of reference.
        """
        return REFERENCE.sub(lambda match: self._one(match[0], match[1]), reference)

    def _one(self, reference: str, inner: str) -> str:
        kind, _, name = inner.partition(":")
        source = _SOURCES.get(kind)
        if source is None or not name:
            raise LookupError(f"{reference} is not a reference; write ${{env:NAME}} or ${{file:PATH}}")
        value = source(self._environ, self._directory, reference, name)
        if not value:
            raise LookupError(f"{reference} is empty")
        return value


def _from_environment(environ: Mapping[str, str], _directory: Path, reference: str, name: str) -> str:
    if name not in environ:
        raise LookupError(f"{reference}: the environment variable {name} is not set")
    return environ[name]


def _from_file(_environ: Mapping[str, str], directory: Path, reference: str, name: str) -> str:
    """The file's text without one line end at its end, which editors and `echo` add."""
    path = directory / name
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise LookupError(f"{reference}: not a regular file")
        with path.open("rb") as stream:
            data = stream.read(MAX_SECRET_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a path"
        raise LookupError(f"{reference}: {reason}") from None
    if len(data) > MAX_SECRET_BYTES:
        raise LookupError(f"{reference}: larger than {MAX_SECRET_BYTES} bytes")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise LookupError(f"{reference}: not UTF-8 text") from None
    return text.removesuffix("\n").removesuffix("\r")


def keep(path: Path, secret: bytes) -> None:
    """Write a new secret file, readable by its owner only, whole or not at all; a file that is there stays.

    Written apart and linked into place: of several processes that are first at once one wins, and all read the same
    afterwards. Raises OSError.
    """
    draft = path.with_name(f"{path.name}.{token_hex(8)}")
    descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secret)
            file.flush()
            os.fsync(file.fileno())
        try:
            path.hardlink_to(draft)
        except FileExistsError:
            return
        folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        draft.unlink()


_SOURCES: Mapping[str, Callable[[Mapping[str, str], Path, str, str], str]] = {
    "env": _from_environment,
    "file": _from_file,
}


def derived(key: bytes, purpose: bytes) -> bytes:
    """32 secret bytes of their own for this purpose: HKDF with SHA-256 and no salt (RFC 5869), of which that is one
    block."""
    return hmac.digest(hmac.digest(bytes(32), key, "sha256"), purpose + b"\x01", "sha256")
