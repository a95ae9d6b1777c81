"""The dashboard of migrations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grafana_foundation_sdk.builders.dashboard import Row

from rayvisor.ops.grafana.panels import RATE, dashboard, graph, stat

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders.dashboard import Dashboard


def migration() -> Dashboard:
    """What moved, and what it cost."""
    count, downtime, duration = (
        "rayvisor_cluster_migrations_total",
        "rayvisor_cluster_migration_downtime_seconds",
        "rayvisor_cluster_migration_duration_seconds",
    )
    return (
        dashboard("rayvisor-migration", "Rayvisor / Migration", "What moved.", [])
        .with_row(Row("Going on"))
        .with_panel(stat("Going on", "short", "count(rayvisor_vm_migration_phase)"))
        .with_panel(
            stat(
                "For, longest",
                "s",
                "max(rayvisor_vm_migration_elapsed_seconds)",
                limits=(120, 600),
            )
        )
        .with_panel(stat("Remaining", "bytes", "sum(rayvisor_vm_migration_remaining_bytes)"))
        .with_panel(stat("Sent", "bytes", "sum(rayvisor_vm_migration_sent_bytes)"))
        .with_panel(stat("Round, highest", "short", "max(rayvisor_vm_migration_round)"))
        .with_panel(
            stat(
                "Throttle, most",
                "percentunit",
                "max(rayvisor_vm_migration_throttle_ratio)",
                limits=(0.5, 0.9),
                about="The share of its time that a guest is held back so that its pages arrive.",
            )
        )
        .with_panel(
            graph(
                "Remaining",
                "bytes",
                (
                    (
                        "rayvisor_vm_migration_remaining_bytes"
                        " * on (vm) group_left (phase) rayvisor_vm_migration_phase"
                    ),
                    "{{vm}} {{phase}}",
                ),
            )
        )
        .with_panel(
            graph(
                "Written by the guest, and sent, a second",
                "Bps",
                ("rayvisor_vm_migration_dirty_bytes_per_second", "{{vm}} written"),
                ("rayvisor_vm_migration_sent_bytes_per_second", "{{vm}} sent"),
                about="Where more is written than sent, the migration does not converge.",
            )
        )
        .with_row(Row("Ended"))
        .with_panel(
            stat("Moved, in a day", "short", f'sum(increase({count}{{outcome="moved"}}[1d]))')
        )
        .with_panel(
            stat(
                "Failed, in a day",
                "short",
                f'sum(increase({count}{{outcome="failed"}}[1d]))',
                limits=(None, 1),
            )
        )
        .with_panel(
            stat(
                "Downtime, mean",
                "s",
                f"sum({downtime}_sum) / sum({downtime}_count)",
                limits=(0.3, 1),
                about="How long a guest stands still, over all that moved.",
            )
        )
        .with_panel(stat("Duration, mean", "s", f"sum({duration}_sum) / sum({duration}_count)"))
        .with_panel(stat("Sent", "bytes", "sum(rayvisor_cluster_migration_sent_bytes_total)"))
        .with_panel(stat("In maintenance", "short", "sum(rayvisor_cluster_host_maintenance)"))
        .with_panel(
            graph(
                "Migrations that ended, in 5 minutes",
                "short",
                (f"sum by (outcome) (increase({count}[5m]))", "{{outcome}}"),
            )
        )
        .with_panel(
            graph(
                "Sent, a second",
                "Bps",
                (f"sum(rate(rayvisor_cluster_migration_sent_bytes_total[{RATE}]))", "all"),
            )
        )
        .with_panel(
            graph(
                "Downtime, over an hour",
                "s",
                (f"histogram_quantile(0.5, sum by (le) (rate({downtime}_bucket[1h])))", "median"),
                (f"histogram_quantile(0.95, sum by (le) (rate({downtime}_bucket[1h])))", "95 %"),
                limits=(0.3, 1),
            )
        )
        .with_panel(
            graph(
                "Duration, over an hour",
                "s",
                (f"histogram_quantile(0.5, sum by (le) (rate({duration}_bucket[1h])))", "median"),
                (f"histogram_quantile(0.95, sum by (le) (rate({duration}_bucket[1h])))", "95 %"),
            )
        )
    )
