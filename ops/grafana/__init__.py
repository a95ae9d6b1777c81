"""Grafana dashboards as code; needs the development tools (grafana-foundation-sdk)."""
