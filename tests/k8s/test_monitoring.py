"""What monitoring gets on Kubernetes is what it gets elsewhere."""

from __future__ import annotations

import yaml

from tests.k8s.conftest import K8S, ROOT
from tests.k8s.rendering import Manifest, render

OPS = ROOT / "ops"


def of_kind(kind: str) -> list[Manifest]:
    return [m for m in render(K8S / "overlays" / "production") if m["kind"] == kind]


def test_rules_are_prometheus_own() -> None:
    (rule,) = of_kind("PrometheusRule")
    rules = yaml.safe_load((OPS / "prometheus" / "rules.yaml").read_text())
    assert rule["spec"] == rules, "run k8s/rules.py"


def test_every_dashboard_comes_along() -> None:
    files = {path.name: path.read_text() for path in (OPS / "grafana").glob("*.json")}
    maps = of_kind("ConfigMap")
    assert files
    assert {name: text for m in maps for name, text in m["data"].items()} == files
    for config in maps:
        assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
        # `kubectl apply` keeps a copy in an annotation, which may have 256 KiB.
        assert sum(map(len, config["data"].values())) < 250_000


def test_jobs_are_called_as_in_the_configuration() -> None:
    config = yaml.safe_load((OPS / "prometheus" / "prometheus.yml").read_text())
    jobs = {job["job_name"] for job in config["scrape_configs"]}
    named = {
        relabeling["replacement"]
        for monitor in of_kind("PodMonitor")
        for endpoint in monitor["spec"]["podMetricsEndpoints"]
        for relabeling in endpoint.get("relabelings", ())
        if relabeling["targetLabel"] == "job"
    }
    assert named == jobs


def test_monitors_select_the_clusters_pods() -> None:
    for monitor in of_kind("PodMonitor"):
        assert monitor["spec"]["selector"]["matchLabels"]["ray.io/cluster"] == "rayvisor"
