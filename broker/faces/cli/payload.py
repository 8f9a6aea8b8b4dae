"""Arguments that are sealed: auditors read them (`broker log CALL --payload`).

Whoever can read the database and the key file can open what is sealed; what is kept here is that reading it in the
ordinary way takes a person with the auditor's scope, and leaves an entry.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
import typer

from broker.errors import Forbidden
from broker.faces.cli.invocation import find
from broker.faces.cli.output import print_json, say
from broker.faces.cli.passwords import proven
from broker.faces.cli.records import open_records

if TYPE_CHECKING:
    from pathlib import Path


async def show_payload(config: Path | None, call: str, auditor: str, stdin: bool) -> None:
    """Print the sealed arguments of a call. Raises Forbidden before anything is looked up."""
    async with open_records(config) as records:
        scope = records.settings.record.auditor_scope
        account = await proven(records.directory, auditor, stdin=stdin)
        if scope not in account.scopes:
            raise Forbidden(f"Reading sealed arguments takes the scope {scope}.", next_step="Ask an auditor.")
        invocation = await find(records.store, call)
        if account.tenant and account.tenant != invocation.tenant:
            raise Forbidden("This call is another tenant's.", next_step="Ask an auditor of that tenant.")
        clear = await records.store.payload(invocation.call_id, by=account.name, via="cli")
    if clear is None:
        say("Nothing of this call is sealed: its tool does not ask for it, or it was erased.")
        raise typer.Exit(1)
    print_json(orjson.loads(clear))
