"""What a broker serves beside the agents' endpoints: the console, the API, metrics, the embedded authorization server.

Imported when one of its paths is first asked for, and not before: a broker whose agents are signed in by others needs
nothing of it, and its libraries (Starlette, Jinja2, Authlib) are a third of a start.

What must not live here: how requests are served (faces), what is opened and closed (assembly).
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

import anyio
from anyio import to_thread
from starlette.routing import Router

from broker import __version__
from broker.assembly import Broker
from broker.auth import challenge, metadata
from broker.authserver import console_sign_in, routes
from broker.faces import web
from broker.faces.api.routes import Api
from broker.faces.console.site import Console
from broker.faces.console.visit import Verified
from broker.faces.metrics import Metrics
from broker.faces.office import Office
from broker.faces.words import count
from broker.model.address import as_called

if TYPE_CHECKING:
    from starlette.routing import Route

_VERIFYING = anyio.CapacityLimiter(1)


def beside(broker: Broker, stack: AsyncExitStack) -> web.Beside:
    """stack: closes what is opened here, when the broker ends."""
    office = _office_of(broker)
    console = _console(broker, office, stack)
    app = Router(
        [*(console.routes() if console else ()), *_routes(broker, office)],
        redirect_slashes=False,
        default=web.not_found,
    )
    return web.Beside(app, app.routes, console.close if console else lambda: None)


def _routes(broker: Broker, office: Office) -> list[Route]:
    """What programs ask for: the API, metrics, whose tokens are taken, and the embedded authorization server."""

    def scopes() -> frozenset[str]:
        return broker.shelf.current.all_scopes

    api = Api(
        office,
        bearer=challenge.bearer,
        challenge=challenge.at,
        called=lambda host: as_called(broker.where.base_url(), host),
        version=__version__,
    )
    metrics = Metrics(
        office,
        broker.pipeline.tally,
        not_ready=lambda: broker.not_ready,
        unrecorded=lambda: broker.pipeline.unrecorded,
        problems=lambda: broker.reconciler.problems,
        bearer=challenge.bearer,
    )
    return [
        *api.routes(),
        *metrics.routes(),
        *metadata.routes(broker.settings, scopes, broker.where.base_url),
        *routes(
            broker.settings, broker.directory, scopes, broker.store.note, broker.where.base_url, clock=broker.clock
        ),
    ]


def _console(broker: Broker, office: Office, stack: AsyncExitStack) -> Console | None:
    """None when nobody can sign in: no issuer is named for it, and the embedded one is turned off."""
    settings = broker.settings
    external = next((one for one in settings.auth.issuers if one.issuer == settings.console.issuer), None)
    if external is not None:
        from broker.auth.sign_in import IssuerSignIn  # late: few brokers need it, and an HTTP client with it

        issuer = IssuerSignIn(settings.console, external, clock=broker.clock, base_url=broker.where.base_url)
        stack.push_async_callback(issuer.aclose)
    else:
        issuer = console_sign_in(
            settings,
            broker.directory,
            lambda: broker.shelf.current.all_scopes,
            broker.store.note,
            broker.where.base_url,
            clock=broker.clock,
        )
    if issuer is None:
        return None
    return Console(office, issuer, verify=partial(_verify, broker), base_url=broker.where.base_url())


async def _verify(broker: Broker) -> Verified:
    """Walk through the whole record, in a thread, one walk at a time."""
    path = broker.settings.directory / broker.settings.database
    from broker import verifier  # when it is asked for: it is none of the way to the first answer

    found = await to_thread.run_sync(verifier.verify, path, limiter=_VERIFYING)
    told = f"{found.entries} entries in {count(found.chains, 'chain')}, {found.records} records agree with them."
    if found.fault is not None:
        where = f"Chain {found.fault.chain}, entry {found.fault.seq}: " if found.fault.chain else ""
        told = f"{where}{found.fault.what}"
    return Verified(found.ok, told, found.limits, broker.clock.now_ms())


def _office_of(broker: Broker) -> Office:
    return Office(
        settings=broker.settings,
        store=broker.store,
        desk=broker.desk,
        granting=broker.grants,
        shelf=broker.shelf,
        backends=broker.backends,
        clock=broker.clock,
        authenticate=broker.gatekeeper.authenticate,
        directory=broker.directory,
        perform=broker.pipeline.perform,
    )
