"""How a command gets its settings and a broker.

Heavy parts (the assembly, pydantic) are imported inside functions, so that help and completion do not pay for them.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from broker.errors import Problem, SettingsError

if TYPE_CHECKING:
    from broker.assembly import Broker
    from broker.catalog.catalog import Catalog
    from broker.model.principal import Principal
    from broker.settings import Settings

T = TypeVar("T")

SETTINGS_FILE = "broker.yaml"


def settings_path(config: Path | None) -> Path | None:
    """The settings file in force; None when there is none and defaults apply.

    Raises SettingsError when a file was named and is not there.
    """
    if config is not None:
        if not config.is_file():
            raise SettingsError(
                [
                    Problem(
                        str(config), 0, 0, f"there is no such settings file; `broker init {config.parent}` writes one"
                    )
                ]
            )
        return config
    here = Path(SETTINGS_FILE)
    return here if here.is_file() else None


def read(config: Path | None) -> Settings:
    """Raises SettingsError with every problem."""
    from broker.settings_file import read_settings

    return read_settings(settings_path(config), os.environ)


def run(work: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> T:
    """Run a command's asynchronous part to its end."""
    import anyio

    return anyio.run(work, *arguments)


@asynccontextmanager
async def deciding(config: Path | None) -> AsyncGenerator[Broker]:
    """A broker that asks and decides, and makes no call: no catalog, no backend."""
    settings = read(config).model_copy(update={"watch": False})  # it ends before a file could change
    quiet(settings)
    from broker.assembly import Broker

    async with Broker.open(settings, work=False) as broker:
        yield broker


@asynccontextmanager
async def tooled(config: Path | None) -> AsyncGenerator[Broker]:
    """A broker with its catalog and open backends that runs nobody's held calls and settles nobody's leftovers.

    A command ends when its own work has; a held call it had begun to run would be cut off in the middle.
    """
    async with deciding(config) as broker:
        try:
            async with broker.reconciler.running():
                yield broker
        except BaseExceptionGroup as group:
            raise sole(group) from None  # a task group wraps whatever ends it; the person wants the one error that did


def leaves(error: BaseException) -> list[BaseException]:
    """The errors inside groups, or the error itself: task groups wrap whatever ends them."""
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    inner = cast("BaseExceptionGroup[BaseException]", error).exceptions
    return [leaf for one in inner for leaf in leaves(one)]


def sole(error: BaseException) -> BaseException:
    """The one error inside groups of one, or what was given."""
    found = leaves(error)
    return found[0] if len(found) == 1 else error


def quiet(settings: Settings) -> None:
    """Logs of a short command: errors only, unless the settings ask for more."""
    from broker.faces.cli.logs import to_stderr

    to_stderr("error" if settings.log_level == "warning" else settings.log_level)


def caller(broker: Broker, name: str) -> Principal:
    """Who `--as NAME` is: a registered client as it stands, or the stdio identity of the settings.

    Raises Forbidden, naming those that exist.
    """
    from broker.auth import local
    from broker.errors import Forbidden
    from broker.model.principal import Principal

    stdio = broker.settings.stdio
    if name in ("local", stdio.agent):
        return local.principal(stdio)
    client = broker.directory.client(name)
    if client is None or client.disabled:
        known = ", ".join(["local", *(other.client_id for other in broker.directory.clients() if not other.disabled)])
        raise Forbidden(
            f"There is no agent {name!r}.", next_step=f"Known: {known}. `broker client add {name}` adds one."
        )
    return Principal(
        agent=client.client_id,
        tenant=client.tenant,
        issuer=broker.where.base_url(),
        scopes=client.scopes or frozenset(),
        groups=client.groups,
        owner=client.owner,
    )


def unset(catalog: Catalog, settings: Settings) -> list[str]:
    """One sentence for each secret a backend refers to and that has no value here. Calls fail until it has one, but the
    broker may start: where manifests are checked, the secrets often are not."""
    from broker.secrets import REFERENCE, Secrets

    secrets = Secrets(settings.directory)
    notes: list[str] = []
    for plan in catalog.backends.values():
        for match in REFERENCE.finditer(plan.spec.model_dump_json()):
            try:
                secrets.resolve(match[0])
            except LookupError as error:
                notes.append(f"{plan.source}: backend {plan.name!r} has no secret: {error}; its calls fail until then")
    return list(dict.fromkeys(notes))


def base_url(settings: Settings) -> str:
    """Where this broker is reached, without a path; the same as the assembly says when it serves."""
    return settings.public_url.rstrip("/") or f"http://127.0.0.1:{settings.listen.port}"


def is_broker(settings: Settings) -> bool:
    """Whether what answers at our address is a broker."""
    import httpx2

    host = settings.listen.host
    try:
        answer = httpx2.get(f"http://{f'[{host}]' if ':' in host else host}:{settings.listen.port}/", timeout=2)
        return answer.json().get("name") == "broker"
    except (httpx2.HTTPError, ValueError, AttributeError):
        return False


async def until(
    happened: Callable[[], Awaitable[bool]], within_s: float, wait: Callable[[float], Awaitable[Any]]
) -> bool:
    """Whether it happened within the time; looked at again whenever `wait` returns."""
    import anyio

    deadline = anyio.current_time() + within_s
    while True:
        if await happened():
            return True
        left = deadline - anyio.current_time()
        if left <= 0:
            return False
        await wait(min(left, 0.5))
