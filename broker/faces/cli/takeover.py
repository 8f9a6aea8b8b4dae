"""Servers a program has in its `mcpServers` JSON, turned into manifests, so that the broker stands in between.

One manifest file for each server: the backend, an import of all its tools, and a policy that allows what was allowed
before, to be tightened. Secrets do not go into manifests: they are moved to files of mode 0600 under `secrets/` and
referred to. A server we cannot carry over whole is left where it is, and said so.

What must not live here: reading or writing any file. This turns data into data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any, cast
from urllib.parse import urlsplit

from broker.data import dataclass, field

_SECRET_NAME = re.compile(r"(?i)key|token|secret|passw|pwd|auth|credential|cookie|session|_pat\b|dsn")
_SECRET_VALUE = re.compile(r"//[^/\s:@]+:[^/\s@]+@|^(sk|ghp|gho|ghs|xox[abp]|glpat|AKIA|eyJ)[-_A-Za-z0-9]|^Bearer ")
_RANDOM = re.compile(r"(?=.*[0-9])(?=.*[A-Za-z])[A-Za-z0-9_+=-]{24,}")
_REFERENCE = re.compile(r"\$\{([^{}]+)\}")
_ENVIRONMENT = re.compile(r"(?:env:)?([A-Za-z_][A-Za-z0-9_]*)(?::-.*)?")
_KNOWN = frozenset(
    {"type", "transport", "command", "args", "env", "cwd", "url", "serverUrl", "httpUrl", "headers", "disabled"}
)


@dataclass(slots=True)
class Taken:
    """One server as manifests. secrets: file name under `secrets/` -> value. notes: what a person should know."""

    name: str
    backend: str
    text: str
    secrets: dict[str, str] = field(default_factory=dict[str, str])
    notes: list[str] = field(default_factory=list[str])


@dataclass(frozen=True, slots=True)
class Left:
    """One server that stays in the program's file, and why."""

    name: str
    why: str


class Unfit(Exception):
    """This server cannot be carried over whole; the message says why."""


def convert(
    servers: Mapping[str, Any], *, source: str, reserved: Collection[str] = ()
) -> tuple[list[Taken], list[Left]]:
    """All servers of one file. source: the file's name, for the manifests' first line. reserved: backends there are."""
    taken: list[Taken] = []
    left: list[Left] = []
    names = set(reserved)
    for name, entry in servers.items():
        try:
            if not isinstance(entry, dict):
                raise Unfit("its entry is not an object")
            one = _server(name, cast("dict[str, Any]", entry), _fresh(name, names), source)
        except Unfit as verdict:
            left.append(Left(name, str(verdict)))
        else:
            names.add(one.backend)
            taken.append(one)
    return taken, left


def _fresh(name: str, names: set[str]) -> str:
    """A backend name our manifests accept, not used yet."""
    base = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:50] or "server"
    return next(one for one in (base, *(f"{base}-{number}" for number in range(2, 1000))) if one not in names)


def _server(name: str, entry: dict[str, Any], backend: str, source: str) -> Taken:
    if entry.get("disabled") is True:
        raise Unfit("it is disabled")
    if _is_broker(entry):
        raise Unfit("it is a broker already")
    taken = Taken(name, backend, "")
    url = entry.get("url") or entry.get("serverUrl") or entry.get("httpUrl")
    if isinstance(url, str):
        spec = _remote(taken, entry, url)
    elif isinstance(entry.get("command"), str):
        spec = _process(taken, entry)
    else:
        raise Unfit("it has neither a command nor a url")
    unknown = sorted(entry.keys() - _KNOWN)
    if unknown:
        taken.notes.append(
            f"{name}: {', '.join(unknown)} means nothing to the broker; it stays in the copy of the file"
        )
    taken.text = _manifest(name, backend, spec, source)
    return taken


def _is_broker(entry: dict[str, Any]) -> bool:
    arguments: object = entry.get("args")
    return isinstance(arguments, list) and "serve" in arguments and "--stdio" in arguments


def _process(taken: Taken, entry: dict[str, Any]) -> dict[str, Any]:
    arguments: object = entry.get("args") or []
    if not isinstance(arguments, list):
        raise Unfit("its args are not a list")
    command = [str(entry["command"]), *(str(argument) for argument in cast("list[Any]", arguments))]
    for argument in command:
        if _REFERENCE.search(argument):
            raise Unfit(f"its command line has {_REFERENCE.search(argument)[0]} in it, which only the program fills in")  # type: ignore[index] – just matched
        if _looks_secret("", argument.partition("=")[2] or argument):
            raise Unfit("its command line carries what looks like a secret; give it to the server by its env instead")
    spec: dict[str, Any] = {"command": command}
    environment: object = entry.get("env") or {}
    if not isinstance(environment, dict):
        raise Unfit("its env is not an object")
    if environment:
        spec["env"] = {
            key: _value(taken, key, str(value)) for key, value in cast("dict[str, Any]", environment).items()
        }
    if entry.get("cwd"):
        if _REFERENCE.search(str(entry["cwd"])):
            raise Unfit("its cwd has a variable in it; a folder must stand in the manifest as it is")
        spec["cwd"] = str(entry["cwd"])
    return spec


def _remote(taken: Taken, entry: dict[str, Any], url: str) -> dict[str, Any]:
    if _REFERENCE.search(url):
        raise Unfit("its url has a variable in it; an address must stand in the manifest as it is")
    parts = urlsplit(url)
    if parts.username or parts.password or _SECRET_NAME.search(parts.query):
        raise Unfit("its url carries what looks like a secret; use a header instead")
    kind = str(entry.get("type") or entry.get("transport") or "").lower()
    spec: dict[str, Any] = {"url": url, "transport": "sse" if kind == "sse" else "streamable-http"}
    if _is_private(parts.hostname or ""):
        spec["allow_private"] = True
    headers: object = entry.get("headers") or {}
    if not isinstance(headers, dict):
        raise Unfit("its headers are not an object")
    if len(cast("dict[str, Any]", headers)) > 1:
        raise Unfit("it sends several headers; the broker sends one, the credential")
    for header, value in cast("dict[str, Any]", headers).items():
        spec["credential"] = {"header": header, "value": _value(taken, header, str(value), secret=True)}
    return spec


def _is_private(host: str) -> bool:
    return host == "localhost" or host.startswith(("127.", "10.", "192.168.", "::1", "172."))


def _value(taken: Taken, key: str, value: str, *, secret: bool = False) -> str:
    """The value as a manifest may hold it: a reference where it is secret or already was one."""
    if _REFERENCE.search(value):
        return _REFERENCE.sub(_environment, value)
    if not secret and not _looks_secret(key, value):
        return value
    file = f"{taken.backend}.{re.sub(r'[^A-Za-z0-9_-]+', '-', key)}"
    taken.secrets[file] = value
    return f"${{file:secrets/{file}}}"


def _environment(match: re.Match[str]) -> str:
    known = _ENVIRONMENT.fullmatch(match[1])
    if known is None:
        raise Unfit(f"{match[0]} is filled in by the program, not from the environment")
    return f"${{env:{known[1]}}}"


def _looks_secret(key: str, value: str) -> bool:
    return bool(value) and bool(_SECRET_NAME.search(key) or _SECRET_VALUE.search(value) or _RANDOM.fullmatch(value))


def _manifest(name: str, backend: str, spec: dict[str, Any], source: str) -> str:
    lines = [f"  {key}: {_scalar(value)}" for key, value in spec.items()]
    return "\n".join([
        f"# {_scalar(name)}, taken over from {_scalar(source)}. Every call now passes the broker.",
        "kind: backend",
        f"name: {backend}",
        "mcp:",
        *lines,
        "---",
        "kind: import",
        f"name: {backend}-tools",
        f"backend: {backend}",
        'take: ["*"]  # `broker tools` shows what that is; name the ones you want',
        "effect: write  # the careful reading of tools nobody has looked at; say `read` for those that only read",
        "---",
        "kind: policy",
        f"name: {backend}-rules",
        f"backend: [{backend}]",
        "rules:",
        "  - {id: as-before, effect: allow}",
        "  # To let a person look at some calls first, add a rule such as:",
        "  # - {id: ask, when: \"tool.name == 'NAME'\", effect: hold, reason: a person looks at this first}",
        "",
    ])  # fmt: skip


def _scalar(value: Any) -> str:
    """A value as flow YAML: JSON is YAML 1.2, but for surrogate pairs, so letters stay letters."""
    return json.dumps(value, ensure_ascii=False)
