"""Anchors and checkpoints: what somebody noted outside of the database, held against the entries in it.

A file of JSON lines, or a folder of such files. A line is an anchor, `{chain, seq, hash}`, or a checkpoint that a
broker signed. What a checkpoint's signature covers is told byte by byte in docs/record.md; this is a second reading of
that page. Lines are read one at a time, so the size of the file does not matter.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from broker.verifier.join import Whole
from broker.verifier.records import ALL, FoundError, Spot

KEY_BYTES = 32
LAST_MS = 253_402_300_799_999  # of the year 9999
_PLACE = "select id, hash from entry where chain = ? and seq = ?"


@dataclass(slots=True)
class Anchored:
    """What the file came to. places: agreements. key: whose signatures, base64. at_ms: of the newest checkpoint."""

    places: int = 0
    checkpoints: int = 0
    key: str = ""
    at_ms: int = 0
    chains: int = 0  # of the newest checkpoint: how many there were, and the digest over those it does not name
    rest: str = ""
    named: frozenset[str] = field(default_factory=frozenset[str])


class AnchorError(Exception):
    """What was given as an anchor proves nothing: it is none, it is not signed with the key, or it cannot be read."""


def check(anchor: Path, key: str, db: sqlite3.Connection, whole: Whole) -> Anchored:
    """Hold every line against the database. key: base64 of the public key that must have signed; "": the first one's.

    Raises FoundError for the first place in the ledger that is not as noted; AnchorError that names a line which is no
    anchor or not signed, or a file that holds none: an empty one would agree with anything.
    """
    found = Anchored(key=canonical_key(key) if key else "")
    wrong: FoundError | None = None
    for where, line in _lines(anchor):
        for chain, seq, digest in _heads(where, line, found):
            fault = _fault_at(db, chain, seq, digest)
            found.places += fault is None
            if fault is not None and (wrong is None or fault.spot.id < wrong.spot.id):
                wrong = fault
    if wrong is None and found.checkpoints:
        wrong = _rest_fault(found, whole)
    if wrong is not None:
        raise wrong
    if not found.places:
        raise AnchorError(f"{anchor.name} holds no anchor")
    return found


def _heads(where: str, line: str, found: Anchored) -> list[tuple[str, int, str]]:
    try:
        note = json.loads(line)
        return _checkpoint(note, found) if "checkpoint" in note else [_head(note)]
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError, RecursionError):
        raise AnchorError(f"{where} is not an anchor: it has no chain, seq and hash") from None
    except ValueError as error:
        raise AnchorError(f"{where} is not an anchor: {error}") from error


def canonical_key(text: str) -> str:
    """A public key as checkpoints write it. Raises ValueError for what is none."""
    try:
        raw = base64.b64decode(text.strip(), validate=True)
    except binascii.Error as error:
        raise ValueError(f"the public key is not base64: {error}") from error
    if len(raw) != KEY_BYTES:
        raise ValueError(f"the public key has {len(raw)} bytes and not {KEY_BYTES}")
    return base64.b64encode(raw).decode()


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    for file in sorted(path.glob("*.jsonl")) if path.is_dir() else [path]:
        try:
            with file.open(encoding="utf-8", errors="replace") as lines:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        yield f"{file.name}:{number}", line
        except OSError as error:
            raise AnchorError(f"{file.name} cannot be read: {error.strerror}") from error


def _head(note: dict[str, Any]) -> tuple[str, int, str]:
    return str(note["chain"]), _number(note["seq"]), str(note["hash"])


def _number(said: Any, most: int = 2**53) -> int:
    if type(said) is not int or not 0 <= said <= most:
        raise ValueError("a number in it is none")
    return said


def _checkpoint(note: dict[str, Any], found: Anchored) -> list[tuple[str, int, str]]:
    """The heads that this checkpoint names. Raises ValueError when it is not signed with the key."""
    if note["checkpoint"] != 1:
        raise ValueError(f"it is a checkpoint of form {note['checkpoint']}, which this broker does not know")
    heads = [_head(head) for head in note["heads"]]
    at_ms, chains, rest, key = (
        _number(note["at_ms"], LAST_MS),
        _number(note["chains"]),
        str(note["rest"]),
        str(note["key"]),
    )
    lines = ["broker.checkpoint.1", str(at_ms), str(chains), rest, *(f"{c} {s} {h}" for c, s, h in heads)]
    found.key = found.key or canonical_key(key)
    if key != found.key:
        raise ValueError(f"it is signed with another key, {key}")
    try:
        signature = base64.b64decode(note["signature"], validate=True)
        Ed25519PublicKey.from_public_bytes(base64.b64decode(key)).verify(signature, "\n".join(lines).encode())
    except InvalidSignature:
        raise ValueError("its signature is not that of its key: it was changed") from None
    found.checkpoints += 1
    if at_ms >= found.at_ms:
        found.at_ms, found.chains, found.rest = at_ms, chains, rest
        found.named = frozenset(chain for chain, _, _ in heads)
    return heads


def _fault_at(db: sqlite3.Connection, chain: str, seq: int, digest: str) -> FoundError | None:
    row = db.execute(_PLACE, (chain, seq)).fetchone()
    if row is None:
        what = "this anchored entry is gone: the chain was cut, or an older copy put back"
        return FoundError(Spot(ALL, chain, seq), what)
    if row[1].hex() != digest:
        what = "the entry is not the one that was anchored: the chain was rewritten"
        return FoundError(Spot(row[0], chain, seq), what)
    return None


def _rest_fault(found: Anchored, whole: Whole) -> FoundError | None:
    """Chains that had ended long before the newest checkpoint stand in it as one digest."""
    chains = list(whole.heads)[: found.chains]
    rest = hashlib.sha256()
    for chain in chains:
        if chain not in found.named:
            seq, digest = whole.heads[chain]
            rest.update(f"{chain} {seq} {digest.hex()}\n".encode())
    if len(chains) == found.chains and rest.hexdigest() == found.rest:
        return None
    what = f"the {found.chains} chains of the newest checkpoint are not all there as they were: one was removed or cut"
    return FoundError(Spot(ALL, "", 0), what)
