"""`broker doctor`: what is wrong here and now, each with its remedy."""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from broker.data import dataclass
from broker.errors import BrokerError, ConfigurationError
from broker.faces.cli import house, options
from broker.faces.cli.output import print_json, say, styled
from broker.faces.text import safe
from broker.faces.words import count, span

if TYPE_CHECKING:
    from broker.assembly import Broker
    from broker.settings import Issuer, Settings

SPACE_BYTES = 200 * 1024 * 1024  # below this a busy broker's records have no room for a day
SKEW_S = 60.0
OLDEST_NOW_S = 1_760_000_000  # a clock before this has lost its battery


@dataclass(frozen=True, slots=True)
class Finding:
    """state: ok · look (works, but a person should know) · bad (something does not work)."""

    what: str
    state: Literal["ok", "look", "bad"]
    says: str
    remedy: str = ""


def doctor(config: options.Config = None, as_json: options.Json = False) -> None:
    """Check what a broker needs to work: settings, records, port, backends, issuers, clock, file modes.

    Starts each backend once. Exit code 1 when something does not work.

    Example:
      broker doctor
      broker doctor --json
    """
    findings = house.run(_examined, config)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            say(f"{styled(f'{finding.state:<5}', finding.state)} {finding.what:<11} {safe(finding.says)}")
            if finding.remedy:
                say(f"{'':18}{safe(finding.remedy)}")
    if any(finding.state == "bad" for finding in findings):
        raise typer.Exit(1)


async def _examined(config: Path | None) -> list[Finding]:
    try:
        path = house.settings_path(config)
        settings = house.read(config)
    except ConfigurationError as error:
        return [Finding("settings", "bad", str(problem)) for problem in error.problems]
    where = f"{path.resolve()}" if path else "none here; the defaults apply"
    findings = [
        Finding(
            "settings",
            "ok" if path else "look",
            where,
            "" if path else "`broker init` writes them, every key explained.",
        )
    ]
    findings += _modes(settings, path)
    findings.append(_clock())
    findings += [finding async for finding in _port(settings)]
    for issuer in settings.auth.issuers:
        findings.append(await _issuer(issuer))
    return [*findings, *await _house(config, settings)]


# ------------------------------------------------------------------------------------------------------------- files


def _modes(settings: Settings, path: Path | None) -> list[Finding]:
    """Files that others may read or write though they should not."""
    if os.name != "posix":
        return []
    findings: list[Finding] = []
    private = [settings.directory / settings.database, *_inside(settings.directory / "secrets")]
    shared = [*([path] if path else []), *_inside(settings.directory / settings.manifests)]
    for file, forbidden, word in [
        *((file, 0o077, "read or written") for file in private),
        *((file, 0o022, "written") for file in shared),
    ]:
        mode = stat.S_IMODE(file.stat().st_mode) if file.exists() else 0
        if mode & forbidden:
            keep = mode & ~forbidden
            findings.append(
                Finding(
                    "file modes", "bad", f"{file} can be {word} by others (mode {mode:04o})", f"chmod {keep:04o} {file}"
                )
            )
    return findings or [
        Finding("file modes", "ok", "records and secrets are private, manifests are written by their owner only")
    ]


def _inside(folder: Path) -> list[Path]:
    return [folder, *sorted(folder.rglob("*"))[:10_000]] if folder.is_dir() else []


def _clock() -> Finding:
    now = time.time()
    if now < OLDEST_NOW_S:
        return Finding(
            "clock", "bad", f"it says {time.strftime('%Y-%m-%d', time.gmtime(now))}", "Set the system's time; use NTP."
        )
    return Finding("clock", "ok", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now)))


def _skew(date: str) -> float:
    """Seconds our clock is ahead of an HTTP Date header; 0 when it has none."""
    from email.utils import parsedate_to_datetime

    try:
        return time.time() - parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError):
        return 0.0


# ----------------------------------------------------------------------------------------------------------- network


async def _port(settings: Settings) -> AsyncIterator[Finding]:
    """Free, ours (then whether it is ready), or somebody else's."""
    from broker.faces.web import bind

    where = f"{settings.listen.host}:{settings.listen.port}"
    try:
        bind(settings).close()
    except OSError as error:
        if not house.is_broker(settings):
            yield Finding(
                "port",
                "bad",
                f"{where}: {error.strerror or error}",
                "Stop what listens there, or set listen.port to another.",
            )
            return
        yield Finding("port", "ok", f"{where}: a broker serves here")
        yield _ready(settings)
        return
    yield Finding("port", "ok", f"{where} is free; no broker serves here now")


def _ready(settings: Settings) -> Finding:
    import httpx2

    try:
        answer = httpx2.get(f"{_local(settings)}/readyz", timeout=5)
    except httpx2.HTTPError as error:
        return Finding("ready", "bad", f"/readyz does not answer: {error}", "Look at the serving broker's stderr.")
    if answer.status_code == 200:
        return Finding("ready", "ok", "the serving broker takes calls")
    reasons: list[str] = answer.json().get("reasons", [])
    return Finding(
        "ready",
        "bad",
        f"the serving broker takes no calls: {'; '.join(reasons)}",
        "It heals by itself when the reason is gone.",
    )


def _local(settings: Settings) -> str:
    host = settings.listen.host
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.listen.port}"


async def _issuer(issuer: Issuer) -> Finding:
    """Whether an issuer's keys can be had, and whether its clock agrees with ours."""
    import httpx2

    from broker.auth.documents import UnreachableError
    from broker.auth.keys import public_keys

    remedy = "Until then its tokens are refused. Check auth.issuers, the network and the issuer."
    try:
        async with httpx2.AsyncClient(timeout=5, follow_redirects=False, trust_env=False) as client:
            where = issuer.jwks_uri
            if not where:
                url = issuer.issuer.rstrip("/") + "/.well-known/openid-configuration"
                metadata: dict[str, Any] = (await client.get(url)).raise_for_status().json()
                if metadata.get("issuer") != issuer.issuer:
                    return Finding(
                        "issuer",
                        "bad",
                        f"{url} names the issuer {metadata.get('issuer')!r}",
                        "Write auth.issuers as it does.",
                    )
                where = str(metadata.get("jwks_uri", ""))
            answer = (await client.get(where)).raise_for_status()
            keys = public_keys(answer.json())
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, AttributeError, UnreachableError) as error:
        return Finding("issuer", "bad", f"{issuer.issuer}: {error or type(error).__name__}", remedy)
    if not keys:
        return Finding("issuer", "bad", f"{issuer.issuer}: {where} has no usable signature key", remedy)
    skew = _skew(answer.headers.get("date", ""))
    if abs(skew) > SKEW_S:
        return Finding(
            "issuer",
            "bad",
            f"our clock and {issuer.issuer}'s differ by {span(abs(skew) * 1000)}",
            "Set the system's time; use NTP.",
        )
    return Finding("issuer", "ok", f"{issuer.issuer}: {len(keys)} keys")


# ------------------------------------------------------------------------------------------------- records, backends


async def _house(config: Path | None, settings: Settings) -> list[Finding]:
    """Records first; without them no backend is asked, since nothing could be called."""
    try:
        async with house.deciding(config) as broker:
            findings = await _records(broker)
    except BrokerError as error:
        remedy = error.next_step or f"They are in {settings.directory / settings.database}."
        return [Finding("records", "bad", error.message, remedy)]
    try:
        async with house.tooled(config) as broker:
            return [*findings, *await _backends(broker)]
    except ConfigurationError as error:
        return [*findings, *(Finding("manifests", "bad", str(problem)) for problem in error.problems)]
    except BrokerError as error:
        return [*findings, Finding("backends", "bad", str(error))]


async def _records(broker: Broker) -> list[Finding]:
    """Whether an entry can be committed now, and whether there is room for more."""
    from broker.authserver import unsafe
    from broker.model.invocation import InvocationQuery

    database = broker.settings.directory / broker.settings.database
    await broker.store.note("doctor", {"via": "cli"})
    free = shutil.disk_usage(database.parent).free
    room = f"{free // 1024 // 1024} MiB free"
    findings = [Finding("records", "ok", f"{database} can be written; {room}")]
    if free < SPACE_BYTES:
        findings = [
            Finding(
                "records",
                "look",
                f"{database}: only {room}",
                "Without room no call is admitted. Free some, or export and archive.",
            )
        ]
    latest = await broker.store.invocations(InvocationQuery(limit=1))
    if latest and latest[0].at_ms > broker.clock.now_ms() + SKEW_S * 1000:
        ahead = span(latest[0].at_ms - broker.clock.now_ms())
        findings.append(
            Finding(
                "clock",
                "bad",
                f"the latest record is {ahead} in the future",
                "The clock was wrong then or is now; use NTP.",
            )
        )
    unknown = await broker.store.invocations(InvocationQuery(states=("outcome_unknown",), limit=100))
    if unknown:
        findings.append(
            Finding(
                "outcomes",
                "look",
                f"{len(unknown)} calls with unknown outcome",
                "`broker log --state outcome_unknown` lists them.",
            )
        )
    findings += [Finding("safety", "bad", fault) for fault in unsafe(broker.settings, broker.directory)]
    return findings


async def _backends(broker: Broker) -> list[Finding]:
    catalog = broker.shelf.current
    findings = [
        Finding("manifests", "ok", f"{count(len(catalog.backends), 'backend')}, {count(len(catalog.entries), 'tool')}")
    ]
    findings += [Finding("manifests", "look", note) for note in catalog.notes]
    findings += [Finding("secrets", "bad", note) for note in house.unset(catalog, broker.settings)]
    for name, backend in broker.backends.items():
        health = backend.health
        state = "ok" if health.state == "up" else "look" if health.state == "degraded" else "bad"
        says = f"{name} ({backend.kind}) is {health.state}{f': {health.detail}' if health.detail else ''}"
        findings.append(
            Finding("backend", state, says, "" if state == "ok" else f"Its manifest: {catalog.backends[name].source}")
        )
    return findings
