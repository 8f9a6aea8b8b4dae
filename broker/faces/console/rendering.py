"""Templates into pages: everything foreign is made visible, then escaped, without any template having to ask for it.

`_shown` runs on every value a template puts out, before autoescape: text of others goes through `text.safe`, so that
what cannot be seen is written out. There is no inline script or style, and nothing from anywhere but ourselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import Any, cast
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.responses import Response

from broker.faces.text import rendered, safe, safe_json
from broker.faces.words import count, span, who, why
from broker.model.quota import QuotaState, room, spoken

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)  # data: for the marks inside the style sheet
HEADERS: Mapping[str, str] = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",  # not no-referrer: with that, browsers send `Origin: null` with our own forms
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
STATIC: Mapping[str, str] = {
    "htmx.min.js": "text/javascript; charset=utf-8",
    "console.js": "text/javascript; charset=utf-8",
    "pico.min.css": "text/css; charset=utf-8",
    "charts.js": "text/javascript; charset=utf-8",
    "uplot.min.js": "text/javascript; charset=utf-8",
    "uplot.min.css": "text/css; charset=utf-8",
    "console.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


def _shown(value: Any) -> Any:
    if value is None:
        return ""
    return value if isinstance(value, Markup) or not isinstance(value, str) else safe(value)


@cache
def environment() -> Environment:
    made = Environment(
        loader=PackageLoader("broker.faces.console"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    filters = cast("dict[str, Any]", made.filters)  # typed as Jinja's own filters only
    cast("dict[str, Any]", made.globals)["link"] = _link
    filters.update(
        exactly=_exactly,
        tojson_text=_json_text,
        figure=_figure,
        micro=_micro,
        span=span,
        stamp=_stamp,
        room=_room,
        count=count,
        who=who,
        why=why,
    )
    return made


def page(template: str, *, status: int = 200, **values: Any) -> Response:
    html = environment().get_template(template).render(values)
    return Response(html, status, HEADERS, "text/html; charset=utf-8")


@cache
def static(name: str) -> bytes:
    return (files("broker.faces.console") / "static" / name).read_bytes()


def _room(state: QuotaState) -> str:
    return room(state.left, state.limit, state.unit)


def _link(path: str, **query: str) -> str:
    """A path of ours with these values, however they are spelled, in its query."""
    return f"{path}?{urlencode(query)}"


def _json_text(value: Any) -> str:
    """A value as JSON on one line, cut where it is long, and says so."""
    return " ".join(line.strip() for line in rendered(value, cut=500))


def _exactly(text: str) -> Markup:
    """JSON that comes back to us from a form: it must mean the same then, so what cannot be seen is written with JSON's
    own escapes and not with ours."""
    return escape(safe_json(text))


def _micro(amount: int) -> str:
    """Millionths as a decimal."""
    return spoken(amount, "_micro")[0]


def _figure(value: float) -> str:
    """A number in a table: as many decimals as say something."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:,.2f}"


def _stamp(at_ms: int) -> str:
    """A time for people, in UTC, which is what two reviewers in two places can compare."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if at_ms else "–"
