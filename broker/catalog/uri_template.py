"""Which URIs a resource template stands for: RFC 6570 as far as matching needs it, in linear time.

A template comes from a server and a URI from an agent, neither of whom is trusted, so this is no regular expression:
each step goes once over the URI, whatever the two of them think of.

    {x}      one or more signs without / ? #          {/x}  nothing, or / and anything without ? #
    {+x}     one or more signs of any kind            {?x}  nothing, or ? and anything without #
    {x*}     as {x}, but / may be among them          {&x}  nothing, or & and anything without #
    {#x}     nothing, or # and anything               {.x}, {;x}  nothing, or the sign and anything without / ? #

What must not live here: what a template's variables mean; the server that offered it expands its own.
"""

from __future__ import annotations

import re
from typing import Self

from broker.data import dataclass

MAX_SIGNS = 2048
MAX_EXPRESSIONS = 16

_EXPRESSION = re.compile(r"\{([+#./;?&]?)([A-Za-z0-9_.%,:*-]+)\}")
_FORBIDDEN = {"": "/?#", "+": "", "#": "", "/": "?#", "?": "#", "&": "#", ".": "/?#", ";": "/?#"}


@dataclass(frozen=True, slots=True)
class _Any:
    """start: the sign it begins with, "" for none; what begins with a sign may be absent."""

    start: str
    forbidden: str


@dataclass(frozen=True, slots=True)
class UriTemplate:
    text: str
    variables: tuple[str, ...]
    _steps: tuple[str | _Any, ...]

    @classmethod
    def compile(cls, text: str) -> Self:
        """Raises ValueError for what is no template of this form, or one with no literal beginning."""
        steps: list[str | _Any] = []
        variables: list[str] = []
        at = 0
        for found in _EXPRESSION.finditer(text):
            steps.append(text[at : found.start()])
            operator, names = found[1], [name.split(":")[0] for name in found[2].split(",")]
            variables += [name.rstrip("*") for name in names]
            exploded = any(name.endswith("*") for name in names)
            forbidden = "?#" if exploded and operator == "" else _FORBIDDEN[operator]
            steps.append(_Any(operator.replace("+", ""), forbidden))
            at = found.end()
        steps.append(text[at:])
        literals = "".join(step for step in steps if isinstance(step, str))
        if "{" in literals or "}" in literals or len(text) > MAX_SIGNS or len(variables) > MAX_EXPRESSIONS:
            raise ValueError("it is not a URI template that can be matched")
        if ":" not in str(steps[0]):
            raise ValueError("it does not begin with the scheme of its URIs")
        return cls(text, tuple(variables), tuple(step for step in steps if step))

    def matches(self, uri: str) -> bool:
        """Whether the template may stand for this URI."""
        if len(uri) > MAX_SIGNS:
            return False
        ends = {0}
        for step in self._steps:
            if isinstance(step, str):
                ends = {end + len(step) for end in ends if uri.startswith(step, end)}
            else:
                ends = _after(step, uri, ends)
            if not ends:
                return False
        return len(uri) in ends


def _after(step: _Any, uri: str, ends: set[int]) -> set[int]:
    """Where the URI may go on after this expression, from any of these places."""
    found = set(ends) if step.start else set[int]()
    begun = False
    for at in range(min(ends), len(uri)):
        sign = uri[at]
        begun = (begun and sign not in step.forbidden) or (
            at in ends and (sign == step.start if step.start else sign not in step.forbidden)
        )
        if begun:
            found.add(at + 1)
    return found
