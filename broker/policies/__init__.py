"""What may be done with a tool: one file per kind of policy, with its part of the manifest and its check.

A kind is one row here: `"module:KIND"`, a `PolicyKind`. `tests/contracts/test_policies.py` runs over this table. Slots:
`show` says who sees a tool, `authorise` whether a call may be made, `hold` what a reviewer is asked, `meter` what is
charged, `inspect` what of arguments and answers may be kept and handed on.

All is judged and compiled at load; at the time of a call there is no pydantic, no pattern and no name to look up. What
must not live here: I/O, a clock, or how a policy is matched with tools (catalog).
"""

from __future__ import annotations

from collections.abc import Mapping

POLICIES: Mapping[str, str] = {
    "toolset": "broker.policies.toolset:KIND",
    "scope": "broker.policies.scope:KIND",
    "rule": "broker.policies.rule:KIND",
    "hold": "broker.policies.hold:KIND",
    "quota": "broker.policies.quota:KIND",
    "answer": "broker.policies.answer:KIND",
}
