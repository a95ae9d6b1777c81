"""The dashboard of fault tolerance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grafana_foundation_sdk.builders.dashboard import Row

from rayvisor.ops.grafana.panels import OF_VM, RATE, choice, dashboard, graph, stat

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders.dashboard import Dashboard


def ft() -> Dashboard:
    """Who is protected, how closely the secondaries follow, and what it costs."""
    return (
        dashboard(
            "rayvisor-ft",
            "Rayvisor / Fault tolerance",
            "VMs with a secondary.",
            [choice("vm", "label_values(rayvisor_vm_ft_state, vm)")],
        )
        .with_row(Row("Protection"))
        .with_panel(stat("Protected", "short", _in_state("protected|lagging")))
        .with_panel(
            stat("Unprotected", "short", _in_state("unprotected|seeding"), limits=(None, 1))
        )
        .with_panel(stat("Lagging", "short", _in_state("lagging"), limits=(1, None)))
        .with_panel(
            stat(
                "Failovers, in a day",
                "short",
                'sum(increase(rayvisor_cluster_events_total{kind="ft_failover"}[1d]))',
                limits=(1, None),
            )
        )
        .with_panel(
            stat(
                "Lag, worst",
                "s",
                f"max(rayvisor_vm_ft_lag_seconds{{{OF_VM}}})",
                limits=(0.2, 1),
                about="The guest's work that a failover now would do again; nobody has seen it.",
            )
        )
        .with_panel(
            stat(
                "Held output",
                "bytes",
                f"sum(rayvisor_vm_ft_held_output_bytes{{{OF_VM}}})",
                about="Output that waits for the checkpoint of its epoch.",
            )
        )
        .with_panel(
            graph(
                "State",
                "short",
                (f"sum by (state) (rayvisor_vm_ft_state{{{OF_VM}}})", "{{state}}"),
                stacked=True,
            )
        )
        .with_panel(
            graph(
                "Lag behind the guest",
                "s",
                (f"rayvisor_vm_ft_lag_seconds{{{OF_VM}}}", "{{vm}}"),
                limits=(0.2, 1),
            )
        )
        .with_panel(
            graph(
                "Epoch, and the pause at its end",
                "s",
                (f"rayvisor_vm_ft_epoch_seconds{{{OF_VM}}}", "{{vm}} epoch"),
                (f"rayvisor_vm_ft_pause_seconds{{{OF_VM}}}", "{{vm}} pause"),
            )
        )
        .with_panel(
            graph(
                "Epochs, a second",
                "ops",
                (f"rate(rayvisor_vm_ft_epochs_total{{{OF_VM}}}[{RATE}])", "{{vm}}"),
            )
        )
        .with_panel(
            graph(
                "Written and sent, a second",
                "Bps",
                (f"rate(rayvisor_vm_ft_dirty_bytes_total{{{OF_VM}}}[{RATE}])", "{{vm}} written"),
                (f"rate(rayvisor_vm_ft_sent_bytes_total{{{OF_VM}}}[{RATE}])", "{{vm}} sent"),
                about="Sent is compressed.",
            )
        )
        .with_panel(
            graph(
                "Written in the last epoch",
                "bytes",
                (f"rayvisor_vm_ft_dirty_bytes{{{OF_VM}}}", "{{vm}}"),
            )
        )
        .with_panel(
            graph(
                "Failovers since a VM was created",
                "short",
                (f"rayvisor_vm_ft_failovers_total{{{OF_VM}}}", "{{vm}}"),
            )
        )
        .with_panel(
            graph(
                "What happened, in 5 minutes",
                "short",
                (
                    'sum by (kind) (increase(rayvisor_cluster_events_total{kind=~"ft_.*"}[5m]))',
                    "{{kind}}",
                ),
            )
        )
    )


def _in_state(states: str) -> str:
    return f'sum(rayvisor_vm_ft_state{{{OF_VM},state=~"{states}"}})'
