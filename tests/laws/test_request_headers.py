"""The headers of a request are the same whether lines were made for its kind or for itself alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.backends.headers import KINDS, Headers
from broker.backends.placement import Placed
from broker.backends.upstream import Lines
from broker.model.call import Call
from broker.model.principal import Principal

NAMES = ["X-One", "X-Two%s", "Accept", "x-fixed", "X-100%"]
SIGNS = st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f")
Asked = tuple[Placed, Call, tuple[str, str] | None]


@st.composite
def requests(draw: st.DrawFn) -> Asked:
    values = st.text(SIGNS, max_size=8) | st.just("%s %")
    placed = draw(st.lists(st.tuples(st.sampled_from(NAMES), values), unique_by=lambda one: one[0], max_size=3))
    call = Call("own", "tool", {}, Principal("a"), "api", 0)
    call.trace_parent = draw(st.sampled_from(["", "00-1", "00-2"]))
    call.sent_as = draw(st.sampled_from(["", "first"]))
    credential = st.tuples(st.sampled_from(["Authorization", "X-FIXED", "x-one"]), values)
    return Placed("POST", "/x", tuple(placed), draw(st.sampled_from([None, b"{}"]))), call, draw(st.none() | credential)


@given(st.lists(requests(), max_size=6))
def test_lines_of_a_kind_say_what_the_headers_are(asked: list[Asked]) -> None:
    headers = Headers({"Accept": "application/json", "X-Fixed": "100 %s", "X-50%": "%"})
    for one in (*asked, *asked):
        assert headers.lines(*one) == Lines.of(headers.of(*one).values())


def test_a_bounded_number_of_kinds_is_kept() -> None:
    headers, call = Headers({}), Call("own", "tool", {}, Principal("a"), "api", 0)
    for number in range(3 * KINDS):
        headers.lines(Placed("POST", "/x", ((f"X-{number}", "y"),), None), call)
    assert len(headers._kinds) <= KINDS  # pyright: ignore[reportPrivateUsage]
