"""Every error the broker raises on purpose, and the words that go with it.

    BrokerError
    ├── Refusal              we said no, nothing was dispatched (effect none)
    │   ├── Malformed · Unauthenticated · UnknownTool · InvalidArguments · Forbidden · InsufficientScope(missing)
    │   ├── OverQuota(retry_after_ms) · Overloaded · Held(hold_id, expires_at_ms) · UnknownHold · Conflict · StateSpent
    │   ├── TaskRequired · UnknownTask
    │   └── Denied · Expired · Withdrawn          how a hold ended without running
    ├── BackendError         the other side failed: Unavailable (none) · Rejected (done) · TimedOut · Broken (unknown)
    ├── AnswerWithheld       it was done, but inspection kept the answer back (done)
    ├── OutcomeUnknown       the broker died while it was under way; nobody can say (unknown)
    │   └── Cancelled        its caller cancelled it (unknown, or none before anything was sent)
    ├── Underway             it takes long and goes on as a task; no error of anybody (unknown)
    ├── InFlight             the call of this idempotency key is under way; it was not sent again (unknown)
    ├── RecordUnavailable    the row could not be written first, so nothing was dispatched (none)
    ├── Internal             our bug; details in the log, never to the client
    └── ManifestError · SettingsError    at load only; every problem at once, each with file:line:column

Each class fixes `code` (stable, documented in docs/errors.md), `stage` (where in the call's sentence), `effect` and
`retryable`. `effect` is what an agent needs most: `none` – nothing happened, `done` – it happened, `unknown` – nobody
can say. Messages say what, which and what to do next; they never carry a secret, nor an argument's value, unless a
backend repeats it in its own words (`Rejected`), which are told and not recorded.

What must not live here: how an error looks on a wire. Each face has one table from `code` to its own dialect.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from broker.data import dataclass

Effect = Literal["none", "unknown", "done"]


class BrokerError(Exception):
    """The root. `facts` are machine-readable fields a face may show beside the sentence (JSON values only)."""

    code: ClassVar[str] = "internal"
    stage: ClassVar[str] = ""
    effect: Effect = "none"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, next_step: str = "", **facts: Any) -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step
        self.facts: dict[str, Any] = facts

    @property
    def sentence(self) -> str:
        """What happened and what to do next, as one text for a person or a model."""
        return f"{self.message} {self.next_step}".strip()

    @property
    def recorded(self) -> str:
        """The sentence as records keep it: without what may quote the arguments."""
        return self.sentence


class Refusal(BrokerError):
    code = "refused"


class Malformed(Refusal):
    """The bytes were not a request we accept (not JSON, too big, wrong headers)."""

    code, stage = "malformed_request", "receive"


class Unauthenticated(Refusal):
    code, stage = "unauthenticated", "authenticate"


class UnknownTool(Refusal):
    """One and the same answer for unknown, invisible, quarantined and foreign tools."""

    code, stage = "unknown_tool", "resolve"


class InvalidArguments(Refusal):
    code, stage = "invalid_arguments", "validate"


class Forbidden(Refusal):
    """A policy forbids the call; or, with `missing`, scopes are missing that a new token could bring."""

    code, stage = "forbidden", "authorise"

    def __init__(self, message: str, *, missing: Sequence[str] = (), next_step: str = "", **facts: Any) -> None:
        super().__init__(message, next_step=next_step, **facts)
        self.missing = tuple(missing)


class InsufficientScope(Forbidden):
    """RFC 6750 section 3.1: the token lacks scopes the tool needs; `missing` names them."""

    code = "insufficient_scope"


class OverQuota(Refusal):
    code, stage, retryable = "over_quota", "admit", True

    def __init__(self, message: str, *, retry_after_ms: int, next_step: str = "", **facts: Any) -> None:
        super().__init__(message, next_step=next_step, retry_after_ms=retry_after_ms, **facts)
        self.retry_after_ms = retry_after_ms


class Overloaded(Refusal):
    """The broker itself has no room now: too many calls at once, or it is shutting down."""

    code, stage, retryable = "overloaded", "admit", True


class Held(Refusal):
    """A person must decide first. Not an error of anybody: the call is kept and will run when approved.

    promised: the tool has an output schema. What is said here does not fit it, and clients that check take only an
    error in its place.
    """

    code, stage = "held", "admit"

    def __init__(self, message: str, *, promised: bool = False, next_step: str = "", **facts: Any) -> None:
        super().__init__(message, next_step=next_step, **facts)
        self.promised = promised


class Denied(Refusal):
    """A reviewer said no."""

    code, stage = "denied_by_reviewer", "admit"


class Expired(Refusal):
    """Nobody decided in time."""

    code, stage = "hold_expired", "admit"


class Withdrawn(Refusal):
    """The caller took it back, or the tool it was held for is gone or changed."""

    code, stage = "hold_withdrawn", "admit"


class UnknownHold(Refusal):
    """One and the same answer for a hold that does not exist and one that is somebody else's."""

    code, stage = "unknown_hold", "resolve"


class Conflict(Refusal):
    """Somebody decided first, `facts` say who and what; or an idempotency key was used for another call."""

    code, stage = "conflict", "admit"


class StateSpent(Refusal):
    """The `requestState` that came with the call has been used before."""

    code, stage = "state_spent", "admit"


class TaskRequired(Refusal):
    """The tool takes long and runs as a task only, and the caller takes no tasks."""

    code, stage = "task_required", "validate"


class UnknownTask(Refusal):
    """One and the same answer for a task that does not exist and one that is somebody else's."""

    code, stage = "unknown_task", "resolve"


class BackendError(BrokerError):
    code, stage = "backend_error", "dispatch"


class Unavailable(BackendError):
    """No byte of the request left: connecting failed, the breaker is open, the bulkhead is full."""

    code, retryable = "backend_unavailable", True


class Rejected(BackendError):
    """The backend answered, and its answer was no (an HTTP error status, a JSON-RPC error).

    said: the part of the message that is the backend's own words. They help the caller, who knows what it sent; but
    they may repeat any argument, so no record keeps them.
    """

    code = "backend_rejected"
    effect: Effect = "done"

    def __init__(self, message: str, *, said: str = "", next_step: str = "", **facts: Any) -> None:
        super().__init__(message, next_step=next_step, **facts)
        self.said = said

    @property
    def recorded(self) -> str:
        if not self.said:
            return self.sentence
        before, _, after = self.message.rpartition(self.said)
        return f"{before}[not kept]{after} {self.next_step}".strip()


class TimedOut(BackendError):
    code = "backend_timed_out"
    effect: Effect = "unknown"


class Broken(BackendError):
    """The connection ended, or what came back is not an answer."""

    code = "backend_broken"
    effect: Effect = "unknown"


class AnswerWithheld(BrokerError):
    code, stage = "answer_withheld", "inspect"
    effect: Effect = "done"


class OutcomeUnknown(BrokerError):
    code, stage = "outcome_unknown", "record"
    effect: Effect = "unknown"


class Cancelled(OutcomeUnknown):
    """Its caller cancelled the call while it was under way."""

    code, stage = "cancelled", "dispatch"


class Underway(BrokerError):
    """The call takes long and goes on as a task (fact `call_id`), which its caller asks for. No error of anybody."""

    code, stage = "under_way", "dispatch"
    effect: Effect = "unknown"


class InFlight(BrokerError):
    """The call of this idempotency key is under way; what becomes of it is not known yet. Nothing was sent again."""

    code, stage, retryable = "in_flight", "admit", True
    effect: Effect = "unknown"


class RecordUnavailable(BrokerError):
    code, stage, retryable = "record_unavailable", "admit", True


class Internal(BrokerError):
    code = "internal"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in a file: lines and columns count from 1; line 0 means the file as a whole."""

    file: str
    line: int
    column: int
    message: str

    def __lt__(self, other: Problem) -> bool:
        mine = (self.file, self.line, self.column, self.message)
        return mine < (other.file, other.line, other.column, other.message)

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return f"{place}: {self.message}"


class ConfigurationError(BrokerError):
    """Every problem at once, in the order of the files."""

    stage = "load"

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(sorted(set(problems)))
        super().__init__("\n".join(str(problem) for problem in self.problems))


class ManifestError(ConfigurationError):
    code = "manifest_error"


class SettingsError(ConfigurationError):
    code = "settings_error"
