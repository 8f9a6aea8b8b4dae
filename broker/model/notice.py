"""What people outside are told of a held call: that it waits, that it was decided, that nobody decided.

A notice says who asks for what and where to look; argument values only where the operator has declared so, and then
those that the record keeps in clear.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from broker.data import dataclass

What = Literal["held", "decided", "escalated", "expiring", "expired", "withdrawn"]


@dataclass(frozen=True, slots=True)
class Notice:
    """id: the same however often it is sent. document: JSON; its fields are documented in docs/notifications.md."""

    id: str
    what: What
    at_ms: int
    document: Mapping[str, Any]

    @property
    def title(self) -> str:
        """One line for people."""
        facts = self.document
        who = f"{facts['agent']} for {facts['user']}" if facts.get("user") else facts["agent"]
        words = {
            "held": "waits for a decision",
            "escalated": "still waits, and is now for others too",
            "expiring": "still waits, and its time is nearly over",
            "expired": "expired: nobody decided",
            "withdrawn": "was withdrawn",
            "decided": f"was {facts.get('decision', 'decided')} by {facts.get('reviewer', 'somebody')}",
        }
        return f"{facts['tool']} by {who} {words[self.what]}"

    @property
    def text(self) -> str:
        """The rest, line by line, the link last."""
        facts = self.document
        lines = [f"Because: {facts['reason']} (rule {facts['rule']})"]
        if facts.get("review_reason"):
            lines.append(f"Reviewer: {facts['review_reason']}")
        if "arguments" in facts:
            lines += [f"{name}: {value}" for name, value in facts["arguments"].items()]
        return "\n".join([*lines, facts["link"]])
