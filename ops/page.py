"""The samples of one scrape, as `prometheus_client` has them or as text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from prometheus_client import Metric as Family

from rayvisor.ops import metrics

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rayvisor.ops.event_book import Histogram

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_ESCAPES: Final = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


class Page:
    """Samples by metric, in the order of `metrics.ALL`.

    A host of a hundred VMs has three thousand samples, and half of the time a scrape may take
    would go into `prometheus_client`'s writing them out; so `text` does it without its objects.
    """

    def __init__(self, scope: metrics.Scope) -> None:
        mine = [m for m in metrics.ALL if m.scope is scope or m is metrics.BUILD_INFO]
        self._samples: dict[metrics.Metric, list[tuple[tuple[str, ...], float]]] = {
            m: [] for m in mine if m.kind is not metrics.Kind.HISTOGRAM
        }
        self._histograms: dict[metrics.Metric, list[tuple[tuple[str, ...], Histogram]]] = {}

    def add(self, metric: metrics.Metric, value: float, *labels: str) -> None:
        """One sample; label values in the order of the metric's labels."""
        self._samples[metric].append((labels, value))

    def add_histogram(self, metric: metrics.Metric, histogram: Histogram, *labels: str) -> None:
        """A histogram, as it is when the page is read; labels as in `add`."""
        self._histograms.setdefault(metric, []).append((labels, histogram))

    def families(self) -> Iterable[Family]:
        """Metrics that have samples; one that is not measured here is not shown."""
        for metric, samples in self._samples.items():
            if not samples:
                continue
            family = Family(_family_name(metric), metric.help, metric.kind.value)
            for labels, value in samples:
                named = dict(zip(metric.labels, labels, strict=True))
                family.add_sample(metric.full_name, named, value)
            yield family
        for metric, histograms in self._histograms.items():
            family = Family(metric.full_name, metric.help, metric.kind.value)
            for labels, histogram in histograms:
                named = dict(zip(metric.labels, labels, strict=True))
                for suffix, bound, value in _flat(histogram):
                    limit = {"le": bound} if bound else {}
                    family.add_sample(metric.full_name + suffix, named | limit, value)
            yield family

    def text(self) -> bytes:
        """The text format, version 0.0.4 (prometheus.io/docs/instrumenting/exposition_formats)."""
        lines: list[str] = []
        for metric, samples in self._samples.items():
            if not samples:
                continue
            name = metric.full_name
            lines += (f"# HELP {name} {metric.help}\n", f"# TYPE {name} {metric.kind}\n")
            if not metric.labels:
                lines += [f"{name} {_number(value)}\n" for _, value in samples]
                continue
            shape = ",".join(f'{label}="%s"' for label in metric.labels)
            form = f"{name}{{{shape}}} "
            lines += [
                form % tuple(map(_escaped, labels)) + _number(value) + "\n"
                for labels, value in samples
            ]
        for metric, histograms in self._histograms.items():
            name = metric.full_name
            lines += (f"# HELP {name} {metric.help}\n", f"# TYPE {name} {metric.kind}\n")
            for labels, histogram in histograms:
                named = [
                    f'{label}="{_escaped(text)}"'
                    for label, text in zip(metric.labels, labels, strict=True)
                ]
                lines += [
                    f"{name}{suffix}{_braced(named, bound)} {value!r}\n"
                    for suffix, bound, value in _flat(histogram)
                ]
        return "".join(lines).encode()


def _flat(histogram: Histogram) -> Iterable[tuple[str, str, float]]:
    """(suffix of the name, upper bound, value) of each sample; buckets add up."""
    so_far = 0
    for bound, count in zip((*histogram.bounds, math.inf), histogram.counts, strict=True):
        so_far += count
        yield "_bucket", "+Inf" if bound == math.inf else repr(bound), so_far
    yield "_count", "", so_far
    yield "_sum", "", histogram.total


def _braced(named: list[str], bound: str) -> str:
    within = ",".join([*named, f'le="{bound}"'] if bound else named)
    return f"{{{within}}}" if within else ""


def _family_name(metric: metrics.Metric) -> str:
    name = metric.full_name
    return name.removesuffix("_total") if metric.kind is metrics.Kind.COUNTER else name


def _escaped(value: str) -> str:
    return value if value.isalnum() else value.translate(_ESCAPES)


def _number(value: float) -> str:
    """As Go reads it: Python's notation does for every number that is finite, as ours are."""
    return repr(value)
