"""Ways by which people outside are told. A new one is a module here and a line below; it makes a ports.Notifier."""

from __future__ import annotations

from collections.abc import Mapping

NOTIFIERS: Mapping[str, str] = {
    "webhook": "broker.notifiers.webhook:Webhook",
    "apprise": "broker.notifiers.apprise:Apprise",
}
