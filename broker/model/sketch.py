"""What will be sent for one call, as a person is shown it before it is approved, and its digest.

A backend makes it with the code that sends (`Backend.sketch`), so what is shown is what is sent. Values of headers are
not in it: some are secrets, and the others follow from the manifest and the call's id.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import orjson

from broker.data import dataclass
from broker.model.canonical import digest


@dataclass(frozen=True, slots=True)
class Sketch:
    """method: HTTP's, or the protocol's own ("tools/call"). target: the whole URL, or the program that is spoken to.
    headers: names, in the order they go out. body: its text exactly, "" for none; what is not UTF-8 is never sent.
    """

    method: str
    target: str
    headers: tuple[str, ...] = ()
    body: str = ""

    @property
    def digest(self) -> str:
        """`sha256:` over all of it: recorded with the hold, and compared when the approved call runs."""
        return digest(asdict(self))

    def packed(self) -> bytes:
        return orjson.dumps(asdict(self))

    @classmethod
    def unpack(cls, packed: bytes) -> Sketch:
        fields: dict[str, Any] = orjson.loads(packed)
        fields["headers"] = tuple(fields["headers"])
        return cls(**fields)
