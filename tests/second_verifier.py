"""A verifier written from docs/record.md alone, with nothing of the broker: what anybody could write who has the page.

It judges what the page defines byte by byte: chains, what chains saw of others, and checkpoints. That records agree
with entries is checked by comparing columns with `set`, `hold` and `kept`. It says where the first fault is, or None.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sqlite3
from contextlib import closing
from itertools import zip_longest
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

CALLER = ("face", "agent", "user", "tenant", "issuer", "principal_key", "credential_id")
CALLED = ("tool", "tool_version", "tool_effect", "definition", "backend", "rule", "policy_version", "record", "writer",
          "state", "effect")  # fmt: skip
OUTCOME = {"code": "", "message": "", "backend_status": "", "result_digest": "", "result_bytes": 0}


class Wrong(Exception):
    """chain, seq."""


def judge(database: Path, checkpoints: Path | None = None, key: str = "") -> tuple[str, int] | None:
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as db:
            db.text_factory = _any_text
            entries, order = _chains(db)
            _records(db)
        if checkpoints is not None:
            _checkpoints(checkpoints, key, entries, order)
    except Wrong as wrong:
        return str(wrong.args[0]), int(wrong.args[1])
    return None


def _any_text(raw: bytes) -> str:
    return raw.decode(errors="surrogateescape")


def _chains(db: sqlite3.Connection) -> tuple[dict[str, list[str]], list[str]]:
    """All hashes of each chain, in order; and the chains in the order in which they began."""
    hashes: dict[str, list[str]] = {}
    columns = "chain, seq, at_ms, kind, call_id, body, hex(prev), hex(hash)"
    for chain, seq, at_ms, kind, call_id, body, prev, stored in db.execute(f"select {columns} from entry order by id"):
        known = hashes.setdefault(chain, [])
        if seq != len(known) + 1:
            raise Wrong(chain, len(known) + 1)
        lines = ["broker.entry.1", chain, str(seq), str(at_ms), kind, call_id, prev.lower(), body]
        digest = hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()
        if digest != stored.lower() or prev.lower() != (known[-1] if known else ""):
            raise Wrong(chain, seq)
        if (kind == "chain") != (seq == 1):
            raise Wrong(chain, seq)
        known.append(digest)
        if kind in ("chain", "chain_died"):
            for seen in json.loads(body).get("seen", []):
                there = hashes.get(seen["chain"], [])
                if len(there) != seen["seq"] or there[-1] != seen["hash"]:
                    raise Wrong(seen["chain"], min(len(there), seen["seq"]) + (len(there) != seen["seq"]))
    return hashes, list(hashes)


def _records(db: sqlite3.Connection) -> None:
    db.row_factory = sqlite3.Row
    said: dict[str, dict[str, Any]] = {}
    holds: dict[str, dict[str, Any]] = {}
    kept: dict[str, str] = {}
    last: dict[str, tuple[str, int]] = {}
    erased_before, erased = 0, set[str]()
    intents: dict[tuple[str, int], dict[str, Any]] = {}
    for entry in db.execute("select * from entry order by id"):
        body = json.loads(entry["body"])
        if entry["kind"] in ("payloads_deleted", "erasure") and body.get("part") == "kept":
            erased_before = max(erased_before, body.get("before_ms", 0))
            erased |= set(body.get("calls", []))
        call_id = entry["call_id"]
        if not call_id:
            continue
        last[call_id] = entry["chain"], entry["seq"]
        record = said.setdefault(call_id, {})
        laps = {**record.get("laps_us", {}), **body.get("set", {}).get("laps_us", {})}
        if not record:
            record.update(call_id=call_id, at_ms=entry["at_ms"])
        if entry["kind"] == "intent":
            intents[entry["chain"], entry["seq"]] = body["set"]
            for seq, names in zip(body.get("as", ()), (CALLER, CALLED), strict=False):
                named = intents.get((entry["chain"], seq), {}) if seq else body["set"]
                if any(name not in named for name in names):
                    raise Wrong(entry["chain"], entry["seq"])
                record.update({name: named[name] for name in names})
        if "set" in body:
            ended = OUTCOME if entry["kind"] == "outcome" else {}
            record.update({**ended, **body["set"]}, laps_us=laps, changed_at_ms=entry["at_ms"])
        holds.setdefault(call_id, {}).update(body.get("hold", {}))
        if "kept" in body:
            kept[call_id] = record["arguments_digest"] if body["kept"] is True else body["kept"]
    calls = [row["call_id"] for row in db.execute("select call_id from invocation order by id")]
    for call_id, expected_id in zip_longest(calls, said):
        if call_id != expected_id:
            raise Wrong(*last.get(expected_id or "", ("", 0)))
    for table in ("caller", "called"):
        stray = f"select 1 from {table} where id not in (select {table} from invocation)"
        if db.execute(stray).fetchone() is not None:
            raise Wrong("", 0)
    clear = {row["call_id"]: row["body"] for row in db.execute("select * from payload where part = 'kept'")}
    for table, expected in (("record", said), ("hold", {call: hold for call, hold in holds.items() if hold})):
        rows = {row["call_id"]: dict(row) for row in db.execute(f"select * from {table}")}
        for call_id in sorted(rows.keys() | expected.keys()):
            columns = expected.get(call_id, {})
            if call_id not in rows or not columns or any(_value(rows[call_id], c) != v for c, v in columns.items()):
                raise Wrong(*last.get(call_id, ("", 0)))
            unsaid = rows[call_id].keys() - {"id", "call_id", "caller", "called", *columns}
            if any(rows[call_id][name] not in ("", 0, "[]", "{}") for name in unsaid):
                raise Wrong(*last[call_id])
    for call_id, digest in kept.items():
        if call_id in clear:
            if "sha256:" + hashlib.sha256(clear[call_id]).hexdigest() != digest:
                raise Wrong(*last[call_id])
        elif call_id not in erased and said[call_id]["at_ms"] >= erased_before:
            raise Wrong(*last[call_id])
    if clear.keys() - kept.keys():
        raise Wrong("", 0)


def _value(row: dict[str, Any], column: str) -> Any:
    if column not in ("quotas", "laps_us", "scopes", "groups", "persons", "charges", "terms", "bound", "votes"):
        return row[column]
    try:
        return json.loads(row[column])
    except ValueError:
        return None


def _checkpoints(file: Path, key: str, hashes: dict[str, list[str]], order: list[str]) -> None:
    newest: dict[str, Any] = {}
    for line in file.read_text("utf-8").splitlines():
        checkpoint = json.loads(line)
        heads = [f"{head['chain']} {head['seq']} {head['hash']}" for head in checkpoint["heads"]]
        numbers = [str(checkpoint["at_ms"]), str(checkpoint["chains"])]
        text = "\n".join(["broker.checkpoint.1", *numbers, checkpoint["rest"], *heads]).encode()
        public = Ed25519PublicKey.from_public_bytes(base64.b64decode(key or checkpoint["key"]))
        try:
            public.verify(base64.b64decode(checkpoint["signature"]), text)
        except InvalidSignature:
            raise Wrong("", 0) from None
        for head in checkpoint["heads"]:
            there = hashes.get(head["chain"], [])
            if len(there) < head["seq"] or there[head["seq"] - 1] != head["hash"]:
                raise Wrong(head["chain"], head["seq"])
        newest = checkpoint
    named = {head["chain"] for head in newest["heads"]}
    others = [chain for chain in order[: newest["chains"]] if chain not in named]
    rest = "".join(f"{chain} {len(hashes[chain])} {hashes[chain][-1]}\n" for chain in others)
    if len(order) < newest["chains"] or hashlib.sha256(rest.encode()).hexdigest() != newest["rest"]:
        raise Wrong("", 0)
