"""Previews: a safe call that is made before a held call is shown, so that its reviewer sees what it would come to.

`preview: {tool: orders_quote, arguments: {order: order_id}}`: a dry run, a quote, a difference. It is another tool of
the catalog that only reads, called as the held call's caller (pipeline/preview.py). What must not live here: whether
the tool is there and reads (catalog/compiler), and the call itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from broker.data import dataclass
from broker.policies.spec import Name, Spec

Argument = Annotated[str, Field(min_length=1, max_length=128)]


class PreviewSpec(Spec):
    tool: Name = Field(description="The tool that is called; it only reads.")
    arguments: dict[Argument, Argument] | None = Field(
        default=None,
        max_length=64,
        description="Its arguments, each with the name of the held call's argument that it takes its value from; "
        "absent: those that have the same name.",
    )


@dataclass(frozen=True, slots=True)
class PreviewPlan:
    """pairs: (argument of the preview, argument of the held call)."""

    tool: str
    pairs: tuple[tuple[str, str], ...]

    def arguments(self, held: Mapping[str, Any]) -> dict[str, Any]:
        """The preview's arguments; what the held call was not given, the preview is not given either."""
        return {name: held[source] for name, source in self.pairs if source in held}
