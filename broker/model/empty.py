"""What makes objects cheap to make, for those of which each call of a tool makes one.

`nothing` is the default of fields that hold a JSON object: `dict[str, Any]`, which says the same to a type checker,
takes seven times as long to call. And the classes that refer to this page are not frozen, though nobody changes their
objects: setting the fields of a frozen one takes twice as long, which was a tenth of a call's work.
"""

from __future__ import annotations

from typing import Any


def nothing() -> dict[str, Any]:
    return {}
