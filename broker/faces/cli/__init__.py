"""The command line: one file per noun, one table of commands.

A command is a function of its own module (or a small typer app where it has verbs of its own); the table names it as
"module:Name" and nothing is imported before it is asked for, so that `broker --help` stays quick. The headings are
those of the help text, in its order.

What must not live here: decisions. A command reads what a person typed, awaits the house, and prints what it said.
"""

from __future__ import annotations

from collections.abc import Mapping

COMMANDS: Mapping[str, Mapping[str, str]] = {
    "Begin": {
        "init": "broker.faces.cli.init:init",
        "serve": "broker.faces.cli.serve:serve",
        "connect": "broker.faces.cli.connect:connect",
        "demo": "broker.faces.cli.demo:demo",
    },
    "Tools": {
        "check": "broker.faces.cli.check:check",
        "tools": "broker.faces.cli.tools:tools",
        "call": "broker.faces.cli.call:call",
        "explain": "broker.faces.cli.explain:explain",
        "schema": "broker.faces.cli.schema:schema",
    },
    "Decisions": {
        "holds": "broker.faces.cli.holds:holds",
        "approve": "broker.faces.cli.review:approve",
        "deny": "broker.faces.cli.review:deny",
        "grants": "broker.faces.cli.grants:app",
    },
    "Records": {
        "log": "broker.faces.cli.log:log",
        "quotas": "broker.faces.cli.quotas:quotas",
        "verify": "broker.faces.cli.verify:verify",
        "export": "broker.faces.cli.export:export",
        "erase": "broker.faces.cli.erase:erase",
    },
    "Access": {
        "login": "broker.faces.cli.login:login",
        "logout": "broker.faces.cli.login:logout",
        "user": "broker.faces.cli.user:app",
        "client": "broker.faces.cli.client:app",
        "token": "broker.faces.cli.token:app",
    },
    "Health": {
        "doctor": "broker.faces.cli.doctor:doctor",
    },
}
