"""The console: what people see and decide in a browser, server-rendered, live by server-sent events.

One module a page, one line each in PAGES. What must not live here: who may see or decide what (office, desk).
"""

from __future__ import annotations

from collections.abc import Mapping

PAGES: Mapping[str, tuple[str, str]] = {
    "/console": ("Inbox", "broker.faces.console.pages.inbox:show"),
    "/console/grants": ("Grants", "broker.faces.console.pages.grants:show"),
    "/console/calls": ("Calls", "broker.faces.console.pages.calls:show"),
    "/console/catalog": ("Catalog", "broker.faces.console.pages.catalog:show"),
    "/console/quotas": ("Quotas", "broker.faces.console.pages.quotas:show"),
    "/console/agents": ("Agents", "broker.faces.console.pages.agents:show"),
    "/console/backends": ("Backends", "broker.faces.console.pages.backends:show"),
    "/console/insight": ("Insight", "broker.faces.console.pages.insight:show"),
    "/console/record": ("Record", "broker.faces.console.pages.record:show"),
}
"""Path → its name in the navigation, and "module:function": (Visit) -> Response."""
