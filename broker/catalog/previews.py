"""A preview against the two tools it joins: what is taken from the held call, and what is wrong with that."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from broker.catalog.draft import Draft, properties_of
from broker.document import did_you_mean
from broker.policies.preview import PreviewPlan, PreviewSpec


def planned(said: PreviewSpec, held: Draft, tool: Draft | None) -> PreviewPlan:
    """tool: None while its server has not brought it."""
    if said.arguments is not None:
        return PreviewPlan(said.tool, tuple(sorted(said.arguments.items())))
    both = properties_of(held.input_schema).keys() & (properties_of(tool.input_schema).keys() if tool else ())
    return PreviewPlan(said.tool, tuple((name, name) for name in sorted(both)))


def mistakes(plan: PreviewPlan, held: Draft, tool: Draft) -> Iterator[tuple[str, str]]:
    """(`tool` or `arguments`, a sentence)."""
    if tool.effect != "read":
        yield "tool", f"{tool.name} does not only read (effect: {tool.effect}); a preview must change nothing"
    given, there, takes = dict(plan.pairs), properties_of(held.input_schema), properties_of(tool.input_schema)
    for name, source in plan.pairs:
        if name not in takes and tool.is_closed:
            yield "arguments", f"{tool.name} has no argument {name!r}{did_you_mean(name, takes)}"
        if source not in there and held.is_closed:
            yield "arguments", f"{held.name} has no argument {source!r}{did_you_mean(source, there)}"
    required = cast("list[str]", tool.input_schema.get("required") or [])
    if missing := [name for name in required if name not in given]:
        yield "arguments", f"{tool.name} requires {missing[0]!r}; say which argument of {held.name} it is"
