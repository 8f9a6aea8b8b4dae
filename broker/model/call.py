"""A call in flight: the one mutable object of the pipeline. Faces make it, stages fill it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, cast

from broker.data import dataclass, field
from broker.model.back import Back, Round, undeclared
from broker.model.empty import NOTHING
from broker.model.hold import Confirming
from broker.model.principal import Principal
from broker.model.task import Inquiry

IDEMPOTENCY_META = "dev.broker/idempotencyKey"
"""Key of a request's `_meta`: the client's own name for this call, so that sending it again does not do it again."""

TASK_META = "dev.broker/task"
"""Key of a request's `_meta`: the task the caller says this call is part of. It names a bucket, and decides nothing."""

PREVIEW_FACE = "preview"
"""The face of a safe call that the broker makes for its caller before a call is held. No person is asked about it."""

Progress = Callable[[float, float | None, str | None], Awaitable[None]]
"""(progress, total, message); never raises for a caller that went away."""


@dataclass(slots=True)
class Call:
    id: str  # UUIDv7: the record's id, and the hold's id
    name: str
    arguments: dict[str, Any]
    principal: Principal
    face: str
    received_at_ms: int
    request_id: str = ""
    trace_parent: str = ""  # W3C traceparent as received, or ""
    meta: Mapping[str, Any] = NOTHING  # the request's _meta without reserved keys
    capabilities: Mapping[str, Any] = NOTHING  # what the client declared
    takes_task: bool = False  # its caller can be told that it goes on as a task, and asks for the result later
    comes_back: bool = False  # its caller can be told that its server asks for another round, and makes it
    progress: Progress | None = None
    back: Back | None = None  # None: nobody who could be told or asked while it runs
    round: Round | None = None  # what the caller sent along with a call that its server has asked it about
    confirming: Confirming | None = None  # it is held already, and its user has been shown where to confirm it
    asked: Literal["tool", "resource", "prompt"] = "tool"  # what `name` names; other than a tool: see model.part
    completing: Mapping[str, Any] | None = None  # `argument` and `context` of completion/complete: values are asked for
    inquiry: Inquiry | None = None  # about a task of this tool at its server, instead of a call of it
    follow: bool = False  # of a resource: be told of its updates, instead of reading it
    release: Callable[[], None] | None = None  # ends the following; set by the backend
    may_wait: bool = True  # False: a hold answers at once instead of waiting hold.wait_s
    is_cancelled: bool = False  # its caller asked for that, and was not merely gone
    sent_as: str = ""  # the Idempotency-Key downstream when an earlier attempt of this keyed call was given one
    is_plain: bool = False  # was not held and reserves nothing (Outcome.is_plain); known once it is admitted
    parent_span: str = ""  # where calls are traced: the span of the agent's that it is part of, 16 hex digits
    in_scope: bool = True  # False: its task is cancelled by itself and is in no cancel scope that could be closed
    laps_us: dict[str, int] = field(default_factory=cast("type[dict[str, int]]", dict))

    @property
    def aside(self) -> str:
        """What records put before the name of what was not used itself; a person is never asked about these."""
        if self.inquiry is not None:
            return "task:"
        return "completion:" if self.completing is not None else "subscription:" if self.follow else ""

    @property
    def can_visit(self) -> bool:
        """Whether its caller can be given a URL to show to its user (elicitation in URL mode)."""
        return bool(self.capabilities) and undeclared("elicitation/create", {"mode": "url"}, self.capabilities) is None

    @property
    def downstream_key(self) -> str:
        """The same for every attempt of a keyed call, so that a backend that honours it does the act once."""
        return self.sent_as or self.id

    @property
    def task(self) -> str:
        """What the caller says this call is part of: a task by name, else its trace, else ""."""
        named = self.meta.get(TASK_META) if self.meta else None
        return named if isinstance(named, str) else self.trace_id if self.trace_parent else ""

    @property
    def trace_id(self) -> str:
        """The 32 hex digits of the traceparent (W3C Trace Context), or "" when there is no valid one."""
        if not self.trace_parent:
            return ""
        parts = self.trace_parent.split("-")
        valid = len(parts) >= 4 and len(parts[1]) == 32 and parts[1].strip("0123456789abcdef") == ""
        return parts[1] if valid and parts[1] != "0" * 32 else ""
