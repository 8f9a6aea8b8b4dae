"""What is handed out for Prometheus and Grafana names metrics and labels that there are, and every metric is used."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.document import parse_file
from broker.faces.metrics import FAMILIES

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "monitoring"
NAME = re.compile(r"\b((?:broker|process)_[a-z_]+)\b(?:\{([^}]*)\})?")
LABEL = re.compile(r"(\w+)\s*(?:=~|!=|!~|=)")
LABELS = {"tool", "decision", "code", "rule", "agent", "backend", "state", "reason", "stage", "le", "unit", "quota",
          "kind", "version", "instance"}  # fmt: skip


def panels() -> list[Any]:
    return [one for one in json.loads((FOLDER / "dashboard.json").read_text())["panels"] if one["type"] != "row"]


def rules() -> list[Any]:
    document: Any = parse_file(FOLDER / "alerts.yaml").documents[0].data
    return [rule for group in document["groups"] for rule in group["rules"]]


def expressions() -> Iterator[str]:
    yield from (target["expr"] for panel in panels() for target in panel["targets"])
    yield from (rule["expr"] for rule in rules())


def families(expression: str) -> set[str]:
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name, _ in NAME.findall(expression)}


@pytest.mark.parametrize("expression", sorted(set(expressions())))
def test_an_expression_names_metrics_and_labels_that_there_are(expression: str) -> None:
    assert families(expression) <= FAMILIES.keys(), families(expression) - FAMILIES.keys()
    assert {label for _, inner in NAME.findall(expression) for label in LABEL.findall(inner)} <= LABELS
    assert expression.count("(") == expression.count(")")
    for name in families(expression):
        assert (FAMILIES[name][0] == "counter") == name.endswith("_total")
        assert FAMILIES[name][0] != "counter" or re.search(rf"(rate|increase)\([^()]*{name}", expression), name


def test_every_metric_of_ours_is_on_the_dashboard_or_in_a_rule() -> None:
    used = {name for expression in expressions() for name in families(expression)}
    ours = {name for name in FAMILIES if name.startswith("broker_")}
    assert ours - used <= {"broker_info", "broker_quota_buckets", "broker_catalog_tools"}


def test_every_panel_has_its_place_and_every_rule_its_words() -> None:
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels()]
    assert len(set(places)) == len(places) > 10
    for rule in rules():
        assert re.fullmatch(r"Broker[A-Za-z]+", rule["alert"])
        assert rule["labels"]["severity"] in {"page", "warn", "info"}
        assert rule["annotations"]["summary"] and rule["annotations"]["description"]


def test_every_metric_is_documented() -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text("utf-8")
    for name, (kind, what) in FAMILIES.items():
        assert f"| `{name}` | {kind} | {what} |" in page, name
