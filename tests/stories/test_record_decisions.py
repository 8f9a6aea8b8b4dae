"""Every decision is an entry: also what never became a call, in sum, and what a person changed by command."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from broker.verifier import verify
from tests.command import broker
from tests.premises import PASSWORD, house_with
from tests.stories.test_call import TOOLS

BODY = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "tools/list",
    "params": {
        "_meta": {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientInfo": {"name": "t", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": {},
        }
    },
}
HEADERS = {
    "Accept": "application/json, text/event-stream",
    "Content-Type": "application/json",
    "MCP-Protocol-Version": "2026-07-28",
    "Mcp-Method": "tools/list",
}
CANARY = "canary-4711-secret"


def entries(database: Path, *kinds: str) -> list[tuple[str, Any]]:
    with closing(sqlite3.connect(database)) as db:
        rows = db.execute("select kind, body from entry order by id").fetchall()
    return [(kind, json.loads(body)) for kind, body in rows if not kinds or kind in kinds]


@pytest.mark.anyio
async def test_what_never_became_a_call_is_recorded_in_sum_and_without_a_credential(tmp_path: Path) -> None:
    async with house_with(tmp_path, TOOLS) as house:
        house.person("ann", ("notes.write",))
        good = house.token("ann")
        for credential in (None, CANARY, CANARY + "-other", "e30.e30." + CANARY, good[:-3] + "abc"):
            headers = {**HEADERS, **({} if credential is None else {"Authorization": f"Bearer {credential}"})}
            assert (await house.http.post("/mcp", json=BODY, headers=headers)).status_code == 401
        signed_in = {**HEADERS, "Authorization": f"Bearer {good}"}
        for _ in range(3):
            assert (await house.http.post("/mcp", content=b'{"a":NaN}', headers=signed_in)).status_code == 400
        listed = await house.http.post("/mcp", json=BODY, headers=signed_in)
        assert listed.status_code == 200
        shown, of = len(listed.json()["result"]["tools"]), len(house.broker.shelf.current.entries)
        issuer = house.broker.where.base_url()
    sums = dict(entries(tmp_path / "broker.db", "requests_refused", "authentication_refused", "lists_filtered"))
    reasons = {(one["reason"], one["issuer"]): one["count"] for one in sums["authentication_refused"]["by"]}
    assert reasons == {("missing", ""): 1, ("unknown", ""): 2, ("invalid_token", ""): 1, ("invalid_token", issuer): 1}
    refused = {one["reason"]: one["count"] for one in sums["requests_refused"]["by"]}
    assert refused == {"unauthenticated": 5, "parse_error": 3}
    assert sums["requests_refused"]["count"] == 8
    assert [(one["shown"], one["of"], one["count"]) for one in sums["lists_filtered"]["by"]] == [(shown, of, 1)]
    assert CANARY not in "".join(map(str, entries(tmp_path / "broker.db")))
    assert verify(tmp_path / "broker.db").ok


def test_what_a_person_changes_by_command_is_recorded_without_its_secret(tmp_path: Path) -> None:
    assert broker("init", cwd=tmp_path).code == 0

    def done(*words: str, stdin: str = "") -> str:
        said = broker(*words, cwd=tmp_path, stdin=stdin)
        assert said.code == 0, said.err
        return said.out

    done("user", "add", "ann", "--scope", "orders.read", "--password-stdin", stdin=PASSWORD)
    secret = json.loads(done("client", "add", "bot", "--scope", "orders.read", "--json"))["client_secret"]
    token = done("token", "bot", "--scope", "orders.read").strip()
    key = json.loads(done("token", "--api-key", "nightly", "--json"))
    done("token", "revoke", token)
    done("token", "revoke", key["key_id"])
    done("client", "remove", "bot")
    done("user", "remove", "ann")
    found = [(kind, body) for kind, body in entries(tmp_path / "broker.db") if not kind.startswith("chain")]
    assert [kind for kind, _ in found] == [
        "account_added",
        "client_added",
        "token_issued",
        "key_added",
        "token_revoked",
        "key_revoked",
        "client_removed",
        "account_removed",
    ]
    assert {(body["via"], bool(body["by"])) for _, body in found} == {("cli", True)}
    text = json.dumps(found)
    assert not [one for one in (PASSWORD, secret, token, key["api_key"]) if one in text]
