"""The headers of requests to an HTTP API: the backend's own, what the manifest places, the broker's, the credential.

Requests of one kind differ in values only. So of each kind the lines are made once, with places for the values, which
are put in for each request; what they say together is judged where it is sent (upstream.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

from broker.backends.placement import Placed
from broker.backends.upstream import Header, Lines
from broker.model.call import Call

KINDS = 256  # that are kept: a tool whose headers are optional has several


class _Kind(NamedTuple):
    """text: the lines, with %s for values. pick: which of the values in `Headers.lines`, in their order."""

    text: str
    number: int
    pick: Callable[[Sequence[str]], tuple[str, ...]]


class Headers:
    """fixed: those of every request of this backend."""

    def __init__(self, fixed: Mapping[str, str]) -> None:
        self._fixed: Mapping[str, Header] = _by_name(fixed)
        self._kinds: dict[tuple[Any, ...], _Kind] = {}
        self._usual: _Kind | None = None  # nothing is placed, there is a body, no trace and no credential

    def of(self, placed: Placed, call: Call, credential: tuple[str, str] | None = None) -> dict[str, Header]:
        """By name in lower case, each as it goes out. credential: name and value."""
        ids = (call.downstream_key, call.id)
        return self._merged(_named(placed.headers, ids, call.trace_parent, placed.body is not None), credential)

    def lines(self, placed: Placed, call: Call, credential: tuple[str, str] | None = None) -> Lines:
        """What `of` says."""
        usual = self._usual
        if usual and not placed.headers and placed.body is not None and not call.trace_parent and credential is None:
            return Lines((usual.text % (call.sent_as or call.id, call.id)).encode("latin-1"), usual.number)
        values = [call.sent_as or call.id, call.id, call.trace_parent]
        names = ()
        if placed.headers:
            names = tuple([name for name, _ in placed.headers])
            values += [value for _, value in placed.headers]
        if credential is not None:
            values.append(credential[1])
        what = names, not call.trace_parent, placed.body is None, credential and credential[0]
        kind = self._kinds.get(what) or self._learn(what, placed, call, credential)
        return Lines((kind.text % kind.pick(values)).encode("latin-1"), kind.number)

    def _learn(self, what: tuple[Any, ...], placed: Placed, call: Call, credential: tuple[str, str] | None) -> _Kind:
        marks = [f"\0{at}" for at in range(3 + len(placed.headers) + 1)]  # no value can begin so
        headers = [(name, mark) for (name, _), mark in zip(placed.headers, marks[3:], strict=False)]
        named = _named(headers, (marks[0], marks[1]), call.trace_parent and marks[2], placed.body is not None)
        merged = self._merged(named, credential and (credential[0], marks[-1]))
        order = [int(value[1:]) for _, value in merged.values() if value.startswith(b"\0")]
        shown = [
            (name.replace(b"%", b"%%"), b"%s" if value.startswith(b"\0") else value.replace(b"%", b"%%"))
            for name, value in merged.values()
        ]
        if len(self._kinds) >= KINDS:
            self._kinds.clear()
        text, number = Lines.of(shown)
        kind = self._kinds[what] = _Kind(text.decode("latin-1"), number, itemgetter(*order))  # the ids are always two
        if what == ((), True, False, None):
            self._usual = kind
        return kind

    def _merged(self, named: Mapping[str, str], credential: tuple[str, str] | None) -> dict[str, Header]:
        """A later one replaces an earlier one of its name."""
        headers = {**self._fixed, **_by_name(named)}
        if credential is not None:
            headers.update(_by_name(dict((credential,))))
        return headers


def _named(
    placed: Iterable[tuple[str, str]], ids: tuple[str, str], trace_parent: str, has_body: bool
) -> dict[str, str]:
    """The request's own headers: what the manifest places, and the broker's."""
    named = dict(placed) | {"Idempotency-Key": ids[0], "X-Broker-Call-Id": ids[1]}
    if trace_parent:
        named["traceparent"] = trace_parent
    if has_body:
        named["Content-Type"] = "application/json"
    return named


def _by_name(headers: Mapping[str, str]) -> dict[str, Header]:
    named: dict[str, Header] = {}
    for name, value in headers.items():
        lower, encoded = _spelled(name)
        named[lower] = (encoded, value.encode("latin-1"))
    return named


@lru_cache(maxsize=1024)
def _spelled(name: str) -> tuple[str, bytes]:
    """The names are those of manifests and our own, the same for every call."""
    return name.lower(), name.encode()
