"""Write the dashboards' JSON beside this file."""

from __future__ import annotations

from pathlib import Path

from rayvisor.ops.grafana.dashboards import ALL, render

for name, build in ALL.items():
    Path(__file__).with_name(f"{name}.json").write_text(render(build), encoding="utf-8")
