"""How long payloads are kept, from the settings, for whichever store keeps them."""

from __future__ import annotations

from broker.model.ledger import Retention
from broker.settings import RetentionSettings

DAY_MS = 86_400_000


def retention(given: RetentionSettings) -> Retention:
    return Retention(
        arguments_ms=int(given.arguments_days * DAY_MS),
        sealed_ms=int(given.sealed_days * DAY_MS),
        budget_bytes=given.budget_bytes,
        results_ms=int(given.results_days * DAY_MS),
    )
