"""What a broker serves beside the agents' endpoints: the console, the API, metrics, the embedded authorization server.

Each is built by itself, and imports its libraries then: who asks for a token needs no pages. See `serving.BESIDE`.

What must not live here: how requests are served (faces), what is opened and closed (assembly).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

import anyio
from anyio import to_thread
from starlette.routing import Route, Router

from broker import __version__
from broker.assembly import Broker
from broker.auth import challenge, metadata
from broker.authserver import console_sign_in, routes
from broker.faces import web
from broker.faces.words import count
from broker.model.address import as_called

if TYPE_CHECKING:
    from broker.faces.console.visit import Verified
    from broker.faces.office import Office

_VERIFYING = anyio.CapacityLimiter(1)


def console(broker: Broker, stack: AsyncExitStack) -> web.Beside:
    """Nothing when nobody can sign in: no issuer is named for it, and the embedded one is turned off."""
    from broker.faces.console.site import Console

    settings = broker.settings
    external = next((one for one in settings.auth.issuers if one.issuer == settings.console.issuer), None)
    if external is not None:
        from broker.auth.sign_in import IssuerSignIn  # few brokers need it, and an HTTP client with it

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
        return web.Beside(web.not_found)
    site = Console(office_of(broker), issuer, verify=partial(_verify, broker), base_url=broker.where.base_url())
    return _routed(site.routes(), site.close)


def api(broker: Broker, _stack: AsyncExitStack) -> web.Beside:
    from broker.faces.api.routes import Api

    return _routed(
        Api(
            office_of(broker),
            bearer=challenge.bearer,
            challenge=challenge.at,
            called=lambda host: as_called(broker.where.base_url(), host),
            version=__version__,
        ).routes()
    )


def metrics(broker: Broker, _stack: AsyncExitStack) -> web.Beside:
    from broker.faces.metrics import Metrics

    return _routed(
        Metrics(
            office_of(broker),
            broker.pipeline.tally,
            not_ready=lambda: broker.not_ready,
            unrecorded=lambda: broker.pipeline.unrecorded,
            problems=lambda: broker.reconciler.problems,
            bearer=challenge.bearer,
        ).routes()
    )


def sign_in(broker: Broker, _stack: AsyncExitStack) -> web.Beside:
    """Whose tokens are taken, and the embedded authorization server."""

    def scopes() -> frozenset[str]:
        return broker.shelf.current.all_scopes

    base_url = broker.where.base_url
    return _routed(
        [
            *metadata.routes(broker.settings, scopes, base_url),
            *routes(broker.settings, broker.directory, scopes, broker.store.note, base_url, clock=broker.clock),
        ]
    )


def _routed(found: Sequence[Route], on_drain: Callable[[], None] = lambda: None) -> web.Beside:
    app = Router(found, redirect_slashes=False, default=web.not_found)
    return web.Beside(app, app.routes, on_drain)


async def _verify(broker: Broker) -> Verified:
    """Walk through the whole record, in a thread, one walk at a time."""
    path = broker.settings.directory / broker.settings.database
    from broker import verifier  # when it is asked for: it is none of the way to the first answer
    from broker.faces.console.visit import Verified

    found = await to_thread.run_sync(verifier.verify, path, limiter=_VERIFYING)
    told = f"{found.entries} entries in {count(found.chains, 'chain')}, {found.records} records agree with them."
    if found.fault is not None:
        where = f"Chain {found.fault.chain}, entry {found.fault.seq}: " if found.fault.chain else ""
        told = f"{where}{found.fault.what}"
    return Verified(found.ok, told, found.limits, broker.clock.now_ms())


def office_of(broker: Broker) -> Office:
    from broker.faces.office import Office

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
