"""The pages a person sees: server-rendered, escaped, without script, framed by nobody."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

if TYPE_CHECKING:
    from jinja2 import Environment

HEADERS: Mapping[str, str] = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Not no-referrer: with that, browsers send `Origin: null` with our own forms.
    "Referrer-Policy": "same-origin",
}


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined  # late: programs ask for tokens, and see no page

    return Environment(
        loader=PackageLoader("broker.authserver"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )


def page(template: str, *, status: int = 200, form_action: str = "", **values: Any) -> Response:
    """form_action: where the answer to a form may lead besides ourselves (a CSP source)."""
    policy = (
        "default-src 'none'; style-src 'self'; base-uri 'none'; frame-ancestors 'none'; "
        f"form-action 'self' {form_action}".rstrip()
    )
    html = _environment().get_template(template).render(values)
    return Response(
        html,
        status_code=status,
        media_type="text/html; charset=utf-8",
        headers={**HEADERS, "Content-Security-Policy": policy},
    )


def message(heading: str, text: str, status: int = 400) -> Response:
    """A page with nothing to do but read."""
    return page("message.html", status=status, heading=heading, text=text)


@cache
def style() -> bytes:
    return (files("broker.authserver") / "templates" / "style.css").read_bytes()
