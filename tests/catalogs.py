"""Catalogs from text for tests: the real static kind, and a tiny kind with an offer in place of a downstream server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ConfigDict

from broker.backends.static import KIND as STATIC
from broker.catalog.catalog import Catalog
from broker.catalog.compiler import compile_catalog
from broker.catalog.reader import Manifests, read_manifests
from broker.ports import Backend, BackendContext, BackendKind, Offer
from broker.settings import HoldSettings


class ServerSpec(BaseModel):
    model_config = ConfigDict(extra="forbid")
    timeout: float = 30.0


class ServerKind:
    name = "server"
    Spec = ServerSpec
    Action = None

    def compile(self, action: Any, input_schema: Mapping[str, Any], injected: Sequence[str]) -> object:
        raise ValueError("tools of a server come by import")

    def compile_import(self, entry: Mapping[str, Any]) -> object:
        return entry["name"]

    def build(self, name: str, spec: Any, context: BackendContext) -> Backend:
        raise NotImplementedError


KINDS = cast("Mapping[str, BackendKind]", {"static": STATIC, "server": ServerKind()})


def folder_with(tmp_path: Path, **files: str) -> Path:
    """A folder of manifests; `__` in a name stands for its dot, so `a__yaml` is a.yaml."""
    folder = tmp_path / "tool_manifests"
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def read(tmp_path: Path, text: str) -> Manifests:
    return read_manifests(folder_with(tmp_path, tools__yaml=text), KINDS)


def catalog_of(tmp_path: Path, text: str, **offers: Sequence[Mapping[str, Any]]) -> Catalog:
    """The catalog of this manifest text; offers: backend -> tools/list entries."""
    found = {name: Offer(tuple(tools)) for name, tools in offers.items()}
    return compile_catalog(read(tmp_path, text), KINDS, found, hold=HoldSettings())


def offered(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "description": f"{name} of a server", "inputSchema": {"type": "object"}, **more}
