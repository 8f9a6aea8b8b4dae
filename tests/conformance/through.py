"""As `client.py`, but with a broker between the client and the suite's server: what the suite sees is the broker.

Where the scenario is about signing in, the broker does that and the client does not: with client credentials, at the
token endpoint that the server's metadata name, which an operator looks up once and writes into the manifest.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx2

from tests.conformance.client import CALL_S, context, play
from tests.conformance.front import broker_before


def token_endpoint(url: str) -> tuple[str, str]:
    """Where tokens for this server are had, and the resource they are for (RFC 9728, RFC 8414)."""
    with httpx2.Client(timeout=CALL_S) as http:
        challenge = http.post(url, json={}).headers["www-authenticate"]
        named = re.search(r'resource_metadata="([^"]+)"', challenge)
        assert named, challenge
        resource = http.get(named[1]).json()
        issuer = urlsplit(str(resource["authorization_servers"][0]))
        path = f"/.well-known/oauth-authorization-server{issuer.path.rstrip('/')}"
        server = http.get(f"{issuer.scheme}://{issuer.netloc}{path}").json()
    return server["token_endpoint"], resource["resource"]


def credential(url: str, scratch: Path) -> dict[str, Any]:
    told, (endpoint, resource) = context(), token_endpoint(url)
    secret = scratch / "secret.txt"
    secret.write_text(told["client_secret"])
    asks = {"token_url": endpoint, "client_id": told["client_id"], "resource": resource, "allow_private": True}
    return {"oauth": {**asks, "client_secret": f"${{file:{secret}}}"}}


def main() -> None:
    scenario, url = os.environ["MCP_CONFORMANCE_SCENARIO"], sys.argv[-1]
    with tempfile.TemporaryDirectory(prefix="broker-conformance-") as scratch:
        signs = credential(url, Path(scratch)) if scenario.startswith("auth/") else None
        with broker_before(url, Path(scratch) / "house", credential=signs) as front:
            anyio.run(partial(play, signs_in=False), scenario, front)


if __name__ == "__main__":
    main()
