"""The pages cannot lie: every command on them is run, every manifest is read, every link leads somewhere.

What a block is and how it is taken is said in `pages`. A block that is not run says why, on the page.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from broker.assembly import backend_kinds
from broker.catalog.compiler import compile_catalog
from broker.catalog.reader import read_manifests
from broker.settings import HoldSettings
from broker.settings_file import read_settings
from examples.demo.port import free_port
from tests.house import settings_page
from tests.house.pages import Block, Command, Session, base_environment, blocks, commands, matches

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LANGUAGES = {"console", "sh", "yaml", "yml", "text", "python", "mermaid"}
LINK = re.compile(r"\[[^\]]+\]\((?!https?://)([^)#]*)(#[^)]*)?\)")


def all_blocks() -> list[Block]:
    return [block for page in PAGES for block in blocks(page)]


def in_language(*languages: str) -> list[Block]:
    return [block for block in all_blocks() if block.language in languages and block.is_run]


def free_ports() -> Mapping[str, str]:
    """What the pages call 8750 and 8790, on this machine, now."""
    found: set[str] = set()
    while len(found) < 2:
        found.add(str(free_port()))
    return dict(zip(("8750", "8790"), found, strict=True))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_does_in_a_shell_what_it_says(page: Path, tmp_path: Path) -> None:
    ports = free_ports()
    home = tmp_path / "home"
    home.mkdir()
    environment = base_environment(Path(sys.executable).parent, home)
    session = Session(tmp_path, {**environment, "BROKER_LISTEN__PORT": ports["8750"]}, ports)
    try:
        for block in blocks(page):
            if block.note.startswith("file: "):
                session.write(block.note.removeprefix("file: "), block.text)
            elif block.language in ("console", "sh") and block.is_run:
                for command in commands(block):
                    trouble = session.run(command, background=block.note == "in the background")
                    assert not trouble, f"{block}: {trouble}"
    finally:
        session.close()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_manifests_of_a_page_are_one_catalog_without_a_problem(page: Path, tmp_path: Path) -> None:
    for number, block in enumerate(blocks(page)):
        if block.language == "yaml" and block.is_run and block.note != "settings":
            (tmp_path / f"{number:02}.yaml").write_text(block.text, "utf-8")
    kinds = backend_kinds()
    compile_catalog(read_manifests(tmp_path, kinds), kinds, {}, hold=HoldSettings())


@pytest.mark.parametrize("block", [one for one in in_language("yaml") if one.note == "settings"], ids=str)
def test_settings_on_a_page_are_read_without_a_problem(block: Block, tmp_path: Path) -> None:
    settings = tmp_path / "broker.yaml"
    settings.write_text(block.text, "utf-8")
    read_settings(settings, {})


@pytest.mark.parametrize("block", [one for one in all_blocks() if not one.is_run], ids=str)
def test_a_block_that_is_not_run_says_why(block: Block) -> None:
    assert re.fullmatch(r"not run: \S.{8,}", block.note)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_is_of_a_language_that_is_looked_at(page: Path) -> None:
    assert page.read_text("utf-8").count("\n```") == 2 * len(list(blocks(page)))
    assert {block.language for block in blocks(page)} <= LANGUAGES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target, anchor in LINK.findall(page.read_text("utf-8")):
        path = (page.parent / target) if target else page
        assert path.exists(), f"{page.name}: {target}"
        headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE) if path.suffix == ".md" else []
        anchors = {"#" + re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert not anchor or anchor in anchors, f"{page.name}: {target}{anchor}"


def test_the_page_of_settings_is_the_one_that_is_written_from_them() -> None:
    assert settings_page.PAGE.read_text("utf-8") == settings_page.page(), "run: python tests/house/settings_page.py"


def test_an_output_is_matched_with_its_gaps_and_nothing_else() -> None:
    assert matches("Wrote …\n…\nDone in … ms", "Wrote a file\nmore\nand more\nDone in 12 ms\n")
    assert matches("a   b", "a b")
    assert not matches("Wrote …", "Wrote a file\nand another")
    assert not matches("Done", "Not done")
    assert matches("", "")
    assert not matches("", "something")


def test_a_command_goes_on_after_a_backslash_and_keeps_its_output() -> None:
    block = Block("x.md", 1, "console", "", "$ echo a \\\n  b\na b\n$ true\n")
    assert list(commands(block)) == [Command("echo a   b", "a b"), Command("true", "")]
