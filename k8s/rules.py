"""Write the PrometheusRule from the rules that Prometheus itself is given.

    .venv/bin/python k8s/rules.py

kustomize cannot put a file's content into a resource of another kind, so the result is kept; a test
holds it to ops/prometheus/rules.yaml.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
RULES = HERE.parent / "ops" / "prometheus" / "rules.yaml"
OUT = HERE / "components" / "monitoring" / "prometheus-rule.yaml"
HEAD = "# Written by k8s/rules.py from ops/prometheus/rules.yaml, where the rules are explained.\n"


def prometheus_rule() -> dict[str, Any]:
    """The resource as the Prometheus Operator takes it."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "rayvisor"},
        "spec": {"groups": yaml.safe_load(RULES.read_text())["groups"]},
    }


if __name__ == "__main__":
    OUT.write_text(HEAD + yaml.safe_dump(prometheus_rule(), sort_keys=False, width=96))
