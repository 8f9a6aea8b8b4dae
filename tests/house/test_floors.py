"""Imports point down only: every import of every module is read and held against the floors.

A floor may import itself and what is listed for it. `settings`, `document` and `secrets` are service rooms beside the
stairs: any floor above `model` may enter them; `data` knows nothing of the broker, and is for all. `pipeline` may name
what the catalog hands it, which is defined in `policies`. Only the composition root sees everybody, and only what a
person starts (`__main__`, the CLI) sees the composition root.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import broker

ROOT = Path(broker.__file__).parent
SERVICE = {"settings", "document", "secrets"}
EVERYBODY = {"*"}

MAY_IMPORT: dict[str, set[str]] = {
    "data": set(),
    "errors": set(),
    "model": {"errors"},
    "settings": {"document"},
    "settings_file": {"errors", "settings", "document", "secrets"},
    "document": {"errors"},
    "secrets": {"errors", "ports"},
    "clock": {"settings"},
    "ports": {"errors", "model"},
    "policies": {"errors", "model", *SERVICE},
    "catalog": {"errors", "model", "policies", "ports", *SERVICE},
    "pipeline": {"errors", "model", "policies", "ports", "catalog", *SERVICE},
    "auth": {"errors", "model", "ports", *SERVICE},
    "authserver": {"errors", "model", "ports", *SERVICE},
    "backends": {"errors", "model", "ports", *SERVICE},
    "stores": {"errors", "model", "ports", *SERVICE},
    "telemetry": {"errors", "model", "ports", *SERVICE},
    "notifiers": {"errors", "model", "ports", *SERVICE},
    "faces": {"errors", "model", "ports", "catalog", "pipeline", *SERVICE},
    "reconciler": {"errors", "model", "ports", "catalog", "pipeline", *SERVICE},
    "checkpoint": {"errors", "model", "ports", *SERVICE},
    "verifier": set(),  # shares no code with what it checks
    "assembly": EVERYBODY,
    "faces.cli": EVERYBODY,
    "__main__": EVERYBODY,
    "": set(),
}


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor_of(module: str) -> str:
    return "faces.cli" if module == "faces.cli" or module.startswith("faces.cli.") else module.split(".", maxsplit=1)[0]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and name, without the leading `broker.`, of each import of our own, wherever it stands in the file."""
    package = ["broker", *path.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif not isinstance(node, ast.ImportFrom):
            continue
        else:
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{source}.{alias.name}" if source == "broker" else source for alias in node.names]
        for name in names:
            if name == "broker" or name.startswith("broker."):
                yield node.lineno, name.removeprefix("broker").removeprefix(".")


def is_allowed(floor: str, imported: str) -> bool:
    target = floor_of(imported)
    allowed = MAY_IMPORT[floor]
    return allowed is EVERYBODY or target == floor or target in allowed or imported in ("", "__version__", "data")


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_module_imports_its_own_floor_and_those_below(path: Path) -> None:
    floor = floor_of(name_of(path))
    wrong = [
        f"{path}:{line}: {floor} may not import broker.{name}"
        for line, name in imports(path)
        if not is_allowed(floor, name)
    ]
    assert not wrong, "\n".join(wrong)


def test_every_module_stands_on_a_floor_that_has_rules() -> None:
    assert {floor_of(name_of(path)) for path in modules()} <= MAY_IMPORT.keys()


def test_an_import_that_points_up_is_found() -> None:
    assert not is_allowed("model", "pipeline.call")
    assert not is_allowed("faces", "assembly")
    assert not is_allowed("backends", "stores.sqlite")
    assert is_allowed("pipeline", "model.call")
    assert is_allowed("faces.cli", "assembly")


def test_the_reader_of_imports_sees_relative_and_nested_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "model" / "x.py"
    source.parent.mkdir()
    source.write_text(
        "from ..pipeline import call\ndef f():\n    import broker.assembly\n    from broker import errors\n"
    )
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    assert [name for _, name in imports(source)] == ["pipeline", "assembly", "errors"]
