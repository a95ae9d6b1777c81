"""The table of metrics keeps Prometheus' naming rules."""

from __future__ import annotations

import re

import pytest

from rayvisor.ops import metrics
from rayvisor.ops.metrics import ALL, Kind, Metric

LABELS = {
    *("vm", "host", "state", "kind", "mode", "part", "image", "outcome", "phase"),
    *("version", "python", "unicorn"),
}
"""Each has as many values as there are VMs, hosts or images, or as the code names."""


def test_names_are_unique() -> None:
    names = [m.full_name for m in ALL]
    assert len(set(names)) == len(names) > 25


def test_the_table_has_every_metric_of_the_module() -> None:
    assert set(ALL) == {v for v in vars(metrics).values() if isinstance(v, Metric)}


@pytest.mark.parametrize("metric", ALL, ids=lambda m: m.name)
def test_a_metric_is_named_as_prometheus_wants_it(metric: Metric) -> None:
    assert re.fullmatch(r"rayvisor_[a-z][a-z_]*[a-z]", metric.full_name)
    assert (metric.kind is Kind.COUNTER) == metric.name.endswith("_total")
    stem = metric.name.removesuffix("_total")
    if metric.unit:
        assert metric.unit in {"seconds", "bytes"}, "base units only"
        assert stem.endswith(f"_{metric.unit}")
    else:
        assert not stem.endswith(("_seconds", "_bytes", "_ms", "_mb", "_percent"))


@pytest.mark.parametrize("metric", ALL, ids=lambda m: m.name)
def test_a_metric_says_what_it_is_and_has_bounded_labels(metric: Metric) -> None:
    assert metric.help.endswith(".")
    assert set(metric.labels) <= LABELS
