"""A dashboard as a picture (SVG), from the data of a Prometheus: for docs, and where no Grafana is.

The panels, their places, units, legends and queries are those of the rendered dashboard; what
Grafana fills in (`$__rate_interval`, variables that choose everything) is filled in here.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rayvisor.ops.prometheus_server import PrometheusServer

COLUMN_PX, ROW_PX, GAP_PX = 50, 26, 6
HEAD_PX = 46
LEGEND_ROWS: Final = 6
POINTS: Final = 120
VARIABLES: Final = {"$__rate_interval": "30s", "$host": ".+", "$vm": ".+"}
COLOURS: Final = (
    *("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd"),
    *("#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf"),
)
_SCALES: Final = {
    "bytes": ("B", 1024.0),
    "Bps": ("B/s", 1024.0),
    "short": ("", 1000.0),
    "none": ("", 1000.0),
    "ops": ("/s", 1000.0),
}

Course = tuple[str, list[tuple[float, float]]]
"""A legend, and its (Unix time, value) points."""


def draw(text: str, prometheus: PrometheusServer, begin_s: float, end_s: float) -> str:
    """The rendered dashboard `text` with what there was from `begin_s` to `end_s`, as SVG.

    Raises:
        PrometheusError: it refuses a query.
    """
    made = json.loads(text)
    parts: list[str] = []
    bottom = 0
    for panel, (x, y, width, height) in _placed(made["panels"]):
        bottom = max(bottom, y + height)
        if panel["type"] == "row":
            parts.append(_text(x + 4, y + 18, panel["title"].replace("$", ""), size=15, bold=True))
            continue
        courses = list(_courses(panel, prometheus, begin_s, end_s))
        parts.append(_rect(x, y, width, height))
        parts.append(_text(x + 8, y + 18, panel["title"], size=12, bold=True))
        show = _stat if panel["type"] == "stat" else _graph
        parts += show(panel, courses, (x, y, width, height), (begin_s, end_s))
    whole = 24 * COLUMN_PX
    return "\n".join(
        [
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole} {bottom + GAP_PX}"'
                ' font-family="sans-serif">'
            ),
            f'<rect width="{whole}" height="{bottom + GAP_PX}" fill="#f4f5f5"/>',
            _text(8, 30, made["title"], size=20, bold=True),
            *parts,
            "</svg>\n",
        ]
    )


def number(value: float, unit: str) -> str:
    """A value as a person reads it: "1.5 GiB", "12 ms", "40 %"."""
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit == "s":
        small = next((s for s in (("s", 1.0), ("ms", 1e3), ("us", 1e6)) if value * s[1] >= 1), None)
        name, factor = small or ("s", 1.0)
        return f"{value * factor:.3g} {name}"
    name, base = _SCALES.get(unit, ("", 1000.0))
    prefixes = ("", "Ki", "Mi", "Gi", "Ti") if base == 1024 else ("", "k", "M", "G", "T")
    step = 0
    while abs(value) >= base and step < len(prefixes) - 1:
        value /= base
        step += 1
    return f"{value:.3g} {prefixes[step]}{name}".strip()


def _placed(
    panels: Sequence[dict[str, Any]],
) -> Iterable[tuple[dict[str, Any], tuple[int, int, int, int]]]:
    """Panels with (x, y, width, height), side by side while there is room, as Grafana lays them."""
    x = y = line = 0
    for panel in panels:
        place = panel.get("gridPos", {})
        columns = 24 if panel["type"] == "row" else place.get("w", 12)
        rows = 1 if panel["type"] == "row" else place.get("h", 8)
        if x + columns > 24:
            x, y, line = 0, y + line, 0
        line = max(line, rows)
        yield (
            panel,
            (
                x * COLUMN_PX + GAP_PX // 2,
                HEAD_PX + y * ROW_PX + GAP_PX // 2,
                columns * COLUMN_PX - GAP_PX,
                rows * ROW_PX - GAP_PX,
            ),
        )
        x += columns


def _courses(
    panel: dict[str, Any], prometheus: PrometheusServer, begin_s: float, end_s: float
) -> Iterable[Course]:
    step_s = max(1.0, (end_s - begin_s) / POINTS)
    for target in panel["targets"]:
        promql = target["expr"]
        for variable, meaning in VARIABLES.items():
            promql = promql.replace(variable, meaning)
        answer = prometheus.get(
            "query_range", query=promql, start=str(begin_s), end=str(end_s), step=str(step_s)
        )
        for series in answer["result"]:
            points = [(t, float(v)) for t, v in series["values"] if v not in {"NaN", "+Inf"}]
            if points:
                yield _legend(target.get("legendFormat", ""), series["metric"]), points


def _legend(form: str, labels: dict[str, str]) -> str:
    return re.sub(r"{{\s*(\w+)\s*}}", lambda found: labels.get(found[1], ""), form)


def _unit(panel: dict[str, Any]) -> str:
    return str(panel["fieldConfig"]["defaults"]["unit"])


def _colour(panel: dict[str, Any], value: float) -> str:
    """By the panel's thresholds."""
    found = "green"
    for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]:
        if step["value"] is None or value >= step["value"]:
            found = step["color"]
    return str(found)


def _stat(
    panel: dict[str, Any],
    courses: Sequence[Course],
    place: tuple[int, int, int, int],
    _span: tuple[float, float],
) -> list[str]:
    x, y, width, height = place
    if not courses:
        return [_text(x + width // 2, y + height // 2 + 12, "-", size=26, middle=True)]
    value = courses[0][1][-1][1]
    shown = number(value, _unit(panel))
    colour = _colour(panel, value)
    return [_text(x + width // 2, y + height // 2 + 18, shown, size=26, middle=True, colour=colour)]


def _graph(
    panel: dict[str, Any],
    courses: Sequence[Course],
    place: tuple[int, int, int, int],
    span: tuple[float, float],
) -> list[str]:
    x, y, width, height = place
    shown = sorted(courses, key=lambda c: -max(v for _, v in c[1]))[:LEGEND_ROWS]
    left, top, right = x + 62, y + 30, x + width - 10
    bottom = y + height - 14 - 14 * len(shown)
    most = max((v for _, points in courses for _, v in points), default=1.0) or 1.0
    parts = []
    for share in (0.0, 0.5, 1.0):
        line = bottom - share * (bottom - top)
        parts.append(f'<path d="M{left} {line:.1f}H{right}" stroke="#ddd" stroke-width="1"/>')
        parts.append(_text(left - 4, line + 4, number(share * most, _unit(panel)), end=True))
    begin_s, end_s = span
    for index, (legend, points) in enumerate(shown):
        colour = COLOURS[index % len(COLOURS)]
        path = " ".join(
            f"{left + (t - begin_s) / (end_s - begin_s) * (right - left):.1f},"
            f"{bottom - v / most * (bottom - top):.1f}"
            for t, v in points
        )
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        )
        at = bottom + 18 + 14 * index
        parts.append(f'<rect x="{left}" y="{at - 8:.1f}" width="10" height="8" fill="{colour}"/>')
        last = number(points[-1][1], _unit(panel))
        parts.append(_text(left + 16, at, f"{legend}  {last}"))
    if not shown:
        parts.append(_text(x + width // 2, y + height // 2, "nothing", middle=True))
    return parts


def _rect(x: float, y: float, width: float, height: float) -> str:
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="3" fill="#fff"'
        ' stroke="#d8d9da"/>'
    )


def _text(
    x: float,
    y: float,
    text: str,
    *,
    size: int = 10,
    bold: bool = False,
    middle: bool = False,
    end: bool = False,
    colour: str = "#24292e",
) -> str:
    anchor = ' text-anchor="middle"' if middle else ' text-anchor="end"' if end else ""
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}"{anchor}{weight} fill="{colour}">'
        f"{escape(text)}</text>"
    )
