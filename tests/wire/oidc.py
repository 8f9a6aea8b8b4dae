"""An identity provider that is not ours (oidc-provider, certified by the OpenID Foundation) as the broker's issuer.

An agent gets its token there and calls over MCP; a person signs in there in a real browser, decides on that call in the
console, and signs out. Where there is no Chromium, the agent's half is tried alone, and that is said.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2

from examples.demo.port import free_port
from tests.browser import CHROMIUM, chromium, window
from tests.consoles import ORDERS
from tests.premises import House, house_with
from tests.wire.npm import BIN, WIRE, Failed
from tests.world import until_state

RESOURCE = "https://broker.example/api"
SCRIPT = "oidc.mjs"


@contextmanager
def provider(port: int, callback: str, secret: str) -> Generator[str]:
    """The provider on this port, once it answers; its issuer."""
    shutil.copy(Path(__file__).with_name(SCRIPT), WIRE / SCRIPT)  # modules are found from where the script lies
    environment = {
        "PATH": os.pathsep.join([str(BIN), os.environ["PATH"]]),
        "OIDC_PORT": str(port),
        "OIDC_RESOURCE": RESOURCE,
        "OIDC_CALLBACK": callback,
        "OIDC_SECRET": secret,
    }
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(
            ["node", str(WIRE / SCRIPT)], env=environment, stdout=subprocess.PIPE, stderr=said, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            if process.stdout.readline().strip() != "ready":
                said.seek(0)
                raise Failed(f"the provider did not start:\n{said.read()[-2000:]}")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


async def token(issuer: str, secret: str, **asked: str) -> str:
    async with httpx2.AsyncClient(trust_env=False) as http:
        form = {"grant_type": "client_credentials", **asked}
        answer = await http.post(f"{issuer}/token", data=form, auth=("support-bot", secret))
    if answer.status_code != 200:
        raise Failed(f"the provider gave no token: {answer.text[:400]}")
    return str(answer.json()["access_token"])


async def called(house: House, bearer: str, tool: str, arguments: dict[str, Any]) -> httpx2.Response:
    """One call over MCP, as revision 2026-07-28 has it."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "support-bot", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    params = {"name": tool, "arguments": arguments, "_meta": meta}
    headers = {
        "Authorization": f"Bearer {bearer}",
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": "2026-07-28",
        "Mcp-Method": "tools/call",
        "Mcp-Name": tool,
    }
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    return await house.http.post("/mcp", json=body, headers=headers)


def expect(true: bool, what: str) -> None:
    if not true:
        raise Failed(what)


async def person(house: House, issuer: str, hold_id: str) -> None:
    """Signs in at the provider, decides, signs out."""
    async with chromium() as browser, window(browser, house) as rita:
        await rita.page.goto(f"{house.url}/console/holds/{hold_id}")
        expect(rita.page.url.startswith(issuer), f"the sign-in led to {rita.page.url}")
        await rita.page.fill("input[name=login]", "rita")
        await rita.page.fill("input[name=password]", "whatever")
        await rita.page.click("button[type=submit]")
        await rita.page.click("button[type=submit]")  # the provider asks for consent
        await rita.page.wait_for_url(f"{house.url}/console/holds/{hold_id}")
        await rita.page.click("button.yes")
        await rita.page.wait_for_selector("#hold[data-state=succeeded]")
        told = await rita.text()
        expect(f"Decided by rita@{issuer}" in told, f"the hold's page says:\n{told[:800]}")
        await rita.page.click("text=Sign out")
        await rita.page.click("text=end that session too")
        expect(rita.page.url.startswith(issuer), f"signing out led to {rita.page.url}")
        await rita.page.click("button[name=logout], button[type=submit]")
        await rita.page.goto(f"{house.url}/console")
        expect(await rita.page.locator("input[name=login]").count() == 1, "signed out, and in again without a word")


async def tried() -> None:
    port, secret = free_port(), secrets.token_urlsafe(16)
    issuer = f"http://127.0.0.1:{port}"
    settings = {
        "auth": {"issuers": [{"issuer": issuer, "audience": [RESOURCE]}], "embedded": {"enabled": False}},
        "console": {
            "issuer": issuer,
            "client_id": "broker-console",
            "client_secret": secret,
            "resource": RESOURCE,
            "scopes": ["openid", "broker.review"],
        },
        "hold": {"wait_s": 0},
    }
    with tempfile.TemporaryDirectory() as folder:
        async with house_with(Path(folder), ORDERS, **settings) as house:
            with provider(port, f"{house.url}/console/callback", secret):
                bearer = await token(issuer, secret, resource=RESOURCE, scope="notes.write")
                answer = await called(house, bearer, "orders_get", {"order_id": "1002"})
                expect("an order" in answer.text, f"/mcp answered {answer.status_code}: {answer.text[:400]}")
                for other in (await token(issuer, secret), bearer[:-8] + "AAAAAAAA"):  # opaque; of another signature
                    refused = await called(house, other, "orders_get", {})
                    expect(refused.status_code == 401, f"a token that is not for us: {refused.status_code}")
                held = await called(house, bearer, "orders_refund", {"order_id": "1002", "amount": 120})
                found = re.search(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", held.text)
                expect(found is not None, f"the call was not held: {held.text[:400]}")
                assert found is not None
                if not CHROMIUM:
                    print("        no Chromium here, so nobody signed in: apt-get install chromium")
                    return
                await person(house, issuer, found[0])
                await until_state(house.broker, found[0], "succeeded")


def check() -> None:
    """Raises Failed."""
    anyio.run(tried)
