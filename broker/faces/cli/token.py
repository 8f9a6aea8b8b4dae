"""`broker token`: credentials to hand out by hand: access tokens, and API keys for programs that cannot do OAuth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from broker.errors import Problem, SettingsError
from broker.faces.cli import house, options
from broker.faces.cli.app import plain
from broker.faces.cli.output import print_json, print_table, say, stamp, tell
from broker.faces.cli.records import open_records
from broker.faces.text import safe

if TYPE_CHECKING:
    from pathlib import Path

    from broker.model.directory import ApiKey


class _Issuing(typer.core.TyperGroup):
    """`broker token support-bot` means `broker token issue support-bot`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = ["issue", *args]
        return super().parse_args(ctx, args)


app = plain(cls=_Issuing, no_args_is_help=True)


@app.callback()
def token() -> None:
    """Access tokens and API keys, to hand out by hand.

    `broker token CLIENT` prints an access token of that client; with --api-key, makes an API key for an agent.

    Example:
      broker token support-bot
      broker token --api-key nightly-job --scope orders.read --expires 90d
      broker token list
    """


@app.command()
def issue(
    agent: Annotated[
        str,
        typer.Argument(metavar="AGENT", show_default=False, help="A client's id; with --api-key, any agent's name."),
    ],
    scope: Annotated[
        list[str] | None,
        typer.Option(
            "--scope",
            metavar="SCOPE",
            show_default=False,
            parser=options.scope,
            help="Only this scope; may be repeated. Without: all the client has.",
        ),
    ] = None,
    user: Annotated[
        str, typer.Option("--user", metavar="ACCOUNT", show_default=False, help="The person it acts for.")
    ] = "",
    expires: Annotated[
        str,
        typer.Option(
            "--expires", metavar="TIME", show_default=False, help="30m, 12h, 90d; a token lasts a day at most."
        ),
    ] = "",
    api_key: Annotated[
        bool, typer.Option("--api-key", help="Make an API key instead, which can be revoked by its id.")
    ] = False,
    owner: Annotated[
        str, typer.Option("--owner", metavar="PERSON", show_default=False, help="Of an API key: who is responsible.")
    ] = "",
    tenant: Annotated[str, typer.Option("--tenant", show_default=False, help="Of an API key: the organisation.")] = "",
    config: options.Config = None,
    as_json: options.Json = False,
) -> None:
    """Print an access token of a client, or make an API key.

    Only the credential goes to stdout, so that `TOKEN=$(broker token support-bot)` works.

    Example:
      broker token support-bot --scope orders.read --expires 2h
      broker token --api-key nightly-job --scope orders.read --expires 90d
    """
    seconds = _seconds(expires)
    if api_key:
        house.run(_key, config, agent, scope or [], user, owner, tenant, seconds, as_json)
    elif owner or tenant:
        raise typer.BadParameter("--owner and --tenant belong to --api-key; a client has its own")
    else:
        house.run(_token, config, agent, scope, user, seconds, as_json)


def _seconds(expires: str) -> int:
    from broker.model.quantity import duration_s

    if not expires:
        return 0
    try:
        seconds = int(duration_s(expires))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--expires") from error
    if seconds < 1:
        raise typer.BadParameter("the credential would never work", param_hint="--expires")
    return seconds


async def _token(
    config: Path | None, agent: str, scopes: list[str] | None, user: str, seconds: int, as_json: bool
) -> None:
    from broker.authserver.tokens import issue as mint

    async with open_records(config) as records:
        settings = records.settings
        if not settings.auth.embedded.enabled:
            raise SettingsError(
                [_at(config, "auth.embedded.enabled is false: access tokens come from your own issuer")]
            )
        if not settings.public_url and settings.listen.port == 0:
            raise SettingsError([_at(config, "listen.port is 0, so a token for it cannot be made; name a port")])
        text = mint(
            records.directory,
            settings,
            house.base_url(settings),
            client_id=agent,
            scopes=scopes or None,
            user=user or None,
            lifetime_s=seconds or None,
        )
        token_id, until_ms = _claims(text)
        facts = {"client_id": agent, "account": user, "scopes": sorted(scopes or ()), "token_id": token_id}
        await records.changed("token_issued", **facts, expires_at_ms=until_ms)
    if as_json:
        print_json({"access_token": text, "token_type": "Bearer"})
    else:
        print(text)
        tell("Send it as `Authorization: Bearer …`. Whoever has it can call as this agent until it expires.")


def _at(config: Path | None, message: str) -> Problem:
    return Problem(str(house.settings_path(config) or house.SETTINGS_FILE), 0, 0, message)


async def _key(
    config: Path | None, agent: str, scopes: list[str], user: str, owner: str, tenant: str, seconds: int, as_json: bool
) -> None:
    from broker.auth.api_key import create
    from broker.errors import Forbidden

    async with open_records(config) as records:
        if not records.settings.auth.api_keys:
            raise SettingsError([_at(config, "auth.api_keys is false: this broker takes no API keys")])
        if user and records.directory.account(user) is None:
            raise Forbidden(f"There is no account {user!r}.", next_step="`broker user add` makes one.")
        now_ms = records.clock.now_ms()
        text, key = create(
            records.directory,
            now_ms,
            agent=agent,
            user=user,
            tenant=tenant,
            scopes=scopes,
            owner=owner,
            expires_at_ms=now_ms + seconds * 1000 if seconds else 0,
        )
        await records.changed("key_added", **_document(key))
    if as_json:
        print_json({**_document(key), "api_key": text})
    else:
        print(text)
        until = f"until {stamp(key.expires_at_ms)}" if key.expires_at_ms else "and does not expire"
        tell(
            f"Key {key.key_id} of {safe(agent)} works {until}.",
            f"It is not shown again; `broker token revoke {key.key_id}` ends it.",
        )


@app.command("list")
def list_keys(config: options.Config = None, as_json: options.Json = False) -> None:
    """List the API keys (never the keys themselves). Access tokens are not kept; they end by themselves.

    Example:
      broker token list
    """
    house.run(_list, config, as_json)


async def _list(config: Path | None, as_json: bool) -> None:
    async with open_records(config) as records:
        keys, now_ms = records.directory.api_keys(), records.clock.now_ms()
    if as_json:
        print_json([_document(key) for key in keys])
    elif keys:
        print_table(
            ["ID", "AGENT", "USER", "SCOPES", "SINCE", "EXPIRES", "STATE"],
            [
                [
                    key.key_id,
                    key.agent,
                    key.user,
                    " ".join(sorted(key.scopes)),
                    stamp(key.created_at_ms),
                    stamp(key.expires_at_ms),
                    _state(key, now_ms),
                ]
                for key in keys
            ],
        )
    else:
        say("No API keys. `broker token --api-key AGENT` makes one.")


def _state(key: ApiKey, now_ms: int) -> str:
    if key.revoked_at_ms:
        return "revoked"
    return "expired" if key.expires_at_ms and key.expires_at_ms <= now_ms else "ok"


@app.command()
def revoke(
    key: Annotated[
        str, typer.Argument(metavar="ID", show_default=False, help="An API key's id, or an access token itself.")
    ],
    config: options.Config = None,
) -> None:
    """Revoke an API key by its id, or an access token by itself. It ends at once.

    Example:
      broker token revoke 3f2a9c1d0b7e
    """
    house.run(_revoke, config, key)


async def _revoke(config: Path | None, key: str) -> None:
    async with open_records(config) as records:
        if key.count(".") == 2:
            token_id, expires_at_ms = _claims(key)
            records.directory.revoke(token_id, expires_at_ms)
            await records.changed("token_revoked", token_id=token_id)
            say(f"Revoked the access token {safe(token_id)}.")
            return
        key_id = key.removeprefix("brk_").split("_")[0]
        if not records.directory.revoke_api_key(key_id):
            say(f"There is no API key {safe(key_id)} that could be revoked.")
            raise typer.Exit(1)
        await records.changed("key_revoked", key_id=key_id)
    say(f"Revoked the API key {safe(key_id)}.")


def _claims(text: str) -> tuple[str, int]:
    """jti and end of an access token, unverified: revoking a forged one harms nobody."""
    import base64

    import jiter

    try:
        part = text.split(".")[1]
        claims: dict[str, Any] = jiter.from_json(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        return str(claims["jti"]), int(claims["exp"]) * 1000
    except (ValueError, KeyError, TypeError) as error:
        raise typer.BadParameter("this is neither an API key's id nor an access token", param_hint="ID") from error


def _document(key: ApiKey) -> dict[str, Any]:
    return {
        "key_id": key.key_id,
        "agent": key.agent,
        "user": key.user,
        "tenant": key.tenant,
        "scopes": sorted(key.scopes),
        "owner": key.owner,
        "created_at_ms": key.created_at_ms,
        "expires_at_ms": key.expires_at_ms,
        "revoked_at_ms": key.revoked_at_ms,
    }
