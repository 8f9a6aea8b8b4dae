"""Signed checkpoints: where the ledger stands, noted outside of the database while the broker runs and when it ends.

A chain proves nothing about its newest end; a checkpoint does, wherever whoever can change the database cannot change
it. Each is one JSON line, appended and synced, and may also be posted to a webhook. Its bytes are described in
docs/record.md; `verifier/anchors.py` reads them with code of its own.

What goes wrong here never holds up a call: it is logged, and recorded when it begins and when it is over. Nothing is
written while nothing was recorded.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import orjson
import structlog
from anyio.streams.memory import MemoryObjectReceiveStream

from broker.errors import Problem, RecordUnavailable, SettingsError
from broker.model.address import is_loopback_url
from broker.model.ledger import Heads
from broker.ports import Clock, Store
from broker.secrets import keep
from broker.settings import Checkpoints

if TYPE_CHECKING:  # late where they run: the first checkpoint is due long after the start
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEY_FILE = "broker.checkpoints.key"
PUBLIC_FILE = "broker.checkpoints.pub"
POST_S = 5.0
RETRY_AFTER_S = (1.0, 5.0)  # between the tries of one checkpoint; then the next one is tried
LAST_POST_S = 2.0  # at shutdown, once

log = structlog.get_logger("broker.checkpoint")


class Signer:
    """public: the key that verifies, base64 of its 32 bytes."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = base64.b64encode(key.public_key().public_bytes_raw()).decode()

    def line(self, heads: Heads, at_ms: int) -> bytes:
        """One checkpoint as it is kept: a JSON object and a newline."""
        lines = [f"{head.chain} {head.seq} {head.hash}" for head in heads.heads]
        text = "\n".join(["broker.checkpoint.1", str(at_ms), str(heads.chains), heads.rest, *lines])
        checkpoint = {
            "checkpoint": 1,
            "at_ms": at_ms,
            "chains": heads.chains,
            "rest": heads.rest,
            "heads": [{"chain": head.chain, "seq": head.seq, "hash": head.hash} for head in heads.heads],
            "key": self.public,
            "signature": base64.b64encode(self._key.sign(text.encode())).decode(),
        }
        return orjson.dumps(checkpoint, option=orjson.OPT_APPEND_NEWLINE)


def signer(given: str, directory: Path) -> Signer:
    """The signer with this key, or with the one beside the settings, made at first use (mode 0600).

    The public key is put beside it, to be carried to whoever verifies. Raises SettingsError; OSError.
    """
    if given:
        return Signer(_key_of(given, "record.checkpoints.key"))
    path = directory / KEY_FILE
    if not path.exists():
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        new = Ed25519PrivateKey.generate()
        pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        keep(path, new.private_bytes(*pem))
    found = Signer(_key_of(path.read_text("ascii", "replace"), str(path)))
    (directory / PUBLIC_FILE).write_text(found.public + "\n", "ascii")
    return found


def _key_of(text: str, where: str) -> Ed25519PrivateKey:
    """Never says what the text is."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    try:
        if text.lstrip().startswith("-----BEGIN"):
            key = serialization.load_pem_private_key(text.encode(), None)
        else:
            key = Ed25519PrivateKey.from_private_bytes(base64.b64decode(text.strip(), validate=True))
    except (ValueError, TypeError, UnsupportedAlgorithm, binascii.Error):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        message = "is no Ed25519 private key: give PEM without a passphrase, or 32 bytes in base64"
        raise SettingsError([Problem(where, 0, 0, message)])
    return key


def append(path: Path, line: bytes, at_ms: int) -> None:
    """Add a line and wait until it is on the disk. A folder gets a file a day. Raises OSError."""
    if path.is_dir():
        path /= f"checkpoints-{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d}.jsonl"
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        if os.write(descriptor, line) != len(line):
            raise OSError(f"{path.name} took only a part of the line")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Checkpointer:
    """Writes a checkpoint at intervals, and one when it is closed. Raises SettingsError for what cannot work."""

    def __init__(self, settings: Checkpoints, directory: Path, store: Store, clock: Clock) -> None:
        if settings.webhook and not (settings.webhook.startswith("https://") or is_loopback_url(settings.webhook)):
            raise SettingsError([Problem("record.checkpoints.webhook", 0, 0, "must be https, or on loopback")])
        if settings.key:
            signer(settings.key, directory)  # said at start, not an hour later
        self._settings = settings
        self._directory = directory
        self._store = store
        self._clock = clock
        self._last: Heads | None = None
        self._is_closing = False
        self._works: dict[str, bool] = {}  # "file" and "webhook", once known

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Checkpoints while this is open. Closing writes none; `aclose` does."""
        if not self._settings.path:
            yield
            return
        sent, posted = anyio.create_memory_object_stream[bytes](1)
        async with sent, posted, anyio.create_task_group() as tasks:
            if self._settings.webhook:
                tasks.start_soon(self._post_all, posted)

            async def at_intervals() -> None:
                while True:
                    await anyio.sleep(self._settings.every_s)
                    line = await self._write()
                    if line and self._settings.webhook:
                        try:
                            sent.send_nowait(line)
                        except anyio.WouldBlock:
                            log.debug("a checkpoint is not posted: the webhook is slow")

            tasks.start_soon(at_intervals)
            try:
                yield
            finally:
                tasks.cancel_scope.cancel()

    async def aclose(self) -> None:
        """Close the store and vouch for where it ended. Never raises."""
        self._is_closing = True
        with anyio.CancelScope(shield=True):
            await self._store.aclose()
            if not self._settings.path:
                return
            line = await self._write()
            if line and self._settings.webhook:
                with anyio.move_on_after(LAST_POST_S):
                    await self._post(line)

    async def _write(self) -> bytes:
        """The checkpoint that was written; b"" when there was nothing new, or it failed."""
        try:
            heads = await self._store.heads()
            if heads is None or heads == self._last or not heads.chains:
                return b""
            at_ms = self._clock.now_ms()
            signed = await anyio.to_thread.run_sync(self._keep, heads, at_ms)
        except (OSError, SettingsError, RecordUnavailable) as error:
            await self._turned("file", str(error))
            return b""
        self._last = heads
        await self._turned("file", "")
        return signed

    def _keep(self, heads: Heads, at_ms: int) -> bytes:
        line = signer(self._settings.key, self._directory).line(heads, at_ms)
        append(self._directory / self._settings.path, line, at_ms)
        return line

    async def _post_all(self, lines: MemoryObjectReceiveStream[bytes]) -> None:
        async for line in lines:
            reason = await self._post(line)
            for pause_s in RETRY_AFTER_S:
                if not reason:
                    break
                await anyio.sleep(pause_s)
                reason = await self._post(line)
            await self._turned("webhook", reason)

    async def _post(self, line: bytes) -> str:
        """Why it was not taken; "" when it was."""
        import httpx2

        try:
            async with httpx2.AsyncClient(trust_env=False, follow_redirects=False, timeout=POST_S) as client:
                with anyio.fail_after(POST_S):
                    async with client.stream(
                        "POST", self._settings.webhook, content=line, headers={"Content-Type": "application/json"}
                    ) as answer:
                        return "" if answer.is_success else f"HTTP {answer.status_code}"
        except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError) as error:
            return type(error).__name__

    async def _turned(self, to: str, reason: str) -> None:
        """Log and record when checkpoints begin to fail, and when they work again."""
        works = not reason
        if self._works.get(to) == works:
            return
        self._works[to] = works
        if self._is_closing and works:
            return
        if works:
            log.info("checkpoints are kept", to=to)
        else:
            log.error("checkpoints are not kept; the record goes on without", to=to, reason=reason)
        if self._is_closing:
            return
        try:
            await self._store.note("checkpoint", {"to": to, "works": works, "reason": reason})
        except RecordUnavailable as error:
            log.warning("that is not recorded", reason=error.message)
