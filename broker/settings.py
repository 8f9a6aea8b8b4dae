"""The settings: every key, its unit, its default, one sentence each. All keys are optional; unknown keys are errors.

The fields are the one source. How they are read and told is in `settings_file`.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator, model_validator

from broker.document import section

SECRET_CHARS = 24  # least of a secret that signs
SAFE_URL = re.compile(r"https://|http://(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?(/|$)")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=False, defer_build=True)


class Listen(_Section):
    host: str = Field(
        default="127.0.0.1", description="Address to listen on. Anything but loopback needs `public_url` and accounts."
    )
    port: int = Field(default=8750, ge=0, le=65535, description="TCP port; 0 takes a free one and prints it.")


class Issuer(_Section):
    """An OAuth/OIDC issuer whose access tokens are accepted."""

    issuer: str = Field(description="The issuer exactly as in the tokens' `iss` (RFC 8414).")
    jwks_uri: str = Field(default="", description="Where its keys are; empty: from its metadata document.")
    audience: list[str] = Field(
        default=[], description="Accepted `aud` values; empty: this broker's own resource URLs."
    )
    algorithms: list[Literal["ES256", "ES384", "EdDSA", "PS256", "RS256"]] = Field(
        default=["ES256", "EdDSA", "PS256", "RS256"], min_length=1, description="Accepted signature algorithms."
    )
    agent_claim: str = Field(default="client_id", description="The claim that names the agent.")
    user_claim: str = Field(
        default="sub", description="The claim that names the user; ignored when it equals the agent."
    )
    tenant_claim: str = Field(default="tenant", description="The claim that names the tenant.")
    groups_claim: str = Field(default="groups", description="The claim that lists groups.")


class EmbeddedIssuer(_Section):
    enabled: bool = Field(default=True, description="Serve the embedded OAuth authorization server.")
    access_token_s: int = Field(default=3600, ge=60, le=86_400, description="Lifetime of an access token, in seconds.")
    refresh_token_s: int = Field(default=2_592_000, ge=300, description="Lifetime of a refresh token, in seconds.")
    registration: Literal["loopback", "off"] = Field(
        default="loopback", description="Dynamic client registration: only while listening on loopback, or off."
    )


class Auth(_Section):
    embedded: EmbeddedIssuer = section(EmbeddedIssuer)
    issuers: list[Issuer] = Field(default=[], description="Other issuers whose tokens are accepted.")
    api_keys: bool = Field(default=True, description="Accept API keys made with `broker token --api-key`.")


class StdioIdentity(_Section):
    """Who calls over stdio, where there is no token: the program that starts the broker is the identity."""

    agent: str = Field(default="local", description="The agent's name.")
    user: str = Field(default="", description="The person it acts for.")
    tenant: str = Field(default="", description="The tenant.")
    scopes: list[str] = Field(default=[], description="Scopes it holds.")
    groups: list[str] = Field(default=[], description="Groups it is in.")


class HoldSettings(_Section):
    wait_s: float = Field(
        default=20.0,
        ge=0,
        le=300,
        description="How long a held call waits for a decision before it answers, in seconds.",
    )
    expires_s: int = Field(
        default=86_400, ge=1, le=31_536_000, description="When a hold expires if its rule does not say, in seconds."
    )
    reviewer_scope: str = Field(
        default="broker.review", description="The scope that lets a person review when the rule names nobody."
    )
    open_per_agent: int = Field(default=100, ge=1, le=100_000, description="How many holds one agent may have open.")


class ConsoleSettings(_Section):
    """Where people sign in to the console when it is not at the embedded issuer."""

    issuer: str = Field(
        default="", description="Sign people in at this issuer, one of `auth.issuers`; empty: at the embedded one."
    )
    client_id: str = Field(
        default="", description="The console's client at that issuer; its redirect URI is `/console/callback` here."
    )
    client_secret: str = Field(
        default="", description="The client's secret, by reference; empty: a public client, by PKCE alone."
    )
    scopes: list[str] = Field(
        default=["openid", "broker.review"],
        description="Scopes to ask for; with `openid` an ID token is required and checked.",
    )
    resource: str = Field(
        default="", description="What the access token shall be for (RFC 8707 `resource`); empty: it is not asked."
    )


class Limits(_Section):
    body_bytes: int = Field(default=4_194_304, ge=1024, description="Largest request body.")
    bytes_in_flight: int = Field(
        default=268_435_456, ge=1_048_576, description="Largest sum of request bodies being read or worked on."
    )
    connections: int = Field(
        default=1024,
        ge=1,
        description="Most open connections; beyond, the one idle or half open for longest is closed.",
    )
    keep_alive_s: float = Field(default=65.0, gt=0, description="When an idle connection is closed, in seconds.")
    header_bytes: int = Field(default=32_768, ge=1024, description="Largest headers of a request.")
    header_s: float = Field(default=10.0, gt=0, description="Time to send the headers, in seconds.")
    body_s: float = Field(
        default=30.0, gt=0, description="Time to send the body, and to read what is answered, in seconds."
    )
    json_depth: int = Field(default=64, ge=4, le=190, description="Deepest nesting of a request.")
    json_nodes: int = Field(default=100_000, ge=100, description="Most values in a request.")
    json_string_bytes: int = Field(
        default=4_194_304, ge=1024, description="Longest string in a request; as large as `body_bytes` unless lowered."
    )
    id_bytes: int = Field(default=256, ge=1, description="Longest JSON-RPC id.")
    sessions: int = Field(default=1000, ge=1, description="Most open sessions of handshake-era clients.")
    session_idle_s: float = Field(default=1800.0, gt=0, description="When an idle session is closed, in seconds.")
    calls: int = Field(default=1000, ge=1, description="Most calls in the pipeline at once.")
    drain_s: float = Field(default=10.0, ge=0, description="How long a shutdown waits for running calls, in seconds.")


class Checkpoints(_Section):
    """Signed notes of where the record stands, kept outside of the database: what `broker verify --anchor` takes."""

    path: str = Field(
        default="broker.checkpoints.jsonl",
        description="The file they are appended to, relative to this file; a folder gets one file a day; empty: none.",
    )
    every_s: float = Field(
        default=60.0, ge=1, le=86_400, description="How often one is written when something was recorded, in seconds."
    )
    key: str = Field(
        default="",
        description="The Ed25519 private key (PEM, or 32 bytes in base64) as a reference; empty: one is made and kept "
        "beside this file.",
    )
    webhook: str = Field(default="", description="Where each is also posted as JSON: an https URL, or a loopback one.")


class RetentionSettings(_Section):
    """How long payloads are kept beside their records, which stay."""

    arguments_days: float = Field(default=0, ge=0, description="Arguments in clear, in days; 0: for ever.")
    sealed_days: float = Field(default=0, ge=0, description="Sealed arguments, in days; 0: for ever.")
    results_days: float = Field(
        default=30, gt=0, le=3650, description="Results of held calls that nobody collects, in days."
    )
    budget_bytes: int = Field(
        default=0, ge=0, description="Largest sum of arguments kept; beyond it the oldest go. 0: no bound."
    )


class Record(_Section):
    key: str = Field(
        default="",
        description="The key (32 bytes in base64, as a reference) that seals payloads and makes arguments findable; "
        "empty: one is made and kept beside the database.",
    )
    auditor_scope: str = Field(
        default="broker.audit", description="The scope that lets a person read the sealed arguments of calls."
    )
    checkpoints: Checkpoints = section(Checkpoints)
    retention: RetentionSettings = section(RetentionSettings)

    @field_validator("key")
    @classmethod
    def _is_a_key(cls, given: str) -> str:
        try:
            raw = base64.b64decode(given, validate=True)
        except ValueError:
            raw = b"-"
        if len(raw) not in (0, 32):
            raise ValueError("must be 32 bytes in base64")
        return given

    @property
    def key_bytes(self) -> bytes:
        """b"" when one is to be made."""
        return base64.b64decode(self.key)


class NotifyTo(_Section):
    """A receiver of notices about held calls."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$", description="Its name, in records and in its place.")
    via: Literal["webhook", "apprise"] = Field(
        default="webhook", description="A signed webhook, or anything apprise knows (extra `notify`)."
    )
    url: str = Field(
        min_length=1,
        description="Where to: https, or http on loopback; apprise's own URLs (`slack://…`) as a reference.",
    )
    secret: str = Field(default="", description="Signs a webhook: at least 24 bytes, or `whsec_…`; a reference.")
    events: list[Literal["held", "decided", "escalated", "expiring", "expired", "withdrawn"]] = Field(
        default=["held", "escalated", "expiring"], min_length=1, description="What it is told."
    )
    arguments: bool = Field(
        default=False, description="Whether it is told the arguments that the record keeps in clear."
    )

    @model_validator(mode="after")
    def _is_safe(self) -> NotifyTo:
        if self.via == "webhook" and not SAFE_URL.match(self.url):
            raise ValueError("the url of a webhook begins with https://, or with http:// on loopback")
        if self.via == "webhook" and len(self.secret) < SECRET_CHARS:
            raise ValueError(f"a webhook needs a secret of at least {SECRET_CHARS} characters, as a reference")
        return self


class Traces(_Section):
    """Traces of calls by OpenTelemetry (extra `otel`)."""

    url: str = Field(
        default="",
        description="Where to send them by OTLP over HTTP, such as http://127.0.0.1:4318/v1/traces; empty: off.",
    )
    headers: list[str] = Field(default=[], description="Headers to send with them, each `Name: value`; references.")
    sample: float = Field(
        default=1.0, gt=0, le=1, description="Share of the traces that begin here; an agent's own decision is followed."
    )

    @model_validator(mode="after")
    def _have_values(self) -> Traces:
        if not all(re.fullmatch(r"[A-Za-z0-9-]+: [ -~]+", header) for header in self.headers):
            raise ValueError("each of headers is `Name: value`")
        return self


class Testing(_Section):
    """Aids for tests, never for work: the broker refuses to start with them anywhere but on loopback."""

    open: bool = Field(
        default=False,
        description="Take HTTP requests without a credential as the caller that `stdio` describes. Only on loopback.",
    )
    clock_file: str = Field(
        default="",
        description="A file, relative to this one, that moves the clock: by seconds (`+3600`, `-0.5`), or to a time of "
        "RFC 3339. Read at every question; empty: the system's clock. Only on loopback.",
    )


class Settings(_Section):
    listen: Listen = section(Listen)
    public_url: str = Field(
        default="", description="The https URL clients use when a proxy with TLS stands in front, without path."
    )
    database: Path = Field(default=Path("broker.db"), description="The SQLite file, relative to this file.")
    manifests: Path = Field(
        default=Path("tool_manifests"), description="The folder of manifests, relative to this file."
    )
    auth: Auth = section(Auth)
    stdio: StdioIdentity = section(StdioIdentity)
    hold: HoldSettings = section(HoldSettings)
    console: ConsoleSettings = section(ConsoleSettings)
    limits: Limits = section(Limits)
    record: Record = section(Record)
    notify: list[NotifyTo] = Field(default=[], description="Who is told of held calls, besides the console.")
    traces: Traces = section(Traces)
    testing: Testing = section(Testing)
    allowed_hosts: list[str] = Field(
        default=[], description="Further Host header values to accept, each `name` or `name:port`."
    )
    allowed_origins: list[str] = Field(default=[], description="Web origins that may call the agents' endpoints.")
    request_state_keys: list[str] = Field(
        default=[],
        description="Secrets of 32 characters or more that seal `requestState`, the newest first; empty: one that "
        "belongs to the database, which all processes on it share.",
    )
    watch: bool = Field(default=True, description="Reload manifests when their files change.")
    metrics: Literal["loopback", "scope", "off"] = Field(
        default="loopback",
        description="Who may read `/metrics`: anybody while only this machine can reach the broker, otherwise (and "
        "always with `scope`) who holds the scope broker.metrics; or nobody.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="warning", description="What goes to stderr."
    )

    @field_validator("request_state_keys")
    @classmethod
    def _long_enough(cls, keys: list[str]) -> list[str]:
        if any(len(key) < 32 for key in keys):  # the value is not repeated: it is a secret
            raise ValueError("each key has 32 characters or more")
        return keys

    _directory: Path = PrivateAttr(default_factory=Path.cwd)  # where the settings file is; set by the reader

    @property
    def directory(self) -> Path:
        """Where relative paths start: the settings file's own folder."""
        return self._directory

    @classmethod
    def at(cls, directory: Path, data: Mapping[str, Any]) -> Settings:
        """These keys, with relative paths starting at `directory`. Nothing is coerced. Raises pydantic's error."""
        settings = cls.model_validate_json(orjson.dumps(data), strict=True)
        settings._directory = directory  # noqa: SLF001 – our own instance
        return settings
