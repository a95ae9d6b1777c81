"""What an operator watches: metrics, dashboards, alert rules."""
