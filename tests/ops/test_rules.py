"""Rules and dashboards: checked by promtool, complete, and about metrics that exist."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayvisor.ops import metrics
from rayvisor.ops.exposition import CLUSTER_PORT
from rayvisor.ops.grafana.dashboards import ALL, queries, render
from rayvisor.ops.prometheus_server import CLUSTER_ADDRESS, SHIPPED, configuration

ROOT = Path(__file__).resolve().parents[2]
GRAFANA = ROOT / "ops" / "grafana"
RUNBOOKS = ROOT / "docs" / "runbooks"
PANELS = {"stat", "timeseries"}
SUFFIXES = {
    metrics.Kind.GAUGE: ("",),
    metrics.Kind.COUNTER: ("",),
    metrics.Kind.HISTOGRAM: ("_bucket", "_sum", "_count"),
}

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is missing: apt-get install prometheus"
)


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((SHIPPED / "rules.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


ALERTS = [rule for rule in rules() if "alert" in rule]
KNOWN = {m.full_name + suffix for m in metrics.ALL for suffix in SUFFIXES[m.kind]} | {
    rule["record"] for rule in rules() if "record" in rule
}


def unknown_metrics(promql: str) -> set[str]:
    """Names in a query that look like metrics of ours and are none."""
    return set(re.findall(r"\b(?:\w+:)?rayvisor[\w:]*", re.sub(r'"[^"]*"', "", promql))) - KNOWN


def promtool(*words: str | Path) -> str:
    done = subprocess.run(["promtool", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_promtool
def test_the_configuration_is_valid(tmp_path: Path) -> None:
    promtool("check", "config", SHIPPED / "prometheus.yml")
    (tmp_path / "prometheus.yml").write_text(configuration("127.0.0.1:1", every_s=1))
    shutil.copy(SHIPPED / "rules.yaml", tmp_path)
    promtool("check", "config", tmp_path / "prometheus.yml")


def test_the_configuration_is_for_the_usual_port_and_any_other() -> None:
    assert f"127.0.0.1:{CLUSTER_PORT}" == CLUSTER_ADDRESS
    made = yaml.safe_load(configuration("127.0.0.1:1234", every_s=2))
    cluster, hosts = made["scrape_configs"]
    assert cluster["static_configs"] == [{"targets": ["127.0.0.1:1234"]}]
    assert hosts["http_sd_configs"][0]["url"] == "http://127.0.0.1:1234/sd"
    assert made["global"] == {"scrape_interval": "2s", "evaluation_interval": "2s"}


@needs_promtool
@pytest.mark.parametrize("file", sorted((SHIPPED / "tests").glob("*.yaml")), ids=lambda f: f.stem)
def test_the_rules_do_what_they_should(file: Path) -> None:
    assert "SUCCESS" in promtool("test", "rules", file)


def alerts_under_test() -> dict[str, set[bool]]:
    """Whether each alert fires, in all tests of it."""
    cases = yaml.safe_load((SHIPPED / "tests" / "alerts.yaml").read_text())["tests"]
    found: dict[str, set[bool]] = {}
    for case in cases:
        for test in case.get("alert_rule_test", ()):
            found.setdefault(test["alertname"], set()).add(bool(test["exp_alerts"]))
    return found


@pytest.mark.parametrize("rule", ALERTS, ids=lambda r: r["alert"])
def test_an_alert_is_tested_both_ways_and_has_a_runbook(rule: dict[str, Any]) -> None:
    assert alerts_under_test()[rule["alert"]] == {True, False}
    page = ROOT / rule["annotations"]["runbook_url"]
    assert page == RUNBOOKS / f"{rule['alert']}.md"
    text = page.read_text()
    assert text.startswith(f"# {rule['alert']}\n")
    for heading in ("## What it means", "## What to look at", "## What to do"):
        assert heading in text
    assert rule["labels"]["severity"] in {"warning", "critical"}


def test_there_is_no_runbook_without_an_alert() -> None:
    assert {page.stem for page in RUNBOOKS.glob("*.md")} == {rule["alert"] for rule in ALERTS}


@pytest.mark.parametrize("rule", rules(), ids=lambda r: r.get("alert") or r["record"])
def test_a_rule_is_about_metrics_that_exist(rule: dict[str, Any]) -> None:
    assert unknown_metrics(rule["expr"]) == set()


def test_a_metric_that_is_none_would_be_found() -> None:
    assert unknown_metrics("sum(rate(rayvisor_vm_exit_total[1m])) + host:rayvisor_x:ratio") == {
        "rayvisor_vm_exit_total",
        "host:rayvisor_x:ratio",
    }


@pytest.mark.parametrize("name", ALL)
def test_the_rendered_dashboard_is_up_to_date(name: str) -> None:
    assert (GRAFANA / f"{name}.json").read_text() == render(ALL[name]), (
        "run: python -m rayvisor.ops.grafana"
    )


def test_there_is_no_rendered_dashboard_without_code() -> None:
    assert {path.stem for path in GRAFANA.glob("*.json")} == set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_every_panel_is_complete(name: str) -> None:
    import json

    panels = json.loads(render(ALL[name]))["panels"]
    shown = [p for p in panels if p["type"] != "row"]
    assert len({p["id"] for p in panels}) == len(panels) >= 10
    for panel in shown:
        assert panel["type"] in PANELS
        defaults = panel["fieldConfig"]["defaults"]
        assert defaults["unit"], panel["title"]
        assert defaults["thresholds"]["steps"][0]["value"] is None
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["targets"]
        if panel["type"] == "timeseries":
            assert all(t["legendFormat"] for t in panel["targets"]), panel["title"]


@pytest.mark.parametrize("name", ALL)
def test_a_dashboard_is_about_metrics_that_exist(name: str) -> None:
    found = queries(render(ALL[name]))
    assert len(found) >= 10
    for title, promql in found:
        assert unknown_metrics(promql) == set(), title


def test_provisioning_names_what_there_is() -> None:
    folder = GRAFANA / "provisioning"
    (source,) = yaml.safe_load((folder / "datasources" / "rayvisor.yaml").read_text())[
        "datasources"
    ]
    assert source["type"] == "prometheus"
    every = yaml.safe_load((SHIPPED / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == every
    (provider,) = yaml.safe_load((folder / "dashboards" / "rayvisor.yaml").read_text())["providers"]
    assert provider["type"] == "file"
