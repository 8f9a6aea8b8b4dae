"""`broker init`: settings with every key explained, and a first tool that works without anything else."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from broker.errors import Problem, SettingsError
from broker.faces.cli.house import SETTINGS_FILE
from broker.faces.cli.output import say
from broker.faces.text import safe

SAMPLE = """\
# A first tool, answered by the broker itself. `broker call house_rules` calls it; change it, and a serving broker
# follows at once. `broker check` judges this folder, `broker schema` prints the format for editors.
kind: backend
name: notes
static: {}
---
kind: tool
name: house_rules
title: House rules
description: What this company expects of every agent. Read it before anything else.
effect: read
owner: platform
backend: notes
static:
  text: Ask a person before you spend money, and never guess an order number.
# ---
# A tool over an HTTP API looks like this:
#
# kind: backend
# name: orders
# http:
#   base_url: https://orders.example.com
#   timeout: 10s
#   credential: {header: Authorization, value: "Bearer ${env:ORDERS_TOKEN}"}
# ---
# kind: tool
# name: orders_refund
# title: Refund an order
# description: Pays money back for one order.
# effect: write
# scopes: [orders.refund]
# backend: orders
# input:
#   type: object
#   properties:
#     order_id: {type: string}
#     amount: {type: number, exclusiveMinimum: 0}
#   required: [order_id, amount]
#   additionalProperties: false
# http: {method: POST, path: "/orders/{order_id}/refunds"}
# ---
# kind: policy
# name: refunds
# tools: [orders_refund]
# rules:
#   - {id: small, when: args.amount <= 50.0, effect: allow}
#   - {id: big, when: args.amount > 50.0, effect: hold, reason: refunds above 50 need a person}
"""


def init(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", show_default=False, help="Where; this folder if not given.")
    ] = Path(),
) -> None:
    """Write broker.yaml, every key explained, and tool_manifests/ with a first tool. Overwrites nothing.

    Example:
      broker init
      broker init my-broker
    """
    from broker.settings_file import template

    files = {folder / SETTINGS_FILE: template(), folder / "tool_manifests" / "first.yaml": SAMPLE}
    there = [path for path in files if path.exists()]
    if there:
        raise SettingsError([Problem(str(path), 0, 0, "is there already; nothing was written") for path in there])
    for path, text in files.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as stream:
                stream.write(text)
        except OSError as error:
            raise SettingsError([Problem(str(path), 0, 0, f"cannot be written: {error.strerror}")]) from error
        say(f"Wrote {safe(str(path))}")
    inside = "" if folder == Path() else f"cd {safe(str(folder))} && "
    say("", "Next:")
    say(
        f"  {inside}broker serve                 serve it",
        f"  {inside}broker call house_rules      call the first tool",
    )
    say(f"  {inside}broker connect claude-code   lead an agent to it")
