"""Which URIs a template stands for; and that nobody can make finding out slow."""

from __future__ import annotations

import pytest

from broker.catalog.uri_template import UriTemplate

STANDS_FOR = [
    ("file:///{name}", ["file:///a", "file:///a.b%2Fc"], ["file:///", "file:///a/b", "file:///a?b", "http:///a", "a"]),
    ("file:///{+path}", ["file:///a/b?c#d"], ["file:///"]),
    ("file:///{path*}", ["file:///a/b"], ["file:///a?b"]),
    ("db://{a}/t/{b}", ["db://x/t/y", "db://t/t/t"], ["db://x/y", "db://x/t/y/z", "db://x/t/"]),
    ("db://x{/rest}", ["db://x", "db://x/a/b"], ["db://xa", "db://x?a"]),
    ("db://x{?q,r}", ["db://x", "db://x?q=1&r=2"], ["db://x/q", "db://xq=1"]),
    ("db://x?a=1{&b}", ["db://x?a=1", "db://x?a=1&b=2"], ["db://x?a=12"]),
    ("db://x{#part}", ["db://x", "db://x#p/q"], ["db://xp"]),
    ("note:{id}", ["note:7"], ["note:"]),
    ("db://{a}{b}", ["db://xy"], ["db://x", "db://"]),
    ("plain://one", ["plain://one"], ["plain://one/two", "plain://"]),
]


@pytest.mark.parametrize(("template", "yes", "no"), STANDS_FOR)
def test_a_template_stands_for_its_uris_and_no_others(template: str, yes: list[str], no: list[str]) -> None:
    compiled = UriTemplate.compile(template)
    assert [uri for uri in yes if not compiled.matches(uri)] == []
    assert [uri for uri in no if compiled.matches(uri)] == []


def test_variables_are_named_in_order() -> None:
    assert UriTemplate.compile("db://{a}/{+b}{?c,d*}").variables == ("a", "b", "c", "d")


@pytest.mark.parametrize(
    "text", ["{+all}", "{scheme}://x", "file:///{", "file:///{a b}", "x" * 3000, "a:" + "{x}" * 20]
)
def test_what_cannot_be_matched_or_would_stand_for_everything_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"template|scheme"):
        UriTemplate.compile(text)


def test_a_template_that_would_keep_a_regular_expression_busy_for_ever_is_judged() -> None:
    compiled = UriTemplate.compile("a:" + "{+x}a" * 16 + "b")
    assert not compiled.matches("a:" + "a" * 2046)
    assert compiled.matches("a:" + "a" * 2000 + "b")
