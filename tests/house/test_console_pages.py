"""What the console is made of cannot be turned against it: no inline script or style, no unescaped output, no file of
others that is not the one that was published."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from broker.faces import console
from broker.faces.console.rendering import POLICY, STATIC

ROOT = Path(console.__file__).parent
TEMPLATES = sorted((ROOT / "templates").glob("*.html"))
FORBIDDEN = {
    "an output that is not escaped": r"\|\s*safe\b|autoescape\s+false|Markup",
    "an inline script": r"<script(?![^>]*\bsrc=)",
    "an inline style": r"<style|\sstyle\s*=",
    "an event handler": r"\son[a-z]+\s*=|hx-on",
    "a script as a URL": r"javascript:",
    "an expression for htmx to evaluate": r"hx-vals|hx-vars|js:|hx-trigger=\"[^\"]*\[",
    "something from elsewhere": r"(src|href|action)\s*=\s*[\"'](?!/console|#|\?|{{ (where|following|further) }}|{{ link\()",  # noqa: E501
    "an attribute without quotes": r"\s[\w-]+=\{\{",
}


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
@pytest.mark.parametrize("what", FORBIDDEN)
def test_a_template_has_nothing_that_the_policy_would_have_to_allow(template: Path, what: str) -> None:
    html = re.sub(r"{%.*?%}", " ", template.read_text("utf-8"))
    assert not re.search(FORBIDDEN[what], html)


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("an output that is not escaped", "{{ x | safe }}"),
        ("an inline script", "<script>x</script>"),
        ("an inline style", "<p style=x>"),
        ("an event handler", "<p onclick=x>"),
        ("something from elsewhere", '<a href="//evil.example">'),
        ("something from elsewhere", '<a href="{{ url }}">'),
        ("an expression for htmx to evaluate", 'hx-trigger="click[x()]"'),
    ],
)
def test_what_a_template_must_not_have_is_found(what: str, text: str) -> None:
    assert re.search(FORBIDDEN[what], text)


def test_the_policy_allows_nothing_inline_and_nobody_elses() -> None:
    assert "unsafe" not in POLICY
    assert "http" not in POLICY
    assert "default-src 'none'" in POLICY
    assert "frame-ancestors 'none'" in POLICY


def test_files_of_others_are_the_published_ones_and_every_file_is_known() -> None:
    notice = (ROOT / "static" / "NOTICE").read_text("utf-8")
    told = dict(re.findall(r"^(\S+\.(?:js|css))\n(?:.*\n)*?  sha256 ([0-9a-f]{64})$", notice, re.MULTILINE))
    assert set(told) == {"htmx.min.js", "pico.min.css", "uplot.min.css", "uplot.min.js"}
    for name, digest in told.items():
        assert hashlib.sha256((ROOT / "static" / name).read_bytes()).hexdigest() == digest
    assert {path.name for path in (ROOT / "static").iterdir()} == {*STATIC, "NOTICE"}


def test_our_own_script_makes_no_html() -> None:
    script = "".join((ROOT / "static" / name).read_text("utf-8") for name in ("console.js", "charts.js"))
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(", script)
