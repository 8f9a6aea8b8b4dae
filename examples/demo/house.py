"""Starts the real things the demo and the tests play with, each in a process of its own, and ends them again.

    orders     examples/orders, an HTTP API on a free port, with a credential of its own
    handbook   a git repository that the real mcp-server-git reads
    broker     `broker serve` with the manifests of this folder, on a free port; it starts the two MCP servers itself

Everything lies in one directory: settings, manifests, databases, logs. No network but loopback is used. What must not
live here: what happens in the story.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import httpx2

from examples.demo.port import free_port

MANIFESTS = Path(__file__).parent / "manifests"
ORDERS_MODULE = f"{(__package__ or '').rpartition('.')[0]}.orders"
START_S = 40.0
STOP_S = 15.0
COMMAND_S = 30.0

# What stands in the manifests for the addresses of this machine.
ORDERS_URL = "http://127.0.0.1:8790"
HANDBOOK_PATH = "/srv/handbook"

SETTINGS = """\
listen: {{port: {port}}}
hold: {{wait_s: {hold_wait_s}}}   # how long a held call waits before the agent is told how to collect it
stdio:                  # who calls when a program starts the broker itself
  agent: support-bot
  scopes: [orders.read, handbook.read]
"""

HANDBOOK = (
    ("Opening hours of the support desk", "hours.md", "# Hours\n\nMonday to Friday, 9 to 17.\n"),
    ("Refunds: be generous up to 50 EUR", "refunds.md", "# Refunds\n\nUp to 50 EUR at once.\n"),
    (
        "Refunds: above 50 EUR a person decides",
        "refunds.md",
        "# Refunds\n\nUp to 50 EUR at once. Above 50 EUR a person decides. Above 500 EUR the bank does.\n",
    ),
)


class HouseError(Exception):
    """Something did not start or did not answer; the message quotes its own words."""


@dataclass(frozen=True, slots=True)
class House:
    """orders_url, broker_url: without a path. environment: for every command that belongs to this house."""

    directory: Path
    orders_url: str
    broker_url: str
    handbook: Path
    environment: Mapping[str, str]
    broker: subprocess.Popen[str]
    settings: Path
    _passwords: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def mcp_url(self) -> str:
        return f"{self.broker_url}/mcp"

    def command(self, *arguments: str, expect: int = 0, typed: str = "") -> str:
        """Run `broker ARGUMENTS` with this house's settings and `typed` on its input. Returns what it printed.

        Raises HouseError when the exit code is another than `expect`.
        """
        return run([*BROKER, *arguments], self.directory, self.environment, expect=expect, typed=typed)

    def json(self, *arguments: str) -> Any:
        """The same for a command that prints one JSON document."""
        return json.loads(self.command(*arguments, "--json"))

    def register(self, agent: str, scopes: Sequence[str]) -> str:
        """Make a client for this agent and sign it in as an agent does: client credentials. Returns an access token."""
        made = self.json("client", "add", agent, *_options("--scope", scopes))
        return self.sign_in(str(made["client_id"]), str(made["client_secret"]))

    def sign_in(self, client_id: str, client_secret: str) -> str:
        metadata = httpx2.get(f"{self.broker_url}/.well-known/oauth-authorization-server", timeout=10).json()
        form = {"grant_type": "client_credentials", "resource": self.mcp_url}
        answer = httpx2.post(metadata["token_endpoint"], data=form, auth=(client_id, client_secret), timeout=10)
        if answer.status_code != 200:
            raise HouseError(f"{client_id} could not sign in: {answer.status_code} {answer.text}")
        return str(answer.json()["access_token"])

    def add_person(self, name: str, scopes: Sequence[str]) -> str:
        """Make an account for this person. Returns the password, which this house also keeps for `approve`."""
        self._passwords[name] = str(self.json("user", "add", name, *_options("--scope", scopes))["password"])
        return self._passwords[name]

    def approve(self, hold_id: str, reviewer: str) -> str:
        """Decide as this person, who proves it by the password. Returns what the command printed."""
        password = self._passwords[reviewer] + "\n"
        return self.command("approve", hold_id, "--reviewer", reviewer, "--password-stdin", typed=password)

    def refund_log(self) -> list[dict[str, Any]]:
        """Every refund request that reached the order service, by its own account."""
        headers = {"Authorization": f"Bearer {self.environment['ORDERS_TOKEN']}"}
        return httpx2.get(f"{self.orders_url}/refund-log", headers=headers, timeout=10).json()["requests"]

    def words(self) -> str:
        """What `broker serve` has said so far."""
        return (self.directory / "broker.log").read_text("utf-8")

    def wait(self) -> None:
        """Until the broker ends, or Ctrl-C."""
        self.broker.wait()


BROKER = (sys.executable, "-m", "broker")


@contextmanager
def open_house(directory: Path, *, hold_wait_s: float = 1.0) -> Generator[House]:
    """Start everything in this directory, which has to be empty or not there yet; end everything afterwards.

    Raises HouseError.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise HouseError(f"{directory} is not empty. Give an empty folder.")
    environment = environment_of({"ORDERS_TOKEN": secrets.token_urlsafe(24)})
    handbook = make_handbook(directory / "handbook")
    with ExitStack() as stack:
        orders_url = stack.enter_context(order_service(directory, environment))
        port = free_port()
        settings = write_settings(directory, port, hold_wait_s)
        write_manifests(directory / "tool_manifests", orders_url, handbook)
        environment["BROKER_CONFIG"] = str(settings)
        url = f"http://127.0.0.1:{port}"
        broker = stack.enter_context(serve(directory, environment, url))
        yield House(directory, orders_url, url, handbook, environment, broker, settings)


def make_handbook(directory: Path) -> Path:
    """A git repository with a few commits. Needs nothing of the user's own git settings."""
    directory.mkdir()
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    run(["git", "init", "--quiet", "--initial-branch=main"], directory, environment)
    who = ["-c", "user.name=Office", "-c", "user.email=office@example.com"]
    for subject, name, text in HANDBOOK:
        (directory / name).write_text(text, "utf-8")
        run(["git", "add", name], directory, environment)
        run(["git", *who, "commit", "--quiet", "-m", subject], directory, environment)
    return directory


def write_settings(directory: Path, port: int, hold_wait_s: float) -> Path:
    settings = directory / "broker.yaml"
    settings.write_text(SETTINGS.format(port=port, hold_wait_s=hold_wait_s), "utf-8")
    return settings


def write_manifests(directory: Path, orders_url: str, handbook: Path) -> None:
    """This folder's manifests with the addresses of this machine in them."""
    directory.mkdir()
    for manifest in sorted(MANIFESTS.glob("*.yaml")):
        text = (
            manifest.read_text("utf-8")
            .replace(ORDERS_URL, orders_url)
            .replace(HANDBOOK_PATH, json.dumps(str(handbook)))
        )
        (directory / manifest.name).write_text(text, "utf-8")


@contextmanager
def order_service(directory: Path, environment: Mapping[str, str]) -> Generator[str]:
    """The order service in a process of its own. Gives its URL."""
    command = [sys.executable, "-m", ORDERS_MODULE, "--port", "0", "--database", str(directory / "orders.db")]
    with (
        (directory / "orders.log").open("w") as log,
        process(command, directory, environment, log, piped=True) as orders,
    ):
        assert orders.stdout is not None
        url = orders.stdout.readline().strip()
        if not url:
            raise HouseError(f"The order service did not start:\n{_tail(directory / 'orders.log')}")
        yield url


@contextmanager
def serve(directory: Path, environment: Mapping[str, str], url: str) -> Generator[subprocess.Popen[str]]:
    """`broker serve` in a process of its own, given when it is ready. Its words are in broker.log."""
    path = directory / "broker.log"
    with path.open("w") as log, process([*BROKER, "serve"], directory, environment, log) as broker:
        deadline = time.monotonic() + START_S
        while not _is_ready(url):
            if broker.poll() is not None or time.monotonic() > deadline:
                state = "ended" if broker.poll() is not None else f"was not ready after {START_S:.0f} s"
                raise HouseError(f"`broker serve` {state}:\n{_tail(path)}")
            time.sleep(0.05)
        yield broker


@contextmanager
def process(
    command: Sequence[str], directory: Path, environment: Mapping[str, str], log: TextIO, *, piped: bool = False
) -> Generator[subprocess.Popen[str]]:
    """A child that is told to end when the block ends, and made to when it does not."""
    stdout = subprocess.PIPE if piped else log
    child = subprocess.Popen(command, cwd=directory, env=dict(environment), stdout=stdout, stderr=log, text=True)
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait(STOP_S)
        if child.stdout is not None:
            child.stdout.close()


def run(
    command: Sequence[str], directory: Path, environment: Mapping[str, str], *, expect: int = 0, typed: str = ""
) -> str:
    """A command that ends by itself. Returns its standard output. Raises HouseError for another exit code."""
    try:
        done = subprocess.run(
            command,
            cwd=directory,
            env=dict(environment),
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
            input=typed,
        )
    except FileNotFoundError as error:
        raise HouseError(f"{command[0]} is not installed; the demo needs it.") from error
    except subprocess.TimeoutExpired as error:
        raise HouseError(f"`{' '.join(command)}` did not end within {COMMAND_S:.0f} s.") from error
    if done.returncode != expect:
        raise HouseError(
            f"`{' '.join(command)}` ended with {done.returncode}, not {expect}:\n{done.stdout}{done.stderr}"
        )
    return done.stdout


def environment_of(further: Mapping[str, str]) -> dict[str, str]:
    """This process's own, with the programs installed beside this Python first, and nothing of another broker."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
    beside = str(Path(sys.executable).parent)
    return {**environment, "PATH": f"{beside}{os.pathsep}{environment.get('PATH', os.defpath)}", **further}


def _options(name: str, values: Sequence[str]) -> list[str]:
    return [word for value in values for word in (name, value)]


def _is_ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/readyz", timeout=2).status_code == 200
    except httpx2.TransportError:
        return False


def _tail(path: Path, lines: int = 20) -> str:
    return "\n".join(path.read_text("utf-8", "replace").splitlines()[-lines:])


def has_git() -> bool:
    return shutil.which("git") is not None
