"""What the pipeline needs from the world, as promises. Adapters keep them; contract tests iterate over the tables."""

from __future__ import annotations

from broker.ports.authenticator import Authenticator
from broker.ports.backend import (
    Backend,
    BackendContext,
    BackendKind,
    Health,
    Offer,
    Watch,
)
from broker.ports.directory import (
    Directory,
)
from broker.ports.notifier import NotDelivered, Notifier
from broker.ports.store import (
    Claimed,
    Collected,
    Event,
    Followed,
    HeldParts,
    Load,
    OpenCalls,
    QueueCount,
    Store,
    Subscriber,
    Swept,
)
from broker.ports.surroundings import Clock, Secrets

__all__ = [
    "Authenticator",
    "Backend",
    "BackendContext",
    "BackendKind",
    "Claimed",
    "Clock",
    "Collected",
    "Directory",
    "Event",
    "Followed",
    "Health",
    "HeldParts",
    "Load",
    "NotDelivered",
    "Notifier",
    "Offer",
    "OpenCalls",
    "QueueCount",
    "Secrets",
    "Store",
    "Subscriber",
    "Swept",
    "Watch",
]
