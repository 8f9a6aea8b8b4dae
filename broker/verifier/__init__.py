"""Checking a database's records from outside: is every entry what was written, and does every record say the same?

Shares no code with what writes, on purpose, not even the JSON library: a mistake of the writer must not be repeated
here. The bytes that are hashed and signed are described in docs/record.md; this is a second reading of that page.

    walk.py      one part of the ledger, in order of commit
    records.py   the records of calls beside it
    usual.py     those of the usual calls, as text
    said.py      what many of them share
    older.py     databases of an older form
    join.py      the parts put together; long histories are walked by several processes
    anchors.py   what was noted outside of the database: anchors and signed checkpoints

What is checked, in one snapshot of the file, also while a broker writes to it:
- each chain: numbered 1, 2, 3 ... without a gap, each entry hashing to what it says, naming the hash before it;
- heads of ended chains as later chains saw them (`seen`), so a chain that was cut or removed is missed;
- each record of a call, its hold and its kept arguments: exactly what its entries say, none missing, none too many,
  nothing erased that no entry says was erased;
- if asked, the indices by which people find calls: a record that is missing in one would be there, and nobody see it;
- anchors and checkpoints: entries noted outside of the database, so a restored old copy is missed too.
"""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from broker.verifier import anchors
from broker.verifier.anchors import Anchored, AnchorError
from broker.verifier.join import Whole, snapshot, walk_all
from broker.verifier.records import FoundError

__all__ = ["Fault", "Head", "Verification", "verify", "write_anchor"]


@dataclass(frozen=True, slots=True)
class Head:
    """An entry by place and hash (hex): the last of its chain, or an anchor."""

    chain: str
    seq: int
    hash: str


@dataclass(frozen=True, slots=True)
class Fault:
    """The first place that is wrong. chain is "" when it is not in any chain. of_anchor: the anchor is wrong, and
    the records agree with themselves."""

    chain: str
    seq: int
    what: str
    of_anchor: bool = False


@dataclass(frozen=True, slots=True)
class Verification:
    """limits: in plain sentences, what this result does not prove. erased: kept arguments that were deleted since.
    signed_by: the public key of the checkpoints (base64), "" without any; checkpointed_at_ms: when the newest was made.
    """

    ok: bool
    fault: Fault | None
    entries: int
    records: int
    erased: int
    anchored: int
    heads: tuple[Head, ...]
    limits: tuple[str, ...]
    checkpoints: int = 0
    signed_by: str = ""
    checkpointed_at_ms: int = 0

    @property
    def chains(self) -> int:
        return len(self.heads)


def verify(
    path: Path, anchor: Path | None = None, *, key: str = "", indices: bool = False, processes: int = 0
) -> Verification:
    """Check everything. Stops at the first fault; a file that cannot be read is a fault, never an exception.

    anchor: a file or folder of anchors and checkpoints. key: base64 of the Ed25519 key that must have signed them; ""
    takes the first one's word. indices: also whether each call is found by what it is, which takes a fifth longer.
    processes: how many share the work, 0 to choose by size.
    """
    whole, noted = Whole(), Anchored()
    fault: Fault | None = None
    with ExitStack() as stack:
        try:
            db = stack.enter_context(snapshot(path))
            whole = walk_all(path, db, processes, indices=indices)
            if whole.fault is not None:
                spot, what = whole.fault
                fault = Fault(spot.chain, spot.seq, what)
            elif anchor is not None:
                noted = anchors.check(anchor, key, db, whole)
        except AnchorError as error:
            fault = Fault("", 0, str(error), of_anchor=True)
        except FoundError as found:
            fault = Fault(found.spot.chain, found.spot.seq, found.what)
        except (sqlite3.Error, OSError, ValueError) as error:
            fault = Fault("", 0, f"{path.name} cannot be verified: {error}")
    return Verification(
        ok=fault is None,
        fault=fault,
        entries=whole.entries,
        records=whole.records,
        erased=whole.erased,
        anchored=noted.places,
        heads=tuple(Head(chain, seq, digest.hex()) for chain, (seq, digest) in sorted(whole.heads.items())),
        limits=_limits(anchor is not None, noted, is_pinned=bool(key), indices=indices),
        checkpoints=noted.checkpoints,
        signed_by=noted.key if noted.checkpoints else "",
        checkpointed_at_ms=noted.at_ms,
    )


def write_anchor(found: Verification, anchor: Path) -> int:
    """Note the heads of a verification as JSON lines {chain, seq, hash}; how many. The file is replaced whole.

    It proves something only where whoever can change the database cannot change it. Raises ValueError when there was a
    fault; OSError.
    """
    if found.fault is not None:
        raise ValueError("records that do not verify are not anchored")
    draft = anchor.with_name(anchor.name + ".new")
    with draft.open("w", encoding="utf-8") as file:
        for head in found.heads:
            file.write(json.dumps({"chain": head.chain, "seq": head.seq, "hash": head.hash}) + "\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(anchor)
    return len(found.heads)


def _limits(has_anchor: bool, noted: Anchored, *, is_pinned: bool, indices: bool) -> tuple[str, ...]:
    limits = [
        "It proves that records were not changed since they were written, not that what was written is true.",
        "Entries after the last anchor can be cut from the end of the newest chain without a trace.",
    ]
    if not has_anchor:
        limits.append(
            "Without an anchor kept elsewhere, a whole older copy of the file, or one rewritten from its first entry, "
            "looks just as sound."
        )
    if noted.checkpoints and not is_pinned:
        limits.append(
            "The key that signed the checkpoints was taken from the checkpoints themselves; give the one you know with "
            "--key, or whoever wrote both could have made both."
        )
    if not indices:
        limits.append("Whether every question finds all these calls was not looked at; --indices does that.")
    return tuple(limits)
