"""Gateways of others in front of the same stub, each from its package in a virtual environment of its own.

    fastmcp tuned   FastMCP's proxy on one connected client, verifying tokens
    fastmcp         FastMCP's proxy as its documentation shows it
    mcp-hangar      its front door: tokens of an OpenID issuer, a role, access to each tool
    contextforge    mcp-contextforge-gateway with authentication and SQLite; the stub registered as a gateway

None of them is a dependency of the project. One that does not install or start here is left out, with the reason.
"""

from __future__ import annotations

import http.client
import http.server
import json
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from joserfc import jwt
from joserfc.jwk import ECKey

from examples.demo.house import HouseError, environment_of
from examples.demo.port import free_port
from tests.bench.systems import HERE, PLACE, ROOT, SkippedError, System, door, started

INSTALL_S = 600.0
ADMIN = "admin@example.com"
HANGAR = """\
mcp_servers:
  stub: {{mode: remote, endpoint: "http://127.0.0.1:{upstream}/mcp"}}
tool_access: {{mode: front_door}}
auth:
  enabled: true
  allow_anonymous: false
  oidc: {{enabled: true, issuer: "{issuer}", audience: bench, jwks_uri: "{issuer}/jwks"}}
  role_assignments: [{{principal: bench, role: developer, scope: global}}]
rate_limit: {{rps: 1000000, burst: 1000000}}
"""


@contextmanager
def fastmcp(folder: Path, upstream: int, *, tuned: bool) -> Generator[System]:
    python = _installed("fastmcp", ["fastmcp>=4.1"])
    port, name = free_port(), "fastmcp tuned" if tuned else "fastmcp"
    command = [str(python), str(HERE / "fastmcp_proxy.py"), str(port), f"http://127.0.0.1:{upstream}/mcp"]
    token = ""
    with started([*command, *(["tuned"] if tuned else [])], folder, {}, name, port) as (pid, ready_s):
        if tuned:
            token = (folder / "fastmcp.token").read_text()
        way = door(port, token)
        yield System(name, pid, port, way.call(), way.listing(), ready_s)


@contextmanager
def hangar(folder: Path, upstream: int) -> Generator[System]:
    program = _installed("mcp-hangar", ["mcp-hangar>=2.34,<3"]).with_name("mcp-hangar")
    port, name = free_port(), "mcp-hangar"
    home = folder / name
    home.mkdir()
    with _issuer() as (issuer, token):
        settings = home / "hangar.yaml"
        settings.write_text(HANGAR.format(upstream=upstream, issuer=issuer))
        command = [str(program), "--config", str(settings), "serve", "--http", "--port", str(port)]
        command += ["--log-level", "ERROR"]
        with started(command, home, environment_of({"HOME": str(home)}), name, port) as (pid, ready_s):
            way = door(port, token)
            yield System(name, pid, port, way.call(), way.listing(), ready_s)


@contextmanager
def contextforge(folder: Path, upstream: int) -> Generator[System]:
    python = _installed("contextforge", ["mcp-contextforge-gateway>=1.0.7,<2"])
    port, name = free_port(), "contextforge"
    home = folder / name
    home.mkdir()
    secret = secrets.token_urlsafe(48)
    environment = environment_of(
        {
            "HOME": str(home),
            "AUTH_REQUIRED": "true",
            "JWT_SECRET_KEY": secret,
            "AUTH_ENCRYPTION_SECRET": secrets.token_urlsafe(48),
            "DATABASE_URL": f"sqlite:///{home}/mcp.db",
            "PLATFORM_ADMIN_EMAIL": ADMIN,
            "PLATFORM_ADMIN_PASSWORD": f"{secrets.token_urlsafe(16)}Aa1!",
            "DEFAULT_USER_PASSWORD": f"{secrets.token_urlsafe(16)}Aa1!",
            "LOG_LEVEL": "ERROR",
            "SSRF_ALLOW_LOCALHOST": "true",  # where the stub is
            "SSRF_ALLOW_PRIVATE_NETWORKS": "true",
            "JSON_RESPONSE_ENABLED": "true",
            "RATE_LIMITING_ENABLED": "false",
        }
    )
    command = [str(python.with_name("mcpgateway")), "--host", "127.0.0.1", "--port", str(port)]
    with started(command, home, environment, name, port, path="/health") as (pid, ready_s):
        asked = ["-m", "mcpgateway.utils.create_jwt_token", "--username", ADMIN, "--exp", "600", "--secret", secret]
        made = subprocess.run(
            [str(python), *asked], cwd=home, env=environment, capture_output=True, text=True, check=True, timeout=60
        )
        token = made.stdout.split()[-1]
        stub = {"name": "stub", "url": f"http://127.0.0.1:{upstream}/mcp", "transport": "STREAMABLEHTTP"}
        _asked(port, token, "/gateways", stub)
        tools = _asked(port, token, "/tools")
        offer = {"name": "bench", "description": "The bench's.", "associated_tools": [tool["id"] for tool in tools]}
        served = _asked(port, token, "/servers", {"server": offer})
        way = door(port, token, path=f"/servers/{served['id']}/mcp", tool=tools[0]["name"])
        yield System(name, pid, port, way.call(), way.listing(), ready_s)


@contextmanager
def _issuer() -> Generator[tuple[str, str]]:
    """The URL of an OpenID issuer's keys, served while this lasts, and an access token of it."""
    key = ECKey.generate_key("P-256", {"kid": "bench", "use": "sig", "alg": "ES256"}, private=True)
    keys = json.dumps({"keys": [key.as_dict(private=False)]}).encode()

    class Keys(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(keys)))
            self.end_headers()
            self.wfile.write(keys)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 – as it is named there
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Keys) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        issuer, now = f"http://127.0.0.1:{server.server_port}", int(time.time())
        claims = {"iss": issuer, "aud": "bench", "sub": "bench", "tenant_id": "bench", "iat": now, "exp": now + 3000}
        try:
            yield issuer, jwt.encode({"alg": "ES256", "kid": "bench"}, claims, key)
        finally:
            server.shutdown()


def _asked(port: int, token: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """A JSON answer, to a POST where there is a body. Raises HouseError."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    try:
        connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        said = answer.read()
    finally:
        connection.close()
    if answer.status not in (200, 201):
        raise HouseError(f"{path} answered HTTP {answer.status}: {said[:200]!r}")
    return json.loads(said)


def _installed(name: str, packages: Sequence[str]) -> Path:
    """The Python of a virtual environment with these packages. Raises SkippedError."""
    home = PLACE / name
    python = home / "bin" / "python"
    if not (home / ".ready").exists():
        print(f"installing {', '.join(packages)} into {home.relative_to(ROOT)} …", file=sys.stderr)
        try:
            subprocess.run([sys.executable, "-m", "venv", str(home)], check=True, capture_output=True, timeout=120)
            subprocess.run(
                [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages],
                check=True,
                capture_output=True,
                text=True,
                timeout=INSTALL_S,
            )
        except (OSError, subprocess.SubprocessError) as error:
            said = getattr(error, "stderr", "") or str(error)
            raise SkippedError(f"{name} does not install here: {str(said).strip().splitlines()[-1][:160]}") from None
        (home / ".ready").touch()
    return python
