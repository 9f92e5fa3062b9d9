"""Rules and dashboards: Prometheus accepts them, they fire as they should, and name no series but ours."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from infra.metrics import LABELS, every_series, names
from tests.support.services import require

INFRA = Path(__file__).parent.parent.parent / "infra"
RULES = sorted((INFRA / "prometheus" / "rules").glob("*.yaml"))
BOARDS = sorted((INFRA / "grafana").glob("*.json"))
OF_PROMETHEUS = {"ALERTS"}
WANTED_ALERTS = {
    "ChoraleNoStepProgress",
    "ChoraleRestartStorm",
    "ChoraleVramNearlyFull",
    "ChoraleStraggler",
    "ChoraleQueueOlderThanItsWindow",
    "ChoraleStoreFailing",
    "ChoraleNodeLost",
    "ChoraleDeadlineAtRisk",
}
SERIES_WITHOUT_A_PANEL = {"chorale_database_up", "chorale_model_seconds_total", "chorale_node_unhealthy"}
"""An alert and a rule are enough."""


def promtool(*words: str) -> str:
    require(shutil.which("promtool"), "promtool", "prometheus")
    finished = subprocess.run(["promtool", *words], capture_output=True, text=True, timeout=60)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def rules() -> list[dict[str, Any]]:
    groups = [group for path in RULES for group in yaml.safe_load(path.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"]]


def recorded() -> set[str]:
    return {rule["record"] for rule in rules() if "record" in rule}


def series_of(promql: str) -> set[str]:
    """The names that an expression asks for, by Prometheus' own grammar."""
    found = set()

    def look(node: Any) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            assert node.name, promql
            found.add(node.name)
        return True

    promql_parser.walk(promql_parser.parse(promql), pre_visit=look)
    return found


def panels(board: Path) -> list[dict[str, Any]]:
    return [panel for panel in json.loads(board.read_text())["panels"] if panel["type"] != "row"]


def asked_by(board: Path) -> Iterator[str]:
    """The PromQL of a dashboard, with its variables filled in."""
    document = json.loads(board.read_text())
    raw = [target["expr"] for panel in panels(board) for target in panel["targets"]]
    raw += [note["expr"] for note in document["annotations"]["list"] if "expr" in note]
    for variable in document["templating"]["list"]:
        if variable["type"] == "query":
            match = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"])
            assert match and match[2] in LABELS, variable
            raw.append(match[1])
    for promql in raw:
        filled = promql.replace("$__rate_interval", "1m").replace("$queue", "q").replace("$node", "n")
        assert "$" not in filled, promql
        yield filled


def test_promtool_accepts_the_rules_and_the_example() -> None:
    promtool("check", "rules", *map(str, RULES))
    promtool("check", "config", str(INFRA / "prometheus" / "prometheus.yaml"))


def test_promtool_sees_every_alert_fire() -> None:
    tests = INFRA / "prometheus" / "tests" / "alerts.yaml"
    promtool("test", "rules", str(tests))
    alerts = {rule["alert"] for rule in rules() if "alert" in rule}
    assert alerts >= WANTED_ALERTS
    fired = {
        alert["alertname"]
        for test in yaml.safe_load(tests.read_text())["tests"]
        for alert in test.get("alert_rule_test", [])
        if alert["exp_alerts"]
    }
    assert fired == alerts


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("record") or rule["alert"])
def test_rules_name_only_series_that_are_exported(rule: dict[str, Any]) -> None:
    assert series_of(rule["expr"]) <= names() | recorded()
    if "alert" in rule:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "description"}


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.stem)
def test_dashboards_name_only_series_that_are_exported_or_recorded(board: Path) -> None:
    asked = list(asked_by(board))
    assert len(asked) > 20
    for promql in asked:
        assert series_of(promql) <= names() | recorded() | OF_PROMETHEUS, promql


def test_every_series_is_looked_at_by_a_rule_or_a_dashboard() -> None:
    by_rules = {rule.get("record"): series_of(rule["expr"]) for rule in rules()}
    seen = {name for board in BOARDS for promql in asked_by(board) for name in series_of(promql)}
    seen |= {name for record in seen & by_rules.keys() for name in by_rules[record]} | SERIES_WITHOUT_A_PANEL
    unseen = {series.name for series in every_series() if not seen & set(series.exported())}
    assert not unseen


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.stem)
def test_dashboards_are_of_the_form_that_grafana_imports(board: Path) -> None:
    document = json.loads(board.read_text())
    assert document["uid"] == f"chorale-{board.stem}" and document["schemaVersion"] >= 36
    assert "id" not in document, "Grafana gives it"
    everything = document["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    taken = set()
    for panel in everything:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken and place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells
    for panel in panels(board):
        assert panel["description"] and panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        units = [panel["fieldConfig"]["defaults"].get("unit"), panel["options"].get("yAxis", {}).get("unit")]
        assert any(units) or panel["type"] == "table", panel["title"]


def test_a_name_that_is_not_exported_is_found() -> None:
    assert series_of('sum(rate(chorale_no_such_total{node="a"}[5m])) > 1') == {"chorale_no_such_total"}
    assert "chorale_no_such_total" not in names()


def test_labels_are_bounded_and_units_are_base_units() -> None:
    for series in every_series():
        assert set(series.labels) <= LABELS or series.name == "chorale_build_info", series
        assert series.name.startswith("chorale_") and series.help.endswith("."), series
        assert (series.kind == "counter") == series.name.endswith("_total"), series
        assert (series.kind == "histogram") <= series.name.endswith("_seconds"), series
        assert not re.search(r"_(ms|millis|kb|mb|mib|gib|percent)\b", series.name), series
