"""`broker log --arg`, `--payload` and `broker erase`, from the shell."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command import Said, broker

MANIFEST = """\
kind: backend
name: shop
static: {}
---
kind: tool
name: refund
title: Refund
description: Gives money back.
effect: read
backend: shop
record:
  fields: {order_id: hmac, reason: full}
input:
  type: object
  properties: {order_id: {type: integer}, reason: {type: string}, copy_to: {type: string}}
  required: [order_id]
  additionalProperties: false
static: {text: refunded}
"""
SETTINGS = "listen: {port: 0}\nwatch: false\nstdio: {agent: desk, user: ann}\n"
PASSWORD = "correct horse battery"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "broker.yaml").write_text(SETTINGS)
    (tmp_path / "tool_manifests").mkdir()
    (tmp_path / "tool_manifests" / "shop.yaml").write_text(MANIFEST)
    return tmp_path


def ok(said: Said) -> Said:
    assert said.code == 0, said.err + said.out
    return said


def test_a_call_is_found_by_what_cannot_be_read_read_by_an_auditor_and_erased(home: Path) -> None:
    for order, reason in ((123, "canary-broken"), (124, "canary-late")):
        arguments = (f"order_id={order}", f"reason={reason}", "copy_to=ann@example.org")
        ok(broker("call", "refund", *arguments, cwd=home))
    (found,) = ok(broker("log", "--arg", "order_id=123", "--json", cwd=home)).json
    assert found["kept"]["copy_to"] == "[redacted: email]"
    assert found["kept"]["reason"] == "[sealed]"
    assert found["kept"]["order_id"].startswith("hmac:")
    assert broker("log", "--arg", "order_id", cwd=home).code == 2
    (sums,) = ok(broker("log", "--arg", "order_id=123", "--by", "tool", "--json", cwd=home)).json
    assert sums["calls"] == 1
    assert ok(broker("log", "--arg", "order_id=125", "--json", cwd=home)).json == []

    for name, scope in (("olga", "broker.audit"), ("bob", "broker.review")):
        ok(broker("user", "add", name, "--scope", scope, "--password-stdin", cwd=home, stdin=PASSWORD))
    asks = ("log", found["call_id"], "--payload", "--password-stdin", "--as")
    assert ok(broker(*asks, "olga", cwd=home, stdin=PASSWORD)).json == {"reason": "canary-broken"}
    assert "broker.audit" in broker(*asks, "bob", cwd=home, stdin=PASSWORD).err
    assert broker(*asks, "olga", cwd=home, stdin="wrong").code == 1
    assert broker("log", found["call_id"], "--payload", cwd=home).code == 2

    dry = ok(broker("erase", "--user", "ann", "--dry-run", "--json", cwd=home)).json
    assert (dry["calls"], dry["rows"]) == (2, 0)
    assert "Erased 4 payloads of 2 calls of user ann" in ok(broker("erase", "--user", "ann", cwd=home)).out
    assert broker(*asks, "olga", cwd=home, stdin=PASSWORD).code == 1
    assert ok(broker("log", "--arg", "order_id=123", "--json", cwd=home)).json == []
    assert broker("erase", cwd=home).code == 2
    assert "4 payloads erased since" in ok(broker("verify", cwd=home)).out
