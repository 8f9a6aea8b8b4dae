"""`broker schema`: the manifest format as JSON Schema, for editors."""

from __future__ import annotations

from broker.faces.cli.output import print_json


def schema() -> None:
    """Print the JSON Schema of manifests, for completion and checks in editors.

    Example:
      broker schema > manifest.schema.json
      # then as the first line of a manifest, for editors with the YAML language server:
      # yaml-language-server: $schema=../manifest.schema.json
    """
    from broker.assembly import backend_kinds
    from broker.catalog.manifest import json_schema

    print_json(json_schema(backend_kinds()))
